"""What the tasks share: fields and their shapes, framing and padding."""

import sys
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from llama_jax.data.corrupt import Masking, Replacements, mask_tokens
from llama_jax.data.rows import Rows
from llama_jax.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llama_jax.text.roles import Framing
    from llama_jax.text.tokenizer import Tokenizer

MEMORY = 1 << 28  # bytes of ids that are kept, 67 million of them in long documents
NOTHING = np.zeros(0, np.int32)  # ids of what is not to be learned from
ENTRY = 256  # bytes that an array and its place in a dict take beside the ids

Fields = dict[str, tuple[tuple[int, ...], str]]  # field -> shape, dtype
Batch = dict[str, np.ndarray]
Ids = Sequence[int] | np.ndarray  # of a text
Make = Callable[[Sequence[int], Sequence[np.random.Generator]], Batch]


class Task(Protocol):
    """Turns the rows of a source into fields of a batch; a frozen dataclass."""

    def fields(self, batch: int, tokenizer: Vocabulary) -> Fields:
        """Each field's shape and dtype, without opening data."""
        ...

    def prepare(
        self, rows: Rows, tokenizer: Vocabulary, keep: np.ndarray, once: bool = False
    ) -> "Examples":
        """Lays out the examples of a pass.

        Args:
          rows: the opened source.
          tokenizer: for the texts.
          keep: indices of the rows to use (low-data ablations), ascending.
          once: for evaluation: everything exactly once, nothing sampled that need not be.
        """
        ...


@runtime_checkable
class Asking(Protocol):
    """A task whose stream asks questions about pictures, so that `llama-jax answer` can too.

    With an attribute `frames` above 0 it is about clips, which are then files of videos.
    """

    @property
    def length(self) -> int:
        """T of a question."""
        ...

    @property
    def answer_length(self) -> int:
        """T of an answer."""
        ...

    def asked(self, questions: Sequence[str], images: Sequence[Any], tokenizer: "Framing") -> Batch:
        """Questions as the model reads them: `text`, `text_valid` and, if there is any, `image`.

        Where one of `images` is None, `image_valid` is False.
        """
        ...


class Examples:
    """The examples of a stream.

    Attributes:
      ids: a number for each, the same whatever share of the source is kept; seeds its rng.
      rows: text rows that each gives.
      make: from slots (indices into `ids`) and their rngs to a batch.
    """

    def __init__(self, ids: np.ndarray, make: Make, rows: int = 1):
        """Keeps the three."""
        self.ids, self.make, self.rows = np.asarray(ids, np.int64), make, rows

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.ids)


def pad(texts: Sequence[Ids], length: int, fill: int = 0) -> np.ndarray:
    """Stacks texts to int32 [B, length], cut or padded at the end."""
    padded = np.full((len(texts), length), fill, np.int32)
    for row, text in zip(padded, texts, strict=True):
        text = text[:length]
        row[: len(text)] = text
    return padded


def framed(ids: Sequence[int], tokenizer: "Framing", length: int) -> list[int]:
    """`<cls> ids <sep>`, the ids cut so that it fits in `length`."""
    return [tokenizer.cls, *ids[: max(0, length - 2)], tokenizer.sep]


def text_batch(texts: Sequence[Ids], length: int) -> Batch:
    """`text` and `text_valid`."""
    sizes = np.array([len(text) for text in texts])
    return {"text": pad(texts, length), "text_valid": np.arange(length) < sizes[:, None]}


def text_fields(batch: int, length: int) -> Fields:
    """The fields of `text_batch`."""
    return {"text": ((batch, length), "int32"), "text_valid": ((batch, length), "bool")}


def bounded(ids: Ids, tokenizer: Vocabulary) -> np.ndarray:
    """`<bos> ids <eos>`, int32; some tokenizers that come with weights add only one."""
    begin, end = ([] if id is None else [id] for id in (tokenizer.bos, tokenizer.eos))
    return np.concatenate([np.asarray(part, np.int32) for part in (begin, ids, end)])


def decoder_batch(answers: Sequence[Ids], length: int, tokenizer: Vocabulary) -> Batch:
    """`tokens` (`<bos>` first), `targets` (`<eos>` last) and `loss_weights`.

    An answer that is too long loses its end and its `<eos>`: the model must not learn to stop
    where a text was cut.
    """
    return shifted([bounded(answer, tokenizer) for answer in answers], length)


