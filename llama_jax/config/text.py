"""Fields from text, as the command line gives them: `edit_text(run, "steps", "200")`."""

import ast
import inspect
import re
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from llama_jax.config.fields import declared, edit, no_field
from llama_jax.trees import children, settable

TRUTH = {"true": True, "false": False}
NONE = ("none", "null")


def edit_text(config: Any, path: str, text: str) -> Any:
    """`edit` with a value written as text, read as what the field is declared to be.

    Args:
      config: any config; nothing in it is changed.
      path: as for `edit`.
      text: the value: as it is for a string; `true`, `none`, `3e-4`; a Python literal for a tuple.

    Raises:
      UserError: see `edit`.
    """
    return edit(config, path, parsed(text, at(config, path)[1]))


def at(config: Any, path: str) -> tuple[Any, Any]:
    """The value at a path, and the type that it is declared to be.

    Raises:
      UserError: no such field; the nearest is named.
    """
    parts = path.split(".")
    here, hint = config, Any
    for index, part in enumerate(parts):
        inside = settable(here) if parts[index + 1 :] else children(here)
        if part not in inside:
            raise no_field(here, parts[index:], path)
        hint = _item(hint, part) if isinstance(here, dict | tuple) else declared(here, part)
        here = inside[part]
    return here, hint


def _item(hint: Any, part: str) -> Any:
    """The declared type of what is in a dict or a tuple."""
    inner = get_args(hint)
    if get_origin(hint) is dict:
        return inner[1]
    if get_origin(hint) is not tuple or not inner:
        return Any
    return inner[0] if inner[1:] == (...,) else inner[min(int(part), len(inner) - 1)]


def parsed(text: str, hint: Any) -> Any:
    """A text as a value of a type; what it cannot be, `edit` refuses with a reason."""
    for kind in _kinds(hint):
        if kind is str:
            return text
        if kind is NoneType and text.lower() in NONE:
            return None
        if kind is bool and text.lower() in TRUTH:
            return TRUTH[text.lower()]
        if get_origin(kind) is Literal:
            return next((one for one in get_args(kind) if str(one) == text), text)
        if kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _kinds(hint: Any) -> list[Any]:
    """The types that a hint allows, strings last, for any text is one."""
    if get_origin(hint) in (Union, UnionType):
        return sorted(get_args(hint), key=lambda kind: kind is str)
    return [hint]


def meanings(config: Any) -> dict[str, str]:
    """What the fields of a config mean, by name: the Attributes of its classes' docstrings."""
    found: dict[str, str] = {}
    for cls in reversed(type(config).__mro__):
        found |= dict(_attributes(inspect.cleandoc(vars(cls).get("__doc__") or "")))
    return found


def _attributes(doc: str) -> Iterator[tuple[str, str]]:
    _, _, entries = doc.partition("\nAttributes:\n")
    entries = re.split(r"\n(?=\S)", entries)[0]
    for name, said in re.findall(r"^ +(\w+): ((?:.*)(?:\n {4,}.*)*)", entries, re.MULTILINE):
        yield name, " ".join(said.split())
