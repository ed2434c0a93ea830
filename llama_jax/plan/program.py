"""The real train step of a run, compiled for devices that are not there.

Nothing is allocated: the state is that of `train.state.plan`, shapes with shardings, and the batch
what the run's streams would give. What XLA says of the result is in `Compiled`.
"""

import dataclasses
import math
import re
import time
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from llama_jax.axes import FSDP_TENSOR, FSDP_TENSOR_RESIDUAL, activation_spec, using
from llama_jax.config import Run, children, edit
from llama_jax.errors import UserError
from llama_jax.kernels.backends import lines, recording
from llama_jax.layers.linear import Lettered
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.objectives.base import losses
from llama_jax.plan.environment import optimizing, quiet
from llama_jax.plan.hlo import Collective, collectives
from llama_jax.plan.policies import with_policy
from llama_jax.train.fits import fields_named
from llama_jax.train.flops import Work, counted, model_flops, work
from llama_jax.train.load import build
from llama_jax.train.rows import check_rows
from llama_jax.train.state import Plan, plan
from llama_jax.train.step import bind, initializer, make_train_step

# XLA's levels: the least work on a fast program, and its own choice. At O0 a step compiles in a
# third of the time (60 CPU seconds, not 170), partitioned alike; its memory was 0.1 % off (8B on
# 256 v6e).
QUICK, FULL = "O0", "UNKNOWN"


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a step, of one device.

    Attributes:
      weights: bytes of the parameters.
      optimizer: bytes of its moments and counters, and of the average of the weights.
      batch: bytes of its share of the batch.
      temporary: bytes beside these at the peak: gradients, activations, gathered weights.
      host: bytes that lie in the memory of its host.
      sent: the collectives of the program.
      receipts: which backend computes which call.
      seconds: how long compiling took.
    """

    weights: int
    optimizer: int
    batch: int
    temporary: int
    host: int
    sent: tuple[Collective, ...]
    receipts: tuple[str, ...]
    seconds: float

    @property
    def peak(self) -> int:
        """Bytes of HBM at the peak."""
        return self.weights + self.optimizer + self.batch + self.temporary


class TooBig(Exception):
    """The compiler found that the program does not fit; `needed` bytes, None if it did not say."""

    def __init__(self, reason: str, needed: float | None):
        super().__init__(reason)
        self.needed = needed


def stacks(config: Any, path: str = "model") -> dict[str, Stack]:
    """Every stack of a model's config by its path."""
    if isinstance(config, Stack):
        return {path: config}
    if not dataclasses.is_dataclass(config):
        return {}
    inner = children(config).items()
    return {k: v for name, value in inner for k, v in stacks(value, f"{path}.{name}").items()}


def changed(
    run: Run,
    mesh: dict[str, int] | None = None,
    remat: str | None = None,
    batch: int | None = None,
    sequence: int | None = None,
) -> Run:
    """The run with another mesh, remat policy, batch (rows of all devices) or sequence length.

    With a tensor axis, the rules split what passes between blocks over it too. Of a run of several
    streams the batch is that of all together, and each keeps its share.

    Raises:
      UserError: a policy that there is not, a length that the data or the model has not, or rows
        that the streams cannot share.
    """
    if mesh is not None:
        run = edit(run, "mesh", dataclasses.replace(type(run.mesh)(), **mesh))
        if run.rules in (FSDP_TENSOR, FSDP_TENSOR_RESIDUAL):
            split = mesh.get("tensor", 1) > 1
            run = dataclasses.replace(run, rules=FSDP_TENSOR_RESIDUAL if split else FSDP_TENSOR)
    if remat is not None:
        run = with_policy(run, stacks(run.model), remat)
    if batch is not None:
        for stream, share in shared(run, batch).items():
            run = edit(run, f"data.{stream}.batch", share)
    for stream in run.data:
        if sequence is not None:
            if "length" not in children(run.data[stream].task):
                raise UserError(f"stream {stream!r} of {run.name} has no length to set")
            run = edit(run, f"data.{stream}.task.length", sequence)
    for _, context in fields_named("context", run.model):
        if sequence is not None and context is not None and sequence > context:
            raise UserError(f"--sequence {sequence} is beyond the context of {run.name}, {context}")
    return run


def total_rows(run: Run) -> int:
    """Rows of a step, of all its streams together."""
    return sum(stream.batch for stream in run.data.values())


