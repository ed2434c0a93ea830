"""Kinds of values: what a declared type takes, and what is said of a value of another kind."""

import collections.abc
import dataclasses
import math
import operator
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np

from llama_jax.errors import UserError, nearest
from llama_jax.messages import short

PLAIN = (bool, int, float, str, NoneType)  # values without parts


def as_declared(value: Any, hint: Any) -> Any:
    """What a value stands for where a type is declared: numbers of NumPy, lists, paths."""
    if type(value) in PLAIN:
        return value
    kinds = [get_origin(one) or one for one in _choices(hint)]
    if isinstance(value, np.generic) and type(value.item()) in PLAIN:
        return value.item() if any(kind in PLAIN for kind in kinds) else value
    if isinstance(value, os.PathLike) and str in kinds and Path not in kinds:
        return os.fspath(value)
    if isinstance(value, list | tuple) and type(value) in (list, tuple) and tuple in kinds:
        within = get_args(next(one for one in _choices(hint) if (get_origin(one) or one) is tuple))
        each = (*within, *[Any] * len(value))
        if within[1:] == (...,):
            each = within[:1] * len(value)
        made = tuple(map(as_declared, value, each))
        same = type(value) is tuple and all(a is b for a, b in zip(made, value, strict=True))
        return value if same else made
    return value


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a declared type; where that cannot be told, it is."""
    if len(choices := _choices(hint)) > 1:
        return any(fits(value, one) for one in choices)
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return type(value) in map(type, inner) and value in inner
    kind = origin or hint
    if kind in PLAIN:
        if kind is float and type(value) in (int, float):
            return abs(value) <= sys.float_info.max  # neither NaN nor infinite, nor beyond floats
        return type(value) is kind
    if kind is tuple:
        if type(value) is not tuple:
            return isinstance(value, tuple)
        each = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return not inner or (len(each) == len(value) and all(map(fits, value, each)))
    if kind in (dict, collections.abc.Mapping):
        return isinstance(value, collections.abc.Mapping)
    if dataclasses.is_dataclass(kind):
        return _is_config(value, kind)
    if getattr(kind, "_is_protocol", False):
        return not isinstance(value, type) and all(hasattr(value, n) for n in _methods(kind))
    return kind is Any or not isinstance(kind, type) or _is_one(value, kind, inner)


def _is_one(value: Any, kind: type, inner: tuple[Any, ...]) -> bool:
    """Whether a value is of a class; of a list or tuple, whether all that is in it fits too."""
    if kind.__module__.startswith("jaxtyping"):  # shapes are checked where they are used
        return True
    if kind not in (list, collections.abc.Iterable, collections.abc.Sequence):
        return isinstance(value, kind)
    if not isinstance(value, kind) or isinstance(value, str | bytes | Mapping):
        return False
    if getattr(value, "ndim", 1) == 0:  # an array of one number says that it can be iterated over
        return False
    known = inner and isinstance(value, collections.abc.Collection)  # an iterator ends by looking
    return not known or all(fits(one, inner[0]) for one in value)


def _methods(protocol: type) -> list[str]:
    return [name for name in vars(protocol) if not name.startswith("_")]


def _is_config(value: Any, kind: Any) -> bool:
    """Whether a value is one of a dataclass, or somebody's own in its place."""
    if isinstance(value, kind):
        return True
    if isinstance(value, type) or not dataclasses.is_dataclass(value):
        return False
    return not type(value).__module__.startswith("llama_jax.")


def _choices(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def spelled(hint: Any) -> str:
    """A declared type as a user would say it."""
    if len(choices := _choices(hint)) > 1:
        return " | ".join(map(spelled, choices))
    if hint in (None, NoneType):
        return "None"
    if hint is ...:
        return "..."
    if (get_origin(hint) or hint) is collections.abc.Callable:
        return "a function"
    name = getattr(get_origin(hint) or hint, "__name__", str(hint))
    within = get_args(hint)
    return f"{name}[{', '.join(map(spelled, within))}]" if within else name


def takes_path(hint: Any) -> bool:
    """Whether a path is declared, as a text or not."""
    return any((get_origin(one) or one) in (Path, os.PathLike) for one in _choices(hint))


def is_path(text: str) -> bool:
    """Whether a file can have this name: without NUL, and with a form in bytes."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def misfit(what: str, value: Any, hint: Any, such: str = "") -> UserError:
    """The error of a value of another kind.

    Args:
      what: the beginning of the message, such as "steps='3'".
      value: what came.
      hint: what was declared.
      such: an example of what fits, as text; none if empty.
    """
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        near = nearest(value, choices) if isinstance(value, str) else ""
        return UserError(f"{what} is not one of {', '.join(choices)}{near}")
    if isinstance(value, float) and value != value:
        return UserError(f"{what} is no number; {spelled(hint)} was expected")
    if isinstance(value, float) and abs(value) == math.inf:
        return UserError(f"{what} is not finite; {spelled(hint)} was expected")
    if isinstance(value, type):
        return UserError(f"{what} is a class; a value was expected, {value.__name__}(...)")
    if (wrong := _within(value, hint)) is not None:
        return misfit(f"{what} has {short(wrong[0])}, which", *wrong)
    kind = type(value).__name__
    such = such or getattr(hint, "EXAMPLE", "")  # how one of a class is come by
    such = f", e.g. {such}" if such else ""
    return UserError(f"{what} is of type {kind}; {spelled(hint)} was expected{such}")


def _within(value: Any, hint: Any) -> tuple[Any, Any] | None:
    """What of a tuple does not fit, and its declared type, if all of it was to be of one type."""
    for one in _choices(hint):
        inner = get_args(one)
        if not isinstance(value, tuple) or get_origin(one) is not tuple or inner[1:] != (...,):
            continue
        if get_origin(inner[0]) is not tuple:
            return next(((part, inner[0]) for part in value if not fits(part, inner[0])), None)
    return None


def check_text(value: Any, what: str = "a text") -> str:
    """A text as it came.

    Raises:
      UserError: it is none.
    """
    if not isinstance(value, str):
        raise UserError(f"{short(value)} is of type {type(value).__name__}; {what} was expected")
    return value


def whole_number(value: Any, what: str) -> int:
    """A whole number, of Python or of an array library.

    Args:
      value: what came.
      what: what was expected, such as "an id".

    Raises:
      UserError: something else came.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise UserError(f"{short(value)} came; {what} was expected, e.g. 3") from None


def whole_numbers(values: Any, what: str) -> list[int]:
    """A row of whole numbers as a list, whatever array or sequence it came in.

    Args:
      values: a list, a tuple, or a row of NumPy, jax or torch.
      what: the end of the message, such as "a row of ids".

    Raises:
      UserError: something else came.
    """
    try:
        if isinstance(values, str | bytes | Mapping):
            raise TypeError
        row = values.tolist() if hasattr(values, "tolist") else values
        return [operator.index(i) for i in row]
    except TypeError:
        raise UserError(f"{short(values)} came; {what} was expected, e.g. [1, 2, 3]") from None
