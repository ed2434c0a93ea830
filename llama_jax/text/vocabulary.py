"""What a language model's data needs of a tokenizer, trained here or come with weights."""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Vocabulary(Protocol):
    """Plain text to ids and back, and what begins and ends a text."""

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
        """What ends a text that a model is trained on; None if nothing is added."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of plain text: never a control token, whatever the text says."""
        ...

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many plain texts."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, control tokens left out."""
        ...
