"""Stack: one period of a pattern of blocks, scanned over its repeats.

Llama 1-3 is `Stack((block,), repeats=32)`; Llama 4 a pattern of four; an encoder the same with a
bidirectional block. One scan keeps compile time and program size flat in depth.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax import axes
from llama_jax.checked import checked
from llama_jax.errors import UserError, nearest, positive
from llama_jax.layers import pipeline
from llama_jax.layers.block import SAVED, Block, inner
from llama_jax.layers.cache import Cache, LayerCache
from llama_jax.layers.divided import DividedBlock
from llama_jax.layers.inputs import Inputs, Memory, Places
from llama_jax.layers.output import Output
from llama_jax.layers.positions import RelativeBias
from llama_jax.layers.sown import SOWN, sown

AnyBlock = Block | DividedBlock
# What the backward pass finds again: all; only the inputs of a period; also the results of matrix
# products with a weight; also what `saved` names; the same, which waits in the host's memory.
Remat = Literal["none", "block", "dots", "named", "offload"]


@checked
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
        positive(self, "repeats")
        for name in self.saved:
            if name not in SAVED:
                raise UserError(
                    f"saved={name!r} names no activation; a block has {', '.join(SAVED)}"
                    + nearest(name, SAVED)
                )

    @property
    def steady(self) -> int | None:
        """Tokens up to which the length of a text changes no layer's rope; None for any length."""
        parts = (inner(getattr(block, "attention", None)) for block in self.pattern)
        ropes = (part.rope for part in parts if part is not None and part.rope is not None)
        found = [rope.steady for rope in ropes]
        return min((tokens for tokens in found if tokens is not None), default=None)

    def policy(self) -> Callable[..., Any] | None:
        """What `jax.checkpoint` may store beside the input of a period.

        A period whose "input" is offloaded leaves nothing of itself on the device. On a CPU, whose
        memory is the host's, what is offloaded stays where it is.
        """
        if self.remat == "dots":
            return jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        if self.remat == "named":
            return jax.checkpoint_policies.save_only_these_names(*self.saved)
        if self.remat == "offload":
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

    @property
    def layers(self) -> int:
        """Blocks, of all repeats."""
        return len(self.pattern) * self.repeats

    def empty_cache(self, batch: int, slots: int, dtype=jnp.float32, apart: bool = False) -> Cache:
        """A cache for `slots` tokens a row; every block of the pattern must be a `Block`.

        Args:
          batch: rows.
          slots: tokens a row.
          dtype: type of keys and values.
          apart: whether each row has a length of its own, so that rows may join and leave.
        """
        layers = []
        for block in self.pattern:
            if not isinstance(block, Block):
                raise UserError(f"{type(block).__name__} has no cache; decoders are made of Block")
            # A bias is by slots, so they must be those of the tokens.
            layers.append(block.empty_cache(batch, slots, dtype, whole=self.bias is not None))
        if self.scan:
            layers = jax.tree.map(lambda a: jnp.broadcast_to(a, (self.repeats, *a.shape)), layers)
        else:
            layers = layers * self.repeats
        return Cache.empty(tuple(layers), batch, slots, apart)


def with_remat(config: Any, remat: Remat, saved: tuple[str, ...] = Stack.saved) -> Any:
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
    """One period of the pattern: the body of the scan; `taps` are the blocks whose x is given."""

    pattern: tuple[AnyBlock, ...]
    taps: tuple[int, ...] = ()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        caches: tuple[LayerCache, ...] | None,
        inputs: Inputs,
        memory: Memory | None,
    ) -> tuple[Float[Array, "B T D"], tuple[tuple[LayerCache, ...] | None, dict[int, jax.Array]]]:
        after, taps = [], {}
        for i, block in enumerate(self.pattern):
            cache = None if caches is None else caches[i]
            x, cache = block.build(name=f"block_{i}")(x, cache, inputs, memory)
            after.append(cache)
            if i in self.taps:
                taps[i] = x
        return x, (None if caches is None else tuple(after), taps)


