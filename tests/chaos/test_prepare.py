"""Preparations killed, or begun twice at once: the same command goes on to the same data."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llama_jax.data import Prepared
from llama_jax.text import Tokenizer

ROOT = Path(__file__).parents[2]
LINES = 24_000  # in shards of 3000; each takes two workers' time enough to be killed in
DONE = re.compile(r"(\d+)/8 shards")
ENDS = {signal.SIGTERM: 130, signal.SIGINT: 130, signal.SIGKILL: -9}
pytestmark = pytest.mark.chaos


@pytest.fixture(autouse=True)
def hears_ctrl_c():
    """A shell starts what runs in the background with SIGINT ignored, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "llama_jax", "prepare", *map(str, words)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child):
    _, said = child.communicate(timeout=300)
    assert child.returncode == 0, said
    return said


def running():
    """The parent of every process that runs, without those that only wait to be buried."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split() for line in listed.splitlines()]
    return {int(pid): int(parent) for pid, parent, state in rows if state[0] != "Z"}


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    place = tmp_path_factory.mktemp("text")
    texts = [f"Lamb {i} saw " + "the sea and the land, " * (20 + i % 9) for i in range(LINES)]
    (place / "many.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    Tokenizer.train(texts[:100], 300).save(place / "tokenizer.json")
    options = ("--tokenizer", place / "tokenizer.json", "--workers", 2)
    return lambda out: start(place / "many.jsonl", out, *options)


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "many"
    finish(command(out))
    return Prepared(str(out)).open().manifest


def test_workers_end_with_their_parent_and_the_same_command_goes_on_at_once(
    command, whole, tmp_path
):
    out, before, left = tmp_path / "many", 0, set()
    sizes = {shard.file: shard.bytes for shard in whole.shards}
    for number, ends in ENDS.items():  # each time further, for what is there is not made anew
        with command(out) as child:
            done = int(DONE.search(child.stderr.readline())[1])
            assert done > before
            before = done
            workers = {pid for pid, parent in running().items() if parent == child.pid}
            assert len(workers) >= 2
            left |= workers
            while not list(out.glob("*.array_record.*")):  # a draft
                assert child.poll() is None
                time.sleep(0.01)
            os.kill(child.pid, number)
            assert child.wait(timeout=60) == ends
        there = {path.name: path.stat().st_size for path in out.glob("*.array_record")}
        assert there.items() <= sizes.items()  # a name of a shard stands for a whole one
    said = finish(command(out))
    assert int(DONE.search(said)[1]) > before and "made anew" not in said
    assert Prepared(str(out)).open().manifest == whole
    names = {path.name for path in out.iterdir()}
    assert names == {".lock", "manifest.json", "tokenizer.json", *(s.file for s in whole.shards)}
    assert not left & running().keys()


def test_two_processes_that_prepare_at_once_both_find_it_whole(tmp_path):
    code = (
        "from llama_jax.data import Tfds; import sys; "
        "print(len(Tfds('kjv', data_dir=sys.argv[1], limit=3).open()))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(2)
    ]  # fmt: skip
    results = [process.communicate(timeout=60) for process in running]
    assert [out for out, _ in results] == ["3\n", "3\n"], results
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kjv"]  # no draft is left
