"""What every flash kernel shares: the two passes, joined to one differentiable function.

Forward keeps no scores, only the logarithm of each query's sum of exp(scores), `lse`; backward
computes the scores again from it (Dao et al. 2022, arXiv:2205.14135; Dao 2023, arXiv:2307.08691):

    p  = exp(s - lse)             dv = p' do
    ds = p (do v' - delta)        delta = sum(out * do)
    dq = scale ds k               dk = scale ds' q

A kernel is the pair of passes; `attend` joins them. Parts of keys that were attended to apart are
joined by their `lse` (`merge`): all that a ring of devices or a split of a long cache needs.
"""

import functools
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from llama_jax.kernels.attention.block_mask import Operands, operands
from llama_jax.kernels.attention.mask import Mask

# What attention gives: the result, and its lse.
Summed = tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]


class Static(NamedTuple):
    """What is known while tracing; hashable.

    Attributes:
      structure: the static part of the mask.
      scale: factor of the scores.
      softcap: scores become softcap * tanh(scores / softcap), or None.
    """

    structure: Mask
    scale: float
    softcap: float | None


@runtime_checkable
class Forward(Protocol):
    """The first pass."""

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        data: Operands,
        static: Static,
    ) -> Summed:
        """The result in q's type, and lse in float32: -inf where a query sees no key."""
        ...


@runtime_checkable
class Backward(Protocol):
    """The second pass."""

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        data: Operands,
        static: Static,
        lse: Float[Array, "B N T"],
        delta: Float[Array, "B N T"],
        grad: Float[Array, "B T N H"],
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """The gradients of q, k and v in their types; `grad` is that of the result.

        `lse` and `delta` may be those of more keys than are given here.
        """
        ...


class Kernel(NamedTuple):
    """Both passes."""

    forward: Forward
    backward: Backward


def attend(
    kernel: Kernel,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    *,
    scale: float,
    softcap: float | None,
) -> Summed:
    """Attention by a kernel and its lse, differentiable in q, k and v."""
    data = operands(mask, q.shape[0], q.shape[1], k.shape[1])
    return differentiable(kernel, q, k, v, data, Static(mask.structure, scale, softcap))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5))
def differentiable(
    kernel: Kernel, q: jax.Array, k: jax.Array, v: jax.Array, data: Operands, static: Static
) -> Summed:
    """`attend` with the mask in parts."""
    return kernel.forward(q, k, v, data, static)


def _differentiable_forward(kernel, q, k, v, data, static):
    # Named, so that rematerialisation can be told to store both and not to run the kernel again.
    out, lse = (checkpoint_name(x, "attention") for x in kernel.forward(q, k, v, data, static))
    return (out, lse), (q, k, v, data, out, lse)


def _differentiable_backward(kernel, static, kept, grads):
    (q, k, v, data, out, lse), (grad, grad_lse) = kept, grads
    taken = delta(out, grad) - grad_lse  # of lse itself the gradient is p
    return *kernel.backward(q, k, v, data, static, lse, taken, grad), None


differentiable.defvjp(_differentiable_forward, _differentiable_backward)


def delta(out: Float[Array, "B T N H"], grad: Float[Array, "B T N H"]) -> Float[Array, "B N T"]:
    """sum(out * grad) over H in float32: what softmax takes from each score's gradient."""
    return jnp.einsum("BTNH,BTNH->BNT", out, grad, preferred_element_type=jnp.float32)


def merge(
    out: Float[Array, "B T N H"],
    lse: Float[Array, "B N T"],
    other: Float[Array, "B T N H"],
    other_lse: Float[Array, "B N T"],
) -> Summed:
    """The result over two sets of keys from those over each, in float32."""
    seen = jnp.maximum(lse, other_lse) > -jnp.inf
    # A query that sees no key: -inf - -inf would be NaN, here and in the gradient.
    total = jnp.logaddexp(*(jnp.where(seen, part, 0.0) for part in (lse, other_lse)))

    def weighted(x, part):
        return x * jnp.moveaxis(jnp.exp(part - total), 1, 2)[..., None]

    return weighted(out, lse) + weighted(other, other_lse), jnp.where(seen, total, -jnp.inf)


def merge_all(
    out: Float[Array, "*parts H"], lse: Float[Array, "*parts"], axis: int
) -> tuple[Float[Array, "*rest H"], Float[Array, "*rest"]]:
    """`merge` over the parts along an axis, however many, in float32; not for gradients."""
    total = jax.nn.logsumexp(lse, axis=axis)
    # A row that sees no key: -inf - -inf would be NaN.
    weight = jnp.exp(lse - jnp.expand_dims(jnp.where(total > -jnp.inf, total, 0.0), axis))
    return jnp.sum(out * weight[..., None], axis=axis), total
