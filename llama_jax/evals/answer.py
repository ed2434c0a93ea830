"""Answers to questions about pictures and videos, with how sure the model is of each.

print(answer("runs/demo/vqa", "circle.png", "what color is the circle?"))

Any combination of modalities comes in here: a text, with a picture, a video, both or neither.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.data import images as pixels
from llama_jax.data.fields import Asking
from llama_jax.errors import UserError
from llama_jax.evals.inputs import VISUAL
from llama_jax.generate.decode import decode
from llama_jax.models.multimodal import Multimodal
from llama_jax.models.tokens import repeat_rows
from llama_jax.text.roles import framing
from llama_jax.train.checkpoint import to_stderr
from llama_jax.train.load import Trained, load

CHOICES = 5  # first tokens that are followed to an answer
FIELDS = ("text", "text_valid", *(f"{name}{part}" for name in VISUAL for part in ("", "_valid")))
NAMED = {"image": "a picture", "video": "a video"}
PLURAL = {"image": "pictures", "video": "videos"}


@dataclass(frozen=True)
class Answer:
    """What the model says.

    Attributes:
      text: the answer that greedy decoding writes, as evaluations count it.
      confidence: the probability (0 to 1) that the model gives to this text.
      choices: the most probable answers, this one among them, each with its probability.
    """

    text: str
    confidence: float
    choices: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        """For example "red (98 %; then brown 1 %, blue 0 %)"."""
        others = [f"{text} {p:.0%}" for text, p in self.choices if text != self.text][:2]
        then = f"; then {', '.join(others)}" if others else ""
        said = f"{self.text} ({self.confidence:.0%}{then})".replace("%", " %")
        # An untrained model writes any bytes; a terminal should not obey them.
        return "".join(letter if letter.isprintable() else "�" for letter in said)


def answer(run_dir: str | Path, image: Any, question: str, video: Any = None) -> Answer:
    """Answers one question with the newest checkpoint of a run.

    Args:
      run_dir: a run that was trained on questions, such as the demo's `runs/demo/vqa`.
      image: what `data.images.decode` takes: a path, the bytes of a file, an array; or None.
      question: a short text.
      video: what `data.images.frames` takes: a path, the bytes of a file, an array; or None.

    Raises:
      UserError: an empty or too long question, a picture or video that cannot be read, or a run
        that cannot answer about such.
    """
    _asked(question)
    seen = {} if image is None else {"image": pixels.decode(image)}
    seen |= {} if video is None else {"video": video}
    return ask(load(run_dir, say=to_stderr), [seen], [question])[0]


def ask(trained: Trained, seen: Sequence[Any], questions: Sequence[str]) -> list[Answer]:
    """Answers one question about each, all in one batch.

    Args:
      trained: a run that was trained on questions.
      seen: by question, a picture; or what is seen by modality, {"image": ..., "video": ...}, of
        which both, one or none may be there.
      questions: the texts.

    Raises:
      UserError: see `answer`.
    """
    questions = [*map(_asked, questions)]
    by_modality = [one if isinstance(one, Mapping) else {"image": one} for one in seen]
    given = [m for m in VISUAL if any(one.get(m) is not None for one in by_modality)]
    asking, tokenizer = tasks(trained.run, given), framing(trained.tokenizer, "answering")
    fields: dict[str, np.ndarray] = {}
    for modality, task in asking.items():
        files = [one.get(modality) for one in by_modality]
        fields = task.asked(questions, files, tokenizer) | fields
    fields = {name: fields[name] for name in FIELDS if name in fields}
    length = max(task.answer_length for task in asking.values())
    write = _writer(trained.model, tokenizer.bos, tokenizer.eos, length)
    ids_BCT, logp_BC = map(np.asarray, write(trained.params, fields))
    return [_answer(ids, logp, tokenizer) for ids, logp in zip(ids_BCT, logp_BC, strict=True)]


@functools.lru_cache(maxsize=8)
def _writer(model: Any, bos: int, eos: int, length: int):
    """The jitted function (params, fields) -> choices [B,C,T], log-probabilities [B,C].

    The C most probable first tokens, each continued greedily; the first one is greedy decoding.
    """

    def read(module, fields):
        streams = {"text": module.encode_text(fields["text"], fields["text_valid"])}
        for name in VISUAL:
            if name in fields:
                streams[name] = module.encode_image(fields[name], fields[f"{name}_valid"])
        return module.join(module.fuse(streams))

    @jax.jit
    def write(params, fields):
        variables = {"params": params}
        memory: Any = model.apply(variables, fields, method=read)
        rows = len(fields["text"])
        begin_BT = jnp.full((rows, 1), bos, jnp.int32)
        logits_BTV: Any = model.apply(variables, begin_BT, memory, method="decode")[0]
        logp_BC, first_BC = jax.lax.top_k(jax.nn.log_softmax(logits_BTV[:, -1]), CHOICES)
        if length == 1:
            return first_BC[..., None], logp_BC
        prompt = jnp.stack([jnp.full_like(first_BC, bos), first_BC], axis=-1).reshape(-1, 2)
        memory = repeat_rows(memory, rows * CHOICES)
        rest = decode(model, variables, memory, prompt, eos=eos, max_new=length - 1)
        ids_BCT = jnp.concatenate(
            [first_BC[..., None], rest.ids.reshape(rows, CHOICES, -1)], axis=-1
        )
        # What follows an answer that has ended with its first token is not part of it.
        rest_BC = rest.logprobs.sum(axis=-1).reshape(rows, CHOICES)
        return ids_BCT, logp_BC + jnp.where(first_BC == eos, 0.0, rest_BC)

    return write


def _answer(ids_CT: np.ndarray, logp_C: np.ndarray, tokenizer: Any) -> Answer:
    """Adds up what says the same: some texts have more than one tokenization."""
    choices: dict[str, float] = {}
    said = []
    for ids, logp in zip(ids_CT.tolist(), logp_C.tolist(), strict=True):
        end = ids.index(tokenizer.eos) if tokenizer.eos in ids else len(ids)
        text = tokenizer.decode(ids[:end]).strip()
        choices[text] = choices.get(text, 0.0) + float(np.exp(logp))
        said.append(text)
    ordered = sorted(choices.items(), key=lambda choice: -choice[1])
    return Answer(said[0], choices[said[0]], tuple(ordered))


def _asked(question: str) -> str:
    if not question.strip():
        raise UserError(
            "the question is empty; expected a short text; try --question 'what color is it?'"
        )
    return question.strip()


def tasks(run: Any, given: Sequence[str]) -> dict[str, Asking]:
    """The task of each modality that is given, or of the text alone: the one of longest questions.

    Args:
      run: the Run that was trained.
      given: "image", "video", both or neither.

    Raises:
      UserError: the model cannot see or write, or the run was not trained on questions, or on none
        about what is given.
    """
    if not isinstance(run.model, Multimodal):  # a decoder that looks at pictures, for example
        raise UserError(
            f"the model of run {run.name!r} is a {type(run.model).__name__}; questions are asked "
            "of an encoder-decoder, a Multimodal, such as one of seed_vqa; try `llama-jax eval`"
        )
    for part in ("vision", "decoder"):
        if getattr(run.model, part, None) is None:
            raise UserError(
                f"the model of run {run.name!r} has no {part}{' encoder' * (part == 'vision')}; "
                "expected one that sees pictures and writes; try a run of seed_vqa, or of one that "
                "reads and writes texts alone, `llama-jax ask`"
            )
    asking = [stream.task for stream in run.data.values() if isinstance(stream.task, Asking)]
    if not asking:
        raise UserError(
            f"run {run.name!r} was trained on {', '.join(run.data)} and not on questions; "
            "fine-tune it first: llama-jax train seed_vqa --init-from THIS_RUN --run-dir ANOTHER"
        )
    known = {_sees(task): task for task in sorted(asking, key=lambda task: task.length)}
    for modality in given:
        if modality not in known:
            [other] = known
            raise UserError(
                f"run {run.name!r} answers about {_about(known[other])}; {NAMED[modality]} came; "
                f"try --{other} FILE, or a run that was trained on {PLURAL[modality]}"
            )
    if given:
        return {modality: known[modality] for modality in given}
    return dict([max(known.items(), key=lambda pair: pair[1].length)])


def _sees(task: Asking) -> str:
    return pixels.stream_name(getattr(task, "frames", 0))


def _about(task: Asking) -> str:
    frames = getattr(task, "frames", 0)
    return f"videos of {frames} frames" if frames else "pictures"
