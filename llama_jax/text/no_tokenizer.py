"""What stands in a tokenizer's place where weights came without one: ids go in and come out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from llama_jax.errors import UserError


@dataclass(frozen=True)
class NoTokenizer:
    """A tokenizer's interface (see `Pretrained`) that refuses every text.

    Attributes:
      vocab: every id is below it.
      why: what is said where a text comes, or is asked for.
      ends: tokens that end generation.
    """

    vocab: int
    why: str
    ends: frozenset[int] = frozenset()

    bos = eos = closes = template = None
    needed = 0
    kind = "none"

    @property
    def control(self) -> Mapping[str, Any]:
        """No special token is known by its text."""
        return {}

    texts = named = words = templates = control

    def piece(self, token: int) -> bytes:
        """Nothing: a completion has ids, and an empty text."""
        return b""

    opening = piece

    def encode(self, text: str) -> list[int]:
        """Raises UserError: there is no tokenizer."""
        self._refuse()

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Raises UserError: there is no tokenizer."""
        self._refuse()

    def parse(self, text: str) -> list[int]:
        """Raises UserError: there is no tokenizer."""
        self._refuse()

    def split(self, text: str) -> list[str | int]:
        """Raises UserError: there is no tokenizer."""
        self._refuse()

    def join(self, parts: Iterable[Any]) -> list[int]:
        """Raises UserError: there is no tokenizer."""
        self._refuse()

    def decode(self, ids: Iterable[int]) -> str:
        """Raises UserError: there is no tokenizer."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UserError(
            f"{self.why}; without one give ids, as in lm.logits([[1, 2]]) or lm.complete([[1, 2]])"
        )
