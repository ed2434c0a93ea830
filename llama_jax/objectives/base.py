"""What all objectives share: how they are summed, and the towers that they look at.

On a first reading see `losses`. An objective is a frozen dataclass, called with `acts`; what it
reads from `acts` is computed on first use while tracing, so objectives share passes:

    step(model, batch, key):  MLM   -> acts["documents"].text ----> one text pass
                              NSP   -> acts["documents"].text --/
                              ITC   -> acts["captions"].text, .image
                              ITM   -> acts["captions"].text, .image, one fused pass of its own

`nn.init(losses(objectives), model)(...)` therefore creates exactly the heads in use.
"""

import copy
import functools
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from llama_jax.axes import row_ways
from llama_jax.checked import checked
from llama_jax.errors import UserError, nearest
from llama_jax.kernels.cross_entropy.api import Scored, linear_cross_entropy
from llama_jax.layers.sown import every
from llama_jax.models.language import Seen
from llama_jax.models.logits import Logits
from llama_jax.models.tokens import Tokens, pool, repeat_rows

Sum = tuple[Float[Array, ""], Float[Array, ""]]
Batch = Mapping[str, Mapping[str, Any]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Loss:
    """A sum, what to divide it by, and (sum, count) of each metric; all float32 scalars.

    Sums over the global batch and not means, so that packing, padding, sharding and accumulation
    cannot change the weight of an example.
    """

    sum: Float[Array, ""]
    count: Float[Array, ""]
    metrics: dict[str, Sum] = field(default_factory=dict)


@checked
class Objective:
    """Reads one stream of the batch and gives a Loss.

    Attributes:
      on: name of the stream.
      weight: factor of its mean in the total.
    """

    on: str
    weight: float = 1.0

    # Compares rows with each other: averaging over micro-batches would be another loss.
    contrastive: ClassVar[bool] = False
    # The beginning of the paths of weights that are trained before, and that it cannot do without.
    borrows: ClassVar[str | None] = None
    # Reads what the passes of the others leave behind, and so comes after them.
    last: ClassVar[bool] = False

    @property
    def sown(self) -> tuple[str, ...]:
        """Names of the losses that it reads of those that layers sow."""
        return ()

    # What `llama-jax eval` measures of it: one of evals/report.py by name, or, in a class of your
    # own, a method (name, run) that gives an `Eval`.
    evaluation: ClassVar[str | Callable[..., Any] | None] = None
    # The field of what it predicts, and of the weights of that (None: one label a row).
    predicts: ClassVar[tuple[str, str | None] | None] = None

    @property
    def compares(self) -> dict[str, bool]:
        """What it compares, if it is contrastive: modalities, and whether it reads their tokens.

        If not, it reads `View.vectors` alone, and micro-batches keep only these.
        """
        return {}

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields that the stream must have."""
        raise NotImplementedError

    def __call__(self, acts: "Acts") -> Loss:
        """The loss over the whole batch."""
        raise NotImplementedError


def losses(
    objectives: Mapping[str, Objective],
) -> Callable[[Any, Batch, jax.Array], tuple[Float[Array, ""], dict[str, Loss]]]:
    """Makes the function (model, batch, key) -> (total, a Loss each).

    total = sum over k of weight_k sum_k / max(count_k, 1). The model is a bound module; use it as
    `nn.apply(losses(objectives), model)(params, batch, key)`.

    Raises:
      UserError: from the function, while tracing, if a stream or a field is missing, or layers sow
        a loss that no objective reads, or an objective reads one that none sows.
    """

    def compute(model, batch: Batch, key: jax.Array):
        check(objectives, batch)
        acts = Acts(model, batch, key)  # Here and not outside: a memo that outlives a trace leaks.
        found = evaluated(objectives, acts)
        _check_sown(objectives, acts)
        total = jnp.zeros((), jnp.float32)
        for name, objective in objectives.items():
            total += objective.weight * found[name].sum / jnp.maximum(found[name].count, 1)
        return total, found

    return compute


def evaluated(objectives: Mapping[str, Objective], acts: "Acts") -> dict[str, Loss]:
    """The Loss of each; those that read what the others' passes sow are called last."""
    last = sorted(objectives, key=lambda name: objectives[name].last)
    found = {name: objectives[name](acts.named(name)) for name in last}
    return {name: found[name] for name in objectives}


def _check_sown(objectives: Mapping[str, Objective], acts: "Acts") -> None:
    read = {name for objective in objectives.values() for name in objective.sown}
    there = list(acts.sown)
    for name in sorted({*there} - read):
        stream = next(iter(objectives.values())).on
        raise UserError(
            f"layers of the model sow the loss {name!r} and no objective reads it; add e.g. "
            f"{name!r}: Sown({stream!r}, 0.01, {name!r}) to the objectives"
        )
    for name in sorted(read - {*there}):
        raise UserError(
            f"no layer of the model sows a loss {name!r}; there are {', '.join(there) or 'none'} "
            "(a model that is applied by hand needs mutable=['losses'])" + nearest(name, there)
        )


def applied(run: Callable[..., Any], module: nn.Module) -> Callable[..., Any]:
    """`run(bound module, *args)` as a function of parameters, a key of dropout and the arguments.

    What layers sow as losses is there for objectives to read, and is gone afterwards.
    """

    def call(params: Any, key: jax.Array, *args: Any) -> Any:
        both = nn.apply(run, module, mutable=["losses"])
        return both({"params": params}, *args, rngs={"dropout": key})[0]

    return call


def score(
    readout: Logits,
    targets: jax.Array,
    weights: jax.Array,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Scored:
    """Cross-entropy of a readout's logits."""
    return linear_cross_entropy(
        readout.x,
        readout.w,
        targets,
        weights,
        equation=readout.equation,
        bias=readout.bias,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
    )


def check(objectives: Mapping[str, Objective], batch: Batch) -> None:
    """Checks that the batch has every stream and field that the objectives read.

    Raises:
      UserError: names the objective, the stream and the missing field.
    """
    for name, objective in objectives.items():
        what = f"objective {name!r} ({type(objective).__name__})"
        if objective.on not in batch:
            raise UserError(
                f"{what} reads stream {objective.on!r}, the data has {_listed(batch)}; "
                f"set `on` or add the stream{nearest(objective.on, batch)}"
            )
        have = batch[objective.on]
        if missing := [need for need in objective.needs if need not in have]:
            raise UserError(
                f"{what} needs {_listed(objective.needs)}; stream {objective.on!r} has "
                f"{_listed(have)} and lacks {_listed(missing)}; change the stream's task"
            )


def _listed(names) -> str:
    return ", ".join(names) or "nothing"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Vectors:
    """One vector for each text or image.

    Attributes:
      x: the vectors.
      there: whether there is one; a missing modality has none.
    """

    x: Float[Array, "I D"]
    there: Bool[Array, " I"]

    def with_x(self, x: Float[Array, "I D"]) -> "Vectors":
        """Others in their place."""
        return replace(self, x=x)


# Of each stream and modality, what is compared.
Cache = Mapping[str, Mapping[str, Tokens | Vectors]]


class Acts:
    """The activations of one step: `acts["captions"].image`; and `acts.key`, one an objective.

    With micro-batches, what is compared is given from a `cache`, and work that grows with the whole
    batch is done in `parts` (`summed`).
    """

    def __init__(
        self, model: Any, batch: Batch, key: jax.Array, cache: Cache | None = None, parts: int = 1
    ):
        self.model = model
        self.key = key
        self.parts = parts
        self._sown: dict[str, list[jax.Array]] = {}  # in `summed`, beside the model's variables
        given = cache or {}
        self._views = {
            stream: View(model, fields, stream, given.get(stream, {}))
            for stream, fields in batch.items()
        }

    def cache(self, wanted: Mapping[str, Mapping[str, bool]]) -> Cache:
        """What is compared: of each stream and modality the tokens (True) or the vectors."""
        return {
            stream: {
                name: getattr(self[stream], name) if tokens else self[stream].vectors(name)
                for name, tokens in names.items()
            }
            for stream, names in wanted.items()
        }

    def summed(self, f: Callable[..., Loss], *rows: jax.Array) -> Loss:
        """`f(model, *rows)`, summed over `parts` parts of the rows, each computed again backwards.

        What the parts, and the devices, do not divide is filled up with rows of zeros, to which f
        gives no weight.
        """
        if self.parts == 1:
            return f(self.model, *rows)
        model, ways = self.model, row_ways()
        size = -(-rows[0].shape[0] // (self.parts * ways)) * ways

        def cut(x):
            pad = [(0, size * self.parts - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
            return jnp.pad(x, pad).reshape(self.parts, size, *x.shape[1:])

        def one(params, key, *piece):
            both = nn.apply(f, model, mutable=["losses"])
            found, sown = both({"params": params}, *piece, rngs={"dropout": key})
            return found, every(sown.get("losses", {}))

        part = functools.partial(jax.checkpoint(one, prevent_cse=False), model.variables["params"])
        keys = jax.random.split(model.make_rng("dropout"), self.parts)
        found, sown = jax.lax.map(lambda x: part(*x), (keys, *map(cut, rows)))
        for name, values in sown.items():
            self._sown.setdefault(name, []).extend(values)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), found)

    @property
    def sown(self) -> dict[str, list[jax.Array]]:
        """Losses that layers have sowed in the passes so far, by name: one array a call."""
        found = every(getattr(self.model, "variables", {}).get("losses", {}))
        return {
            name: found.get(name, []) + self._sown.get(name, [])
            for name in sorted(found.keys() | self._sown.keys())
        }

    def __getitem__(self, stream: str) -> "View":
        if stream not in self._views:
            raise UserError(
                f"no stream {stream!r} in the batch, which has {_listed(self._views)}"
                + nearest(stream, self._views)
            )
        return self._views[stream]

    def named(self, name: str) -> "Acts":
        """The same activations with a key of its own for the objective `name`."""
        other = copy.copy(self)
        # crc32 and not hash(): the latter differs from process to process.
        other.key = jax.random.fold_in(self.key, zlib.crc32(name.encode()))
        return other


class View:
    """One stream of the batch: its fields by `view["next"]`, its towers as properties."""

    def __init__(
        self,
        model: Any,
        fields: Mapping[str, Any],
        stream: str = "",
        given: Mapping[str, Tokens | Vectors] | None = None,
    ):
        self.model = model
        self.fields = fields
        self.stream = stream
        self._vectors: dict[str, Vectors] = {}
        for name, value in (given or {}).items():
            # A property that is in the dict already is not computed.
            place: dict[str, Any] = self._vectors if isinstance(value, Vectors) else self.__dict__
            place[name] = value

    def __getitem__(self, name: str) -> jax.Array:
        if name not in self.fields:
            raise UserError(f"stream {self.stream!r} has no {name!r}, only {_listed(self.fields)}")
        return self.fields[name]

    @cached_property
    def rows(self) -> int:
        """B: rows of text, or of decoder ids, or of images, whichever comes first."""
        for name in ("text", "tokens", "image", "video"):
            if name in self.fields:
                return self.fields[name].shape[0]
        raise UserError(f"stream {self.stream!r} has no text and no image: {_listed(self.fields)}")

    @cached_property
    def valid(self) -> Float[Array, " B"]:
        """1 for real rows, 0 for those that fill the last batch of an evaluation."""
        if "row_valid" in self.fields:
            return self.fields["row_valid"].astype(jnp.float32)
        return jnp.ones((self.rows,), jnp.float32)

    @cached_property
    def text(self) -> Tokens:
        """The text encoder's output, [B,T,D]."""
        fields = self.fields
        return self.model.encode_text(
            self["text"], fields.get("text_valid"), fields.get("text_types")
        )

    @cached_property
    def image(self) -> Tokens:
        """The image encoder's output, [I,T,D]; of the video if the stream has no image."""
        if "image" not in self.fields and "video" in self.fields:
            return self.video
        return self.model.encode_image(self["image"], self.fields.get("image_valid"))

    @cached_property
    def video(self) -> Tokens:
        """The image encoder's output for the video, [I,T,D]."""
        return self.model.encode_image(self["video"], self.fields.get("video_valid"))

    def vectors(self, modality: str) -> Vectors:
        """One vector for each row of a modality: the first token of a text, the mean of others."""
        if modality not in self._vectors:
            tokens: Tokens = getattr(self, modality)
            x_ID = tokens.x[:, 0] if modality == "text" else pool(tokens)
            self._vectors[modality] = Vectors(x_ID, jnp.any(tokens.valid, axis=1))
        return self._vectors[modality]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Which of text, image and video the stream has."""
        return tuple(name for name in ("text", "image", "video") if name in self.fields)

    @cached_property
    def streams(self) -> dict[str, Tokens]:
        """Every modality of the stream, each with B rows."""
        return {name: self.repeated(name) for name in self.modalities}

    def repeated(self, modality: str) -> Tokens:
        """One modality with B rows: an image once for each of its texts."""
        return repeat_rows(getattr(self, modality), self.rows)

    @cached_property
    def fused(self) -> dict[str, Tokens]:
        """Every modality after it has looked at the others."""
        return self.model.fuse(self.streams)

    @cached_property
    def memory(self) -> Tokens | None:
        """What the decoder reads; None if the stream has only decoder ids."""
        return self.model.join(self.fused) if self.modalities else None

    @cached_property
    def decoded(self) -> Logits:
        """The decoder's output, with every modality of the stream in its memory."""
        return self.decode(self.memory)

    @property
    def logits(self) -> Float[Array, "B T V"]:
        """The logits of `decoded`, all of them, float32."""
        return self.decoded.logits

    def decode(self, memory: Seen) -> Logits:
        """The decoder's output for `tokens` and this memory."""
        if memory is None:
            return self._unread
        return self._decode(memory)

    @cached_property
    def _unread(self) -> Logits:
        return self._decode(None)

    def _decode(self, memory: Seen) -> Logits:
        return self.model.readout(
            self["tokens"],
            memory,
            positions_BT=self.fields.get("positions"),
            segments_BT=self.fields.get("segments"),
        )