class StackModule(nn.Module):
    """See `Stack`."""

    config: Stack

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        inputs: Inputs,
        memory: Memory | None = None,
        cache: Cache | None = None,
        taps: tuple[int, ...] = (),
        fresh: bool = False,
    ) -> Output:
        """Sends vectors through all layers.

        Args:
          x: the vectors.
          inputs: what is known of them.
          memory: what cross-attention reads; with a cache, only in the first call.
          cache: what earlier calls left.
          taps: layers after which the vectors are wanted, counted from 0.
          fresh: the cache holds nothing, so that attention need not look at its slots.

        Raises:
          UserError: a layer that there is not.
        """
        cfg = self.config
        if cache is not None:
            inputs, memory, cache = _enter(inputs, memory, cache, fresh)
        if cfg.bias is not None:
            inputs = replace(inputs, bias=self._bias(cfg.bias, x.shape[1], inputs))
        period = Period
        if cfg.remat != "none":
            period = nn.remat(Period, policy=cfg.policy(), prevent_cse=not cfg.scan)
        size = len(cfg.pattern)
        for layer in taps:
            if not 0 <= layer < cfg.layers:
                raise UserError(f"taps={taps}: there is no layer {layer} of {cfg.layers}")
        wanted = tuple(sorted({layer % size for layer in taps}))
        body = functools.partial(period, cfg.pattern, wanted)
        run = self._scanned if cfg.scan else self._one_by_one
        # One period cannot be cut into stages, nor one row into micro-batches: a pipeline is for
        # training. What is none has its rows split over the devices of the stages.
        staged = cache is None and axes.stages()[1] > 1 and cfg.repeats > 1 and len(x) > 1
        if cfg.scan and staged and not self.is_initializing():
            run = self._through_stages
        elif cfg.scan and staged:
            pipeline.Deal.of(len(x), cfg.repeats)  # tells what does not divide before any step
        x, layers, seen = run(body, x, None if cache is None else cache.layers, inputs, memory)
        return Output(
            x,
            None if cache is None else replace(cache, layers=layers),
            sown(self.variables.get("losses", {})),
            tuple(seen[layer % size][layer // size] for layer in taps),
        )

    def _bias(self, bias: RelativeBias, T: int, inputs: Inputs) -> jax.Array:
        # Distances alone count, and within a document they are those of the places in the
        # row (in the cache: of its slots), whatever is packed or padded before it.
        q = k = jnp.arange(T, dtype=jnp.int32)
        places = inputs.places
        if places is not None and not places.fresh:
            if places.index.ndim:
                raise UserError("a relative bias is the same for all rows, which must go in step")
            q, k = q + places.index, jnp.arange(places.valid.shape[1], dtype=jnp.int32)
        return bias.build(name="bias")(q, k)

    def _scanned(self, body: functools.partial, x, layers, inputs, memory) -> Any:
        stacked: Any = dict.fromkeys(("params", *SOWN), 0)
        # Flax would trace the body twice, to find variables that all repeats share; there are none.
        # Its random keys count the calls, though: where keys are drawn a seed must give what it
        # always gave.
        drops = any(getattr(block, "dropout", 0.0) for block in self.config.pattern)
        draws = self.is_initializing() or (drops and self.has_rng("dropout"))
        scan = nn.scan(
            body.func,
            variable_axes=stacked,
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=self.config.repeats,
            metadata_params={nn.PARTITION_NAME: "L"},
            check_constancy_invariants=draws,
        )
        x, (layers, taps) = scan(*body.args, name="layers")(x, layers, inputs, memory)
        return x, layers, taps

    def _through_stages(self, body: functools.partial, x, layers, inputs, memory) -> Any:
        def layer(weights, x, inputs, memory, key):
            rngs = None if key is None else {"dropout": key}
            (x, (_, taps)), sown = body(parent=None).apply(
                {"params": weights}, x, None, inputs, memory, rngs=rngs, mutable=asked
            )
            return x, (taps, sown)

        # Of each micro-batch a value; the whole batch has their mean.
        asked = [name for name in ("losses",) if self.is_mutable_collection(name)]
        weights = nn.meta.unbox(self.variables["params"]["layers"])
        key = self.make_rng("dropout") if self.has_rng("dropout") else None
        deal = pipeline.Deal.of(len(x), self.config.repeats)
        x, (taps, sown) = pipeline.run(layer, weights, x, inputs, memory, key)
        for name, values in sown.items():
            means = jax.tree.map(lambda a: jnp.mean(a, axis=1), values)
            if before := self.variables.get(name, {}).get("layers"):
                means = jax.tree.map(operator.add, before, means, is_leaf=_is_tuple)
            self.put_variable(name, "layers", means)
        return x, layers, {block: [deal.back(x) for x in parts] for block, parts in taps.items()}

    def _one_by_one(self, body: functools.partial, x, layers, inputs, memory) -> Any:
        after, size, seen = (), len(self.config.pattern), {}
        # What is asked to look inside, and random keys, go by the names of the modules.
        inside = self.is_initializing() or self.has_rng("dropout")
        inside |= any(map(self.is_mutable_collection, SOWN))

        @jax.jit  # traced for the first layer, used for all: thirty would take two seconds
        def run(params, x, mine, inputs, memory):
            return body(parent=None).apply({"params": params}, x, mine, inputs, memory)

        for i in range(self.config.repeats):
            mine = None if layers is None else layers[i * size : (i + 1) * size]
            if inside:
                x, (mine, taps) = body(name=f"layer_{i}")(x, mine, inputs, memory)
            else:
                weights = self.variables["params"][f"layer_{i}"]
                x, (mine, taps) = run(weights, x, mine, inputs, memory)
            after += mine or ()
            for block, vectors in taps.items():
                seen.setdefault(block, []).append(vectors)
        return x, after, seen


def _is_tuple(value: Any) -> bool:
    return isinstance(value, tuple)


def _enter(
    inputs: Inputs, memory: Memory | None, cache: Cache, fresh: bool
) -> tuple[Inputs, Memory | None, Cache]:
    """Notes this call's tokens in the cache and shows its slots to the blocks."""
    index = cache.index
    cache = cache.write(inputs.positions[..., 0], inputs.valid)
    places = Places(cache.positions, cache.valid, index, fresh)
    memory = cache.memory if memory is None else memory
    if memory is not None:
        cache = replace(cache, memory=replace(memory, x=None, allow=None))
    return replace(inputs, places=places), memory, cache