def shifted(texts: Sequence[Ids], length: int) -> Batch:
    """The fields of `decoder_batch` for texts with bounds; of each, length + 1 ids."""
    texts = [text[: length + 1] for text in texts]
    targets = [text[1:] for text in texts]
    sizes = np.array([len(target) for target in targets])
    return {
        "tokens": pad([text[:-1] for text in texts], length),
        "targets": pad(targets, length),
        "loss_weights": (np.arange(length) < sizes[:, None]).astype(np.float32),
    }


def decoder_fields(batch: int, length: int) -> Fields:
    """The fields of `decoder_batch`."""
    return {
        "tokens": ((batch, length), "int32"),
        "targets": ((batch, length), "int32"),
        "loss_weights": ((batch, length), "float32"),
    }


def masked_batch(
    texts: Sequence[np.ndarray],
    length: int,
    rngs: Sequence[np.random.Generator],
    masking: Masking | None,
    tokenizer: "Tokenizer",
) -> Batch:
    """The text fields of rows [n, 2] (ids, words; -1 for special), corrupted if asked."""
    if masking is None:
        return text_batch([text[:, 0] for text in texts], length)
    width = masking.width(length)
    replacements = Replacements(tokenizer.mask, tokenizer.reserved, tokenizer.used)
    rows = [
        mask_tokens(text, rng, masking, replacements, width)
        for text, rng in zip(texts, rngs, strict=True)
    ]
    sizes = np.array([len(positions) for _, positions, _ in rows])
    return text_batch([ids for ids, _, _ in rows], length) | {
        "mlm_positions": pad([positions for _, positions, _ in rows], width),
        "mlm_targets": pad([targets for _, _, targets in rows], width),
        "mlm_weights": (np.arange(width) < sizes[:, None]).astype(np.float32),
    }


def masked_fields(batch: int, length: int, masking: Masking | None) -> Fields:
    """The fields of `masked_batch`."""
    if masking is None:
        return text_fields(batch, length)
    shape = (batch, masking.width(length))
    return text_fields(batch, length) | {
        "mlm_positions": (shape, "int32"),
        "mlm_targets": (shape, "int32"),
        "mlm_weights": (shape, "float32"),
    }


def worded(text: str, tokenizer: "Tokenizer") -> np.ndarray:
    """A text as [n, 2]: ids and word indices."""
    return np.array(tokenizer.encode_with_words(text), np.int32).reshape(2, -1).T


def special(*ids: int) -> np.ndarray:
    """Special tokens as [n, 2]; word index -1 keeps them from being masked."""
    return np.array([(i, -1) for i in ids], np.int32)


def framed_words(text_T2: np.ndarray, tokenizer: "Tokenizer", length: int) -> np.ndarray:
    """`<cls> text <sep>` as [n, 2], cut so that it fits in `length`."""
    body = text_T2[: max(0, length - 2)]
    return np.concatenate([special(tokenizer.cls), body, special(tokenizer.sep)])


class Memory:
    """The ids that a function gives, by argument, so that no text is tokenised in every epoch.

    They are kept as int32: lists of Python's numbers take nine times as much.
    """

    def __init__(self, function: Callable[[Any], Any], limit: int = MEMORY):
        """Remembers up to `limit` bytes of what `function` gives: the ids of a text, or a tuple."""
        self.function, self.limit = function, limit
        self.known: dict[Any, Any] = {}
        self.held, self._lock = 0, threading.Lock()

    def __call__(self, argument: Any) -> Any:
        """What the function gives for `argument`, as arrays."""
        found = self.known.get(argument)
        if found is None:
            given = self.function(argument)
            parts = given if isinstance(given, tuple) else (given,)
            parts = tuple(np.asarray(ids, np.int32) for ids in parts)
            found = parts if isinstance(given, tuple) else parts[0]
            size = sys.getsizeof(argument) + sum(ENTRY + ids.nbytes for ids in parts)
            with self._lock:  # the loader has several threads
                if self.held + size > self.limit:
                    self.known, self.held = {}, 0
                self.known[argument] = found
                self.held += size
        return found


def identity(text: str) -> int:
    """A stable 31-bit hash of the text without blanks around it."""
    return zlib.crc32(text.strip().encode()) & 0x7FFFFFFF
