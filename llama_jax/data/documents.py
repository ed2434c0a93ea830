"""Tasks over documents: sentence pairs with masked tokens, and causal language modelling."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from llama_jax.data import rows as r
from llama_jax.data.corrupt import (
    Masking,
    join,
    next_sentence_pair,
    sentence_order_pair,
)
from llama_jax.data.sources import Rows, sentences
from llama_jax.errors import UserError, nearest
from llama_jax.text.tokenizer import Tokenizer

ORDERS = ("nsp", "sop", "none")
INDEXED = 200_000  # documents; a larger source is not read through on opening


@dataclasses.dataclass(frozen=True)
class SentencePairs:
    """BERT's rows `<cls> A <sep> B <sep>`: masked tokens, and the order of two segments.

    An example starts at a sentence, and every sentence of every document starts one. In a source
    of more than `INDEXED` documents an example is a document and its start is drawn.

    Attributes:
        length: T.
        mlm: How tokens are hidden; None leaves them.
        order: "nsp" (next sentence), "sop" (sentence order) or "none" (one segment).
        field: A list of sentences or a text; None for "sentences", else "text".
        short: How often a random shorter length is aimed at.
    """

    length: int = 64
    mlm: Masking | None = Masking()
    order: Literal["nsp", "sop", "none"] = "nsp"
    field: str | None = None
    short: float = 0.1

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.order not in ORDERS:
            raise UserError(
                f"order={self.order!r}; expected {', '.join(ORDERS)}.{nearest(self.order, ORDERS)}"
            )
        if self.length < 8:
            raise UserError(f"length={self.length}; sentence pairs need at least 8; try 64.")

    def fields(self, batch: int, tokenizer: Tokenizer) -> r.Fields:
        """Text, MLM and order fields."""
        del tokenizer
        fields = r.masked_fields(batch, self.length, self.mlm)
        if self.order != "none":
            fields["text_types"] = ((batch, self.length), "int32")
            fields["next" if self.order == "nsp" else "order"] = ((batch,), "int32")
        return fields | {"id": ((batch,), "int32")}

    def prepare(
        self, rows: Rows, tokenizer: Tokenizer, keep: np.ndarray, once: bool = False
    ) -> r.Examples:
        """Lists the starting sentences."""
        del once  # every sentence starts exactly one example in any pass
        documents = Documents.of(rows, self.field, tokenizer)
        chosen = _Chosen(documents, keep)
        if self.order == "nsp" and len(keep) < 2:
            raise UserError(
                f"{rows.name} holds one document; NSP takes sentences of other documents; "
                "try order='sop' or separating documents by blank lines."
            )
        if len(rows) <= INDEXED:
            counts = np.array([len(documents[i]) for i in range(len(rows))])
            offset = np.cumsum(counts) - counts
            which = np.repeat(np.arange(len(keep)), counts[keep])
            ids = np.concatenate([offset[i] + np.arange(counts[i]) for i in keep])
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
            if self.order != "none":
                at_T, second_B1 = np.arange(self.length), np.array(seconds)[:, None]
                batch["text_types"] = ((at_T >= second_B1) & batch["text_valid"]).astype(np.int32)
                name = "next" if self.order == "nsp" else "order"
                batch[name] = np.array(labels, np.int32)
            return batch | {"id": ids[np.asarray(slots)].astype(np.int32)}

        return r.Examples(ids, make)

    def _row(
        self, documents: Any, document: int, start: int, rng: Any, tokenizer: Tokenizer
    ) -> tuple[np.ndarray, int, int]:
        """Returns a row [n, 2], where its second segment starts, and its label."""
        cls, sep = r.special(tokenizer.cls), r.special(tokenizer.sep)
        if self.order == "none":
            end, size = start, 0
            while end < len(documents[document]) and size < self.length - 2:
                size += len(documents[document][end])
                end += 1
            text = join(documents[document][start:end])
            return r.framed_words(text, tokenizer, self.length), 0, 0
        make = next_sentence_pair if self.order == "nsp" else sentence_order_pair
        pair = make(documents, document, start, self.length - 3, rng, self.short)
        second = pair.second.copy()
        if len(pair.first):
            second[:, 1] += pair.first[:, 1].max() + 1
        text = np.concatenate([cls, pair.first, sep, second, sep])
        return text, len(pair.first) + 2, pair.label


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Rows of a causal language model.

    Packed, all documents are joined as `<bos> text <eos>` and cut into blocks; in training a
    block starts up to one length later, anew in every epoch, so that its edges move. `segments`
    (1, 2, ...; 0 is padding) keep documents apart and `positions` start again with each. This
    reads the whole source on opening (8 bytes a token are kept). Unpacked, a row is one document,
    or a random piece of a longer one.

    Attributes:
        length: T.
        packed: Whether rows are cut from the joined documents.
        field: A list of sentences or a text; None for "sentences", else "text".
    """

    length: int = 128
    packed: bool = True
    field: str | None = None

    def fields(self, batch: int, tokenizer: Tokenizer) -> r.Fields:
        """Decoder fields, segments and positions if packed."""
        del tokenizer
        fields = r.decoder_fields(batch, self.length)
        if self.packed:
            fields |= {name: ((batch, self.length), "int32") for name in ("segments", "positions")}
        return fields | {"id": ((batch,), "int32")}

    def prepare(
        self, rows: Rows, tokenizer: Tokenizer, keep: np.ndarray, once: bool = False
    ) -> r.Examples:
        """Joins the documents, or lists them."""
        documents = Documents.of(rows, self.field, tokenizer)
        if self.packed:
            return self._blocks(documents, tokenizer, keep, once)

        def make(slots: Sequence[int], rngs: Sequence[np.random.Generator]) -> r.Batch:
            texts = []
            for slot, rng in zip(slots, rngs, strict=True):
                text = _flat(documents[int(keep[slot])])
                spare = 0 if once else max(0, len(text) - self.length)
                start = int(rng.integers(spare + 1))
                texts.append(text[start:])
            batch = r.decoder_batch(texts, self.length, tokenizer)
            return batch | {"id": keep[np.asarray(slots)].astype(np.int32)}

        return r.Examples(keep, make)

    def _blocks(
        self, documents: "Documents", tokenizer: Tokenizer, keep: np.ndarray, once: bool
    ) -> r.Examples:
        texts = [[tokenizer.bos, *_flat(documents[int(i)]), tokenizer.eos] for i in keep]
        sizes = np.array([len(text) for text in texts])
        stream = np.fromiter((i for text in texts for i in text), np.int32, sizes.sum())
        owner = np.repeat(np.arange(len(texts), dtype=np.int32), sizes)
        count = -(-len(stream) // self.length)

        def make(slots: Sequence[int], rngs: Sequence[np.random.Generator]) -> r.Batch:
            # A block starts up to one length later, by its own rng, so that its edges move.
            shift = np.array([0 if once else int(rng.integers(self.length)) for rng in rngs])
            start_B = np.asarray(slots) * self.length + shift
            at_BU = start_B[:, None] + np.arange(self.length + 1)
            inside = at_BU < len(stream) if once else np.ones(at_BU.shape, bool)
            at_BU = at_BU % len(stream)
            ids_BU, owner_BU = stream[at_BU], owner[at_BU]
            real_BT = inside[:, :-1]
            change_BT = np.diff(owner_BU[:, :-1], axis=1, prepend=owner_BU[:, :1]) != 0
            segments_BT = np.cumsum(change_BT, axis=1) + 1
            begin_BT = np.maximum.accumulate(np.where(change_BT, np.arange(self.length), 0), axis=1)
            same_BT = (owner_BU[:, 1:] == owner_BU[:, :-1]) & inside[:, 1:]
            same_BT &= ids_BU[:, 1:] != tokenizer.bos  # a lone document wraps round to itself
            return {
                "decoder_input": np.where(real_BT, ids_BU[:, :-1], 0).astype(np.int32),
                "target": np.where(same_BT, ids_BU[:, 1:], 0).astype(np.int32),
                "target_weights": same_BT.astype(np.float32),
                "segments": np.where(real_BT, segments_BT, 0).astype(np.int32),
                "positions": (np.arange(self.length) - begin_BT).astype(np.int32),
                "id": np.asarray(slots, np.int32),
            }

        return r.Examples(np.arange(count), make)


class Documents(Sequence):
    """The documents of a source as sentences [n, 2] (ids, words), tokenised once."""

    def __init__(self, rows: Rows, field: str | None, tokenizer: Tokenizer):
        """Tokenises all of a moderate source, and documents one by one of a large one."""
        self.rows, self.field, self.tokenizer = rows, field, tokenizer
        self.known: dict[int, list[np.ndarray]] = {}
        if len(rows) <= INDEXED:
            texts = [self._texts(i) for i in range(len(rows))]
            encoded = iter(tokenizer.words_all([text for document in texts for text in document]))
            for i, document in enumerate(texts):
                self.known[i] = [
                    np.array(next(encoded), np.int32).reshape(2, -1).T for _ in document
                ]

    @classmethod
    def of(cls, rows: Rows, field: str | None, tokenizer: Tokenizer) -> "Documents":
        """Returns the ones that tasks over the same rows share."""
        key = ("documents", field, tokenizer)
        if key not in rows.memo:
            rows.memo[key] = cls(rows, field, tokenizer)
        return rows.memo[key]

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """Returns the sentences of a document, at least one."""
        if index in self.known:
            return self.known[index]
        return [r.worded(text, self.tokenizer) for text in self._texts(index)]

    def _texts(self, index: int) -> list[str]:
        found = [s for s in sentences(self.rows[index], self.field, self.rows.name) if s.strip()]
        if not found:
            raise UserError(f"{self.rows.name}: document {index} is empty; expected some text.")
        return found


class _Chosen(Sequence):
    """The documents that are kept, numbered anew: pairs draw from these only."""

    def __init__(self, documents: Documents, keep: np.ndarray):
        self.documents, self.keep = documents, keep

    def __len__(self) -> int:
        return len(self.keep)

    def __getitem__(self, index: Any) -> Any:
        return self.documents[int(self.keep[index])]


def _flat(document: Sequence[np.ndarray]) -> list[int]:
    return np.concatenate([sentence[:, 0] for sentence in document]).tolist()
