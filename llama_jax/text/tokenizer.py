"""Byte-level BPE whose special tokens no text can spell.

The sixteen first ids are reserved. They are entries of the vocabulary that no merge rule produces
and that the backend does not look for in the text, so "<mask>" typed by a user is six ordinary
characters. Every byte is a token, so nothing is unknown.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from llama_jax.errors import UserError

if TYPE_CHECKING:
    import tokenizers

NAMED = ("<pad>", "<bos>", "<eos>", "<cls>", "<sep>", "<mask>")
FORMAT = "llama_jax tokenizer 1"
BYTES = 256


@runtime_checkable
class Vocabulary(Protocol):
    """What a language model's data needs of a tokenizer: ours, and all that come with weights."""

    @property
    def vocab(self) -> int:
        """Every id is below it."""
        ...

    @property
    def bos(self) -> int | None:
        """What begins every text; None if nothing is added."""
        ...

    @property
    def eos(self) -> int | None:
        """What ends a text; None if nothing is added."""
        ...

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, never a special one."""
        ...

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of many texts."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`, special ones left out."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A trained byte-level BPE with reserved ids 0 .. 5 + sentinel_count.

    Attributes:
        backend: The `tokenizers` object; it knows nothing of special tokens.
        vocab: Rows of the embedding table, as asked for in training; a small corpus may fill fewer.
        sentinel_count: How many `<extra_i>` sentinels span corruption has.
    """

    backend: "tokenizers.Tokenizer" = dataclasses.field(repr=False)
    vocab: int
    sentinel_count: int = 10

    pad, bos, eos, cls, sep, mask = range(6)

    @property
    def sentinels(self) -> range:
        """The ids of `<extra_0>`, `<extra_1>`, ..."""
        return range(len(NAMED), self.reserved)

    @property
    def reserved(self) -> int:
        """The number of special ids: ordinary ids start here."""
        return len(NAMED) + self.sentinel_count

    @property
    def used(self) -> int:
        """One past the largest id that text can give (at most `vocab`)."""
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`; never a special id, whatever the text says."""
        return self.backend.encode(_clean(text)).ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of many texts, on several threads."""
        return [e.ids for e in self.backend.encode_batch_fast([_clean(t) for t in texts])]

    def words(self, text: str) -> tuple[list[int], list[int]]:
        """Returns the ids and, for each, the index of its word (punctuation is a word)."""
        encoding = self.backend.encode(_clean(text))
        return encoding.ids, [int(word) for word in encoding.word_ids]  # pyright: ignore

    def words_all(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Returns `words` of many texts, on several threads."""
        encodings = self.backend.encode_batch([_clean(t) for t in texts])
        return [(e.ids, [int(word) for word in e.word_ids]) for e in encodings]  # pyright: ignore

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; special and unused ids are skipped."""
        kept = [int(i) for i in ids if self.reserved <= int(i) < self.used]
        return self.backend.decode(kept, skip_special_tokens=False).removeprefix(" ")

    @classmethod
    def train(cls, texts: Iterable[str], vocab: int = 2048, sentinels: int = 10) -> "Tokenizer":
        """Learns the merges from `texts`.

        Args:
            texts: The corpus; read once.
            vocab: Rows of the embedding table, special and byte tokens included.
            sentinels: How many sentinels to reserve for span corruption.

        Raises:
            UserError: If `vocab` has no room for the special tokens and the 256 bytes.
        """
        import tokenizers
        from tokenizers import models, pre_tokenizers, trainers

        special = [*NAMED, *(f"<extra_{i}>" for i in range(sentinels))]
        least = len(special) + BYTES
        if vocab < least:
            raise UserError(
                f"vocab={vocab} is too small: {len(special)} special tokens and {BYTES} bytes "
                f"need {least}; try vocab=2048."
            )
        learner = tokenizers.Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # pyright: ignore
        trainer = trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=special,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        learner.train_from_iterator((_clean(t) for t in texts), trainer)
        model = json.loads(learner.to_str())["model"]
        return cls(_backend(model["vocab"], model["merges"]), vocab, sentinels)

    def content(self) -> bytes:
        """Returns the file that `save` writes: JSON."""
        model = json.loads(self.backend.to_str())["model"]
        content = {
            "format": FORMAT,
            "vocab": self.vocab,
            "sentinels": self.sentinel_count,
            "tokens": model["vocab"],
            "merges": model["merges"],
        }
        return json.dumps(content, ensure_ascii=False).encode("utf-8")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one JSON file, whole or not at all."""
        path = Path(path)
        draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        draft.write_bytes(self.content())
        os.replace(draft, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Reads what `save` wrote.

        Raises:
            UserError: If the file is missing or is not one of ours.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(
                f"tokenizer {str(path)!r} cannot be read ({error.strerror}); expected a "
                "tokenizer.json that a training run saved; try the one in a run directory."
            ) from None
        except ValueError:
            content = None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(
                f"{str(path)!r} is not a tokenizer of llama_jax (expected JSON with "
                f'"format": "{FORMAT}"); try the tokenizer.json of a run directory.'
            )
        merges = [tuple(pair) for pair in content["merges"]]
        return cls(_backend(content["tokens"], merges), content["vocab"], content["sentinels"])


def own(tokenizer: Vocabulary, who: str) -> Tokenizer:
    """Returns `tokenizer`, which is one of ours, for `who` needs its special tokens.

    Raises:
        UserError: If it came with weights of others.
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    raise UserError(
        f"{who} needs {', '.join(NAMED[3:])} or sentinels, which the tokenizer, one that came with "
        "weights, does not have; expected the task LanguageModel, or a tokenizer of our own: "
        "try tokenizer=BPE(...) without init_from."
    )


def _backend(vocab: dict[str, int], merges: list) -> "tokenizers.Tokenizer":
    """Builds the BPE without added tokens: the backend must not search texts for special ones."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    merges = [tuple(pair) for pair in merges]
    made = {left + right for left, right in merges}
    spelled = [token for token in NAMED if token in made]
    if spelled:  # the pre-tokenizer splits "<" from letters, so this needs a doctored file
        raise UserError(f"the tokenizer's merges spell the special token {spelled[0]!r}.")
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # pyright: ignore
    backend.decoder = decoders.ByteLevel()  # pyright: ignore
    return backend


def _clean(text: str) -> str:
    """Replaces lone surrogates, which have no UTF-8 form."""
    return text.encode("utf-8", "replace").decode("utf-8")
