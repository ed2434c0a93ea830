"""A run that goes on training given weights on given data: every number follows from the two.

run = tuned("smollm2", "my.jsonl")
train(run, "runs/mine")
print(llama_jax.load("runs/mine").generate("Once upon a time"))
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from llama_jax.config import File, Run
from llama_jax.data import Share, Stream
from llama_jax.data.held_out import NAME, Part
from llama_jax.data.kinds import Kind, kind_of
from llama_jax.data.loader import length
from llama_jax.data.rows import Source
from llama_jax.data.shards import Mix, Prepared
from llama_jax.data.sources import named
from llama_jax.errors import UserError
from llama_jax.files import at_home
from llama_jax.objectives import CausalLM
from llama_jax.optim.optimizer import AdamW, Cosine
from llama_jax.text.files import open_for_training
from llama_jax.text.vocabulary import Vocabulary
from llama_jax.weights.find import find_near
from llama_jax.weights.opened import Checkpoint, open_checkpoint
from llama_jax.weights.orbax import saved_steps, to_stderr
from llama_jax.weights.read import abstract
from llama_jax.weights.tokenizer_files import tokenizer

STREAM, GOAL = "text", "lm"
EPOCHS = 3.0
BATCH = 8  # rows a step
# The peak rate: transformers' usual 5e-5, and what Stanford Alpaca took for 7B from a billion on.
RATE, RATE_OF_LARGE, LARGE = 5e-5, 2e-5, 10**9
WARMUP, MEASURED = 0.03, 10  # share of the steps; how often the loss is measured
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)  # held out: the first with which something is

Say = Callable[[str], None]


def tuned(
    weights: str | Path,
    data: str | Path | Source,
    epochs: float = EPOCHS,
    fields: tuple[str, ...] = (),
    say: Say = to_stderr,
    devices: int | None = None,
    pickle: bool = False,
) -> Run:
    """A Run that fine-tunes weights on data.

    Model and tokenizer are those of the weights. A share of the documents is held out.

    Args:
      weights: a Hugging Face folder, a .gguf file, a run of ours whose model is a `Decoder`,
        Meta's folder, "owner/name" of the Hugging Face hub, or "smollm2".
      data: a path or a name, as `data.sources.named` reads it, or a source: of texts, of pairs, or
        prepared.
      epochs: how often the data are read.
      fields: the field of the texts, or of what is given and what is to be written; found by their
        names if there is none.
      say: told what the data are, and what is held out.
      devices: over how many a batch is split; all that there are for None.
      pickle: whether Meta's .pth files may be opened; then train within `init_from.trusting`.

    Raises:
      UserError: weights or data that cannot be opened, or do not fit each other.
    """
    if not 0 < epochs < math.inf:
        raise UserError(f"epochs={epochs}: give a number above 0, such as 3")
    place = find_near(str(weights), "weights")
    checkpoint = open_checkpoint(place, pickle)
    words = _words(checkpoint)
    source = named(str(data)) if isinstance(data, str | Path) else data
    context = checkpoint.model.context or 2048
    kind = kind_of(source, words, context, fields)
    stream = Stream(source, kind.task, BATCH, held_out=_held_out(source, kind, say))
    rows, ways = length(stream, words), devices or jax.device_count()
    stream = dataclasses.replace(stream, batch=-(-min(BATCH, rows) // ways) * ways)
    say(f"{data} holds {kind.said}: {rows:,} rows of at most {kind.task.length} tokens to train on")
    run = Run(
        name=place.name.removesuffix(".gguf"),
        model=_model(checkpoint),
        data={STREAM: stream},
        objectives={GOAL: CausalLM(on=STREAM)},
        optimizer=AdamW(rate=_rate(checkpoint), schedule=Cosine(warmup=0), weight_decay=0.0),
        tokenizer=File(),
        steps=max(1, math.ceil(rows * epochs / stream.batch)),
        dtype="float32" if jax.default_backend() == "cpu" else "bfloat16",
        keep=1,
        init_from=str(weights),
    )
    return paced(run)


def paced(run: Run) -> Run:
    """The run with warm-up and measurements as its number of steps asks for."""
    schedule = dataclasses.replace(run.optimizer.schedule, warmup=int(WARMUP * run.steps))
    optimizer = dataclasses.replace(run.optimizer, schedule=schedule)
    every = max(1, -(-run.steps // MEASURED))
    measured = run.data[STREAM].held_out != Share()
    return dataclasses.replace(
        run,
        optimizer=optimizer,
        eval_every=every if measured else 0,
        log_every=min(every, 10),
    )


def followed(before: Run, run: Run, epochs: float = EPOCHS, pickle: bool = False) -> Run:
    """The run after some of its fields were set: what depends on them follows, if it was not set.

    Args:
      before: the run as `tuned` made it.
      run: with other fields.
      epochs: how often the data are read.
      pickle: whether Meta's .pth files may be opened.

    Raises:
      UserError: other data, which cannot be opened.
    """
    if run.steps == before.steps and run.data != before.data:
        stream = run.data[STREAM]
        checkpoint = open_checkpoint(find_near(str(before.init_from), "weights"), pickle)
        rows = length(stream, _words(checkpoint))
        run = dataclasses.replace(run, steps=max(1, math.ceil(rows * epochs / stream.batch)))
    new = paced(run) if run.optimizer == before.optimizer else run
    set_here = {
        name: value
        for name in ("eval_every", "log_every")
        if (value := getattr(run, name)) != getattr(before, name)
    }
    return dataclasses.replace(new, **set_here)


def begun(run_dir: Path, weights: str, data: str) -> Run | None:
    """The run of a directory that was begun with these weights and data; None if none was.

    Raises:
      UserError: it was begun with others.
    """
    from llama_jax.config import from_json

    if not saved_steps(run_dir / "checkpoints"):
        return None
    try:
        run = from_json((run_dir / "run.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{run_dir / 'run.json'} cannot be read ({error})") from None
    stream = run.data.get(STREAM)
    for what, old, new in (
        ("weights", run.init_from, weights),
        ("data", stream and stream.source, named(data)),
    ):
        if old != new and not _same_place(old, new):
            raise UserError(
                f"{run_dir} was begun with other {what}: {old} was there, {new} came; give the "
                "same to go on, or another --run-dir"
            )
    return run


def _same_place(old: Any, new: Any) -> bool:
    """Whether two paths, or sources that differ by their path alone, lead to one file or folder."""
    paths = [getattr(one, "path", one) for one in (old, new)]
    if type(old) is not type(new) or not all(isinstance(path, str) for path in paths):
        return False
    if not isinstance(old, str) and dataclasses.replace(old, path=paths[1]) != new:
        return False
    old, new = (at_home(path) for path in paths)
    return old.exists() and new.exists() and old.samefile(new)


def before_and_after(run_dir: Path) -> tuple[float, float] | None:
    """The loss on what is held out at the first measurement and at the last, if there were two."""
    name, found = f"{NAME}/{GOAL}_loss", []
    try:
        lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [value for line in lines if (value := json.loads(line).get(name)) is not None]
    return (found[0], found[-1]) if len(found) > 1 else None


def _words(checkpoint: Checkpoint) -> Vocabulary:
    if checkpoint.kind == "run":
        return open_for_training(checkpoint.place)
    return tokenizer(checkpoint)


def _model(checkpoint: Checkpoint) -> Any:
    if checkpoint.kind == "run":
        return checkpoint.model
    stack = dataclasses.replace(checkpoint.model.stack, scan=True)  # one program for all layers
    return dataclasses.replace(checkpoint.model, stack=stack)


def _rate(checkpoint: Checkpoint) -> float:
    sizes = (math.prod(box.value.shape) for box in abstract(checkpoint.model).values())
    return RATE if sum(sizes) < LARGE else RATE_OF_LARGE


def _held_out(source: Source, kind: Kind, say: Say) -> Share | Source:
    if isinstance(source, Prepared):
        folder = at_home(source.path) / NAME
        if folder.is_dir():
            return Prepared(str(Path(source.path) / NAME))
    if not isinstance(source, Prepared | Mix):
        for share in map(Share, SHARES):
            try:
                for side in ("held out", "training"):
                    Part(source, share, side, getattr(kind.task, "field", None)).open()
                return share
            except UserError:
                continue
    say(
        "nothing is held out, so that no loss tells what the model learns beside its data: there "
        "are too few documents that differ, or they are prepared without --held-out"
    )
    return Share()
