"""Checkpoints of a run: orbax writes the arrays, a manifest and a rename make them count.

A checkpoint is a directory `checkpoints/<step>/` of weights (see `weights/orbax.py`), with what the
run needs to go on:

    rest/        optimizer, counters   (orbax)
    data.json    state of the data iterator

It is written as `<step>.<n>.unfinished` and renamed when all of it is on disk. So whatever has a
number for its name is whole: a save that was killed or met a full disk is never taken for the
latest (orbax's own manager names it so until the next save).
"""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.options import AsyncOptions

from llama_jax.errors import UserError
from llama_jax.train.processes import first, on_first
from llama_jax.train.state import TrainState
from llama_jax.trees import flat
from llama_jax.weights.fitting import check_sizes
from llama_jax.weights.orbax import (
    MANIFEST,
    digests,
    newest_good,
    saved_shapes,
    saved_steps,
    to_stderr,
)

# Of devices that hold the same array each saves a part of it, if that has so many bytes: to cut
# small arrays up takes longer than to write them (39 on eight devices: 0.13 s of CPU, whole 0.07).
PART = 2**20


class Checkpoints:
    """The checkpoints of one run directory; `save` returns while the disk still works.

    Of several processes each writes its share of the arrays, and the first all else.
    """

    def __init__(self, directory: Path, keep: int = 3, say: Callable[[str], None] = to_stderr):
        self.directory = directory.absolute()
        self.keep = keep
        self.best: int | None = None  # a step that is kept, however old it is
        self.say = say
        self._orbax = _writer()
        self._thread: threading.Thread | None = None
        self._error: UserError | None = None
        self._attempts = 0

    def save(
        self, step: int, state: TrainState, data: dict[str, Any], letters: dict[str, str]
    ) -> None:
        """Copies the state off the devices and starts writing it.

        Args:
          step: the steps done, which name the checkpoint.
          state: the state, which may be donated right after.
          data: state of the data iterator after the batch of this step, JSON.
          letters: the axes of every weight, as the plan has them.

        Raises:
          UserError: a weight that is not finite, or the save before this one failed.
        """
        self.finish()
        if not bool(_finite(state)):
            raise UserError(
                f"step {step} has weights that are not finite; it is not saved. {self._last()}"
            )
        # Never the same name twice: after an error orbax's threads may still write to the old one.
        self._attempts += 1
        path = self.directory / f"{step}.{self._attempts}.unfinished"
        if first():
            shutil.rmtree(path, ignore_errors=True)
        parts = _parts(state)
        args = ocp.args.Composite(**{k: ocp.args.PyTreeSave(v) for k, v in parts.items()})
        try:
            self._orbax.save(path, args=args)
        except Exception as error:
            self._fail(step, error)
            self.check()
        self._thread = threading.Thread(
            target=self._commit, args=(step, path, data, letters), daemon=True
        )
        self._thread.start()

    def _commit(self, step: int, path: Path, data: dict[str, Any], letters: dict[str, str]):
        try:
            self._orbax.wait_until_finished()
            # Orbax's threads meet before the first of them is done: the shares of all are here.
            if first():
                (path / "data.json").write_text(json.dumps(data))
                (path / "letters.json").write_text(json.dumps(letters, indent=1))
                (path / MANIFEST).write_text(json.dumps(digests(path), indent=1))
                path.rename(self.directory / str(step))
                self._prune()
        except Exception as error:
            self._fail(step, error)

    def _fail(self, step: int, error: Exception) -> None:
        self._orbax = _writer()
        cause = str(error).strip().splitlines()
        reason = next(
            (line for line in cause if "space" in line or "large" in line),
            cause[0] if cause else "",
        )
        self._error = UserError(
            f"step {step} could not be written to disk in {self.directory} "
            f"({type(error).__name__}: "
            f"{reason[:200]}). {self._last()} Make room and give the same command again"
        )

    def _last(self) -> str:
        steps = saved_steps(self.directory)
        return (
            f"The last good checkpoint is step {steps[-1]}."
            if steps
            else "There is no checkpoint yet."
        )

    def _prune(self) -> None:
        # Renamed first: a kill in the middle of a deletion must not leave half a checkpoint with a
        # number.
        old = saved_steps(self.directory)[: -self.keep]
        for step in (step for step in old if step != self.best):
            doomed = self.directory / f"{step}.unfinished"
            (self.directory / str(step)).rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def check(self) -> None:
        """Raises the UserError of a save that failed in the background, if one did."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def finish(self) -> None:
        """Waits until the last save is on disk; call it at the end and after an error.

        Raises:
          UserError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def clean(self) -> None:
        """Removes what a killed run left half-written; only for who holds the lock."""
        for path in self.directory.glob("*.unfinished*") if first() else ():
            shutil.rmtree(path, ignore_errors=True)

    def restore(
        self, abstract: TrainState, repair: bool = True
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The state and iterator of the newest good step, on the shardings of `abstract`.

        Args:
          abstract: shapes and shardings; any mesh, whatever the one that saved.
          repair: set a corrupt step aside as `<step>.corrupt`, so that the run can write it anew.

        Returns:
          None if nothing was ever saved.

        Raises:
          UserError: there are checkpoints and none of them is good, or they are of another model.
        """
        found = on_first(lambda: self._find(repair))
        if found is None:
            return None
        step, data = found
        path, parts = self.directory / str(step), _parts(abstract)
        check_sizes(path, saved_shapes(path), flat(abstract.params))
        args = ocp.args.Composite(**{k: ocp.args.StandardRestore(v) for k, v in parts.items()})
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            out = reader.restore(path, args=args)
        return abstract.replace(params=out["params"], ema=out.get("ema"), **out["rest"]), data

    def _find(self, repair: bool) -> tuple[int, dict[str, Any]] | None:
        """The newest good step, and the state of its data."""
        step = newest_good(self.directory, self.say, repair)
        if step is None:
            return None
        path = self.directory / str(step)
        if not (path / "rest").exists():
            raise UserError(
                f"{path} holds weights alone, from which a run can begin but not go on; give "
                f"another --run-dir and --init-from {self.directory.parent}"
            )
        return step, json.loads((path / "data.json").read_text())


def _writer() -> ocp.AsyncCheckpointer:
    # Directories made in the background leave threads waiting for 20 minutes on a full disk.
    options = AsyncOptions(create_directories_asynchronously=False)
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=PART)
    known = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    parts: dict[str, Any] = {
        name: ocp.PyTreeCheckpointHandler(type_handler_registry=known)
        for name in ("params", "rest", "ema")
    }
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**parts), async_options=options)


def _parts(state: TrainState) -> dict[str, Any]:
    """Weights apart from the rest, so that evaluation reads only them, or their average."""
    rest = {
        name: getattr(state, name)
        for name in ("step", "skipped", "skipped_in_row", "opt_state", "key")
    }
    average = {} if state.ema is None else {"ema": state.ema}
    return {"params": state.params, "rest": rest} | average


@jax.jit
def _finite(state: TrainState) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))
