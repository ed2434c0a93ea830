"""Answers to texts of any task, as a run writes them: "translate to German: five" gives "fünf".

for reply in replies(load("runs/translate"), ["translate to German: five"]):
    print(reply.answer)
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from llama_jax import tasks
from llama_jax.checked import checked_call
from llama_jax.data import Seq2Seq, Tfds, Union
from llama_jax.data.fields import framed, text_batch
from llama_jax.errors import UserError
from llama_jax.evals.answer import tasks as asking
from llama_jax.evals.inputs import VISUAL
from llama_jax.generate.beam import Beam, search
from llama_jax.generate.decode import greedy
from llama_jax.models.multimodal import MultimodalModule
from llama_jax.text.roles import Framing, framing
from llama_jax.train.load import Trained

ROWS = 32  # texts at a time


@dataclass(frozen=True)
class Reply:
    """What is written to a text.

    Attributes:
      text: what was asked.
      answer: what the model writes.
      logprob: natural logarithm of the answer's probability; None where nothing was asked.
      left_out: tokens at the end of the text that were not read, for it is too long.
    """

    text: str
    answer: str = ""
    logprob: float | None = None
    left_out: int = 0


@checked_call
def replies(
    trained: Trained, texts: Sequence[str], image: Any = None, beam: int = 1, video: Any = None
) -> Iterator[Reply]:
    """Writes an answer to each text, one after the other; to a blank one an empty answer.

    Args:
      trained: a run whose model reads a text and writes another.
      texts: an instruction and what it is about, "translate to German: five".
      image: the picture that all are about, as `data.images.decode` takes it; or None.
      beam: beams of the search; 1 takes the most probable token each time.
      video: the clip that all are about, as `data.images.frames` takes it; or None.

    Raises:
      UserError: a model that does not write, or does not see what came; a picture or a video that
        cannot be read; no beam.
    """
    beams, tokenizer = Beam(beam), framing(trained.tokenizer, "writing")
    read = _reader(trained, tokenizer, {"image": image, "video": video})
    return _replies(trained, texts, read, _writer(trained, tokenizer, beams))


def _replies(trained: Trained, texts: Sequence[str], read: Any, write: Any) -> Iterator[Reply]:
    asked = iter(texts)
    while some := [*itertools.islice(asked, ROWS)]:
        there = [text.strip() for text in some if text.strip()]
        found = iter(())
        if there:
            # The last texts are filled up to a power of two, so that few programs are compiled.
            rows = min(ROWS, 1 << (len(there) - 1).bit_length())
            fields, left_out = read([*there, *[there[-1]] * (rows - len(there))])
            answers, logp_B = write(trained.params, fields)
            found = zip(answers, logp_B, left_out, strict=True)
        for text in some:
            yield Reply(text, *next(found)) if text.strip() else Reply(text)


def _reader(trained: Trained, tokenizer: Framing, files: dict[str, Any]) -> Any:
    """What makes fields of texts, and counts the tokens of each that are left out."""
    run = trained.run
    if not isinstance(trained.model, MultimodalModule) or run.model.decoder is None:
        raise UserError(
            f"the model of run {run.name!r} does not write an answer to a text that it reads; "
            "expected an encoder and a decoder; try a run of seed_translate, or `llama-jax "
            "generate --weights RUN` for a decoder alone"
        )
    length, _ = lengths(trained)
    given = {modality: file for modality, file in files.items() if file is not None}
    seen = _seen(trained, tokenizer, given) if given else {}

    def read(texts: Sequence[str]) -> tuple[dict[str, np.ndarray], list[int]]:
        ids = [tokenizer.encode(text) for text in texts]
        rows = [framed(row, tokenizer, length) for row in ids]
        fields = text_batch(rows, length)
        fields |= {name: np.repeat(value, len(texts), axis=0) for name, value in seen.items()}
        return fields, [max(0, len(row) + 2 - length) for row in ids]

    return read


def _seen(trained: Trained, tokenizer: Framing, given: dict[str, Any]) -> dict[str, np.ndarray]:
    """What is seen, by modality, as the run's questions show it: one row."""
    run = trained.run
    if run.model.vision is None:
        options = " and ".join(f"--{modality}" for modality in given)
        raise UserError(
            f"the model of run {run.name!r} reads texts and sees no pictures; leave {options} out, "
            "or take a run with a vision encoder, such as one of seed_vqa"
        )
    fields: dict[str, np.ndarray] = {}
    for modality, task in asking(run, [*given]).items():
        fields |= task.asked(["?"], [given[modality]], tokenizer)
    seen = [f"{modality}{part}" for modality in given for part in ("", "_valid")]
    return {name: fields[name] for name in seen if name in fields}


