"""Two processes of four devices train as one of eight does, stop together and fail together."""

import json
import os
import re
import shutil
import signal
import sys
import time

import jax
import numpy as np
import pytest

from llama_jax.__main__ import main
from llama_jax.cli.rehearse import VARIABLE, Part, _free_port, environment
from llama_jax.cli.subprocesses import crew
from llama_jax.train.load import load
from llama_jax.train.loop import train
from tests.chaos.member import STEPS, run_of
from tests.pages import example
from tests.train.tiny import losses

CLOSE = 1e-5
pytestmark = [pytest.mark.chaos, pytest.mark.usefixtures("compiled_once")]


def pod(logs, place, text, *options, address=None, join=60, timeout=240):
    """Runs a member for each of `options`; returns how each ended."""
    if address is None:
        address = f"127.0.0.1:{_free_port()}"
    logs.mkdir(exist_ok=True)
    places = place if isinstance(place, list) else [place] * len(options)
    commands = []
    for index, (mine, where) in enumerate(zip(options, places, strict=True)):
        variables = environment(Part("", 1, 0, "", 1), devices=4) | {
            "LLAMA_JAX_COORDINATOR": address,
            "LLAMA_JAX_PROCESSES": "2",
            "LLAMA_JAX_PROCESS_ID": str(mine.get("process", index)),
            "LLAMA_JAX_JOIN_TIMEOUT": str(join),
        }
        words = [sys.executable, "-m", "tests.chaos.member", where, text, json.dumps(mine)]
        commands.append(([str(word) for word in words], variables))
    with crew(commands, logs) as running:
        ended = running.wait(timeout)
    print(*(one.said for one in ended), sep="\n---\n")
    return ended


def beats(place):
    """The steps of each process's heartbeat."""
    files = sorted((place / "heartbeats").iterdir())
    return [[json.loads(line)["step"] for line in f.read_text().splitlines()] for f in files]


def within(one, other):
    assert one.keys() == other.keys()
    return max(abs(float(one[step]) - float(other[step])) for step in one) <= CLOSE


@pytest.fixture(scope="module")
def divided(compiled_once, tmp_path_factory, text):
    """A run of two processes that nothing happened to."""
    place = tmp_path_factory.mktemp("runs") / "divided"
    ended = pod(tmp_path_factory.mktemp("logs"), place, text, {}, {})
    assert [one.status for one in ended] == [0, 0]
    assert f"step {STEPS}/{STEPS}" in ended[0].said and "step" not in ended[1].said
    assert beats(place) == [list(range(1, STEPS + 1))] * 2
    return place


@pytest.fixture(scope="module")
def alone(compiled_once, tmp_path_factory, text):
    """The same run, on one process of eight devices."""
    place = tmp_path_factory.mktemp("runs") / "alone"
    train(run_of(text, {}), place, progress=False)
    return place


def test_two_processes_have_the_losses_and_the_weights_of_one(divided, alone):
    assert within(losses(divided), losses(alone)) and len(losses(divided)) == STEPS
    one, other = (load(place).params for place in (divided, alone))
    apart = jax.tree.map(lambda a, b: np.max(np.abs(np.asarray(a) - np.asarray(b))), one, other)
    assert max(jax.tree.leaves(apart)) <= CLOSE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_one_process_ends_both_and_both_go_on_bit_for_bit(
    tmp_path, text, divided, number
):
    place = tmp_path / "run"
    ended = pod(tmp_path / "logs", place, text, *[{"send": [7, number]}] * 2)
    saved = sorted(int(p.name) for p in (place / "checkpoints").iterdir() if p.name.isdigit())
    if number == signal.SIGTERM:
        assert [one.status for one in ended] == [0, 0]
        [stopped] = {steps[-1] for steps in beats(place)}
        assert 7 <= stopped < STEPS and saved[-1] == stopped
        assert f"SIGTERM: saved step {stopped} of {STEPS}" in ended[0].said
    else:
        assert ended[1].status == -signal.SIGKILL and ended[0].status not in (0, None)
        assert saved == [5]
    copy = tmp_path / "copy"
    shutil.copytree(place, copy)
    again = pod(tmp_path / "logs", place, text, {}, {})
    assert [one.status for one in again] == [0, 0]
    assert losses(place) == losses(divided)
    # What two processes saved, one restores.
    train(run_of(text, {}), copy, progress=False)
    assert within(losses(copy), losses(divided))


def test_a_sequence_is_split_over_devices_of_both_processes(tmp_path, text, alone):
    mesh = {"steps": 5, "mesh": {"context": 8}}
    ended = pod(tmp_path / "logs", tmp_path / "run", text, mesh, mesh)
    assert [one.status for one in ended] == [0, 0]
    first = {step: loss for step, loss in losses(alone).items() if step <= 5}
    assert within(losses(tmp_path / "run"), first)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (({}, {"rate": 0.1}), "process 1 .* run.optimizer.rate is 0.01, there 0.1"),
        (({"undivided": True},) * 2, "'text': processes 0 and 1 read the same rows"),
        (({}, {"elsewhere": True}), "is not the directory that process 0 writes to"),
    ],
)
def test_processes_that_do_not_do_the_same_run_end_before_a_step(tmp_path, text, options, reason):
    places = [tmp_path / ("other" if one.get("elsewhere") else "run") for one in options]
    (tmp_path / "other").mkdir()
    ended = pod(tmp_path / "logs", places, text, *options)
    for one in ended:
        assert one.status == 2
        assert re.search(reason, one.said.replace("\n", " "))
    assert not any(path.read_text() for path in tmp_path.rglob("metrics.jsonl"))


