"""What measures speed measures it, and prints what it says."""

import re

import pytest

from experiments import accelerator, bench
from llama_jax import presets


def test_the_accelerators_table_has_a_row_for_each_batch(monkeypatch, capsys):
    args = "--preset tiny_decoder --prefill 64 --tokens 4 --dtype float32 --gigabytes 0.01"
    monkeypatch.setattr("sys.argv", ["accelerator", *args.split()])
    accelerator.main()
    rows = re.findall(
        r"^\| tiny_decoder \| (\d) \| ([\d.]+) \| \d+% \|", capsys.readouterr().out, re.M
    )
    assert [batch for batch, _ in rows] == ["1", "8"] and all(float(rate) > 0 for _, rate in rows)


def test_work_is_counted_as_two_operations_a_weight_and_token():
    model = presets.get("llama3_2_1b").model
    weights = 1_235_814_400 - 128_256 * 2048  # the tied embedding is looked up, not multiplied
    per_token = accelerator.flops(model, 1000) / 1000
    scores = 2 * 1000 * 16 * 32 * 64  # half of 4 T per layer, head and dimension
    assert per_token == pytest.approx(2 * weights + scores, rel=1e-3)
    # A step reads all weights once; the cache of 64 tokens is small beside them.
    assert accelerator.bytes_read(model, 1, 64, "bfloat16") == pytest.approx(
        2 * 1_235_814_400, rel=1e-2
    )


def test_the_table_of_the_bench_gives_medians_ranges_and_ratios_of_which_more_is_better():
    ours = {
        "prefill": 200.0,
        "decode": 30.0,
        "decode_8": 90.0,
        "load": 2.0,
        "first": 4.0,
        "peak": 500.0,
    }
    theirs = {key: 100.0 for key in ours} | {"load": 4.0}
    limits = {"bandwidth": 20.0, "gemm": 100.0, "prefill": 400.0, "decode": 40.0, "decode_8": 300.0}
    rounds = {"ours": [ours, ours, ours | {"prefill": 220.0, "load": 1.0}]}
    rounds |= {"transformers": [theirs] * 3, "limits": [limits] * 3}
    table = bench.table(rounds)
    prefill = "200 (200 to 220) | 100 (100 to 100) | 2.00 (2.00 to 2.20) | 50% |"
    assert f"| prefill, 512 tokens (tokens/s) | {prefill}" in table
    assert "| load (s) | 2 (1 to 2) | 4 (4 to 4) | 2.00 (2.00 to 4.00) |  |" in table
    assert "| 500 (500 to 500) | 100 (100 to 100) | 0.20 (0.20 to 0.20) |  |" in table


def test_the_bench_names_the_processor_and_every_release(monkeypatch):
    monkeypatch.setattr(bench, "PACKAGES", ("jax", "flax"))
    said = bench.machine()
    assert re.search(r"^\S.*, \d+ cores.*; jax [\d.]+, flax [\d.]+$", said), said
