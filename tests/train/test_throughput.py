"""Speeds, and what counts as good time."""

import json
import time

import numpy as np
import pytest

from llama_jax.train.throughput import SPEEDS, Machine, Rates

BATCH = {"text": {"ids": np.zeros((4, 3)), "text_valid": np.ones((4, 3), bool)}}


def test_speeds_are_those_of_all_processes_and_mfu_is_a_share_of_the_chips_peak():
    machine = Machine(devices=8, kind="TPU v5 lite", flops=197e12, shares=2)
    speeds = machine.speeds(steps=10, rows=40, tokens=400, seconds=2.0)
    assert speeds == {
        "seconds_per_step": 0.2,
        "examples_per_second": 40.0,
        "tokens_per_second": 400.0,
        "tokens_per_second_per_device": 50.0,
        "tflops_per_device": 197 * 10 / 2 / 8,
        "mfu": 10 / 2 / 8,
    }


def test_a_chip_without_a_peak_and_a_model_without_a_count_have_no_mfu():
    assert Machine(kind="cpu", flops=1e9).speeds(1, 1, 1, 1.0)["mfu"] is None
    unknown = Machine(kind="TPU v4").speeds(1, 1, 1, 1.0)
    assert unknown["mfu"] is None and unknown["tflops_per_device"] is None
    assert Machine().speeds(0, 0, 0, 1.0) == dict.fromkeys(SPEEDS)


def test_waiting_for_data_is_a_share_of_the_lap_and_a_pause_is_no_part_of_it(tmp_path):
    rates = Rates()
    rates.resume(tmp_path / "none")
    rates.begin(Machine())
    rates.count(BATCH)
    with rates.waiting():
        time.sleep(0.05)
    with rates.pause():
        time.sleep(0.2)
    lap = rates.lap()
    assert 0.3 < lap["data_wait"] <= 1 and lap["seconds_per_step"] < 0.2
    assert lap["memory_gb"] > 0.01
    assert rates.lap()["data_wait"] < 0.3


def test_goodput_leaves_out_skipped_steps_lost_steps_and_the_time_between_two_starts(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    now = time.time()
    # Began 100 s ago; 30 good seconds until the step from which it goes on.
    lines = [
        {"step": 1, "time": now - 90, "seconds": 10.0, "good_seconds": 5.0, "skipped": 1.0},
        {"step": 9, "time": now - 60, "seconds": 40.0, "good_seconds": 30.0, "skipped": 2.0},
        {"step": 9, "vqa/accuracy": 0.5},
    ]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rates = Rates()
    rates.resume(metrics)
    rates.begin(Machine())
    rates.count(BATCH)
    time.sleep(0.05)
    lap = rates.lap(skipped=3.0)  # the one step of the lap was skipped
    assert lap["good_seconds"] == 30.0
    assert lap["goodput"] == pytest.approx(0.3, abs=0.01)
    rates.count(BATCH)
    time.sleep(0.05)
    assert rates.lap(skipped=3.0)["good_seconds"] > 30.04
