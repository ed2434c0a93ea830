"""What several processes do together: say, decide and fail alike. With one it is all a no-op.

    with together() as ready:            # until ready() an error of one is an error of all
        steps = on_first(find_steps)     # process 0 looks, all know
        agree({"run": run, "code": digest})
        ready()

Every function but `first`, `several` and `fetch` is a meeting: all processes must come to it.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from llama_jax.config.differences import differences
from llama_jax.errors import UserError

T = TypeVar("T")


class Together(UserError):
    """A mistake that all processes know of, and end by."""


def first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether there is more than one."""
    return jax.process_count() > 1


def exchange(value: Any = None, error: str | None = None) -> list[Any]:
    """Every process's value, JSON, in their order.

    Raises:
      Together: one of them came with an error.
    """
    if not several():
        return [value]
    content = json.dumps({"value": value, "error": error}).encode()
    sizes = multihost_utils.process_allgather(np.array(len(content)))
    padded = np.zeros(int(np.max(sizes)), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    said = [
        json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes.tolist(), strict=True)
    ]
    errors = {i: one["error"] for i, one in enumerate(said) if one["error"]}
    if errors:
        index, text = next(iter(errors.items()))
        all_alike = len(errors) == len(said) and len(set(errors.values())) == 1
        raise Together(text if all_alike else f"process {index} of {len(said)}: {text}")
    return [one["value"] for one in said]


@contextlib.contextmanager
def together() -> Iterator[Callable[[], None]]:
    """Until the function given is called (a meeting), a UserError of one process is one of all.

    Raises:
      Together: in each of them.
    """
    met = False

    def ready() -> None:
        nonlocal met
        met = True
        exchange()

    try:
        yield ready
    except Together:
        raise
    except Exception as error:
        if met or not several():
            raise
        exchange(error=str(error) or type(error).__name__)


def on_first(find: Callable[[], T]) -> T:
    """What `find` gives on process 0; JSON, so that tuples come as lists.

    Raises:
      Together: it failed there.
    """
    if not several():
        return find()
    with together():
        return exchange(find() if first() else None)[0]
    raise AssertionError("an error ends in `together`")


def agree(facts: dict[str, Any]) -> None:
    """Checks that all processes hold the same facts, JSON.

    Raises:
      Together: they do not; names what differs, and the process in which it does.
    """
    if not several():
        return
    if len(set(exchange(hashlib.sha256(json.dumps(facts).encode()).hexdigest()))) == 1:
        return
    every = exchange(json.loads(json.dumps(facts)))
    for index, other in enumerate(every):
        if found := differences(every[0], other):
            told = "; ".join(d.replace(" was ", " is ").replace(", is ", ", there ") for d in found)
            raise Together(
                f"process {index} is not doing what process 0 does: {told[:600]}; start the same "
                "command with the same code and data everywhere"
            )


def check_divided(batch: dict[str, dict[str, np.ndarray]], part: int) -> None:
    """Checks that processes read different rows if their parts of a batch differ, else the same.

    Args:
      batch: this process's rows, by stream and field.
      part: which part of the batch they should be.

    Raises:
      Together: they do not; names the stream and two processes.
    """
    if not several():
        return
    every = exchange({"part": part, "rows": {name: _digest(x) for name, x in batch.items()}})
    for j, other in enumerate(every):
        for i, one in enumerate(every[:j]):
            for stream, rows in one["rows"].items():
                same = rows == other["rows"][stream]
                if one["part"] != other["part"] and same and rows is not None:
                    raise Together(
                        f"stream {stream!r}: processes {i} and {j} read the same rows, so the data "
                        "are not divided among them; each should read its own part"
                    )
                if one["part"] == other["part"] and not same:
                    raise Together(
                        f"stream {stream!r}: the devices of processes {i} and {j} share rows, and "
                        "the processes read different ones; is the data the same on both?"
                    )


def _digest(fields: dict[str, np.ndarray]) -> str | None:
    """Of the rows; None if they are all alike, as those of a source of one example are.

    Without `id`: of packed streams it numbers the rows and so differs whatever is read.
    """
    fields = {name: x for name, x in fields.items() if name != "id"}
    if all(len(x) < 2 or (x == x[:1]).all() for x in fields.values()):
        return None
    content = b"".join(name.encode() + fields[name].tobytes() for name in sorted(fields))
    return hashlib.sha256(content).hexdigest()


def code() -> dict[str, str]:
    """SHA-256 of our code, and the versions that decide what is computed."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return {"code": digest.hexdigest()[:16], "jax": jax.__version__}


def fetch(tree: Any) -> Any:
    """Arrays as NumPy, whole; a meeting if they are spread over processes."""

    def one(x: Any) -> np.ndarray:
        whole = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
        return np.asarray(x if whole else multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(one, tree)


def on_device(tree: Any) -> Any:
    """Arrays on this process's device if it is alone; else they wait on the host for a jit."""
    return tree if several() else jax.device_put(tree)
