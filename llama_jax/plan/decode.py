"""A plan of generation: the engine's own programs, compiled for devices that are not there.

Decoding a token reads every weight and all of the cache once, so memory and its bandwidth decide;
prefill is a matter of products. Weights are bfloat16, split over `tensor`; `data` is replicas.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from llama_jax.axes import activation_spec, using
from llama_jax.chips import GIB
from llama_jax.config import Run
from llama_jax.errors import UserError
from llama_jax.generate import engine
from llama_jax.generate.sample import Sampling
from llama_jax.kernels.backends import lines, recording
from llama_jax.models.decoder import Decoder
from llama_jax.plan import network
from llama_jax.plan.candidates import fixed
from llama_jax.plan.environment import optimizing, quiet
from llama_jax.plan.hlo import collectives
from llama_jax.plan.model import HALF, Shapes
from llama_jax.plan.program import FULL, QUICK, Step, TooBig, changed, too_big
from llama_jax.plan.topology import Topology
from llama_jax.train.flops import counted
from llama_jax.weights.layers import one_by_one

# Share of HBM's bandwidth that reading weights and caches reaches; an assumption, not fitted.
READ = 0.8
OF_REPLICAS = ("data", "tensor")
# Of the memory that weights leave, for what is temporary.
SPARE = 0.85
STRIDE = 16  # tokens a dispatch
MOST = 1024  # rows of a replica; more gain little a chip and wait long


@dataclass(frozen=True)
class Option:
    """Decoding with so many chips a replica, from shapes.

    Attributes:
      tensor: chips of a replica.
      rows: how many rows of a replica fit.
      weights: bytes a chip.
      row: bytes of a row's cache a chip.
      seconds: a token, without the network.
    """

    tensor: int
    rows: int
    weights: float
    row: float
    seconds: float


@dataclass(frozen=True)
class DecodePlan:
    """How to decode on a topology.

    Attributes:
      best: the option that gives most tokens a chip.
      options: all of them, from shapes.
      found: what the compiled programs take, JSON.
    """

    best: Option
    options: list[Option]
    found: dict[str, Any]


def plan(
    run: Run,
    topology: Topology,
    sizes: dict[str, int] | None = None,
    sequence: int | None = None,
    batch: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> DecodePlan:
    """Plans decoding with a run's model.

    Args:
      run: a Run of a decoder.
      topology: the chips.
      sizes: devices of the mesh, by axis; None looks for the best.
      sequence: tokens of a row; the model's context, at most 8192, by default.
      batch: rows of all replicas together; as many as fit by default.
      say: told of what does not fit.

    Raises:
      UserError: it does not fit, or the model is no decoder.
    """
    name, run = run.name, changed(run, sequence=sequence)
    if not isinstance(run.model, Decoder):
        raise UserError(f"plan decode {name}: not a decoder-only language model")
    # As weights are loaded: layers in one array would be cut out, and the cache joined again.
    run = dataclasses.replace(run, model=one_by_one(run.model))
    began = time.perf_counter()
    if sizes is not None:
        sizes = _over_replicas(fixed(sizes, topology))
    slots = sequence or min(run.model.context or 8192, 8192)
    options = _options(run, topology, slots, sizes)
    fitting = [o for o in options if o.rows]
    if not fitting:
        least = min(options, key=lambda o: o.weights + o.row)
        raise UserError(
            f"{name} does not fit on {topology}: with {least.tensor} {topology.unit}s a replica "
            "weights "
            f"take {least.weights / GIB:.1f} GiB a chip and one row's cache of {slots} tokens "
            f"{least.row / GIB:.1f}, of {topology.chip.hbm / GIB:.1f}; take more chips or a "
            "shorter --sequence"
        )
    best = max(fitting, key=lambda o: o.rows / o.seconds / o.tensor)
    replicas = topology.size // best.tensor
    rows = batch or best.rows * replicas
    _check_rows(rows, replicas, best)
    found = None
    while found is None:
        try:
            found = _compiled(run, topology, best, rows, slots)
        except TooBig as error:
            if batch or rows == replicas:
                raise UserError(
                    f"{rows} rows of {slots} tokens do not fit on {topology}: {error}; give a "
                    "smaller --batch or --sequence, or more chips"
                ) from None
            # The prefill of every row at once, and copies of the cache, take room as well.
            best = dataclasses.replace(best, rows=max(best.rows * 3 // 4, 1))
            say(f"{rows} rows do not fit, trying {best.rows * replicas}")
            rows = best.rows * replicas
    found["compile_seconds"] = time.perf_counter() - began
    return DecodePlan(best, options, found)


def _over_replicas(sizes: dict[str, int]) -> dict[str, int]:
    """The sizes, if they are of axes that decoding is planned over."""
    other = [axis for axis, n in sizes.items() if n > 1 and axis not in OF_REPLICAS]
    if other:
        raise UserError(
            f"--mesh: decoding is planned over {' and '.join(OF_REPLICAS)}, not over "
            f"{', '.join(other)}; give e.g. tensor=4,data=-1"
        )
    return sizes


def _check_rows(rows: int, replicas: int, best: Option) -> None:
    if rows % replicas:
        raise UserError(
            f"--batch {rows} rows cannot be shared by {replicas} replicas; give a multiple"
        )
    if rows // replicas > best.rows:
        raise UserError(
            f"--batch {rows} does not fit: {rows // replicas} rows a replica need "
            f"{rows // replicas * best.row / GIB:.1f} GiB of cache a chip; at most "
            f"{best.rows * replicas} rows fit"
        )


def _options(
    run: Run, topology: Topology, slots: int, asked: dict[str, int] | None
) -> list[Option]:
    shapes = Shapes.of(changed(run, sequence=min(slots, 512)), ("none",))
    chip, found = topology.chip, []
    stack = run.model.stack
    cache = jax.eval_shape(lambda: run.model.empty_cache(2, slots, jnp.bfloat16))
    row = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache)) / 2
    heads = min(block.attention.kv_heads for block in stack.pattern)
    powers = [2**i for i in range(heads.bit_length()) if heads % 2**i == 0]
    for tensor in [asked.get("tensor", 1)] if asked else powers:
        sizes = {"data": topology.size // tensor, "tensor": tensor}
        ways = [weight.ways(sizes, run.rules) for weight in shapes.weights]
        if topology.size % tensor or not all(ways):
            continue
        numbers = [math.prod(w.shape) for w in shapes.weights]
        weights = HALF * sum(float(n) / way for n, way in zip(numbers, ways, strict=True))
        rows = int((chip.hbm * SPARE - weights) * tensor / row) if weights < chip.hbm else 0
        rows = min(max(rows, 0), MOST)
        # Half of the cache is filled on average.
        read = weights + rows * row / tensor / 2
        found.append(Option(tensor, rows, weights, row / tensor, read / chip.bandwidth / READ))
    if not found:
        raise UserError(
            f"no replica of {run.name} divides the {topology.size} {topology.unit}s evenly"
        )
    return found


def _compiled(run: Run, topology: Topology, best: Option, rows: int, slots: int) -> dict[str, Any]:
    """What a prefill chunk and a dispatch of tokens take, compiled.

    Raises:
      TooBig: they need more memory than a chip has.
    """
    chip, replicas = topology.chip, topology.size // best.tensor
    run = changed(run, mesh={"data": replicas, "tensor": best.tensor}, batch=replicas)
    step = Step.of(changed(run, sequence=512), topology.devices())
    slots = -(-slots // engine.SLOTS) * engine.SLOTS
    with using(step.mesh, run.rules), recording() as receipts:
        programs, work = _programs(run, step, rows, slots, chip.gpu)
    sent = [
        sum(s for _, _, s in network.total(topology, step.mesh, collectives(text, step.mesh.size)))
        for text in (x.as_text() or "" for x in programs)
    ]
    stats = programs[0].memory_analysis()
    assert stats is not None
    held = rows // replicas * best.row
    temporary = max(stats.peak_memory_in_bytes - best.weights - held, 0)
    read = (best.weights + held / 2) / chip.bandwidth / READ
    token = read + sent[0] / STRIDE
    products = work / topology.size / chip.flops / chip.efficiency
    fill = max(products, best.weights / chip.bandwidth / READ) + sent[1]
    return {
        "tokens_per_second_per_chip": rows / token / topology.chips,
        "tokens_per_second_per_user": 1 / token,
        "token_seconds": token,
        "network_seconds": sent[0] / STRIDE,
        "prefill_tokens_per_second_per_chip": rows * engine.CHUNKS[0] / fill / topology.chips,
        "prefill_seconds_of_512": fill,
        "hbm_bytes_per_device": {
            "weights": best.weights,
            "cache": held,
            "temporary": temporary,
            "total": best.weights + held + temporary,
            "free": chip.hbm - best.weights - held - temporary,
        },
        "mesh": {"data": replicas, "tensor": best.tensor},
        "batch": rows,
        "most_rows": best.rows * replicas,
        "slots": slots,
        "backends": lines(receipts),
    }


def _programs(run: Run, step: Step, rows: int, slots: int, gpu: bool) -> tuple[list[Any], float]:
    """A dispatch of tokens and a prefill chunk, compiled, and the FLOPs of the chunk.

    Raises:
      TooBig: they need more memory than a chip has.
    """
    module = run.model.build().clone(dtype=jnp.bfloat16)
    params, cache, state, ids, valid = _arguments(step, module, rows, slots)
    ends = jax.ShapeDtypeStruct((1,), jnp.int32)
    advance = engine._advance.lower(module, params, state, Sampling(), ends, count=STRIDE)
    extend = engine._extend.lower(module, params, ids, cache, valid, fresh=True)
    with quiet(), optimizing(FULL if gpu else QUICK):
        try:
            programs = [x.compile() for x in (advance, extend)]
        except jax.errors.JaxRuntimeError as error:
            raise too_big(error) from None
    work = counted(
        lambda p, i, c, v: module.apply({"params": p}, i, c, v, True, method="extend"),
        *(params, ids, cache, valid),
    )
    return programs, work


def _arguments(step: Step, module: Any, rows: int, slots: int) -> tuple[Any, ...]:
    """Shapes on their shardings: params, cache, state, and ids [B,T] and valid [B,T] of a chunk."""
    mesh = step.mesh

    def here(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        kind = jnp.bfloat16 if x.dtype == jnp.float32 else x.dtype
        return jax.ShapeDtypeStruct(x.shape, kind, sharding=sharding)

    def row(shape: tuple[int, ...], kind: Any) -> jax.ShapeDtypeStruct:
        spec = activation_spec("B" if rows > 1 else "")
        return jax.ShapeDtypeStruct(shape, kind, sharding=NamedSharding(mesh, spec))

    params = jax.tree.map(lambda x: here(x, x.sharding), step.layout.abstract.params)
    shapes = jax.eval_shape(partial(module.config.empty_cache, rows, slots, jnp.bfloat16))
    cache = jax.tree.map(here, shapes, engine._shardings(shapes, rows, False, mesh))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    keys = jax.ShapeDtypeStruct(
        keys.shape, keys.dtype, sharding=NamedSharding(mesh, activation_spec("B"))
    )
    flags = row((rows,), jnp.int32), row((rows,), jnp.bool_), row((rows, 0), jnp.bool_)
    make_state: Any = engine.State
    state = make_state(cache, *flags, keys, jax.ShapeDtypeStruct((), jnp.int32))
    chunk = rows, engine.CHUNKS[0]
    return params, cache, state, row(chunk, jnp.int32), row(chunk, jnp.bool_)
