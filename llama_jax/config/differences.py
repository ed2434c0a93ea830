"""Where two configs, or two JSON values, differ."""

import json
from collections.abc import Iterator
from typing import Any

from llama_jax.config.fields import children
from llama_jax.messages import cut


def differences(before: Any, now: Any) -> list[str]:
    """The places where two JSON values differ, as "optimizer.rate was 0.001, is 0.01"."""
    return [
        f"{path} was {cut(json.dumps(a), 60)}, is {cut(json.dumps(b), 60)}"
        for path, a, b in places(before, now)
    ]


def difference(a: Any, b: Any, path: str = "model") -> str | None:
    """The first place where two configs differ, as "model.tied is True", or None."""
    return next((f"{where} is {one!r}" for where, one, _ in places(a, b, path)), None)


def places(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The paths at which two values differ, with both; what a dict lacks is None there."""
    inner, other = _inside(a), _inside(b)
    dicts = isinstance(a, dict) and isinstance(b, dict)
    if dicts or (inner and type(a) is type(b) and inner.keys() == other.keys()):
        for key in [*inner, *(key for key in other if key not in inner)]:
            yield from places(inner.get(key), other.get(key), f"{path}.{key}".lstrip("."))
    elif a != b:
        yield path, a, b


def _inside(value: Any) -> dict[str, Any]:
    return children(tuple(value) if isinstance(value, list) else value)
