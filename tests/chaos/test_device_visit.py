"""A visit to a device: what hangs or dies costs itself alone, and a rehearsal on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.device_visit import Visit, summary

ROOT = Path(__file__).parents[2]


def visit(out, budget, start=60.0):
    words = ["--part", "a", "--out", str(out)]
    return Visit(words, out, budget, worker="tests.chaos.visit_stand_in", start=start).run()


def test_a_case_that_hangs_or_dies_costs_itself_and_no_other(tmp_path):
    events = visit(tmp_path, 120)
    assert {e["case"] for e in events if e["event"] == "end"} == {"first", "last"}
    why = {e["case"]: e["why"] for e in events if e["event"] in ("failed", "ended")}
    assert why == {
        "wrong": "dq is off by 3.0e-01 of its norm",
        "hangs": "no answer within 2 s",
        "dies": "the worker ended with status 139",
    }
    saved = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert saved == events
    table = summary(events)
    assert "| first | 0.0 | TFLOP/s 600 |" in table and "**no answer within 2 s**" in table


def test_a_visit_ends_when_its_time_is_up_and_keeps_what_it_has(tmp_path):
    events = visit(tmp_path, 1)
    assert events[-1]["why"] == "the visit's time is up"
    assert (tmp_path / "results.jsonl").read_text().count("\n") == len(events)


def test_a_worker_that_never_begins_is_tried_twice(tmp_path):
    events = visit(tmp_path, 30, start=0.05)
    assert [(e["case"], e["why"]) for e in events] == [("start", "no answer within 0.05 s")] * 2


@pytest.mark.parametrize("part", ["a", "b"])
def test_a_part_is_rehearsed_on_a_cpu(part, tmp_path):
    command = [sys.executable, "-m", "experiments.device_visit", "--part", part, "--dry"]
    command += ["--budget", "240", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    begun = {event["case"] for event in events if event["event"] == "begin"}
    ended = {event["case"] for event in events if event["event"] == "end"}
    assert begun == ended and len(ended) >= 2, done.stdout
    assert (tmp_path / "summary.md").read_text().strip() == done.stdout.strip()
