"""Checkpoints of ours as weights: found, checked, read without the model, and written.

A checkpoint is a directory `checkpoints/<step>/` with

    params/         the weights   (orbax)
    ema/            their average (orbax), if the run keeps one: then it is what is read
    letters.json    the axes of every weight
    manifest.json   SHA-256 of every other file

and, if a run may go on from it, what `train/checkpoint.py` adds. A flipped bit, which orbax does
not notice, is found by the manifest. Then the step before is taken, and `say` is told so.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_utils import construct_restore_args

from llama_jax.axes import Rules, weight_sharding
from llama_jax.errors import UserError
from llama_jax.trees import flat, nested, path_name

MANIFEST = "manifest.json"
ORIGIN = "weights_config.json"  # in a run directory: the config.json of its first weights


def to_stderr(text: str) -> None:
    """Says something without mixing it into the output of `eval --json`."""
    print(text, file=sys.stderr)


def origin_of(run_dir: Path) -> dict[str, bytes]:
    """What a run keeps of the folder that it began with (see `origin`), by its name; or nothing."""
    file = run_dir / ORIGIN
    return {ORIGIN: file.read_bytes()} if file.is_file() else {}


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
    directory: Path,
    mesh: Mesh,
    rules: Rules,
    say: Callable[[str], None] = to_stderr,
    step: int | None = None,
) -> tuple[Any, int]:
    """The weights alone of a step, split over `mesh` by their letters, and that step.

    Of a run that averages its weights, the average.

    Args:
      directory: `checkpoints` of a run directory.
      mesh: over which to split them.
      rules: which mesh axis splits which letter.
      say: told about corrupt checkpoints.
      step: which one; None for the newest that is good.

    Raises:
      UserError: no checkpoint, none that is good, or not of this step.
    """
    path, saved = _saved_params(directory, say, step)
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
      step: the name of the checkpoint, a number.
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
      path: the place that messages name.
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


def _saved_params(
    directory: Path, say: Callable[[str], None], step: int | None = None
) -> tuple[Path, dict[str, Any]]:
    """A checkpoint, the newest good one for None; and shape and dtype of its weights by path."""
    directory = directory.absolute()
    if step is None:
        step = newest_good(directory, say)
    elif step not in (steps := saved_steps(directory)):
        raise UserError(
            f"no checkpoint of step {step} in {directory}; there are "
            f"{', '.join(map(str, steps)) or 'none'}"
        )
    elif (fault := corruption(directory / str(step))) is not None:
        raise UserError(f"checkpoint {step} in {directory} is corrupt ({fault}); take another step")
    if step is None:
        raise UserError(
            f"no checkpoint in {directory}; train first: llama-jax train PRESET --run-dir DIR"
        )
    path = directory / str(step)
    return path, saved_shapes(path)


def saved_shapes(path: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of the weights of a checkpoint, by path name."""
    tree = ocp.StandardCheckpointHandler().metadata(epath.Path(_weights(path))).tree
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in flat(tree).items()}


def _read(path: Path, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """The nested dict of the weights named in `wanted`, on their shardings."""
    tree = nested(wanted)
    args = ocp.args.PyTreeRestore(
        tree, restore_args=construct_restore_args(tree), partial_restore=True
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(_weights(path), args=args)


def _weights(path: Path) -> Path:
    """What of a checkpoint is to be used: the average of the weights, or the weights."""
    average = path / "ema"
    return average if average.is_dir() else path / "params"
