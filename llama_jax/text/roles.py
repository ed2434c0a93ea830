"""What the tasks of an encoder-decoder need of a tokenizer: tokens that frame and bound a text.

    <cls> what the encoder reads <sep>          <bos> what the decoder writes <eos>

A tokenizer trained here has all four. Of one that came with weights, its files may name them
(`cls_token` and so on in tokenizer_config.json, as transformers has them); what they do not name, a
run gives: `File(cls="<|im_start|>", sep="<|im_end|>")`. Then the run's own copy of the files says
it, so that whoever opens the run finds it there.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from llama_jax.errors import UserError, nearest
from llama_jax.text.pretrained import Pretrained
from llama_jax.text.tokenizer import Tokenizer
from llama_jax.text.vocabulary import Vocabulary

CONFIG = "tokenizer_config.json"


class Framing(Vocabulary, Protocol):
    """A tokenizer with these four."""

    @property
    def cls(self) -> int:
        """What begins a text that an encoder reads."""
        ...

    @property
    def sep(self) -> int:
        """What ends it."""
        ...

    @property
    def bos(self) -> int:
        """What begins a text that a decoder writes."""
        ...

    @property
    def eos(self) -> int:
        """What ends it."""
        ...


@dataclass(frozen=True)
class Named:
    """A tokenizer of others, with the tokens that its files name.

    Attributes:
      words: the tokenizer.
      cls: see `Framing`, as the others.
    """

    words: Pretrained
    cls: int
    sep: int
    bos: int
    eos: int

    @property
    def vocab(self) -> int:
        """Every id is below it."""
        return self.words.vocab

    def encode(self, text: str) -> list[int]:
        """The ids of plain text."""
        return self.words.encode(text)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many plain texts."""
        return self.words.encode_all(texts)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, control tokens left out."""
        return self.words.decode(ids)


def framing(tokenizer: Vocabulary, who: str) -> Framing:
    """The same tokenizer, for somebody who frames and bounds texts.

    Args:
      tokenizer: the tokenizer of a run.
      who: whoever needs it, for the message.

    Raises:
      UserError: it came with weights of others, and names no such tokens.
    """
    if isinstance(tokenizer, Tokenizer | Named):
        return tokenizer
    named = getattr(tokenizer, "named", {})
    control = getattr(tokenizer, "control", {})
    found = {role: control.get(named.get(f"{role}_token", "")) for role in ("cls", "sep", "bos")}
    found["eos"] = tokenizer.eos
    if lacking := [role for role, token in found.items() if token is None]:
        way = " ".join(
            f"--set tokenizer.{role}='{text}'" for role, text in _offers(lacking, control)
        )
        raise UserError(
            f"{who} needs {', '.join(f'<{role}>' for role in lacking)}, which the tokenizer, one "
            "that came with weights, does not name; give control tokens of it for them"
            + (f", such as {way}" if way else ", or a tokenizer of our own: tokenizer=BPE(...)")
        )
    return Named(tokenizer, **found)  # pyright: ignore[reportArgumentType]


def _offers(lacking: Sequence[str], control: Mapping[str, int]) -> list[tuple[str, str]]:
    """A control token for each role: one that begins for <cls> and <bos>, another for the ends."""
    begin, *others = control or [""]
    end = others[0] if others else begin
    return [(role, begin if role in ("cls", "bos") else end) for role in lacking if begin]


def with_roles(
    files: Mapping[str, bytes], roles: Mapping[str, str], found: Vocabulary
) -> dict[str, bytes]:
    """A tokenizer's files that name control tokens for roles.

    Args:
      files: by name.
      roles: "cls", "sep", "bos", "eos" -> the text of a control token.
      found: the tokenizer of these files.

    Raises:
      UserError: one that the tokenizer does not have, or one that was trained here, whose own are
        fixed.
    """
    control = getattr(found, "control", {})
    if isinstance(found, Tokenizer):
        raise UserError(
            f"tokenizer.{next(iter(roles))}: a tokenizer that was trained here has tokens of its "
            "own for this; leave it empty"
        )
    for role, text in roles.items():
        if text not in control:
            raise UserError(
                f"tokenizer.{role}={text!r} is no control token of the tokenizer, which has "
                f"{', '.join(list(control)[:8]) or 'none'}" + nearest(text, control)
            )
    config = json.loads(files.get(CONFIG, b"{}"))
    config |= {f"{role}_token": text for role, text in roles.items()}
    return {**files, CONFIG: json.dumps(config, indent=1, ensure_ascii=False).encode()}
