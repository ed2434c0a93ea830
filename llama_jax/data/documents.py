"""Documents of sentences, and the task over pairs of them with masked tokens."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from llama_jax.checked import checked
from llama_jax.data import fields as r
from llama_jax.data.blank import INDEXED, filled
from llama_jax.data.checks import share
from llama_jax.data.corrupt import Masking
from llama_jax.data.pairs import (
    Cut,
    Negatives,
    Pair,
    join,
    next_sentence_pair,
    sentence_order_pair,
    sentence_pair,
)
from llama_jax.data.rows import Rows, sentences
from llama_jax.errors import UserError
from llama_jax.text.tokenizer import Tokenizer, trained_here
from llama_jax.text.vocabulary import Vocabulary


@checked
class SentencePairs:
    """BERT's rows `<cls> A <sep> B <sep>`: masked tokens, and the order of two segments.

    An example starts at a sentence, and every sentence of every document starts one. In a source
    of more than `INDEXED` documents an example is a document and its start is drawn.

    Attributes:
      length: tokens of a row, T.
      mlm: how tokens are hidden; None leaves them.
      order: "nsp" (next sentence), "sop" (sentence order), "both" (a third of the pairs follow, a
        third are swapped, a third are of two places) or "none" (one segment).
      field: a list of sentences or a text; None for "sentences", else "text".
      short: how often a random shorter length is aimed at.
      negatives: where the second segment comes from that does not follow.
      cut: what is lost of pairs that are too long: "tokens" at random ends (BERT), or "sentences".
    """

    length: int = 64
    mlm: Masking | None = Masking()
    order: Literal["nsp", "sop", "both", "none"] = "nsp"
    field: str | None = None
    short: float = 0.1
    negatives: Negatives = Negatives()
    cut: Cut = "tokens"

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.length < 8:
            raise UserError(f"length={self.length}; sentence pairs need at least 8; try 64")
        share(self, "short")

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels of a pair."""
        return {"nsp": ("next",), "sop": ("order",), "both": ("next", "order")}.get(self.order, ())

    def fields(self, batch: int, tokenizer: Vocabulary) -> r.Fields:
        """Text, MLM and order fields."""
        del tokenizer
        fields = r.masked_fields(batch, self.length, self.mlm)
        if self.labels:
            fields["text_types"] = ((batch, self.length), "int32")
        fields |= {name: ((batch,), "int32") for name in self.labels}
        return fields | {"id": ((batch,), "int32")}

    def prepare(
        self, rows: Rows, tokenizer: Vocabulary, keep: np.ndarray, once: bool = False
    ) -> r.Examples:
        """Lists the starting sentences."""
        tokenizer = trained_here(tokenizer, "the task SentencePairs")
        del once  # every sentence starts exactly one example in any pass
        documents = Documents.of(rows, self.field, tokenizer)
        keep = documents.filled(keep)
        chosen = _Chosen(documents, keep)
        if "next" in self.labels and len(keep) < 2:
            raise UserError(
                f"{rows.name} holds one document; NSP takes sentences of other documents; "
                "try order='sop' or separating documents by blank lines"
            )
        if len(rows) <= INDEXED:
            counts = np.array([len(documents.known[i]) for i in range(len(rows))])
            offset = np.cumsum(counts) - counts
            which = np.repeat(np.arange(len(keep)), counts[keep])
            ids = np.concatenate([offset[i] + np.arange(int(counts[i])) for i in keep])
            starts = ids - offset[keep[which]]
        else:
            which, ids, starts = np.arange(len(keep)), keep, None

        def make(slots: Sequence[int], rngs: Sequence[np.random.Generator]) -> r.Batch:
            texts, seconds, labels = [], [], []
            for slot, rng in zip(slots, rngs, strict=True):
                document = int(which[slot])
                if starts is None:
                    start = int(rng.integers(len(chosen[document])))
                else:
                    start = int(starts[slot])
                text, second, label = self._row(chosen, document, start, rng, tokenizer)
                texts.append(text)
                seconds.append(second)
                labels.append(label)
            batch = r.masked_batch(texts, self.length, rngs, self.mlm, tokenizer)
            if self.labels:
                at_T, second_B1 = np.arange(self.length), np.array(seconds)[:, None]
                batch["text_types"] = ((at_T >= second_B1) & batch["text_valid"]).astype(np.int32)
                batch |= dict(zip(self.labels, np.array(labels, np.int32).T, strict=True))
            return batch | {"id": ids[np.asarray(slots)].astype(np.int32)}

        return r.Examples(ids, make)

    def _row(
        self, documents: Any, document: int, start: int, rng: Any, tokenizer: Tokenizer
    ) -> tuple[np.ndarray, int, tuple[int, ...]]:
        """A row [n, 2], where its second segment starts, and its labels."""
        cls, sep = r.special(tokenizer.cls), r.special(tokenizer.sep)
        if self.order == "none":
            end, size = start, 0
            while end < len(documents[document]) and size < self.length - 2:
                size += len(documents[document][end])
                end += 1
            text = join(documents[document][start:end])
            return r.framed_words(text, tokenizer, self.length), 0, ()
        pair = self._pair(documents, document, start, rng)
        second = pair.second.copy()
        if len(pair.first):
            second[:, 1] += pair.first[:, 1].max() + 1
        text = np.concatenate([cls, pair.first, sep, second, sep])
        labels = (pair.label, pair.order)[: len(self.labels)]
        return text, len(pair.first) + 2, labels

    def _pair(self, documents: Any, document: int, start: int, rng: Any) -> Pair:
        args = documents, document, start, self.length - 3, rng, self.short
        if self.order == "sop":
            return sentence_order_pair(*args, self.cut)
        make = next_sentence_pair if self.order == "nsp" else sentence_pair
        return make(*args, self.negatives, self.cut)