def shared(run: Run, batch: int) -> dict[str, int]:
    """What each stream has of so many rows, in the proportions that the run gives them.

    Raises:
      UserError: the proportions do not come out even.
    """
    total, batches = total_rows(run), {name: stream.batch for name, stream in run.data.items()}
    if any(batch * one % total for one in batches.values()):
        said = ", ".join(f"{name} {one}" for name, one in batches.items())
        even = total // math.gcd(*batches.values())
        raise UserError(
            f"--batch {batch}: the streams of {run.name} have rows in the proportions {said}; give "
            f"a multiple of {even}, e.g. --batch {-(-batch // even) * even}"
        )
    return {name: batch * one // total for name, one in batches.items()}


def least(run: Run) -> int:
    """The fewest rows that a plan gives a run.

    Rows of a language model know nothing of each other. Elsewhere objectives compare them, or
    share a picture among them: there the batch of the preset is the least.
    """
    return 1 if isinstance(run.model, Decoder) and len(run.data) == 1 else total_rows(run)


def tokens(run: Run) -> int:
    """Tokens of one step: places of the target, or of the text."""
    total = 0
    for stream in run.data.values():
        fields = stream.fields(None)
        for name in ("targets", "text"):
            if name in fields:
                shape = fields[name][0]
                total += shape[0] * shape[1]
                break
    return total


@dataclass(frozen=True)
class Step:
    """A step that is traced and not compiled: shapes, shardings, and how to lower it."""

    run: Run
    mesh: Mesh
    layout: Plan
    fields: dict[str, Any]

    @classmethod
    def of(cls, run: Run, devices: list[Any]) -> "Step":
        """Plans the state of a run on devices.

        Raises:
          UserError: a mesh that does not multiply, or an axis that it cannot divide.
        """
        fields = {name: stream.fields(None) for name, stream in run.data.items()}
        mesh = run.mesh.build(devices)
        with using(mesh, run.rules):
            check_rows(fields, mesh, run.rules)
            init = initializer(build(run), losses(run.objectives), fields)
            average, kept = run.ema is not None, run.param_dtype
            layout = plan(init, run.optimizer, run.steps, mesh, run.rules, average, kept)
        return cls(run, mesh, layout, fields)

    def _parts(self) -> tuple[Any, Any]:
        run = self.run
        loss = bind(build(run), losses(run.objectives))
        rate = run.optimizer.rate_at(run.steps)
        micro = (run.objectives, run.accumulate, run.ema)
        step = make_train_step(self.layout, loss, rate, *micro)
        rows = NamedSharding(self.mesh, activation_spec("B", run.rules))
        batch = {
            name: {k: jax.ShapeDtypeStruct(*field, sharding=rows) for k, field in stream.items()}
            for name, stream in self.fields.items()
        }
        return step, batch

    def work(self) -> Work:
        """FLOPs of the step of all devices, with what is computed again."""
        step, batch = self._parts()
        with using(self.mesh, self.run.rules):
            return work(step, self.layout.abstract, batch)

    def update_work(self) -> float:
        """FLOPs of it that do not depend on the rows: the optimizer's (Muon has products)."""
        state = self.layout.abstract
        update = self.layout.transform.update
        with using(self.mesh, self.run.rules):
            return counted(update, state.params, state.opt_state, state.params)

    def residuals(self) -> int:
        """Bytes that the forward pass leaves for the backward one, of all devices together.

        By shapes: what XLA computes again of its own accord, or shares, is not known to it.
        """
        loss = bind(build(self.run), losses(self.run.objectives))
        key = jax.eval_shape(lambda: jax.random.key(0))

        def left(params: Any, batch: Any, key: jax.Array) -> Any:
            return jax.vjp(lambda params: loss(params, batch, key), params, has_aux=True)[1]

        params = self.layout.abstract.params
        with using(self.mesh, self.run.rules):
            found = jax.eval_shape(left, params, self._parts()[1], key)
        total, own = (
            sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(t)) for t in (found, params)
        )
        return max(total - own, 0)

    def compiled(self, effort: str = FULL) -> Compiled:
        """Compiles it.

        Raises:
          TooBig: it does not fit.
        """
        began = time.perf_counter()
        step, batch = self._parts()
        state = self.layout.abstract
        tpu = self.mesh.devices.flat[0].platform == "tpu"
        with using(self.mesh, self.run.rules), recording() as receipts:
            lowered = step.lower(state, batch)
            try:
                with quiet(), optimizing(effort if tpu else FULL):
                    found = lowered.compile()
            except jax.errors.JaxRuntimeError as error:
                raise too_big(error) from None
        stats = found.memory_analysis()
        assert stats is not None
        kept = (state.opt_state, state.ema)
        weights, optimizer, rows = (held(part) for part in (state.params, kept, batch))
        peak = max(stats.peak_memory_in_bytes, stats.argument_size_in_bytes)
        if not tpu:
            # A GPU's runtime allocates all that is temporary at once.
            given = stats.argument_size_in_bytes + stats.output_size_in_bytes
            peak = given - stats.alias_size_in_bytes + stats.temp_size_in_bytes
        host = stats.host_argument_size_in_bytes + stats.host_temp_size_in_bytes
        return Compiled(
            weights,
            optimizer,
            rows,
            max(int(peak) - weights - optimizer - rows, 0),
            int(host),
            tuple(collectives(found.as_text() or "", self.mesh.size)),
            tuple(lines(receipts)),
            time.perf_counter() - began,
        )


def model_work(run: Run) -> float:
    """FLOPs of the model in a step, for MFU: of all devices, nothing counted twice."""
    run = changed(run, mesh={}, remat="none")
    fields = {name: stream.fields(None) for name, stream in run.data.items()}
    total = losses(run.objectives)
    init = initializer(build(run), total, fields)
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed = jax.eval_shape(init, key)
    params = jax.tree.map(lambda box: box.value, boxed, is_leaf=lambda x: isinstance(x, Lettered))
    batch = {
        name: {k: jax.ShapeDtypeStruct(*field) for k, field in stream.items()}
        for name, stream in fields.items()
    }
    return model_flops(bind(build(run), total), params, batch, key)


def held(tree: Any) -> int:
    """Bytes of a tree on one device, as its shardings split it."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape)
        total += math.prod(shape) * leaf.dtype.itemsize
    return total


def too_big(error: Exception) -> Exception:
    """`TooBig` if the compiler ran out of memory, else the error itself."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        return error
    found = re.search(r"(?:requir\w+|Used|temporaries)[^(\d]*\(?([\d.]+)([KMG])", text)
    scale = {"K": 2**10, "M": 2**20, "G": 2**30}
    needed = float(found[1]) * scale[found[2]] if found else None
    return TooBig(text.strip().partition("\n")[0][:300], needed)
