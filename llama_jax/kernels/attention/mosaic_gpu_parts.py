"""What Mosaic GPU kernels are made of: registers, shared memory, products, and rings of copies.

A block of threads has one warpgroup that only starts copies from global memory, the producer, and
others that multiply, the consumers (Shah et al. 2024, arXiv:2407.08608). Between them lie rings of
`stages` slots in shared memory. Every slot has a `full` barrier, on which its copies arrive, and a
`free` barrier, on which each consumer arrives once it has read the slot for the last time. Step n
uses slot n % stages. The producer waits for `free` before it fills a slot again, so a slot is never
overwritten while it is read, and no barrier is ever a whole phase ahead of one who waits for it:

    producer   fill 0   fill 1   free 0?  fill 0   free 1?  fill 1  ...  free 0?  free 1?
    consumer   full 0?  read, free 0   full 1?  read, free 1   full 0?  ...

Under `interpreted()` jax plays the warpgroups with threads of Python and watches for races; layouts
of registers and products in them it does not know, so each piece here has a plain form.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from llama_jax.kernels.releases import load
from llama_jax.kernels.target import interpreting

ROWS = 64  # of a matrix in the registers of one warpgroup: wgmma is m64
# Layouts of a warpgroup's registers: a matrix as wgmma leaves it, and vectors along its sides.
MATRIX = plgpu.Layout.WGMMA
SIDES = MATRIX.reduce(1), MATRIX.reduce(0)
# How kernels are lowered is said, for the default differs: Lane in jax 0.10, Warpgroup since 0.11.
# Under Warpgroup every case of `tests/aot` compiles without a spill in all of them (0.10.2, 0.11.2,
# 0.12.0), so what is found of one release holds for the others.
SEMANTICS = plgpu.LoweringSemantics.Warpgroup


# Registers of a thread, of the 65,536 that a multiprocessor has: a block of 384 threads begins with
# 168 for each; 2 x 232 + 40 = 3 x 168. The producer's copies and addresses are known to fit into 40
# (jax's and tokamax's have as many); nobody checks 24, which would leave consumers 240.
CONSUMER, PRODUCER = 232, 40


class Sizes(NamedTuple):
    """How a pass is cut up.

    Attributes:
      consumers: warpgroups that multiply.
      step: keys (in `_key_gradients` queries) that are multiplied at once.
      stages: slots of a ring.
      split: warpgroups that share the head dim of one tile's gradients.
    """

    consumers: int
    step: int
    stages: int
    split: int = 1

    @property
    def tile(self) -> int:
        """Queries (in `_key_gradients` keys) of a block of threads."""
        return ROWS * self.consumers // self.split


def matrix(*shape: int, dtype: Any) -> Any:
    """Shared memory of a matrix, in the order of bytes that wgmma and the copy engine agree on."""
    if interpreting():
        return plgpu.SMEM(shape, dtype)
    order = plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)
    return plgpu.SMEM(shape, dtype, transforms=order)


def vector(ref: Any, index: tuple, side: int) -> Any:
    """Loads a vector along one side of a matrix in registers, from shared or global memory."""
    if interpreting():
        return ref[index]
    # "Optimized" loads are those without bank conflicts, of which global memory knows nothing.
    return load(ref.at[index], layout=SIDES[side], optimized=False)


def vectors(ring: Any, slot: Any, count: int) -> list:
    """The vectors of a slot, along the second side."""
    return [vector(ring.at[slot], (i,), 1) for i in range(count)]


def constant(value: float, shape: tuple[int, ...], layout: Any) -> Any:
    """A float32 array of one value in registers."""
    x = jnp.full(shape, value, jnp.float32)
    return x if interpreting() else plgpu.layout_cast(x, layout)


def spread(x: Any, shape: tuple[int, int], axis: int) -> Any:
    """A vector along `axis`, repeated along the other side of a matrix."""
    return lax.broadcast_in_dim(x, shape, [axis])


def indices(shape: tuple[int, int], axis: int, start: Any) -> Any:
    """A matrix of start, start + 1, ... along `axis`."""
    x = lax.broadcasted_iota(jnp.int32, shape, axis)
    return (x if interpreting() else plgpu.layout_cast(x, MATRIX)) + start


def turned(ref: Any) -> Any:
    """The transpose of a matrix in shared memory, for `products`."""
    return ref[...].T if interpreting() else ref.T


def products(*sums: tuple, meanwhile: Callable[[], None] | None = None) -> list:
    """Total + a b + c d + ... for each (total or None, (a, b), (c, d), ...), in float32.

    All run side by side; `meanwhile` is called when they are on their way. The first factors are
    refs or in registers, the second refs.
    """
    totals = [
        constant(0.0, (terms[0][0].shape[0], terms[0][1].shape[1]), MATRIX)
        if total is None
        else total
        for total, *terms in sums
    ]
    if interpreting():
        results = [
            functools.reduce(lambda x, term: x + _dot(*term), terms, total)
            for total, (_, *terms) in zip(totals, sums, strict=True)
        ]
        if meanwhile:
            meanwhile()
        return results

    def run(results):
        for result, (_, *terms) in zip(results, sums, strict=True):
            for a, b in terms:
                plgpu.wgmma(result, a, b)
        if meanwhile:
            meanwhile()

    return pl.run_state(run)([plgpu.WGMMAAccumulatorRef.init(total) for total in totals])


def _dot(a: Any, b: Any) -> Any:
    return jnp.dot(a[...].astype(jnp.float32), b[...].astype(jnp.float32))


def opaque(index: Any, n: Any, steps: Any) -> Any:
    """The index, of whose value in a step n < steps the compiler knows nothing.

    The address of each part of a tile would else be computed before the loop and kept, two
    registers for each of up to 32 parts, which are those that spill. (A barrier of scalars does not
    lower under `SEMANTICS` in jax 0.10.)
    """
    return index + jnp.minimum(steps - 1 - n, 0)


def ring(sizes: Sizes, copies: int) -> tuple[Any, Any]:
    """The barriers of a ring whose slots are filled by so many copies: full and free."""
    return (
        plgpu.Barrier(num_arrivals=copies, num_barriers=sizes.stages),
        plgpu.Barrier(num_arrivals=sizes.consumers, num_barriers=sizes.stages),
    )


def share_registers(sizes: Sizes, consumer: bool) -> None:
    """Gives a consumer what the producer does not need; each calls it first.

    With one consumer all begin with 255, and there is nothing to share. To "increase" to less than
    there is has no defined meaning, so it is not asked for.
    """
    if sizes.consumers == 2:
        count, action = (CONSUMER, "increase") if consumer else (PRODUCER, "decrease")
        plgpu.set_max_registers(count, action=action)


def produce(steps: Any, sizes: Sizes, rings: Sequence[tuple], fill: Callable) -> None:
    """The producer's walk; fill(n, slot) gives for each ring its copies, (source, target) refs."""
    share_registers(sizes, consumer=False)

    @pl.loop(0, steps)
    def _step(n):
        slot = lax.rem(n, jnp.int32(sizes.stages))
        for (full, free), copies in zip(rings, fill(n, slot), strict=True):

            @pl.when(n >= sizes.stages)
            def _wait(free=free):
                plgpu.barrier_wait(free.at[slot])

            for source, target in copies:
                plgpu.copy_gmem_to_smem(source, target, full.at[slot])

    # Every slot that was filled has been freed once more than was waited for.
    for slot in range(sizes.stages):

        @pl.when(slot < steps)
        def _last(slot=slot):
            for _, free in rings:
                plgpu.barrier_wait(free.at[slot])


def release(free: Any, loaded: bool) -> None:
    """A consumer has read a slot for the last time; `loaded` if by more than products.

    Ordinary loads are not ordered before what the copy engine writes there next, so a fence must
    be. Products on the hardware read as the engine writes and need none; interpreted, they load.
    """
    if loaded or interpreting():
        plgpu.commit_smem()
    plgpu.barrier_arrive(free)


def call(body: Callable, name: str, out: Any, grid: tuple, sizes: Sizes, scratch: dict) -> Any:
    """A kernel over a grid (heads, tiles, batch) with its consumers and one producer."""
    kwargs: dict[str, Any] = {}
    if interpreting():
        # jax has no public name for it yet.
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

        kwargs["interpret"] = InterpretGPUParams(detect_races=True)
    return plgpu.kernel(
        body,
        out_type=out,
        scratch_types=scratch,
        grid=grid,
        grid_names=("head", "tile", "batch"),
        num_threads=sizes.consumers + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=SEMANTICS),
        kernel_name=name,
        **kwargs,
    )