def lengths(trained: Trained) -> tuple[int, int]:
    """The most tokens that a run was trained to read, and to write.

    Raises:
      UserError: none of its streams has a text that answers another.
    """
    fields = [stream.fields(trained.tokenizer) for stream in trained.run.data.values()]
    found = [(f["text"][0][1], f["targets"][0][1]) for f in fields if {"text", "targets"} <= {*f}]
    if not found:
        raise UserError(
            f"run {trained.run.name!r} was trained on {', '.join(trained.run.data)}, where no text "
            "answers another; fine-tune it on a stream of Seq2Seq or Questions first"
        )
    texts, answers = zip(*found, strict=True)
    return max(texts), max(answers)


def _writer(trained: Trained, tokenizer: Framing, beam: Beam) -> Any:
    """The function (params, fields) -> answers and the logarithms of their probabilities."""
    write = _compiled(trained.model, tokenizer.bos, tokenizer.eos, lengths(trained)[1], beam)

    def written(params: Any, fields: dict[str, np.ndarray]) -> tuple[list[str], list[float]]:
        ids_BT, logp_B = map(np.asarray, write(params, fields))
        answers = []
        for row in ids_BT.tolist():
            end = row.index(tokenizer.eos) if tokenizer.eos in row else len(row)
            answers.append(tokenizer.decode(row[:end]).strip())
        return answers, logp_B.tolist()

    return written


@functools.lru_cache(maxsize=8)
def _compiled(model: Any, bos: int, eos: int, length: int, beam: Beam) -> Any:
    """The jitted function (params, fields) -> ids [B,T], log-probabilities [B]."""
    ends = {"bos": bos, "eos": eos, "max_new": length}

    def read(module, fields):
        streams = {"text": module.encode_text(fields["text"], fields["text_valid"])}
        for name in VISUAL:
            if name in fields:
                streams[name] = module.encode_image(fields[name], fields.get(f"{name}_valid"))
        return module.join(module.fuse(streams))

    @jax.jit
    def write(params, fields):
        variables = {"params": params}
        memory: Any = model.apply(variables, fields, method=read)
        if beam.width == 1:
            done = greedy(model, variables, memory, **ends)
            return done.ids, done.logprobs.sum(axis=1)
        found = search(model, variables, memory, beam, **ends)
        ids_BT = found.ids[:, 0]
        ended_BT = (ids_BT == eos).cumsum(axis=1) - (ids_BT == eos) == 0
        tokens_B = ended_BT.sum(axis=1)
        return ids_BT, found.scores[:, 0] * tokens_B**beam.length_penalty

    return write


def instructions(run: Any) -> dict[str, tuple[str, ...]]:
    """What a run was trained to be told, by task: as far as its tasks are some of `tasks`.

    Args:
      run: the Run.
    """
    found: dict[str, tuple[str, ...]] = {}
    known = {tasks.get(name).source.name: tasks.get(name) for name in tasks.NAMES}
    for name, stream in run.data.items():
        task, source = stream.task, stream.source
        if not isinstance(task, Seq2Seq):
            continue
        if task.prefix:
            found[name] = (task.prefix.removesuffix(":"),)
        parts = source.parts() if isinstance(source, Union) else {name: source}
        for part in parts.values() if task.instruction else ():
            if isinstance(part, Tfds) and part.name in known:
                found[known[part.name].name] = known[part.name].instructions
    return found


def unknown(run: Any, text: str) -> str | None:
    """What to say of a text that begins with none of a run's instructions; else None."""
    told = dict.fromkeys(itertools.chain.from_iterable(instructions(run).values()))
    if not told or text.strip().startswith(tuple(f"{one}:" for one in told)):
        return None
    return (
        f"the text begins with no instruction of the tasks that run {run.name!r} was trained for: "
        f"{', '.join(told)} (each with a colon after it); it is answered all the same"
    )
