"""Tokenizers that come with real weights, behind one interface."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from llama_jax.checked import checked_call
from llama_jax.errors import FormatError
from llama_jax.text.limits import read_bytes
from llama_jax.text.vocabulary import Vocabulary


@runtime_checkable
class Pretrained(Vocabulary, Protocol):
    """A tokenizer with control tokens, which plain text can never spell.

    `encode` marks neither the beginning nor the end of a text: see `bos` and `closes`. `decode`
    gives the same text back, but for what the file's own normalizer changes, characters that a
    small vocabulary has no bytes for, and U+2581, which SentencePiece reads as a space.
    """

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end generation: of a text, a turn, a message."""
        ...

    @property
    def control(self) -> Mapping[str, int]:
        """All special tokens by their text."""
        ...

    @property
    def texts(self) -> Mapping[str, int]:
        """Added tokens that are text: found in a text, and shown."""
        ...

    @property
    def needed(self) -> int:
        """How many embeddings a model has to have: added tokens may be beyond them."""
        ...

    @property
    def closes(self) -> int | None:
        """What ends every text that is read; None if nothing is added."""
        ...

    @property
    def named(self) -> Mapping[str, str]:
        """Roles of tokens in the file's own words, such as `{"bos_token": "<s>"}`."""
        ...

    @property
    def words(self) -> Mapping[str, str]:
        """Texts of tokens by their role as templates may write them, control tokens or not."""
        ...

    @property
    def template(self) -> str | None:
        """The file's Jinja chat template."""
        ...

    @property
    def templates(self) -> Mapping[str, str]:
        """Further chat templates of the file by their names, such as "tool_use"."""
        ...

    @property
    def kind(self) -> str:
        """What does the work: "tokenizers", "sentencepiece" or "tiktoken"."""
        ...

    def parse(self, text: str) -> list[int]:
        """The ids of `text` with its control tokens recognised: not for users' text."""
        ...

    def split(self, text: str) -> list[str | int]:
        """`text` as plain runs and the ids of the control tokens between them."""
        ...

    def join(self, parts: Iterable[str | int]) -> list[int]:
        """The ids of plain runs and control tokens; neighbouring strings are one run."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes of one token; b"" for a control token and for an id without a token."""
        ...

    def opening(self, token: int) -> bytes:
        """The bytes of a token with which a text begins: without the space put in front of it."""
        ...


@checked_call
def open_tokenizer(
    path: str | os.PathLike[str], config_files: str | os.PathLike[str] | None = None
) -> Pretrained:
    """Opens the tokenizer in a folder of weights, or one file of it.

    tokenizer.json    Hugging Face; a folder's other JSON files name special tokens and template
    tokenizer.model   a SentencePiece model, or Meta's lines of base64 and rank: told by content

    Args:
      path: the folder, or the file.
      config_files: a folder whose other JSON files belong to a file; none by default.

    Raises:
      FormatError: there is none, or it is damaged or of a kind that is not supported.
    """
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in ("tokenizer.json", "tokenizer.model")]
        file = next((f for f in files if f.is_file()), None)
        if file is None:
            raise FormatError(
                f"{str(path)!r} holds no tokenizer; expected tokenizer.json or tokenizer.model"
            )
        return _read(file, path)
    return _read(path, None if config_files is None else Path(config_files))


def _read(file: Path, folder: Path | None) -> Pretrained:
    from llama_jax.text import config_files, huggingface, meta, spm
    from llama_jax.text.tokenizer import Tokenizer

    data = read_bytes(file)
    if not data.strip():
        raise FormatError(f"{file} is empty; was the download cut short?")
    if (trained := Tokenizer.read(data, str(file))) is not None:
        return trained.pretrained()
    others = config_files.read(folder)
    if data.lstrip()[:1] == b"{":
        return huggingface.read(data, others, str(file))
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\s", data):
        return meta.read(data, others, str(file))
    return spm.read(data, others, str(file))
