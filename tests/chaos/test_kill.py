"""A process killed in the middle of training loses no step that it had saved, and no bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llama_jax import presets
from llama_jax.__main__ import main
from llama_jax.train.loop import train
from tests.train.tiny import STEPS, losses, multimodal_run, text_run

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.chaos, pytest.mark.usefixtures("compiled_once")]


def child(*args) -> int:
    """Trains in a process of its own, with the same devices; returns how it ended."""
    command = [sys.executable, "-m", "tests.train.tiny", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, check=False, timeout=300).returncode


@pytest.mark.parametrize("moment", ["just after a save", "while saving"])
def test_kill_9_and_resume_gives_every_later_loss_bit_for_bit(
    tmp_path, text, uninterrupted, moment
):
    place = tmp_path / "killed"
    kill = (9,) if moment == "just after a save" else (6, "saving")
    assert child(place, text, STEPS, *kill) == -signal.SIGKILL
    before = losses(place)
    saved = {p.name for p in (place / "checkpoints").iterdir() if p.name.isdigit()}
    assert saved == ({"6", "9"} if kill == (9,) else {"3"})
    result = train(text_run(text), place, progress=False)
    assert result.step == STEPS
    assert losses(place) == losses(uninterrupted)
    assert before.items() <= losses(uninterrupted).items()
    names = {path.name for path in (place / "checkpoints").iterdir()}
    assert all(name.isdigit() for name in names)


def test_a_multimodal_run_goes_on_after_kill_9_bit_for_bit(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(multimodal_run(), whole, progress=False)
    assert child(killed, "multimodal", STEPS, 8) == -signal.SIGKILL
    assert train(multimodal_run(), killed, progress=False).step == STEPS
    assert losses(killed) == losses(whole)


def test_sigterm_in_the_middle_is_status_143_and_the_run_goes_on(tmp_path, text, monkeypatch):
    monkeypatch.setenv("TINY_TEXT", str(text))
    monkeypatch.setitem(presets.NAMES, "tiny_text", "tests.train.tiny:tiny_text")
    monkeypatch.setattr("llama_jax.__main__._enable_compilation_cache", lambda cache: None)
    place = tmp_path / "run"
    code = (
        "import sys; from llama_jax import presets; from llama_jax.__main__ import main\n"
        "presets.NAMES['tiny_text'] = 'tests.train.tiny:tiny_text'\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    args = ["train", "tiny_text", "--run-dir", str(place), "--steps", "100000"]
    child = subprocess.Popen(
        [sys.executable, "-c", code, *args], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while not (place / "metrics.jsonl").exists() or not (place / "metrics.jsonl").read_text():
        assert child.poll() is None
        time.sleep(0.1)
    # A second run in the same directory meanwhile:
    assert main(args) == 2
    os.kill(child.pid, signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: saved step" in err and "give the same command to go on" in err
    assert any(path.name.isdigit() for path in (place / "checkpoints").iterdir())
