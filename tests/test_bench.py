"""The limit that the bench quotes is the roofline of decoding, with the numbers of two published shapes."""

import pytest
import torch

from figures import bench_limits
from figures.bench_limits import SHAPES, limit
from reference.transformer import Config, Transformer

H100 = {"bandwidth": 3.35e12, "arithmetic": 989e12}
H200 = {"bandwidth": 4.8e12, "arithmetic": 989e12}


def assert_roofline():
    """Tokens per second at context 1024, from weights of 0.988 and 14.14 GB and 12 and 56 KiB per position."""
    for shape, rows, ceiling, speed in (
        ("0.5B", 1, H100, 3.35e12 / (0.988e9 + 1024 * 12288)),
        ("0.5B", 64, H100, 64 * 3.35e12 / (0.988e9 + 64 * 1024 * 12288)),
        ("7B", 64, H200, 64 * 4.8e12 / (14.14e9 + 64 * 1024 * 57344)),
        ("7B", 1024, {**H200, "bandwidth": 1e15}, 989e12 / (2 * 7.07e9 + 4 * 28 * 3584 * 1024)),
    ):
        with torch.device("meta"):
            model = Transformer(Config.from_dict(SHAPES[shape])).to(torch.bfloat16)
        assert rows / limit(model, ceiling, rows, 1024) == pytest.approx(speed, rel=1e-3)


def test_limits_are_the_roofline():
    assert_roofline()


def test_a_roofline_without_the_cache_is_caught(monkeypatch):
    monkeypatch.setattr(Transformer, "kv_bytes_per_token", lambda model: 0)
    with pytest.raises(AssertionError):
        assert_roofline()


def test_the_measured_ceilings_are_in_their_units():
    """A machine reads and multiplies something: between 0.1 and 10^5 GB/s, and 0.1 and 10^7 Gflop/s."""
    kept = bench_limits.ceilings("cpu", torch.float32, mebibytes=8, side=256)
    assert 1e8 < kept["bandwidth"] < 1e14 and 1e8 < kept["arithmetic"] < 1e16


def tiny(max_length=1024) -> Transformer:
    torch.manual_seed(0)
    source = {
        "model_type": "qwen3", "vocab_size": 600, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "head_dim": 4, "max_position_embeddings": max_length,
    }  # fmt: skip
    return Transformer(Config.from_dict(source)).requires_grad_(False)


def test_every_kind_of_row_counts_its_tokens():
    """Decoding, power sampling, SMC, scoring, training; SMC's answers all have ANSWER tokens, power sampling's more."""
    rows = bench_limits.measure(tiny(), (1, 32), H100)["rows"]
    assert [row["what"] for row in rows] == ["decode", "decode", "power", "smc", "score", "train"]
    kept = {row["what"]: row for row in rows}
    assert kept["smc"]["tokens"] == 32 * bench_limits.ANSWER < kept["power"]["tokens"]
    assert all(0 < row["limit"] < min(row["seconds"]) for row in rows)


def test_what_500_answers_would_take_is_the_slice_scaled_by_theory():
    """By the number of answers, and by more than their length but less than its square."""
    out = bench_limits.math500(tiny(), answer=40, chains=3)
    assert out["all"] > out["seconds"] * 500 / 3 * 679 / 40
    assert out["all"] < out["seconds"] * 500 / 3 * (679 / 40) ** 2
