"""Checkpoints of a tiny model, and a way to damage them."""

from llama_jax.train.checkpoint import Checkpoints
from tests.train.tiny import batch_of, training

DATA = {"loader": {"step": 7}, "tokenizer": "abc"}


def saved(directory, steps=(5,), keep=3, devices=8, **axes):
    """A directory with these checkpoints, and the last state on the host."""
    tiny = training(devices, **(axes or {"fsdp": 2, "tensor": 2}))
    checkpoints = Checkpoints(directory, keep)
    state = tiny.init()
    for step in steps:
        state, _ = tiny.step(state, batch_of(step))
        checkpoints.save(step, state, DATA | {"at": step}, tiny.plan.letters)
    checkpoints.finish()
    return state


def flip(path, at=None):
    """Flips one bit of a file, in its middle or number `at`."""
    content = bytearray(path.read_bytes())
    at = len(content) // 2 if at is None else at
    content[at // 8] ^= 1 << (at % 8)
    path.write_bytes(content)


def largest_file(path):
    """The file that holds the most, somewhere below a folder."""
    return max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
