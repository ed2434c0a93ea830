"""A process killed in the middle of training loses no step that it had saved, and no bit."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

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
