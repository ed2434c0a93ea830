"""Fields by path: `edit(run, "model.stack.repeats", 8)`, and what is in a config."""

import dataclasses
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from llama_jax.data.held_out import Share
from llama_jax.errors import UserError, nearest
from llama_jax.messages import short
from llama_jax.optim.optimizer import Optimizer, Schedule
from llama_jax.optim.optimizer import named as optimizer_named
from llama_jax.trees import children

PLAIN = (bool, int, float, str, NoneType)  # values without parts
# Fields that had another name once, for those who remember it.
WAS = {"growth": "batch_schedule"}


def edit(config: Any, path: str, value: Any) -> Any:
    """The same config with one field replaced, through dataclasses, dicts and tuples.

    Args:
      config: any config; nothing in it is changed.
      path: names, dict keys and tuple indices joined by dots, e.g. `model.pattern.3.ffn.experts`.
      value: the new value; an int is taken for a float, a path or a name for a source of data or a
        tokenizer ("my.txt", "runs/a/tokenizer.json"), a name for an optimizer or a schedule
        ("muon", "wsd").

    Raises:
      UserError: no such field (the nearest is named), a value of another kind, or one that the
        dataclass refuses.
    """
    return _edit(config, path.split("."), value, path)


def _edit(here: Any, parts: list[str], value: Any, path: str) -> Any:
    if not parts:
        return _same_kind(here, _named(here, value), path)
    part, rest = parts[0], parts[1:]
    inside = children(here)
    if part not in inside:
        raise no_field(here, parts, path)
    new = _edit(inside[part], rest, value, path)
    if not rest:
        _check_declared(here, part, new, path)
    if isinstance(here, Mapping):
        return {**here, part: new}
    if isinstance(here, tuple):
        return here[: int(part)] + (new,) + here[int(part) + 1 :]
    try:
        return dataclasses.replace(here, **{part: new})
    except (ValueError, TypeError) as error:
        name, said = path.rpartition(".")[2], str(error)
        if said.startswith(f"{name}="):  # the check of its own class says all but where
            raise UserError(path.removesuffix(name) + said) from None
        raise UserError(f"{path}={value!r}: {said}") from None


def leaves(config: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every plain value in a config with its path."""
    inner = children(config)
    if not inner:
        return [(path, config)]
    return [leaf for k, v in inner.items() for leaf in leaves(v, f"{path}.{k}".lstrip("."))]


def no_field(here: Any, parts: list[str], path: str) -> UserError:
    """The error of a path that leads nowhere.

    Args:
      here: what the first part is looked for in.
      parts: the rest of the path.
      path: all of it.
    """
    part, inside = parts[0], children(here)
    known = f"no {part!r} in {path!r}"
    before = path.split(".")[: -len(parts)]
    if inside and len(parts) > 1 and parts[1] in inside:  # it had a wrapper once
        return UserError(f"{known}; it is {'.'.join([*before, *parts[1:]])} now")
    if WAS.get(part) in inside:
        return UserError(f"{known}; it is {'.'.join([*before, WAS[part], *parts[1:]])} now")
    there = ", ".join(inside) or "no fields"
    return UserError(f"{known}; {type(here).__name__} has {there}" + nearest(part, inside))


def declared(config: Any, name: str) -> Any:
    """The type that a field is declared as; Any where that cannot be told."""
    if not dataclasses.is_dataclass(config):
        return Any
    try:
        return get_type_hints(type(config)).get(name, Any)
    except NameError:  # declared by a name for type checkers alone
        return Any


def _check_declared(config: Any, name: str, value: Any, path: str) -> None:
    """Checks a value against what the field is declared as, as far as that is plain."""
    hint = declared(config, name)
    if _fits(value, hint):
        return
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        raise UserError(
            f"{path}={value!r} is not one of {', '.join(choices)}{nearest(str(value), choices)}"
        )
    what = str(hint) if get_origin(hint) else hint.__name__
    raise UserError(
        f"{path}={value!r} is of type {type(value).__name__}; {what} was expected, e.g. "
        f"{getattr(config, name)!r}"
    )


def check_fields(config: Any) -> None:
    """Checks the fields of a config against what they are declared as, as far as that is plain.

    Raises:
      UserError: a value of another kind.
    """
    for name, value in children(config).items():
        hint = declared(config, name)
        if not _fits(value, hint):
            what = str(hint) if get_origin(hint) else hint.__name__
            raise UserError(
                f"{name}={short(value)} of {type(config).__name__} is of type "
                f"{type(value).__name__}; {what} was expected"
            )


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a declared type; where that cannot be told, it is."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    kind = origin or hint
    if kind in PLAIN:
        return type(value) is kind or (kind is float and type(value) is int)
    if kind is tuple and type(value) is tuple:
        each = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return all(map(_fits, value, each))
    if dataclasses.is_dataclass(kind):  # or somebody's own in its place
        return type(value) not in (*PLAIN, dict) and value != ()
    return not (kind in (tuple, dict) and type(value) in PLAIN)


def _named(old: Any, new: Any) -> Any:
    """What a string stands for where a source, tokenizer, optimizer or schedule was; or `new`."""
    if type(new) in (int, float) and isinstance(old, Share):
        return Share(float(new))
    if not isinstance(new, str):
        return new
    if isinstance(old, Optimizer | Schedule):
        return optimizer_named(old, new)
    if dataclasses.is_dataclass(old) and hasattr(old, "named"):
        return old.named(new)  # pyright: ignore[reportAttributeAccessIssue]
    if dataclasses.is_dataclass(old) and hasattr(old, "open"):
        from llama_jax.data.sources import named

        return named(new)
    return new


def _same_kind(old: Any, new: Any, path: str) -> Any:
    kind = type(old)
    if dataclasses.is_dataclass(old) and isinstance(new, bool | int | float | str):
        raise UserError(
            f"{path}={new!r} is of type {type(new).__name__}; a value such as {kind.__name__}(...) "
            f"was expected: set one of its fields ({', '.join(children(old))}), or it in Python"
        )
    if kind is float and type(new) is int:
        return float(new)
    if kind in (bool, int, float, str, tuple) and new is not None and type(new) is not kind:
        raise UserError(
            f"{path}={new!r} is of type {type(new).__name__}; {kind.__name__} was expected, e.g. "
            f"{old!r}"
        )
    return new
