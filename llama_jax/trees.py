"""Trees and their parts by path: {"a": {"b": 1}} is {"a/b": 1}; and where two configs differ."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any


def path_name(path: tuple[Any, ...]) -> str:
    """A key path of jax as one name, "decoder/embed/w"; the parts of dicts, fields and tuples."""
    return "/".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)


def flat(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """The leaves of any pytree by path.

    Args:
      tree: a pytree.
      is_leaf: what counts as a leaf beside what jax takes for one.
    """
    import jax

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return {path_name(path): leaf for path, leaf in leaves}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The dict of dicts whose leaves have these paths; the inverse of `flat` for dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *outer, last = path.split("/")
        inner = tree
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[last] = leaf
    return tree


def children(config: Any) -> dict[str, Any]:
    """What is directly inside a dataclass, dict or tuple, by field name, key or index."""
    if dataclasses.is_dataclass(config):
        return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.init}
    if isinstance(config, Mapping):
        return dict(config)
    return {str(i): item for i, item in enumerate(config)} if isinstance(config, tuple) else {}


def settable(config: Any) -> dict[str, Any]:
    """`children`, with the entries that a dict may have where a config says so (`unfolded`)."""
    return children(config) | (config.unfolded() if hasattr(config, "unfolded") else {})


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
