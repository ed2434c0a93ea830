"""What jaxtyping's import hook checks in the tests: shapes that functions take and give."""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def functions(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Checks calls of `fn`, unless it makes a dataclass.

    jax fills Tokens, Mask and other pytrees with shapes, shardings and None on the way through
    `eval_shape`, `vmap` and `tree.map`; and a config with a wrong value must reach its own check.
    """
    return fn if fn.__name__ == "__init__" else beartype(fn)
