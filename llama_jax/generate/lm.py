"""A pretrained language model in Python: load, generate, chat, score.

lm = llama_jax.load("Llama-3.2-1B-Instruct")              # or a .gguf file, or nothing: SmolLM2
lm.generate("The capital of France is", max_new_tokens=8)
lm.chat("Why is the sky blue?")
lm.logits([[1, 2, 3]])                                     # [B,T,V] float32
"""

import contextvars
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh

from llama_jax.axes import FSDP_TENSOR, Rules
from llama_jax.errors import UserError
from llama_jax.generate.engine import Engine, Rows
from llama_jax.generate.pictures import Shown, show
from llama_jax.generate.sample import Sampling
from llama_jax.generate.stopping import Stop, Writer
from llama_jax.messages import short
from llama_jax.seeds import check_seed
from llama_jax.text.chat import IMAGE, Format, chat_ids
from llama_jax.text.messages import Message, messages_of, pictures
from llama_jax.text.pretrained import Pretrained

if TYPE_CHECKING:
    from llama_jax.models.language import Language
    from llama_jax.weights.opened import Checkpoint

MOST, MOST_ANSWERED = 64, 512  # tokens that are written, unless it is said

Prompt = str | Sequence[int]
Messages = str | Message | Mapping[str, Any] | Sequence[Message | Mapping[str, Any]]


@dataclass(frozen=True)
class Completion:
    """What was written after one prompt.

    Attributes:
      text: without the tokens and strings that ended it.
      ids: the tokens, the one that ended it among them.
      logprobs: natural logarithm of each token's probability, before temperature and the like.
      finish: "stop" at an end token or a stop string, "length" at the asked number of tokens.
    """

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str


