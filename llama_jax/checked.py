"""Configs and calls that are checked against their declarations, before anything is done.

@checked
class Widths:
    hidden: int
    share: float = 0.5

Widths("3")     UserError: hidden='3' of Widths is of type str; int was expected
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, dataclass_transform, get_type_hints

from llama_jax.errors import UserError
from llama_jax.kinds import PLAIN, as_declared, fits, is_path, misfit, takes_path
from llama_jax.messages import short
from llama_jax.trees import children

T = TypeVar("T")
Call = TypeVar("Call", bound=Callable)


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


def checked_call(call: Call) -> Call:
    """A function that takes no argument of another kind than it is declared as; see `checked`.

    For the doors of the package, which users come through: binding arguments takes microseconds.
    """
    signature = inspect.signature(call)
    several = {p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD}
    defaults = {
        p.name: p.default for p in signature.parameters.values() if p.default is not p.empty
    }

    @functools.wraps(call)
    def checking(*args: Any, **named: Any) -> Any:
        bound, hints = signature.bind(*args, **named), _hints(call)
        for name, value in bound.arguments.items():
            hint, of = hints.get(name, Any), call.__name__
            if name in several:
                value = {k: _taken(k, v, hint, of) for k, v in value.items()}
            else:
                value = _taken(name, value, hint, of, _shown(defaults.get(name)))
            bound.arguments[name] = value
        return call(*bound.args, **bound.kwargs)

    return checking  # pyright: ignore[reportReturnType]


def check_fields(config: Any, names: Iterable[str] = ()) -> None:
    """Checks the fields of a config against what they are declared as, as far as that is plain.

    Args:
      config: what was made.
      names: which; all by default.

    Raises:
      UserError: a value of another kind, or a float that is no number.
    """
    inside = children(config)
    for name in names or inside:
        hint, value, of = declared(config, name), inside[name], type(config).__name__
        plain = _taken(name, value, hint, of, example(config, name))
        if plain is not value:
            object.__setattr__(config, name, plain)


def _taken(name: str, value: Any, hint: Any, of: str, such: str = "") -> Any:
    """A value as it was declared, or the error that it is of another kind."""
    plain = as_declared(value, hint)
    if not fits(plain, hint):
        raise misfit(f"{name}={short(value)} of {of}", value, hint, such)
    if isinstance(value, str) and takes_path(hint) and not is_path(value):
        raise UserError(f"{name}={short(value)} of {of} has a character that no file's name has")
    return plain


def example(config: Any, name: str) -> str:
    """The default of a field as text, if it has one that says something."""
    return _shown(next(f.default for f in dataclasses.fields(config) if f.name == name))


def _shown(default: Any) -> str:
    plain = isinstance(default, PLAIN) or dataclasses.is_dataclass(default)
    return short(default, 40) if plain and default not in (None, "") else ""


def declared(config: Any, name: str) -> Any:
    """The type that a field is declared as; Any where that cannot be told."""
    return _hints(type(config)).get(name, Any) if dataclasses.is_dataclass(config) else Any


@functools.cache
def _hints(of: Any) -> dict[str, Any]:
    try:
        return get_type_hints(of)
    except NameError:  # something is declared by a name for type checkers alone
        known = {f.name: f.type for f in dataclasses.fields(of)} if isinstance(of, type) else {}
        known |= {} if known else of.__annotations__
        return {name: hint for name, hint in known.items() if not isinstance(hint, str)}
