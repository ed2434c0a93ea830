"""Stack: one period of a pattern of blocks, scanned over its repeats.

Llama 1-3 is `Stack((block,), repeats=32)`; Llama 4 a pattern of four; an encoder the same with a
bidirectional block. One scan keeps compile time and program size flat in depth.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax import axes
from llama_jax.errors import UserError, nearest
from llama_jax.kernels.target import platform
from llama_jax.layers import pipeline
from llama_jax.layers.block import SAVED, Block, Context
from llama_jax.layers.cache import Cache, LayerCache, empty_slots
from llama_jax.layers.divided import DividedBlock
from llama_jax.layers.positions import RelativeBias

AnyBlock = Block | DividedBlock
# What the backward pass finds again: all; only the inputs of a period; also the results of matrix
# products with a weight; also what `saved` names; the same, which waits in the host's memory.
Remat = Literal["none", "block", "dots", "named", "offload"]


@dataclass(frozen=True)
class Stack:
    """A pattern of blocks, `repeats` times.

    Attributes:
      pattern: the blocks of one period.
      repeats: periods; layers = len(pattern) x repeats.
      remat: what the backward pass computes again instead of storing.
      saved: what "named" and "offload" store, of the names in `block.SAVED`.
      bias: T5's relative bias, shared by all layers, or None.
      scan: weights and caches are stacked over the repeats and the periods run in a loop; if not,
        each period has arrays of its own, which decoding reads without cutting them out first.
    """

    pattern: tuple[AnyBlock, ...]
    repeats: int = 1
    remat: Remat = "none"
    bias: RelativeBias | None = None
    scan: bool = True
    saved: tuple[str, ...] = ("attention",)

    def __post_init__(self):
        if not self.pattern:
            raise UserError("pattern=(): give at least one block")
        if self.repeats < 1:
            raise UserError(f"repeats={self.repeats}: give 1 or more")
        if self.remat not in get_args(Remat):
            raise UserError(
                f"remat={self.remat!r} is not one of {', '.join(get_args(Remat))}"
                + nearest(str(self.remat), get_args(Remat))
            )
        for name in self.saved:
            if name not in SAVED:
                raise UserError(
                    f"saved={name!r} names no activation; a block has {', '.join(SAVED)}"
                    + nearest(name, SAVED)
                )

    def policy(self) -> Callable[..., Any] | None:
        """What `jax.checkpoint` may store beside the input of a period.

        Raises:
          UserError: to offload from a CPU, whose memory is the host's.
        """
        if self.remat == "dots":
            return jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        if self.remat == "named":
            return jax.checkpoint_policies.save_only_these_names(*self.saved)
        if self.remat == "offload":
            if platform() == "cpu":
                raise UserError(
                    "remat='offload' moves activations from a device to the host's memory, and on "
                    "a CPU they are there; take remat='named' or 'block'"
                )
            return jax.checkpoint_policies.save_and_offload_only_these_names(
                names_which_can_be_saved=[],
                names_which_can_be_offloaded=list(self.saved),
                offload_src="device",
                offload_dst="pinned_host",
            )
        return None

    def build(self, name: str | None = None) -> "StackModule":
        """The module."""
        return StackModule(self, name=name)

    def empty_cache(self, batch: int, slots: int, dtype=jnp.float32) -> Cache:
        """A cache for `slots` tokens a row; every block of the pattern must be a `Block`."""
        layers = []
        for block in self.pattern:
            if not isinstance(block, Block):
                raise ValueError(f"{type(block).__name__} has no cache; decoders are made of Block")
            layers.append(block.empty_cache(batch, slots, dtype))
        if self.scan:
            stacked = jax.tree.map(lambda a: jnp.broadcast_to(a, (self.repeats, *a.shape)), layers)
            return Cache(tuple(stacked), *empty_slots(batch, slots))
        return Cache(tuple(layers) * self.repeats, *empty_slots(batch, slots))


def with_remat(config: Any, remat: Remat, saved: tuple[str, ...] = ("attention",)) -> Any:
    """The same config, every Stack in it with this remat: one edit for a model of several."""
    if isinstance(config, Stack):
        return replace(config, remat=remat, saved=saved)
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config
    inner = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.init}
    new = {name: with_remat(value, remat, saved) for name, value in inner.items()}
    changed = {name: value for name, value in new.items() if value is not inner[name]}
    return replace(config, **changed) if changed else config


class Period(nn.Module):
    """One period of the pattern: the body of the scan."""

    pattern: tuple[AnyBlock, ...]

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], caches: tuple[LayerCache, ...] | None, ctx: Context
    ) -> tuple[Float[Array, "B T D"], tuple[LayerCache, ...] | None]:
        after = []
        for i, block in enumerate(self.pattern):
            x, cache = block.build(name=f"block_{i}")(x, None if caches is None else caches[i], ctx)
            after.append(cache)
        return x, None if caches is None else tuple(after)


class StackModule(nn.Module):
    """See `Stack`."""

    config: Stack

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], ctx: Context, cache: Cache | None = None
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        cfg = self.config
        if cache is not None:
            ctx, cache = _enter(ctx, cache)
        if cfg.bias is not None:
            bias = cfg.bias.build(name="bias")
            # Distances alone count, and within a document they are those of the places in the
            # row (in the cache: of its slots), whatever is packed or padded before it.
            q = k = jnp.arange(x.shape[1], dtype=jnp.int32)
            if cache is not None and ctx.index is not None and not ctx.fresh:
                q, k = q + ctx.index, jnp.arange(cache.slots, dtype=jnp.int32)
            ctx = replace(ctx, bias=bias(q, k))
        period = Period
        if cfg.remat != "none":
            period = nn.remat(Period, policy=cfg.policy(), prevent_cse=not cfg.scan)
        layers = None if cache is None else cache.layers
        if not cfg.scan:
            x, layers = self._one_by_one(period, x, layers, ctx)
            return x, None if cache is None else replace(cache, layers=layers)
        # One period cannot be cut into stages, nor one row into micro-batches: a pipeline is for
        # training. What is none has its rows split over the devices of the stages.
        if cache is None and axes.stages()[1] > 1 and cfg.repeats > 1 and len(x) > 1:
            if not self.is_initializing():
                return self._through_stages(period, x, ctx), None
            pipeline.Deal.of(len(x), cfg.repeats)  # tells what does not divide before any step
        scan = nn.scan(
            period,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=cfg.repeats,
            metadata_params={nn.PARTITION_NAME: "L"},
        )
        x, layers = scan(cfg.pattern, name="layers")(x, layers, ctx)
        return x, None if cache is None else replace(cache, layers=layers)

    def _through_stages(self, period: type[Period], x: jax.Array, ctx: Context) -> jax.Array:
        def layer(weights, x, ctx, key):
            rngs = None if key is None else {"dropout": key}
            of = period(self.config.pattern, parent=None)
            return of.apply({"params": weights}, x, None, ctx, rngs=rngs)[0]

        weights = nn.meta.unbox(self.variables["params"]["layers"])
        key = self.make_rng("dropout") if self.has_rng("dropout") else None
        return pipeline.run(layer, weights, x, ctx, key)

    def _one_by_one(
        self,
        period: type[Period],
        x: jax.Array,
        layers: tuple[LayerCache, ...] | None,
        ctx: Context,
    ) -> tuple[jax.Array, tuple[LayerCache, ...] | None]:
        pattern, after = self.config.pattern, ()
        size = len(pattern)

        @jax.jit  # traced for the first layer, used for all: thirty would take two seconds
        def run(params, x, mine, ctx):
            return period(pattern, parent=None).apply({"params": params}, x, mine, ctx)

        for i in range(self.config.repeats):
            mine = None if layers is None else layers[i * size : (i + 1) * size]
            if self.is_initializing() or self.has_rng("dropout"):
                x, mine = period(pattern, name=f"layer_{i}")(x, mine, ctx)
            else:
                x, mine = run(self.variables["params"][f"layer_{i}"], x, mine, ctx)
            after += mine or ()
        return x, after


def _enter(ctx: Context, cache: Cache) -> tuple[Context, Cache]:
    """Notes this call's tokens in the cache and shows its slots to the blocks."""
    index = cache.index
    cache = cache.write(ctx.positions[..., 0], ctx.valid)
    if ctx.memory is not None:
        cache = replace(cache, memory_valid=ctx.memory_valid, memory_parts=ctx.memory_parts)
    ctx = replace(
        ctx,
        index=index,
        slot_positions=cache.positions,
        slot_valid=cache.valid,
        memory_valid=cache.memory_valid,
        memory_parts=cache.memory_parts,
    )
    return ctx, cache
