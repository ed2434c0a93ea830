"""Trees of dicts and their leaves by path: {"a": {"b": 1}} is {"a/b": 1}."""

from collections.abc import Callable, Mapping
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
