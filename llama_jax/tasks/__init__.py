"""Tasks: what a model is asked in text, and how its answers are judged. One file a task.

A module here that declares `TASK` is a task of the module's name. The files are only parsed, so
that listing tasks imports nothing.
"""

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_jax.checked import checked_call
from llama_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from llama_jax.tasks.base import Task


def _scan() -> tuple[str, ...]:
    """The names of the modules that declare a task."""
    found = []
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            if any(isinstance(target, ast.Name) and target.id == "TASK" for target in targets):
                found.append(path.stem)
    return tuple(found)


NAMES: tuple[str, ...] = _scan()


@checked_call
def get(name: str) -> "Task":
    """The task of a name.

    Raises:
      UserError: no task is called that; the nearest is named.
    """
    if name not in NAMES:
        raise UserError(f"no task {name!r}; there are {', '.join(NAMES)}{nearest(name, NAMES)}")
    return importlib.import_module(f"llama_jax.tasks.{name}").TASK


def __getattr__(name: str) -> Any:
    places = {"Task": "base", "corpus": "mixtures", "mixture": "mixtures"}
    if name in places:
        return getattr(importlib.import_module(f"llama_jax.tasks.{places[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
