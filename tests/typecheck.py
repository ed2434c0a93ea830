"""What jaxtyping's import hook checks in the tests: shapes that functions take and give."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation


def functions(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Checks calls of `fn`, unless it makes a dataclass.

    jax fills Tokens, Mask and other pytrees with shapes, shardings and None on the way through
    `eval_shape`, `vmap` and `tree.map`; and a config with a wrong value must reach its own check.
    """
    if fn.__name__ == "__init__":
        return fn
    check = beartype(fn)

    # jaxtyping calls this with the arguments and ignores what it returns.
    def checked(*args: Any, **kwargs: Any) -> None:
        try:
            check(*args, **kwargs)
        except BeartypeCallHintViolation:
            check(*map(_as_jax, args), **{name: _as_jax(arg) for name, arg in kwargs.items()})

    return checked


def _as_jax(value: Any) -> Any:
    """A NumPy array or scalar may stand where the annotation says Array, as it does in jax."""
    return jnp.asarray(value) if isinstance(value, np.ndarray | np.number | np.bool_) else value
