"""The tokenizer of a run of ours behind the interface of pretrained ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llama_jax.text.any_tokenizer import Opened, Special
from llama_jax.text.bpe import alphabet
from llama_jax.text.files import open_any
from llama_jax.text.pretrained import Pretrained
from llama_jax.text.tokenizer import NAMED, Tokenizer


@dataclass(frozen=True)
class Own:
    """A backend of `Opened` over a trained vocabulary.

    Attributes:
        tokenizer: As training saved it.
        pieces: The bytes of every id that text can give.
    """

    tokenizer: Tokenizer
    pieces: Mapping[int, bytes]

    def encode(self, text: str) -> list[int]:
        """Returns the ids of plain text."""
        return self.tokenizer.encode(text)


def open_own(folder: Path) -> Pretrained:
    """Opens the tokenizer of a run: one that it trained, or one that came with weights.

    Raises:
        UserError: If there is none, or if it is neither.
    """
    tokenizer = open_any(folder)
    if not isinstance(tokenizer, Tokenizer):
        return tokenizer
    byte = alphabet()
    pieces = {
        token: bytes(byte[letter] for letter in text)
        for text, token in tokenizer.backend.get_vocab().items()
        if token >= tokenizer.reserved
    }
    special = Special(
        control={text: token for token, text in enumerate(NAMED)},
        named={"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        bos=tokenizer.bos,
        ends=frozenset([tokenizer.eos]),
    )
    return Opened("llama_jax", Own(tokenizer, pieces), special, tokenizer.vocab, prefix="first")
