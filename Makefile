# Every target sets up what it needs, in .venv, and is quick the second time. On a machine that has torch >= 2.11 and no
# network, `make test PYTHON=python3` uses that Python as it is and installs nothing.
ifdef PYTHON
  RUN   := $(PYTHON)
  READY :=
else
  RUN   := .venv/bin/python
  READY := .venv/ready
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-all lint claims figures results bench toy clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/ready: pyproject.toml constraints.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

setup: $(READY)  ## make .venv with everything that the other targets need

demo: $(READY)  ## see a model improve itself: a table, and a picture in runs/demo.png (two minutes)
	$(RUN) -m figures demo

test: $(READY)  ## the tests that run in minutes on a laptop
	$(RUN) -m pytest

test-all: $(READY)  ## all tests; what cannot run here is skipped and says why
	$(RUN) -m pytest -m "slow or not slow" -rs

lint: $(READY)  ## style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

claims: $(READY)  ## run the tests of every claim and write CLAIMS.md
	$(RUN) -m pytest -m claim --write-claims

figures: $(READY)  ## redraw every picture from the numbers in figures/results
	$(RUN) -m figures draw

results: $(READY)  ## compute one figure's numbers again: make results NAME=toy_world
	$(RUN) -m figures compute $(NAME)

bench: $(READY)  ## tokens per second, side by side with transformers
	$(RUN) -m figures compute bench_decode

toy: $(READY)  ## train the toy model from scratch (25 minutes) and measure it
	$(RUN) -m toy.pretrain
	$(RUN) -m toy.pretrain --card

clean:  ## remove what the other targets made, but not results
	rm -rf .venv build runs *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -exec rm -rf {} +