@dataclass(frozen=True)
class LM:
    """A decoder with weights and tokenizer; make it with `load`.

    Attributes:
      engine: the compiled model.
      tokenizer: what came with the weights; without one ids go in and come out (`NoTokenizer`).
      name: where they came from.
      chat_format: how turns of a chat are written, or the name of that; by default as the
        tokenizer's own template says.
    """

    engine: Engine
    tokenizer: Pretrained
    name: str
    chat_format: Format | str | None = None

    def __reduce__(self):
        raise UserError(
            f"an LM has its weights on devices and cannot be pickled or copied; load "
            f"{self.name!r} where it is needed"
        )

    @property
    def module(self) -> "Language":
        """The Flax module: `lm.module.apply({"params": lm.params}, ids)` gives logits."""
        return self.engine.module

    @property
    def params(self) -> Any:
        """Its parameters, a nested dict."""
        return self.engine.params

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        max_new_tokens: int | None = MOST,
        images: Sequence[Any] | None = None,
        **settings,
    ) -> Any:
        """Continues a prompt, or each of a list of prompts, as one batch.

        Args:
          prompt: a text, or its ids as they are; or a list of these.
          max_new_tokens: at most so many for each.
          images: pictures (paths, bytes, arrays, of Pillow), for several prompts a list for each;
            they come first, or where the prompt's ids have a place for them.
          **settings: temperature, top_k, top_p, min_p, repetition_penalty (see `Sampling`), seed,
            and stop, the strings at which to end. None, as clients send it, means the default.

        Returns:
          The continuation as a string, or a list of strings for a list.

        Raises:
          UserError: a setting out of range, prompts longer than the context, or pictures for a
            model that sees none, more or fewer than there are places for.
        """
        prompts, alone = _prompts(prompt)
        self.tokenizer.decode(())  # refuses if texts cannot be shown
        if images is not None and alone:
            images = [images]
        found = self.complete(prompts, max_new_tokens, images, **settings)
        return found[0].text if alone else [one.text for one in found]

    def complete(
        self,
        prompts: Prompt | Sequence[Prompt],
        max_new_tokens: int | None = MOST,
        images: Sequence[Sequence[Any]] | None = None,
        **settings,
    ) -> list[Completion]:
        """`generate` with tokens, log-probabilities and the reason of each end; always a list.

        So are `images`: a list of pictures for each prompt.
        """
        if not (ids := [self.ids(prompt) for prompt in _prompts(prompts)[0]]):
            return []
        for _ in (writers := Batch(self, ids, max_new_tokens, images=images, **settings)):
            pass
        return writers.completions()

    def stream(
        self,
        prompt: Prompt,
        max_new_tokens: int | None = MOST,
        images: Sequence[Any] | None = None,
        **settings,
    ) -> Iterator[str]:
        """`generate` for one prompt, piece by piece, never half a character."""
        self.tokenizer.decode(())  # as in `generate`
        shown = None if images is None else [images]
        for pieces in Batch(self, [self.ids(prompt)], max_new_tokens, images=shown, **settings):
            if pieces[0]:
                yield pieces[0]

    def chat(
        self,
        messages: Messages,
        max_new_tokens: int | None = MOST_ANSWERED,
        format: Format | str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        images: Sequence[Any] = (),
        **settings,
    ) -> str:
        """The answer to a message, or to a conversation that ends with one of the user's.

        Args:
          messages: a text of the user's, a message, or several: `Message`, or dicts as in OpenAI's
            interface.
          max_new_tokens: at most so many.
          format: how turns are written; by default as `chat_format` says.
          tools: what may be called, as JSON schemas, for a template that writes them.
          images: pictures of the parts `{"type": "image"}` that hold none themselves.
          **settings: see `generate`.

        Raises:
          UserError: see `generate`; or the model has no known chat format.
        """
        most = MOST_ANSWERED if max_new_tokens is None else max_new_tokens
        said = messages_of(messages)
        shown = [pictures(said, images)]
        return self.complete([self.chat_ids(said, format, tools)], most, shown, **settings)[0].text

    def chat_ids(
        self,
        messages: Messages,
        format: Format | str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """The ids of a conversation up to where the answer begins; arguments as for `chat`."""
        format = self.chat_format if format is None else format
        return chat_ids(messages_of(messages), self.tokenizer, format, tools=tools)

    def ids(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt: a text's with what begins and ends every text, ids as they are.

        Raises:
          UserError: no text and no ids, ids outside the vocabulary, or none at all.
        """
        if isinstance(prompt, str):
            borders = [
                [] if i is None else [i] for i in (self.tokenizer.bos, self.tokenizer.closes)
            ]
            ids = [*borders[0], *self.tokenizer.encode(prompt), *borders[1]]
        else:
            ids = _whole(prompt)
        if not ids:
            raise UserError("the prompt is empty; a token at least was expected")
        vocab = self.module.config.language.vocab + getattr(self.module.config, "extra", 0)
        if min(ids) < 0 or max(ids) >= vocab:
            wrong = next(i for i in ids if not 0 <= i < vocab)
            raise UserError(f"token id {wrong} is not one of the vocabulary's {vocab}")
        return ids

    def shown(
        self, prompts: Sequence[Sequence[int]], images: Sequence[Sequence[Any]] | None
    ) -> Shown:
        """Prompts and what the model sees beside them; errors as for `generate`."""
        begin, token = self.tokenizer.bos, self.tokenizer.control.get(IMAGE)
        return show(self.module.config, prompts, images or [[] for _ in prompts], begin, token)

    def logits(self, ids: Any, images: Sequence[Sequence[Any]] | None = None) -> np.ndarray:
        """Logits for the token after each one, [B,T,V] float32, of ids [B,T].

        Of `images`, a list of pictures for each row, those without a place of their own in the ids
        come first, so T is longer by as many, or by all that a picture is laid out in.

        Raises:
          UserError: ids of another shape or type, or outside the vocabulary; or they are traced.
        """
        if isinstance(ids, Tracer):
            raise UserError(
                "lm.logits reads values, which jit, grad and vmap have not; within these write "
                "lm.module.apply({'params': params}, ids)"
            )
        try:
            ids_BT = np.asarray(ids)
        except ValueError:
            raise UserError(
                "rows of ids of several lengths; rows of equal length were expected"
            ) from None
        if ids_BT.ndim != 2:
            raise UserError(f"ids of shape {ids_BT.shape}; rows of equal length were expected")
        if ids_BT.size and not np.issubdtype(ids_BT.dtype, np.integer):
            raise UserError(f"ids of type {ids_BT.dtype}; whole numbers were expected")
        for row in ids_BT:
            self.ids(row)
        shown = self.shown(ids_BT.tolist(), images)
        if len({len(ids) for ids in shown.prompts}) > 1:
            raise UserError(
                "rows that differ in length with their pictures; expected as many for each, of "
                "one shape if the model lays them out by shape"
            )
        return np.asarray(self.engine.logits(np.array(shown.prompts), shown.seen))

    def logprobs(self, text: Prompt, window: int | None = None) -> np.ndarray:
        """The log-probability of every token of a text but its first, float32.

        Texts longer than a window are read in windows that overlap by half: each token is scored
        with at least half a window before it. If the text begins with a BOS, every window does.

        Args:
          text: the text, or its ids.
          window: tokens read at once, two or more; the model's context, at most 2048, by default.

        Raises:
          UserError: a window of no such length; see `ids`.
        """
        ids, context = self.ids(text), self.engine.context
        window = min(context or 2048, 2048) if window is None else window
        if _no_whole(window, 2):
            raise UserError(
                f"window={short(window)}: use at least 2 tokens, or None for the context"
            )
        if context is not None and min(window, len(ids)) > context:
            raise UserError(f"window={window}: the model's context is {context} tokens")
        # What begins every window; tokens of the text itself have the room behind it.
        front = ids[:1] if ids[0] == self.tokenizer.bos else []
        room = min(int(window), len(ids)) - len(front)
        scores: list[float] = []
        while len(scores) < len(ids) - 1:
            start = max(len(scores) + 1 - room // 2, len(front))
            # All windows are of one length, so one program serves all but a short text.
            start = min(start, len(ids) - room)
            piece = [*front, *ids[start : start + room]]
            found = np.asarray(self.engine.logprobs(np.array([piece])))[0]
            first = start + 1 - len(front)  # the token whose score comes first
            scores.extend(found[len(scores) + 1 - first :].tolist())
        return np.array(scores, np.float32)

    def perplexity(self, text: Prompt, window: int | None = None) -> float:
        """exp of the mean negative log-probability of a text's tokens; see `logprobs`.

        Raises:
          UserError: fewer than two tokens.
        """
        scores = self.logprobs(text, window)
        if not len(scores):
            raise UserError("a text of at least two tokens was expected")
        return float(np.exp(-np.mean(scores, dtype=np.float64)))


class Batch:
    """One batch of prompts on its way; iterating gives the new text of each row."""

    def __init__(
        self,
        lm: LM,
        prompts: Sequence[Sequence[int]],
        most: int | None,
        *,
        seed: int | None = None,
        stop: str | Sequence[str] | None = (),
        rows: Rows | None = None,
        images: Sequence[Sequence[Any]] | None = None,
        held: Sequence[Sequence[int]] | None = None,
        **sampling,
    ):
        most, seed = MOST if most is None else most, 0 if seed is None else seed
        sampling = {name: value for name, value in sampling.items() if value is not None}
        if _no_whole(most, 1):
            raise UserError(f"max_new_tokens={short(most)}: use a whole number, at least 1")
        unknown = set(sampling) - set(Sampling.__dataclass_fields__)
        if unknown:
            raise UserError(
                f"unknown setting {sorted(unknown)[0]!r}; there are seed, stop, "
                f"{', '.join(Sampling.__dataclass_fields__)}"
            )
        check_seed(seed)
        # Rows that have read something have been shown their pictures too.
        given = [list(ids) for ids in prompts]
        shown = lm.shown(given, images) if rows is None else Shown(given, {})
        self.lm, self.prompts, self.most, self.seed = lm, shown.prompts, most, seed
        self.seen = shown.seen
        self.sampling = Sampling(**sampling)
        if not isinstance(stop, str | Sequence | None):
            raise UserError(f"stop={short(stop)}: a string or several were expected")
        stops = Stop((stop,) if isinstance(stop, str) else tuple(stop or ()))
        self.writers = [Writer(lm.tokenizer, stops) for _ in prompts]
        self.rows = rows
        self.held = shown.prompts if held is None else held

    def __iter__(self) -> Iterator[list[str]]:
        engine = self.lm.engine
        longest = max(map(len, self.prompts))
        if engine.context is not None and longest >= engine.context:
            raise UserError(
                f"a prompt has {longest} tokens; the model's context is {engine.context}, with "
                "the answer; shorten it"
            )
        most = self.most if engine.context is None else min(self.most, engine.context - longest)
        rows = self.rows or engine.rows(len(self.prompts), longest + most)
        ends = self.lm.tokenizer.ends
        if self.seen:
            rows.look(self.seen)
        logits = rows.feed(self.prompts)
        tokens = rows.tokens(logits, most, self.sampling, self.seed, sorted(ends), self.held)
        for ids_BT, logp_BT in tokens:
            new = [""] * len(self.writers)
            for row, writer in enumerate(self.writers):
                for token, logp in zip(ids_BT[row].tolist(), logp_BT[row].tolist(), strict=True):
                    new[row] += writer.push(token, logp, token in ends)
            yield new
            if all(writer.finished for writer in self.writers):
                break
        yield [writer.end() for writer in self.writers]

    def completions(self) -> list[Completion]:
        """What the rows have become."""
        return [
            Completion(w.text, tuple(w.ids), tuple(w.logprobs), "stop" if w.finished else "length")
            for w in self.writers
        ]


def _prompts(given: Any) -> tuple[list[Prompt], bool]:
    """One or several prompts as a list, and whether it was one."""
    if isinstance(given, str):
        return [given], True
    several = given.tolist() if hasattr(given, "tolist") else given  # arrays, of jax too
    if not isinstance(several, Iterable) or isinstance(several, bytes | Mapping):
        raise UserError(f"{short(given)} is no prompt; a text, its ids, or a list was expected")
    several = list(several)
    first = several[0] if several else None
    alone = isinstance(first, int | float) or getattr(first, "ndim", None) == 0
    return ([several], True) if alone else (several, False)


def _whole(prompt: Any) -> list[int]:
    """Ids as they are given, if they are whole numbers."""
    try:
        if isinstance(prompt, bytes):
            raise TypeError
        return [operator.index(i) for i in prompt]
    except TypeError:
        raise UserError(
            f"{short(prompt)} is no prompt; a text, or ids, which are whole numbers, was expected"
        ) from None


def _no_whole(value: Any, least: int) -> bool:
    return not isinstance(value, int | np.integer) or int(value) < least


def load(
    path: Any = None,
    mesh: Mesh | None = None,
    rules: Rules = FSDP_TENSOR,
    dtype: Any = None,
    pickle: bool = False,
    progress: Callable[[Iterable], Iterable] = iter,
    allow_links: bool = False,
) -> LM:
    """Opens a language model; arguments and errors as for `llama_jax.load`."""
    from llama_jax.weights.find import find
    from llama_jax.weights.opened import links_followed, open_checkpoint
    from llama_jax.weights.tokenizer_files import tokenizer_if_any

    with links_followed(allow_links):
        checkpoint = open_checkpoint(find(path), pickle=pickle)
        # Beside the weights, which leave Python's lock alone while they are read and turned.
        with ThreadPoolExecutor(1, "tokenizer") as pool:
            here = contextvars.copy_context()  # links
            vocabulary = pool.submit(here.run, tokenizer_if_any, checkpoint)

            def watched(names: Iterable) -> Iterator:
                for name in progress(names):
                    if vocabulary.done():
                        vocabulary.result()  # with a damaged one nobody waits for the weights
                    yield name

            try:
                engine = open_engine(checkpoint, mesh, rules, dtype, watched)
            finally:
                words = vocabulary.result()  # its error comes first
    return LM(engine, words, str(checkpoint.place))


def open_engine(
    checkpoint: "Checkpoint",
    mesh: Mesh | None = None,
    rules: Rules = FSDP_TENSOR,
    dtype: Any = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Engine:
    """Reads the weights of an open checkpoint; arguments and errors as for `load`."""
    from llama_jax.weights.layers import one_by_one, unstack
    from llama_jax.weights.opened import load_params

    if dtype is None:
        platform = (jax.devices()[0] if mesh is None else mesh.devices.flat[0]).platform
        # A CPU has no bfloat16 products: the same program would be thirty times slower.
        dtype = jnp.float32 if platform == "cpu" else jnp.bfloat16
    single = one_by_one(checkpoint.model)
    if checkpoint.source is not None:
        params = load_params(replace(checkpoint, model=single), mesh, rules, dtype, progress)
    else:
        params = load_params(checkpoint, mesh, rules, dtype)
        params = unstack(params, single.language.stack.repeats)
    module = single.build().clone(dtype=jnp.dtype(dtype))
    return Engine(module, params, mesh, rules)