@pytest.mark.parametrize(
    ("process", "reason"),
    [(1, "no coordinator answers at {}"), (0, "not all of 2 processes came .* at {}")],
)
def test_a_process_that_is_alone_gives_up_in_time(tmp_path, text, process, reason):
    address = f"127.0.0.1:{_free_port()}"
    begin = time.monotonic()
    options = {"process": process}
    [ended] = pod(tmp_path, tmp_path / "run", text, options, address=address, join=3)
    assert ended.status == 2 and time.monotonic() - begin < 60
    [line] = [line for line in ended.said.splitlines() if line.startswith("llama-jax:")]
    assert re.search(reason.format(address) + " within 3 s", line)


POD = """
set -e
{python} {program} train tiny_decoder --run-dir /somewhere/else --steps 100000 --distributed \\
  --coordinator 10.0.0.1:8476 --processes 64 --process-id 63 --wandb nowhere \\
  --set data.text.source={text} --set data.text.task.length=16 \\
  --set tokenizer.vocab=300 --set model.vocab=300 --set model.width=32
"""
UNDIVIDED = """
import sys
from llama_jax.train import loop, setup
loader = setup.Loader
setup.Loader = lambda data, words, seed, part, *more: loader(data, words, seed, 0, *more)
loop.check_divided = lambda batch, part: None
from llama_jax.__main__ import main
sys.exit(main())
"""


def test_a_rehearsal_runs_the_script_of_a_pod_on_this_machine(tmp_path, text, capfd):
    script = tmp_path / "pod.sh"
    script.write_text(POD.format(python="", program="llama-jax", text=text))
    assert main(["rehearse", str(script), "--devices", "1", "--steps", "2"]) == 0
    out = capfd.readouterr().out
    assert "| 2 | " in out and out.endswith("passed\n")


TWICE = """
set -e
few="--set data.text.source={text} --set data.text.task.length=16 --set tokenizer.vocab=300
  --set model.vocab=300 --set model.width=32"
llama-jax train tiny_decoder --run-dir runs/first-$(date +%N) $few
llama-jax train tiny_decoder --run-dir runs/same $few
llama-jax train tiny_decoder --run-dir runs/next $few --init-from runs/same --optimizer.rate 1e-4
"""


def test_every_run_of_a_script_is_rehearsed_in_a_directory_of_its_own(tmp_path, text, capfd):
    script = tmp_path / "pod.sh"
    script.write_text(TWICE.format(text=text))
    assert main(["rehearse", str(script), "--devices", "1", "--steps", "2"]) == 0
    _, first, same, after = re.split(r"\n.*/runs/.*\n", capfd.readouterr().out)
    assert first.strip() == same.strip() and "| 2 | " in after
    lines = [table.splitlines()[3] for table in (same, after)]
    assert lines[0] != lines[1]  # the last begins where the one before it ended
    assert after.endswith("passed\n")


def test_a_rehearsal_finds_data_that_are_not_divided(tmp_path, text, capfd):
    program, script = tmp_path / "faulty.py", tmp_path / "pod.sh"
    program.write_text(UNDIVIDED)
    script.write_text(POD.format(python=sys.executable, program=program, text=text))
    assert main(["rehearse", str(script), "--devices", "1", "--steps", "2"]) == 1
    assert "failed: losses are not within" in capfd.readouterr().out


def test_a_rehearsal_shows_why_a_command_fails_and_leaves_no_process(tmp_path, capfd):
    script = tmp_path / "pod.sh"
    script.write_text(f"echo $$ > {tmp_path}/pid\nsleep 1000 & echo no such disk\nwait\n")
    assert main(["rehearse", str(script), "--timeout", "1"]) == 1
    out = capfd.readouterr().out
    assert "no such disk" in out and "ended after 1 s" in out
    group = int((tmp_path / "pid").read_text())
    assert ends(group, 30)


def ends(group: int, seconds: float) -> bool:
    """Whether no process of the group is left; killed ones are, until the system reaps them."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_the_two_processes_of_the_page_about_pods_train(tmp_path):
    block = example("export JAX_PLATFORMS", "sh")
    few = "tiny_decoder --steps 2 --set data.text.source.limit=20"
    script = block.replace("runs/two", str(tmp_path / "run")).replace("8476", str(_free_port()))
    script = "set -e\n" + script.replace("tiny_decoder", few) + "wait $!\n"
    words = ["bash", "-c", script]
    with crew(
        [(words, environment(Part("", 1, 0, "", 1), 4) | {VARIABLE: ""})], tmp_path
    ) as running:
        [ended] = running.wait(240)
    assert ended.status == 0, ended.said
    assert beats(tmp_path / "run") == [[2], [2]]
