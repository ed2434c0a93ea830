"""Causal language modelling: blocks of joined documents, or one document a row."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from llama_jax.checked import checked
from llama_jax.data import fields as r
from llama_jax.data.blank import filled
from llama_jax.data.checks import at_least
from llama_jax.data.rows import Rows, text_of
from llama_jax.data.shards import Tokenised
from llama_jax.text.vocabulary import Vocabulary

AT_ONCE = 1000  # documents given to the tokenizer, which may use several threads


@checked
class LanguageModel:
    """Rows of a causal language model, with any tokenizer.

    Texts are read as they are written; sentences are joined by blanks. Packed, all documents are
    joined as `<bos> text <eos>` and cut into blocks; in training a block starts up to one length
    later, anew in every epoch, so that its edges move. `segments` (1, 2, ...; 0 is padding) keep
    documents apart and `positions` start again with each. This reads the whole source on opening
    (8 bytes a token are kept). Of prepared data (`Prepared`, `Mix`) training reads no more than it
    needs: see `packing.py`. Unpacked, a row is one document, or a random piece of a longer one,
    with `<bos>` and `<eos>` where they stand in the document.

    Attributes:
      length: tokens of a row, T.
      packed: whether rows are cut from the joined documents.
      field: a text or a list of sentences; None for "text", else "sentences".
      pack: what prepared data does where a row ends: "split" cuts the document, "fit" pads the row.
    """

    length: int = 128
    packed: bool = True
    field: str | None = None
    pack: Literal["split", "fit"] = "split"

    def __post_init__(self) -> None:
        """Checks the values."""
        at_least(1, self, "length")

    def fields(self, batch: int, tokenizer: Vocabulary) -> r.Fields:
        """Decoder fields, segments and positions if packed."""
        del tokenizer
        fields = r.decoder_fields(batch, self.length)
        if self.packed:
            fields |= {name: ((batch, self.length), "int32") for name in ("segments", "positions")}
        return fields | {"id": ((batch,), "int32")}

    def prepare(
        self, rows: Rows, tokenizer: Vocabulary, keep: np.ndarray, once: bool = False
    ) -> r.Examples:
        """Joins the documents, or lists them."""

        if isinstance(rows, Tokenised):
            rows.check(tokenizer)
            if self.packed:
                return self._blocks([rows[i]["tokens"] for i in keep.tolist()], once)
            return self._documents(lambda index: rows[index]["tokens"], keep, once)

        def text(index: int) -> str:
            return text_of(rows[index], self.field, f"{rows.name}, document {index}")

        def learned(index: int) -> np.ndarray:
            found = text(index)
            return r.bounded(tokenizer.encode(found), tokenizer) if found.strip() else r.NOTHING

        keep = filled(rows, keep, lambda index: [text(index)])
        if self.packed:
            found = []
            for at in range(0, len(keep), AT_ONCE):
                ids = tokenizer.encode_all([text(i) for i in keep[at : at + AT_ONCE].tolist()])
                found += [r.bounded(one, tokenizer) for one in ids]
            return self._blocks(found, once)
        return self._documents(r.Memory(learned), keep, once)

    def _documents(
        self, known: Callable[[int], np.ndarray], keep: np.ndarray, once: bool
    ) -> r.Examples:
        """Documents as they are `known`, by index and with their bounds."""

        def make(slots: Sequence[int], rngs: Sequence[np.random.Generator]) -> r.Batch:
            index_B = keep[np.asarray(slots)]
            texts = []
            for index, rng in zip(index_B.tolist(), rngs, strict=True):
                ids, size = known(index), self.length + 1
                spare = 0 if once else max(0, len(ids) - size)
                start = int(rng.integers(spare + 1))
                texts.append(ids[start : start + size])
            batch = r.shifted(texts, self.length)
            return batch | {"id": index_B.astype(np.int32)}

        return r.Examples(keep, make)

    def _blocks(self, texts: Sequence[np.ndarray], once: bool) -> r.Examples:
        sizes = np.array([len(text) for text in texts])
        stream = np.concatenate(texts)
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
            # A lone document wraps round to itself.
            begins_BU = np.diff(owner_BU, axis=1, prepend=owner_BU[:, :1]) != 0
            begins_BU[:, 1:] |= at_BU[:, 1:] == 0
            change_BT = begins_BU[:, :-1]
            segments_BT = np.cumsum(change_BT, axis=1) + 1
            begin_BT = np.maximum.accumulate(np.where(change_BT, np.arange(self.length), 0), axis=1)
            same_BT = ~begins_BU[:, 1:] & inside[:, 1:]
            return {
                "tokens": np.where(real_BT, ids_BU[:, :-1], 0).astype(np.int32),
                "targets": np.where(same_BT, ids_BU[:, 1:], 0).astype(np.int32),
                "loss_weights": same_BT.astype(np.float32),
                "segments": np.where(real_BT, segments_BT, 0).astype(np.int32),
                "positions": (np.arange(self.length) - begin_BT).astype(np.int32),
                "id": np.asarray(slots, np.int32),
            }

        return r.Examples(np.arange(count), make)
