"""Numbers of a config.json, checked. A whole number may be written 8 or 8.0."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_jax.errors import FormatError
from llama_jax.messages import short

LARGEST = 2**31  # of any size in a config


def bad(place: Path | str, field: str, value: Any, expected: str) -> FormatError:
    """The error for a field with a value that was not expected."""
    return FormatError(f"{place}: {field}={short(value)}; {expected} was expected")


def size(config: Mapping[str, Any], place: Path | str, name: str, most: int = LARGEST) -> int:
    """A field that is a whole number from 1 to `most`.

    Raises:
      FormatError: it is none.
    """
    value: Any = config.get(name)
    if type(value) not in (int, float) or value % 1 or not 0 < value <= most:
        raise bad(place, name, value, f"a whole number from 1 to {most:,}")
    return int(value)


def positive(value: Any, field: str, place: Path | str) -> float:
    """A positive number, whole or not.

    Raises:
      FormatError: it is none.
    """
    if type(value) not in (int, float) or not 0 < value < 1e12:
        raise bad(place, field, value, "a positive number")
    return float(value)


def exactly(value: Any, field: str, values: tuple[Any, ...], place: Path | str) -> Any:
    """A value that is one of some, None among them where it may be absent.

    Raises:
      FormatError: it is another.
    """
    if value not in values:
        raise bad(
            place, field, value, " or ".join(repr(one).lower() for one in values if one is not None)
        )
    return value
