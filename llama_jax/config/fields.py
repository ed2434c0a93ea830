"""Fields by path: `edit(run, "model.stack.repeats", 8)`, and what is in a config."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from llama_jax.checked import checked_call, declared
from llama_jax.data.held_out import Share
from llama_jax.errors import UserError, nearest
from llama_jax.kinds import as_declared, fits, misfit
from llama_jax.messages import short
from llama_jax.optim.optimizer import Optimizer, Schedule
from llama_jax.optim.optimizer import named as optimizer_named
from llama_jax.trees import children, settable

# Fields that had another name once, for those who remember it.
WAS = {"growth": "batch_schedule"}


@checked_call
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
    inside = settable(here) if rest else children(here)
    if part not in inside:
        raise no_field(here, parts, path)
    if not rest:
        value = as_declared(value, declared(here, part))
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
        raise UserError(f"{path}={short(value)}: {said}") from None


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


def _check_declared(config: Any, name: str, value: Any, path: str) -> None:
    """Checks a value against what the field is declared as, as far as that is plain."""
    if not fits(value, hint := declared(config, name)):
        raise misfit(f"{path}={short(value)}", value, hint, repr(getattr(config, name)))


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
            f"{path}={short(new)} is of type {type(new).__name__}; a value such as "
            f"{kind.__name__}(...) was expected: set one of its fields "
            f"({', '.join(children(old))}), or it in Python"
        )
    if kind is float and type(new) is int:
        return float(new)
    if kind in (bool, int, float, str, tuple) and new is not None and type(new) is not kind:
        raise UserError(
            f"{path}={short(new)} is of type {type(new).__name__}; {kind.__name__} was expected, "
            f"e.g. {old!r}"
        )
    return new
