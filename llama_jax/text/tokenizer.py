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
from typing import TYPE_CHECKING, Any

from llama_jax.checked import checked_call
from llama_jax.errors import UserError
from llama_jax.files import whole_file
from llama_jax.kinds import check_text, whole_numbers
from llama_jax.text import tokenizer_file
from llama_jax.text.any_tokenizer import Opened, Special
from llama_jax.text.bpe import build
from llama_jax.text.limits import read_bytes, refusing
from llama_jax.text.patterns import level
from llama_jax.text.tokenizer_file import NAMED, sentinel
from llama_jax.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    import tokenizers

BYTES = 256


MOST = 1 << 24  # ids; the largest vocabularies that are published have 2 ** 18


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A trained byte-level BPE with reserved ids 0 .. 5 + sentinel_count.

    Attributes:
      backend: the `tokenizers` object; it knows nothing of special tokens.
      vocab: rows of the embedding table, as asked for in training; a small corpus may fill fewer.
      sentinel_count: how many `<extra_i>` sentinels span corruption has.
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
    def control(self) -> dict[str, int]:
        """Special tokens by their text."""
        texts = (*NAMED, *map(sentinel, self.sentinels))
        return {text: token for token, text in enumerate(texts)}

    @property
    def reserved(self) -> int:
        """The number of special ids: ordinary ids start here."""
        return len(NAMED) + self.sentinel_count

    @property
    def used(self) -> int:
        """One past the largest id that text can give (at most `vocab`)."""
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; never a special id, whatever the text says."""
        return self.backend.encode(_clean(text)).ids

    @checked_call
    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts, on several threads."""
        return [e.ids for e in self.backend.encode_batch_fast([_clean(t) for t in texts])]

    def encode_with_words(self, text: str) -> tuple[list[int], list[int]]:
        """The ids and, for each, the index of its word (punctuation is a word)."""
        encoding = self.backend.encode(_clean(text))
        return encoding.ids, [int(word) for word in encoding.word_ids]  # pyright: ignore

    @checked_call
    def encode_all_with_words(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """`encode_with_words` of many texts, on several threads."""
        encodings = self.backend.encode_batch([_clean(t) for t in texts])
        return [(e.ids, [int(word) for word in e.word_ids]) for e in encodings]  # pyright: ignore

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special and unused ids are skipped."""
        kept = [i for i in whole_numbers(ids, "a row of ids") if self.reserved <= i < self.used]
        return self.backend.decode(kept, skip_special_tokens=False).removeprefix(" ")

    @classmethod
    @checked_call
    def train(cls, texts: Iterable[str], vocab: int = 2048, sentinels: int = 10) -> "Tokenizer":
        """Learns the merges from `texts`.

        Args:
          texts: the corpus; read once.
          vocab: rows of the embedding table, special and byte tokens included.
          sentinels: how many sentinels to reserve for span corruption.

        Raises:
          UserError: `vocab` has no room for the special tokens and the 256 bytes.
        """
        import tokenizers
        from tokenizers import models, pre_tokenizers, trainers

        least = len(NAMED) + sentinels + BYTES
        if sentinels < 0 or vocab < least:
            raise UserError(
                f"vocab={vocab} is too small: {least - BYTES} special tokens and {BYTES} bytes "
                f"need {least}; try vocab=2048"
            )
        if vocab > MOST:
            raise UserError(f"vocab={vocab} is over {MOST}, the most that is learned; try 2048")
        special = [*NAMED, *(sentinel(len(NAMED) + i) for i in range(sentinels))]
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

    def tables(self) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """Ids by token, special ones included, and the merges, the first merged first."""
        model = json.loads(self.backend.to_str())["model"]
        return model["vocab"], [(left, right) for left, right in model["merges"]]

    def content(self) -> bytes:
        """The file that `save` writes: Hugging Face's tokenizer.json.

        Other software finds special tokens in texts, as it does of any such file; we do not. Ids
        that a small corpus left over are tokens `<unused_i>`, so that the file tells `vocab`.
        """
        more = {f"<unused_{i}>": i for i in range(self.used, self.vocab)}
        return tokenizer_file.write(self.backend.to_str(), self.control | more)

    @checked_call
    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `content` to a file, whole or not at all."""
        try:
            with whole_file(Path(path)) as draft:
                draft.write_bytes(self.content())
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise UserError(f"{str(path)!r} cannot be written ({reason}); try another") from None

    @classmethod
    @checked_call
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Reads what `save` wrote, now or in an earlier version.

        Raises:
          UserError: the file is missing, or was not made by training.
        """
        if (found := cls.read(read_bytes(Path(path)), str(path))) is not None:
            return found
        raise UserError(
            f"{str(path)!r} is not a tokenizer that llama_jax trained; expected the tokenizer.json "
            "of a run directory; try llama_jax.text.open_tokenizer, which opens others too"
        )

    @classmethod
    def read(cls, data: bytes, source: str = "the tokenizer") -> "Tokenizer | None":
        """The tokenizer in the content of a file; None if training did not make it.

        Raises:
          FormatError: it is damaged, or its merges make a special token.
        """
        tables = tokenizer_file.read(data, source)
        if tables is None:
            return None
        with refusing(source):
            return cls(_backend(tables.tokens, tables.merges), tables.vocab, tables.sentinels)

    def pretrained(self) -> Opened:
        """The same vocabulary with the promises of `Pretrained`, for generating text.

        It gives every text back as it was. `encode` loses a space that a text begins with, because
        it puts one before every text that has none; the ids of training data hang on that.
        """
        vocab, merges = self.tables()
        names = {f"{name[1:-1]}_token": name for name in NAMED}
        special = Special(self.control, names, self.bos, ends=frozenset([self.eos]))
        hidden = frozenset(self.control.values())
        steps = [level(use_regex=True)]
        backend = build(vocab, merges, hidden, steps=steps, source="the tokenizer")
        return Opened("tokenizers", backend, special, self.vocab, prefix="first")


def trained_here(tokenizer: Vocabulary, who: str) -> Tokenizer:
    """The same tokenizer, for somebody who needs the special tokens of a trained one.

    Args:
      tokenizer: the tokenizer of a run.
      who: whoever needs them, for the message.

    Raises:
      UserError: it came with weights of others.
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    raise UserError(
        f"{who} needs {', '.join(NAMED[3:])} or sentinels, which the tokenizer, one that came with "
        "weights, does not have; expected the task LanguageModel, or a tokenizer of our own: "
        "try tokenizer=BPE(...) without init_from"
    )


def _backend(vocab: dict[str, int], merges: Sequence[Any]) -> "tokenizers.Tokenizer":
    """Builds the BPE without added tokens: the backend must not search texts for special ones."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    merges = [tuple(pair) for pair in merges]
    made = {left + right for left, right in merges}
    spelled = [token for token in NAMED if token in made]
    if spelled:  # the pre-tokenizer splits "<" from letters, so this needs a doctored file
        raise UserError(f"the tokenizer's merges spell the special token {spelled[0]!r}")
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # pyright: ignore
    backend.decoder = decoders.ByteLevel()  # pyright: ignore
    return backend


def _clean(text: str) -> str:
    """Replaces lone surrogates, which have no UTF-8 form."""
    return check_text(text).encode("utf-8", "replace").decode("utf-8")
