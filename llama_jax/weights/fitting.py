"""Whether a model has the sizes of a checkpoint, whose run.json may have been edited since."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llama_jax.errors import UserError

# The field that says how long an axis is, by its letter.
FIELDS = {
    "D": "width",
    "E": "experts",
    "F": "hidden",
    "H": "head_dim",
    "K": "kv_heads",
    "L": "repeats",
    "N": "heads",
    "V": "vocab",
}
LAYER = re.compile(r"layer_\d+/")


def check_sizes(path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Checks that a checkpoint has the weights of the model of the run.json beside it.

    Args:
      path: `RUN/checkpoints/STEP`.
      saved: what has a shape, by path name of the weight.
      wanted: the same of the model. More may be saved, but no more layers.

    Raises:
      UserError: a weight is missing or of another shape; names the first, and the field of run.json
        that says so.
    """
    more = [name for name in saved if name not in wanted and LAYER.search(name)]
    for name in [*wanted, *more]:
        there, here = (list(x[name].shape) if name in x else None for x in (saved, wanted))
        if there == here:
            continue
        place = path.parents[1] / "run.json"
        if there is not None and here is not None:
            letters = json.loads((path / "letters.json").read_text())[name]
            field = _longer(place, letters, there, here)
        elif LAYER.search(name):
            alike = any(map(LAYER.search, saved)) and any(map(LAYER.search, wanted))
            field = _named(place, FIELDS["L"] if alike else "scan")
        else:
            field = "model"
        raise UserError(
            f"{place} is not of the model in {path.name} beside it: {name} is "
            f"{there or 'no weight'} there and {here or 'no weight'} here; look at {field}"
        )


def _longer(place: Path, letters: str, there: list[int], here: list[int]) -> str:
    """The field that gives a weight another shape, and what it was; or "model"."""
    if len(there) == len(here):
        for letter, old, new in zip(letters, there, here, strict=True):
            if old != new and letter in FIELDS:
                return f"{_named(place, FIELDS[letter], new)}, which was {old}"
    return "model"


def _named(place: Path, field: str, size: int | None = None) -> str:
    """A field of the model in run.json by its path, that of this size if it is said."""
    try:
        model = json.loads(place.read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError):
        return field
    found = [path for path, value in _sizes(model, "model") if path.endswith(f".{field}")]
    of_size = [p for p, value in _sizes(model, "model") if p in found and value == size]
    return next(iter(of_size or found), field)


def _sizes(config: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every number in JSON with its path, as `--set` takes it."""
    inner = dict(enumerate(config)) if isinstance(config, list) else config
    if not isinstance(inner, dict):
        yield path, inner
        return
    for key, value in inner.items():
        yield from _sizes(value, f"{path}.{key}")
