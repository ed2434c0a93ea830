"""Ring attention: a sequence split over the devices of the mesh axis of T; keys go round.

Each device keeps its queries. Keys, values and their side of the mask pass from device to device;
after as many steps as devices every query has met every key, and what each step gave is joined by
its lse. No device ever holds a whole sequence (Liu et al. 2023, arXiv:2310.01889).

A causal mask hides half of the scores, and if device i held part i of the sequence, the last device
would compute all of its scores and the first next to none. So the sequence is first dealt out
again: of 2n halves device i gets i and 2n - 1 - i, and then all have the same work at each step
(as in Brandon et al. 2023, arXiv:2311.09431, and Llama 3, arXiv:2407.21783, section 3.3.2).

    n = 3, halves 0 ... 5:       01 23 45    ->    05 14 23
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from llama_jax.axes import activation_spec, check_divides
from llama_jax.kernels.attention import flash
from llama_jax.kernels.attention.block_mask import Operands, operands
from llama_jax.kernels.attention.flash import Kernel, Static, Summed
from llama_jax.kernels.attention.mask import Mask
from llama_jax.kernels.attention.sharded import free_axes


class Ring(NamedTuple):
    """The way round: static.

    Attributes:
      kernel: what computes one step.
      axis: the mesh axis of the ring.
      size: devices along it.
      dealt: whether queries and keys are dealt out again, for a causal mask.
    """

    kernel: Kernel
    axis: str
    size: int
    dealt: bool


def axis_of_sequence() -> tuple[str, int]:
    """The mesh axis that splits T, and its size; ("", 1) without one."""
    part = activation_spec("T")[0]
    axes = () if part is None else (part,) if isinstance(part, str) else tuple(part)
    mesh, free = jax.sharding.get_abstract_mesh(), free_axes()
    sizes = [(axis, mesh.shape[axis]) for axis in axes if axis in free and mesh.shape[axis] > 1]
    if len(sizes) > 1:
        raise ValueError(f"the rules split T over {axes}; a ring goes over one axis")
    return sizes[0] if sizes else ("", 1)


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
    """Attention and its lse over the axis of T.

    T and S are multiples of its size, of twice it if causal.
    """
    B, T, S = q.shape[0], q.shape[1], k.shape[1]
    axis, size = axis_of_sequence()
    data = operands(mask, B, T, S)
    if mask.local and data.q_positions is None:
        places = (jnp.broadcast_to(jnp.arange(n), (B, n)) for n in (T, S))
        data = data._replace(**dict(zip(("q_positions", "kv_positions"), places, strict=True)))
    ring = Ring(kernel, axis, size, mask.causal and T == S and mask.allow is None)
    static = Static(mask.structure, scale, softcap)

    mesh = jax.sharding.get_abstract_mesh()
    spec = check_divides("BTNH", q.shape, activation_spec("BTNH"), mesh)
    keys = check_divides("BTKH", k.shape, activation_spec("BTKH"), mesh)
    rows, line = PartitionSpec(spec[0]), PartitionSpec(spec[0], axis)
    parts: Any = (line, line, line, line, rows, line)
    given: Any = Operands(*(None if x is None else p for x, p in zip(data, parts, strict=True)))

    def one(q, k, v, data):
        if not ring.dealt:
            return _attend(q, k, v, data, ring, static)
        q, k, v, data = (_deal(x, ring) for x in (q, k, v, data))
        summed: Any = _attend(q, k, v, data, ring, static)
        out, lse_BTN = _deal((summed[0], summed[1].swapaxes(1, 2)), ring, back=True)
        return out, lse_BTN.swapaxes(1, 2)

    return jax.shard_map(
        one,
        in_specs=(spec, keys, keys, given),
        out_specs=(spec, PartitionSpec(spec[0], spec[2], spec[1])),
        axis_names=free_axes(),
        check_vma=False,
    )(q, k, v, data)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(q, k, v, data: Operands, ring: Ring, static: Static) -> Summed:
    return _forward(q, k, v, data, ring, static)[0]


def _forward(q, k, v, data, ring, static):
    def step(carry, turn):
        out, lse, (k, v, others) = carry
        then = _pass((k, v, others), ring)  # on its way while this step computes
        part, part_lse = ring.kernel.forward(q, k, v, _met(data, others, turn, ring), static)
        out, lse = flash.merge(out, lse, part.astype(jnp.float32), part_lse)
        return (out, lse, then), None

    out = jnp.zeros(q.shape, jnp.float32)
    lse = jnp.full((q.shape[0], q.shape[2], q.shape[1]), -jnp.inf, jnp.float32)
    start = (out, lse, (k, v, _others(data)))
    (out, lse, _), _ = jax.lax.scan(step, start, jnp.arange(ring.size))
    out, lse = (checkpoint_name(x, "attention") for x in (out.astype(q.dtype), lse))
    return (out, lse), (q, k, v, data, out, lse)


def _backward(ring, static, kept, grads):
    (q, k, v, data, out, lse), (grad, grad_lse) = kept, grads
    delta = flash.delta(out, grad) - grad_lse

    def step(carry, turn):
        dq, (k, v, others), (dk, dv) = carry
        then = _pass((k, v, others), ring)
        met = _met(data, others, turn, ring)
        parts = ring.kernel.backward(q, k, v, met, static, lse, delta, grad)
        sums = (x + part.astype(jnp.float32) for x, part in zip((dq, dk, dv), parts, strict=True))
        dq, dk, dv = sums
        # The gradients travel with their keys, and are at home when they have gone round.
        return (dq, then, _pass((dk, dv), ring)), None

    none = [jnp.zeros(x.shape, jnp.float32) for x in (q, k, v)]
    start = (none[0], (k, v, _others(data)), (none[1], none[2]))
    (dq, _, (dk, dv)), _ = jax.lax.scan(step, start, jnp.arange(ring.size))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_forward, _backward)


def _others(data: Operands) -> tuple[Any, Any]:
    """What travels with the keys."""
    return data.kv_positions, data.kv_segments


def _met(data: Operands, others: tuple[Any, Any], turn: Any, ring: Ring) -> Operands:
    """The mask of these queries and the keys that are here at this turn."""
    positions, segments = others
    allow = data.allow
    if allow is not None:  # [B, T of here, S of all]: the columns of where the keys come from
        home = (jax.lax.axis_index(ring.axis) - turn) % ring.size
        size = allow.shape[2] // ring.size
        allow = jax.lax.dynamic_slice_in_dim(allow, home * size, size, 2)
    return data._replace(kv_positions=positions, kv_segments=segments, allow=allow)


def _pass(x: Any, ring: Ring) -> Any:
    """To the next device, from the one before."""
    way = [(i, (i + 1) % ring.size) for i in range(ring.size)]
    return jax.tree.map(lambda y: jax.lax.ppermute(y, ring.axis, way), x)


def _deal(x: Any, ring: Ring, back: bool = False) -> Any:
    """Halves 2i and 2i + 1 of each device to the device that computes them, or back.

    Arrays are [B, T, ...]; others, of one axis, stay.
    """
    last = 2 * ring.size - 1
    # Where half h goes; of the halves 2i, and of the halves 2i + 1, each device gets one.
    ways = [
        [(i, h if h < ring.size else last - h) for i, h in enumerate(range(odd, last + 1, 2))]
        for odd in (0, 1)
    ]
    here = jax.lax.axis_index(ring.axis)
    # Device j has halves j and last - j; the even one of them came by the first way.
    even_first = here % 2 == 0

    def there(y):
        a, b = (
            jax.lax.ppermute(half, ring.axis, way)
            for half, way in zip(jnp.split(y, 2, axis=1), ways, strict=True)
        )
        return jnp.where(even_first, jnp.concatenate([a, b], 1), jnp.concatenate([b, a], 1))

    def home(y):
        low, high = jnp.split(y, 2, axis=1)
        even, odd = jnp.where(even_first, low, high), jnp.where(even_first, high, low)
        parts = (
            jax.lax.ppermute(half, ring.axis, [(j, i) for i, j in way])
            for half, way in zip((even, odd), ways, strict=True)
        )
        return jnp.concatenate(list(parts), axis=1)

    move = home if back else there
    return jax.tree.map(lambda y: move(y) if y.ndim > 1 else y, x)
