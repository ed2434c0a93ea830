"""Checkpoints: orbax writes the arrays, a SHA-256 manifest and a rename make them count.

A checkpoint is a directory `checkpoints/<step>/` with

    params/         the weights           (orbax)
    rest/           optimizer, counters   (orbax)
    ema/            their average         (orbax), if the run keeps one: then it is what is read
    data.json       state of the data iterator
    letters.json    the axes of every weight
    manifest.json   SHA-256 of every file above

It is written as `<step>.<n>.unfinished` and renamed when all of it is on disk. So whatever has a
number for its name is whole: a save that was killed or met a full disk is never taken for the
latest (orbax's own manager names it so until the next save), and a flipped bit (which orbax does
not notice) is found by the manifest. Then the step before is taken, and the log says so.
"""

import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_utils import construct_restore_args
from orbax.checkpoint.options import AsyncOptions

from llama_jax.axes import Rules, weight_sharding
from llama_jax.errors import UserError
from llama_jax.train.processes import first, on_first
from llama_jax.train.state import TrainState
from llama_jax.trees import path_name

MANIFEST = "manifest.json"


def to_stderr(text: str) -> None:
    """Says something without mixing it into the output of `eval --json`."""
    print(text, file=sys.stderr)


class Checkpoints:
    """The checkpoints of one run directory; `save` returns while the disk still works.

    Of several processes each writes its share of the arrays, and the first all else.
    """

    def __init__(self, directory: Path, keep: int = 3, say: Callable[[str], None] = to_stderr):
        self.directory = directory.absolute()
        self.keep = keep
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
          step: the number to save it under.
          state: may be donated right after.
          data: state of the data iterator after the batch of this step, JSON.
          letters: the axes of every weight by its path name.

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
        args = ocp.args.Composite(**{k: ocp.args.StandardSave(v) for k, v in parts.items()})
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
        for step in saved_steps(self.directory)[: -self.keep]:
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
          UserError: there are checkpoints and none of them is good.
        """
        found = on_first(lambda: self._find(repair))
        if found is None:
            return None
        step, data = found
        parts = _parts(abstract)
        args = ocp.args.Composite(**{k: ocp.args.StandardRestore(v) for k, v in parts.items()})
        out = self._orbax.restore(self.directory / str(step), args=args)
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
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)


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


def saved_steps(directory: Path) -> list[int]:
    """The steps that were saved whole, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def newest_good(
    directory: Path, say: Callable[[str], None] = to_stderr, repair: bool = False
) -> int | None:
    """The newest step whose files are what its manifest says; each bad one is reported.

    Raises:
      UserError: there are checkpoints and none of them is good.
    """
    steps, corrupt = saved_steps(directory), []
    for step in reversed(steps):
        path = directory / str(step)
        fault = corruption(path)
        if fault is None:
            for bad in corrupt if repair else ():
                aside = bad.with_suffix(".corrupt")
                shutil.rmtree(aside, ignore_errors=True)
                bad.rename(aside)
            return step
        before = "; taking the one before" if step > steps[0] else ""
        say(f"checkpoint {step} is corrupt ({fault}){before}")
        corrupt.append(path)
    if steps:  # all stay where they are, so that the same command does not begin from nothing
        raise UserError(
            f"none of the checkpoints {steps} in {directory} is what its manifest says; copy a "
            "good one back from a backup, or start again in a new run directory"
        )
    return None


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of every file below `path` but the manifest, by relative name."""
    found = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p != path / MANIFEST):
        with file.open("rb") as stream:
            found[file.relative_to(path).as_posix()] = hashlib.file_digest(
                stream, "sha256"
            ).hexdigest()
    return found


def corruption(path: Path) -> str | None:
    """A file of a checkpoint that changed, is missing or came in; None if all are right."""
    try:
        wanted = json.loads((path / MANIFEST).read_text())
        have = digests(path)
    except (OSError, ValueError) as error:
        return f"unreadable: {error}"
    for name in sorted(wanted.keys() | have.keys()):
        if name not in have:
            return f"{name} is missing"
        if name not in wanted:
            return f"{name} is not in the manifest"
        if wanted[name] != have[name]:
            return f"{name} has changed"
    return None


def restore_params(
    directory: Path, mesh: Mesh, rules: Rules, say: Callable[[str], None] = to_stderr
) -> tuple[Any, int]:
    """The weights alone of the newest good step, split over `mesh` by their letters, and that step.

    Of a run that averages its weights, the average.

    Raises:
      UserError: no checkpoint, or none that is good.
    """
    path, saved = _saved_params(directory, say)
    letters = json.loads((path / "letters.json").read_text())
    wanted = {
        name: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=weight_sharding(letters[name], leaf.shape, mesh, rules)
        )
        for name, leaf in saved.items()
    }
    return _read(path, wanted), int(path.name)


def save_params(directory: Path, step: int, params: Any, letters: dict[str, str]) -> None:
    """Writes weights alone as a checkpoint: to read, and to `start_from`, but not to go on from.

    Args:
      directory: `checkpoints` of a run directory that nobody else writes to.
      step: the number to save it under.
      params: the weights, a nested dict of arrays on devices.
      letters: the axes of every weight by its path name.
    """
    path = directory.absolute() / str(step)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
        writer.save(path, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))
    (path / "letters.json").write_text(json.dumps(letters, indent=1))
    (path / MANIFEST).write_text(json.dumps(digests(path), indent=1))


def start_from(directory: Path, params: Any, say: Callable[[str], None] = to_stderr) -> Any:
    """`params` with every weight whose path and shape match taken from another run.

    Args:
      directory: the other run's `checkpoints`.
      params: fresh weights, with their shardings; the others stay as they are.
      say: told how many matched, and which did not.

    Raises:
      UserError: no checkpoint there, or nothing matches.
    """
    path, saved = _saved_params(directory, say)
    match = matching(flat(params), saved, path, say)
    return replaced(params, flat(_read(path, match)))


def matching(
    wanted: dict[str, Any], saved: dict[str, Any], path: Path, say: Callable[[str], None]
) -> dict[str, jax.ShapeDtypeStruct]:
    """The weights that are wanted and saved in the same shape, by path name.

    Args:
      wanted: arrays with their shardings.
      saved: what has a shape.
      path: where, for messages.
      say: told how many matched, and which did not.

    Raises:
      UserError: nothing matches.
    """
    match = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in wanted.items()
        if name in saved and saved[name].shape == leaf.shape
    }
    if not match:
        raise UserError(
            f"none of the {len(wanted)} weights is in {path}; is it another kind of model?"
        )
    say(f"{len(match)} of {len(wanted)} weights from {path}")
    for name in sorted(wanted.keys() - match.keys()):
        why = (
            f"there {saved[name].shape}, here {wanted[name].shape}"
            if name in saved
            else "not there"
        )
        say(f"  new: {name} ({why})")
    if unused := sorted(saved.keys() - wanted.keys()):
        say(f"  unused: {', '.join(unused)}")
    return match


def replaced(params: Any, found: dict[str, Any]) -> Any:
    """`params` with the weights of `found`, by path name, in their place."""
    return jax.tree_util.tree_map_with_path(lambda p, leaf: found.get(path_name(p), leaf), params)


def _saved_params(directory: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """The newest good checkpoint, and shape and dtype of its weights by path name."""
    directory = directory.absolute()
    step = newest_good(directory, say)
    if step is None:
        raise UserError(
            f"no checkpoint in {directory}; train first: llama-jax train PRESET --run-dir DIR"
        )
    path = directory / str(step)
    tree = ocp.StandardCheckpointHandler().metadata(epath.Path(_weights(path))).tree
    leaves = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in flat(tree).items()}
    return path, leaves


def _read(path: Path, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """The nested dict of the weights named in `wanted`, on their shardings."""
    tree: dict[str, Any] = {}
    for name, leaf in wanted.items():
        *parents, last = name.split("/")
        here = tree
        for parent in parents:
            here = here.setdefault(parent, {})
        here[last] = leaf
    args = ocp.args.PyTreeRestore(
        tree, restore_args=construct_restore_args(tree), partial_restore=True
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(_weights(path), args=args)


def _weights(path: Path) -> Path:
    """What of a checkpoint is to be used: the average of the weights, or the weights."""
    average = path / "ema"
    return average if average.is_dir() else path / "params"


def flat(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}
