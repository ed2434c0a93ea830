"""The bench of attention measures what is right, says what is not, and writes its files."""

import json

import jax.numpy as jnp

from experiments import bench_attention
from experiments.bench_attention import Shape

TINY = (
    "--lengths 64 --tokens 64 --heads 4 --group 2 --head-dim 16 --keys 64 --batch 2 --rounds 1 "
    "--gigabytes 0.001 --dtype float32"
).split()
RIGHT, OTHER = "ours: xla", "jax.nn: xla"


def test_tables_numbers_and_a_plot_are_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        "sys.argv", ["bench", *TINY, "--out", str(tmp_path), "--only", RIGHT, OTHER]
    )
    bench_attention.main()
    text = capsys.readouterr().out
    assert text == (tmp_path / "attention.md").read_text()
    # Forward, with backward, and decoding.
    assert text.count(f"| {RIGHT} |") == text.count(f"| {OTHER} |") == 3
    found = json.loads((tmp_path / "attention.json").read_text())
    assert set(found["passes"][0]["seconds"]) == set(found["decoding"]["seconds"]) == {RIGHT, OTHER}
    assert (tmp_path / "attention.png").stat().st_size > 10_000


def test_what_is_wrong_or_fails_is_named_and_not_timed(monkeypatch, capsys):
    right = bench_attention.ways

    def ways(shape, decoding):
        return {
            RIGHT: right(shape, decoding)[RIGHT],
            "wrong": lambda q, k, v: q + jnp.mean(k) + jnp.mean(v),
            "broken": lambda q, k, v: q @ jnp.ones((7, 7)),
        }

    monkeypatch.setattr(bench_attention, "ways", ways)
    monkeypatch.setattr("sys.argv", ["bench", *TINY, "--json", "--only", RIGHT, "wrong", "broken"])
    bench_attention.main()
    found = json.loads(capsys.readouterr().out)
    assert set(found["decoding"]["seconds"]) == {RIGHT}
    assert found["decoding"]["failed"]["wrong"].startswith("wrong by ")
    assert found["passes"][0]["failed"]["broken"].startswith("TypeError")


def test_work_is_half_of_the_scores_and_all_keys():
    shape = Shape(2, 1024, 1024, 8, 2, 64, "bfloat16")
    assert shape.flops == 4 * 2 * 8 * 1024 * 1024 * 64 / 2
    assert shape.bytes == 2 * 2 * 1024 * 2 * 64 * 2
    kept = {"T": 1024, "seconds": {"x": {"forward": 0.5, "backward": 1.0}}}
    kept |= {n: getattr(shape, n) for n in "BSNKH"} | {"dtype": shape.dtype}
    assert bench_attention._rate(kept, "x", "forward", 1e10) == ("0.00429 (43%)")
