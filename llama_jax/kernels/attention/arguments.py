"""What a call of `attention` is given: arrays, numbers and a mask, and not something else."""

from typing import Any

import jax
import numpy as np

from llama_jax.errors import UserError
from llama_jax.kernels.attention.mask import Mask
from llama_jax.messages import short

SHAPES = {"q": "[B,T,N,H]", "k": "[B,S,K,H]", "v": "[B,S,K,H]", "bias": "[N,T,S]"}


def check(arrays: dict[str, Any], mask: Any, numbers: dict[str, Any], backend: Any) -> None:
    """Checks what can be told without looking at how the shapes fit together.

    Args:
      arrays: q, k and v, and a bias or None, by name.
      mask: a Mask.
      numbers: the scale and the cap of the scores; None for neither.
      backend: a name.

    Raises:
      UserError: an argument of another kind.
    """
    for name, x in arrays.items():
        if not (_is_array(x) or (x is None and name == "bias")):
            raise _other(name, x, f"an array {SHAPES[name]}, as jnp.asarray gives it,")
    if not isinstance(mask, Mask):
        raise _other("mask", mask, "a Mask, e.g. Mask(causal=True), or None")
    for name in ("q_segments", "kv_segments", "q_positions", "kv_positions", "kv_valid", "allow"):
        if (data := getattr(mask, name)) is not None and not _is_array(data):
            raise _other(f"mask {name}", data, "an array, as jnp.asarray gives it,")
    if not (mask.prefix is None or type(mask.prefix) is int or _is_array(mask.prefix)):
        raise _other("mask prefix", mask.prefix, "a whole number or an array [B]")
    for name, x in numbers.items():
        number = isinstance(x, int | float | np.number) and -1e18 < x < 1e18
        if not (x is None or number or _is_array(x, 0)):
            raise _other(name, x, "a number or None")
    if not isinstance(backend, str):
        raise _other("backend", backend, "a name, e.g. 'auto'")
    bias, q, k = (arrays[name] for name in ("bias", "q", "k"))
    if bias is not None and q.ndim == k.ndim == 4:
        wanted = (q.shape[2], q.shape[1], k.shape[1])
        if bias.shape != wanted:
            raise UserError(f"bias has shape {bias.shape}; [N,T,S], here {wanted}, was expected")


def _is_array(x: Any, ndim: int | None = None) -> bool:
    if not isinstance(x, jax.Array | np.ndarray):
        return False
    return x.dtype.kind not in "USO" and ndim in (None, x.ndim)


def _other(name: str, x: Any, wanted: str) -> UserError:
    return UserError(f"{name}={short(x)} is of type {type(x).__name__}; {wanted} was expected")
