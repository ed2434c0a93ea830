"""Causal language modelling: blocks of joined documents, or one document a row."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from llama_jax.data import rows as r
from llama_jax.data.documents import Documents, flat
from llama_jax.data.sources import Rows
from llama_jax.text.tokenizer import Tokenizer


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
                text = flat(documents[int(keep[slot])])
                spare = 0 if once else max(0, len(text) - self.length)
                start = int(rng.integers(spare + 1))
                texts.append(text[start:])
            batch = r.decoder_batch(texts, self.length, tokenizer)
            return batch | {"id": keep[np.asarray(slots)].astype(np.int32)}

        return r.Examples(keep, make)

    def _blocks(
        self, documents: "Documents", tokenizer: Tokenizer, keep: np.ndarray, once: bool
    ) -> r.Examples:
        texts = [[tokenizer.bos, *flat(documents[int(i)]), tokenizer.eos] for i in keep]
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
