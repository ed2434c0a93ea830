"""Pairs of texts for a decoder alone: it reads the first and learns to write the second."""

from collections.abc import Sequence

import numpy as np

from llama_jax.checked import checked
from llama_jax.data import fields as r
from llama_jax.data.blank import filled
from llama_jax.data.checks import at_least
from llama_jax.data.rows import Rows, as_text, get
from llama_jax.text.vocabulary import Vocabulary


@checked
class Completions:
    """Rows `<bos> source between target <eos>` of a causal language model, one a pair.

    Only the target and its end are learned. The two are tokenised as one text, for so they are read
    later; a token across the border counts to the target. Of a pair that is too long the source
    loses its beginning, and a target that is longer than a row its end.

    Attributes:
      source: field that is given ("translation.en" goes into a dict).
      target: field that is to be written.
      length: tokens of a row, T.
      between: text between the two; whoever asks ends the prompt with it.
    """

    source: str = "source"
    target: str = "target"
    length: int = 256
    between: str = "\n"

    def __post_init__(self) -> None:
        """Checks the values."""
        at_least(2, self, "length")

    def fields(self, batch: int, tokenizer: Vocabulary) -> r.Fields:
        """Decoder fields."""
        del tokenizer
        return r.decoder_fields(batch, self.length) | {"id": ((batch,), "int32")}

    def pair(self, row: dict, tokenizer: Vocabulary, where: str) -> tuple[np.ndarray, int]:
        """The ids of a row of data with their bounds, and how many of them are given.

        Args:
          row: an example of the source of data.
          tokenizer: for the texts.
          where: the row, for messages.

        Raises:
          UserError: a field that is not there, or is no text.
        """
        source, target = self._texts(row, where)
        given = tokenizer.encode(source + self.between)
        ids = tokenizer.encode(source + self.between + target)
        least = min(len(given), len(ids))
        same = next((i for i in range(least) if given[i] != ids[i]), least)
        return r.bounded(ids, tokenizer), same + (tokenizer.bos is not None)

    def prepare(
        self, rows: Rows, tokenizer: Vocabulary, keep: np.ndarray, once: bool = False
    ) -> r.Examples:
        """One example a row, read when it is needed."""
        del once

        def where(index: int) -> str:
            return f"{rows.name}, row {index}"

        def cut(index: int) -> np.ndarray:
            texts = self._texts(rows[index], where(index))
            if not all(map(str.strip, texts)):
                return np.zeros((2, 0), np.int32)
            ids, given = self.pair(rows[index], tokenizer, where(index))
            first = int(tokenizer.bos is not None)
            lost = min(max(len(ids) - self.length - 1, 0), max(given - first, 0))
            ids = np.concatenate([ids[:first], ids[first + lost :]])
            learned = np.arange(len(ids)) >= given - lost
            return np.stack([ids, learned.astype(np.int32)])

        keep = filled(rows, keep, lambda index: self._texts(rows[index], where(index)))
        known = r.Memory(cut)

        def make(slots: Sequence[int], rngs: Sequence[np.random.Generator]) -> r.Batch:
            del rngs
            index_B = keep[np.asarray(slots)]
            pairs = [known(i) for i in index_B.tolist()]
            learned_BT = r.pad([learned[1:] for _, learned in pairs], self.length)
            batch = r.shifted([ids for ids, _ in pairs], self.length)
            batch["loss_weights"] = batch["loss_weights"] * learned_BT.astype(np.float32)
            return batch | {"id": index_B.astype(np.int32)}

        return r.Examples(keep, make)

    def _texts(self, row: dict, where: str) -> list[str]:
        return [as_text(get(row, field, where), where) for field in (self.source, self.target)]