class Documents(Sequence):
    """The documents of a source as sentences [n, 2] (ids, words), tokenised once."""

    def __init__(self, rows: Rows, field: str | None, tokenizer: Tokenizer):
        """Tokenises all of a moderate source, and documents one by one of a large one."""
        self.rows, self.field, self.tokenizer = rows, field, tokenizer
        self.known: dict[int, list[np.ndarray]] = {}
        if len(rows) <= INDEXED:
            texts = [self._texts(i) for i in range(len(rows))]
            encoded = iter(
                tokenizer.encode_all_with_words([text for document in texts for text in document])
            )
            for i, document in enumerate(texts):
                self.known[i] = [
                    np.array(next(encoded), np.int32).reshape(2, -1).T for _ in document
                ]

    @classmethod
    def of(cls, rows: Rows, field: str | None, tokenizer: Tokenizer) -> "Documents":
        """The ones that tasks over the same rows share."""
        key = ("documents", field, tokenizer)
        if key not in rows.memo:
            rows.memo[key] = cls(rows, field, tokenizer)
        return rows.memo[key]

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """The sentences of a document, at least one.

        Of a large source, of which it is not known which documents are empty, such a one is read as
        the next that is not.
        """
        if index in self.known:
            return self.known[index]
        for at in range(index, index + len(self)):
            if found := self._texts(at % len(self)):
                return [r.worded(text, self.tokenizer) for text in found]
        raise UserError(f"{self.rows.name} holds no text in any of its {len(self):,} rows")

    def filled(self, keep: np.ndarray) -> np.ndarray:
        """Of the documents to use those that hold something; see `blank.filled`."""
        return filled(self.rows, keep, lambda index: ["text" if self.known[index] else ""])

    def _texts(self, index: int) -> list[str]:
        where = f"{self.rows.name}, document {index}"
        return [s for s in sentences(self.rows[index], self.field, where) if s.strip()]


class _Chosen(Sequence):
    """The documents that are kept, numbered anew: pairs draw from these only."""

    def __init__(self, documents: Documents, keep: np.ndarray):
        self.documents, self.keep = documents, keep

    def __len__(self) -> int:
        return len(self.keep)

    def __getitem__(self, index: Any) -> Any:
        return self.documents[int(self.keep[index])]


def joined_ids(document: Sequence[np.ndarray]) -> list[int]:
    """The ids of a document's sentences, joined."""
    return np.concatenate([sentence[:, 0] for sentence in document]).tolist()
