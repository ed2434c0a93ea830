"""Tasks from one text to another: span corruption, and pairs such as translations."""

from collections.abc import Sequence

import numpy as np

from llama_jax.checked import checked
from llama_jax.data import fields as r
from llama_jax.data.blank import filled
from llama_jax.data.checks import at_least
from llama_jax.data.documents import Documents, joined_ids
from llama_jax.data.rows import Rows, as_text, get
from llama_jax.data.spans import corrupt_spans, span_count, span_lengths
from llama_jax.errors import UserError
from llama_jax.text.roles import framing
from llama_jax.text.tokenizer import trained_here
from llama_jax.text.vocabulary import Vocabulary

SHORTEST = 4  # <cls>, a token, the sentinel of what is hidden, <sep>


@checked
class Denoise:
    """Span corruption (T5): the encoder reads text with holes, the decoder fills them.

    An example is a block of as many tokens as fill the row exactly after corruption (70 for 64);
    a document's last block may be shorter. Rows are `<cls> text <sep>`; the length rule counts
    the two as T5 counts its one end token.

    Attributes:
      length: T of the encoder.
      rate: share of tokens that are hidden.
      mean_span: mean length of a hole, in tokens.
      field: a list of sentences or a text; None for "sentences", else "text".
    """

    length: int = 64
    rate: float = 0.15
    mean_span: float = 3.0
    field: str | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        at_least(SHORTEST, self, "length")
        at_least(1, self, "mean_span")
        if not 0 < self.rate < 1:
            raise UserError(f"rate={self.rate}; expected a share between 0 and 1; try 0.15")

    def lengths(self) -> tuple[int, int]:
        """The raw tokens of a block and T of the decoder."""
        return span_lengths(self.length - 1, self.rate, self.mean_span)

    def fields(self, batch: int, tokenizer: Vocabulary) -> r.Fields:
        """Text and decoder fields."""
        tokenizer = trained_here(tokenizer, "the task Denoise")
        raw, answer = self.lengths()
        need = span_count(raw, self.rate, self.mean_span)
        if need > len(tokenizer.sentinels):
            raise UserError(
                f"Denoise(length={self.length}) needs {need} sentinels and the tokenizer has "
                f"{len(tokenizer.sentinels)}; try a shorter length or training it with "
                f"sentinels={need}"
            )
        return {
            **r.text_fields(batch, self.length),
            **r.decoder_fields(batch, answer),
            "id": ((batch,), "int32"),
        }

    def prepare(
        self, rows: Rows, tokenizer: Vocabulary, keep: np.ndarray, once: bool = False
    ) -> r.Examples:
        """Cuts every document into blocks."""
        tokenizer = trained_here(tokenizer, "the task Denoise")
        del once
        self.fields(1, tokenizer)  # enough sentinels?
        raw, answer = self.lengths()
        documents = Documents.of(rows, self.field, tokenizer)
        texts = [np.array(joined_ids(documents[i])) for i in documents.filled(keep).tolist()]
        blocks = [text[at : at + raw] for text in texts for at in range(0, len(text), raw)]

        def make(slots: Sequence[int], rngs: Sequence[np.random.Generator]) -> r.Batch:
            pairs = [
                corrupt_spans(blocks[s], g, tokenizer.sentinels, self.rate, self.mean_span)
                for s, g in zip(slots, rngs, strict=True)
            ]
            texts = [r.framed(inputs.tolist(), tokenizer, self.length) for inputs, _ in pairs]
            return {
                **r.text_batch(texts, self.length),
                **r.decoder_batch([t.tolist() for _, t in pairs], answer, tokenizer),
                "id": np.asarray(slots, np.int32),
            }

        return r.Examples(np.arange(len(blocks)), make)


@checked
class Seq2Seq:
    """One field to another: translation, summaries, questions, dialogue turns.

    Attributes:
      source: field that the encoder reads ("translation.en" goes into a dict).
      target: field that the decoder writes.
      length: T of the encoder.
      answer_length: T of the decoder.
      prefix: text put before the source, such as "translate to German:".
      instruction: field with what to do, which is put before the source as "instruction: source";
        None for none.
    """

    source: str = "source"
    target: str = "target"
    length: int = 64
    answer_length: int = 64
    prefix: str = ""
    instruction: str | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        at_least(1, self, "length", "answer_length")

    def fields(self, batch: int, tokenizer: Vocabulary) -> r.Fields:
        """Text and decoder fields."""
        del tokenizer
        return {
            **r.text_fields(batch, self.length),
            **r.decoder_fields(batch, self.answer_length),
            "id": ((batch,), "int32"),
        }

    def prepare(
        self, rows: Rows, tokenizer: Vocabulary, keep: np.ndarray, once: bool = False
    ) -> r.Examples:
        """One example a row, read when it is needed."""
        tokenizer = framing(tokenizer, "the task Seq2Seq")
        del once
        prefix = tokenizer.encode(self.prefix) if self.prefix else []
        named = [self.source, self.target, *[self.instruction] * bool(self.instruction)]

        def ends(index: int) -> list[str]:
            row, where = rows[index], f"{rows.name}, row {index}"
            return [as_text(get(row, field, where), where) for field in named]

        def read(index: int) -> tuple[list[int], np.ndarray]:
            source, target, *told = ends(index)
            asked = instructed(source, *told)
            text = r.framed([*prefix, *tokenizer.encode(asked)], tokenizer, self.length)
            there = source.strip() and target.strip()
            return text, r.bounded(tokenizer.encode(target), tokenizer) if there else r.NOTHING

        keep = filled(rows, keep, lambda index: ends(index)[:2])

        pair = r.Memory(read)

        def make(slots: Sequence[int], rngs: Sequence[np.random.Generator]) -> r.Batch:
            del rngs
            index_B = keep[np.asarray(slots)]
            pairs = [pair(i) for i in index_B.tolist()]
            return {
                **r.text_batch([text for text, _ in pairs], self.length),
                **r.shifted([answer for _, answer in pairs], self.answer_length),
                "id": index_B.astype(np.int32),
            }

        return r.Examples(keep, make)


def instructed(source: str, told: str = "") -> str:
    """A text with what to do in front, "translate to German: five"; or the text alone."""
    return f"{told}: {source}" if told.strip() else source
