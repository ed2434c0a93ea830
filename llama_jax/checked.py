"""Configs whose fields are checked against their declarations when one is made.

@checked
class Widths:
    hidden: int
    share: float = 0.5

Widths("3")     UserError: hidden='3' of Widths is of type str; int was expected
"""

import collections.abc
import dataclasses
import functools
import os
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

from llama_jax.errors import UserError, nearest
from llama_jax.messages import short
from llama_jax.trees import children

PLAIN = (bool, int, float, str, NoneType)  # values without parts
T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def checked(cls: type[T]) -> type[T]:
    """A frozen dataclass that takes no value of another kind than its field is declared as.

    Numbers of NumPy become Python's, lists become tuples, and paths text, where these are declared.
    The checks of the class itself, its `__post_init__`, come after and can rely on that.
    """
    own = getattr(cls, "__post_init__", None)

    def __post_init__(self: Any) -> None:
        check_fields(self)
        if own is not None:
            own(self)

    cls.__post_init__ = __post_init__  # pyright: ignore[reportAttributeAccessIssue]
    return dataclasses.dataclass(frozen=True)(cls)


def check_fields(config: Any) -> None:
    """Checks the fields of a config against what they are declared as, as far as that is plain.

    Raises:
      UserError: a value of another kind, or a float that is no number.
    """
    for name, value in children(config).items():
        hint = declared(config, name)
        plain = as_declared(value, hint)
        if not fits(plain, hint):
            of = f" of {type(config).__name__}"
            raise misfit(f"{name}={short(value)}{of}", value, hint, example(config, name))
        if plain is not value:
            object.__setattr__(config, name, plain)


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
    if isinstance(value, type):
        return UserError(f"{what} is a class; a value was expected, {value.__name__}(...)")
    kind = type(value).__name__
    such = f", e.g. {such}" if such else ""
    return UserError(f"{what} is of type {kind}; {spelled(hint)} was expected{such}")


def example(config: Any, name: str) -> str:
    """The default of a field as text, if it has one that says something."""
    field = next((f for f in dataclasses.fields(config) if f.name == name), None)
    default = dataclasses.MISSING if field is None else field.default
    return "" if default in (dataclasses.MISSING, None, "", ()) else short(default, 40)


def declared(config: Any, name: str) -> Any:
    """The type that a field is declared as; Any where that cannot be told."""
    return _hints(type(config)).get(name, Any) if dataclasses.is_dataclass(config) else Any


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except NameError:  # a field is declared by a name for type checkers alone
        fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
        return {f.name: f.type for f in fields if not isinstance(f.type, str)}


def as_declared(value: Any, hint: Any) -> Any:
    """What a value stands for where a type is declared: numbers of NumPy, lists, paths."""
    if type(value) in PLAIN:
        return value
    kinds = [get_origin(one) or one for one in _choices(hint)]
    if isinstance(value, np.generic) and type(value.item()) in PLAIN:
        return value.item() if any(kind in PLAIN for kind in kinds) else value
    if isinstance(value, os.PathLike) and str in kinds:
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
        return (type(value) is kind or (kind is float and type(value) is int)) and value == value
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
    return True


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
    name = getattr(get_origin(hint) or hint, "__name__", str(hint))
    within = get_args(hint)
    return f"{name}[{', '.join(map(spelled, within))}]" if within else name
