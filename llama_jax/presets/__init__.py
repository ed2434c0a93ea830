"""Presets: functions without arguments that return a Run, found by scanning two folders.

A public function annotated `-> Run` in any module here, or in one of a family of published models,
is a preset; the first line of its docstring describes it. The files are only parsed, so listing
presets imports no jax.
"""

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_jax.checked import checked_call
from llama_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from llama_jax.config import Run


def _scan() -> dict[str, tuple[str, str]]:
    """Name -> ("module:function", first line of its docstring)."""
    found = {}
    here = Path(__file__).parent
    folders = (here.with_name("families"), here)
    for path in (p for folder in folders for p in sorted(folder.glob("[!_]*.py"))):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or node.args.args:
                continue
            if node.returns is not None and ast.unparse(node.returns).strip("'\"") == "Run":
                line = (ast.get_docstring(node) or "").partition("\n")[0]
                found[node.name] = (f"llama_jax.{path.parent.name}.{path.stem}:{node.name}", line)
    return found


_FOUND = _scan()
NAMES: dict[str, str] = {name: place for name, (place, _) in _FOUND.items()}


@checked_call
def get(name: str) -> "Run":
    """The Run of a preset.

    Raises:
      UserError: no preset is called that; the nearest is named.
    """
    _check(name)
    module, _, function = NAMES[name].partition(":")
    return getattr(importlib.import_module(module), function)()


def _check(name: str) -> None:
    if name not in NAMES:
        near = nearest(name, NAMES)
        listed = f"`llama-jax presets` lists the {len(NAMES)} that there are"
        raise UserError(f"no preset {name[:60]!r}{near + ' ' if near else '; '}{listed}")


@checked_call
def describe(name: str) -> str:
    """The first line of a preset's docstring.

    Raises:
      UserError: no preset is called that.
    """
    _check(name)
    return _FOUND[name][1]


def __getattr__(name: str) -> Any:
    if name == "meshes":  # `presets.meshes.laid_out(run, "fsdp")`, which needs jax
        return importlib.import_module("llama_jax.presets.meshes")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
