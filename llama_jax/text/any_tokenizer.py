"""One tokenizer out of any file: plain text, control tokens and their borders.

A backend turns plain text into ids and knows no control token, so nothing that a user types can
become one. Control tokens come in by their ids only, between runs of plain text.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from llama_jax.errors import FormatError
from llama_jax.text.limits import check_ids, is_unicode, portions, refusing

# Tokens that end a turn or a text, by the names that files of this family give them.
ENDS = (
    "</s>", "<|end_of_text|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|eom|>",
    "<|im_end|>", "<|end|>", "<end_of_turn>",
)  # fmt: skip

PROBES = (
    "Hello, world! It's 12345 o'clock.",
    " a  b\n\n\tc \r\n",
    "naïve e\u0301 你好 🙂\u200d\ufffd\ue000",
    "".join(map(chr, range(0x20, 0x250))),
    "x" * 300 + "1" * 300 + " " * 300,
)

# Where SentencePiece puts a space before plain text: nowhere, before a text, before every run.
Prefix = Literal["never", "first", "every"]


class Backend(Protocol):
    """Plain text to ids and back; without control tokens."""

    @property
    def pieces(self) -> Mapping[int, bytes]:
        """The bytes of every id that plain text may give."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, which is valid Unicode and within the limits."""
        ...


@dataclasses.dataclass(frozen=True)
class Special:
    """What a file says of its control tokens.

    Attributes:
      control: special and added tokens by their text.
      named: roles of tokens in the file's own words, such as `{"bos_token": "<s>"}`.
      bos: what begins every text.
      ends: tokens that end generation, those of `ENDS` not included.
      template: the Jinja chat template.
      strips: tokens that take in the white space to their left or right: "l", "r", "lr".
    """

    control: Mapping[str, int]
    named: Mapping[str, str] = dataclasses.field(default_factory=dict)
    bos: int | None = None
    ends: frozenset[int] = frozenset()
    template: str | None = None
    strips: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Opened:
    """A tokenizer read from a file; see `Pretrained` for what it promises."""

    kind: str
    backend: Any = dataclasses.field(repr=False)  # a Backend
    special: Special = dataclasses.field(repr=False)
    vocab: int
    prefix: Prefix = "never"

    @property
    def bos(self) -> int | None:
        """What begins every text; None if nothing is added."""
        return self.special.bos

    @property
    def eos(self) -> int | None:
        """What ends a text: the eos_token, else the first token that files name so."""
        names = (self.named.get("eos_token", ""), *ENDS)
        found = [self.control[t] for t in names if t in self.control]
        return found[0] if found else min(self.ends, default=None)

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end generation."""
        return self.special.ends | {self.control[t] for t in ENDS if t in self.control}

    @property
    def control(self) -> Mapping[str, int]:
        """All special and added tokens by their text."""
        return self.special.control

    @property
    def named(self) -> Mapping[str, str]:
        """Roles of tokens in the file's own words, such as `{"bos_token": "<s>"}`."""
        return self.special.named

    @property
    def template(self) -> str | None:
        """The file's Jinja chat template."""
        return self.special.template

    def encode(self, text: str) -> list[int]:
        """The ids of plain text: never a control token, whatever the text says."""
        return self._plain(text, self.prefix != "never")

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many plain texts."""
        return [self.encode(text) for text in texts]

    def split(self, text: str) -> list[str | int]:
        """`text` as plain runs and the ids of the control tokens between them."""
        parts, at = [], 0
        for match in self._pattern.finditer(text):
            parts += [text[at : match.start()], self.control[match[match.lastgroup or 0]]]
            at = match.end()
        return [part for part in (*parts, text[at:]) if part != ""]

    def join(self, parts: Iterable[str | int]) -> list[int]:
        """The ids of plain runs and control tokens; neighbouring strings are one run."""
        ids: list[int] = []
        run: list[str] = []
        for part in (*parts, None):
            if isinstance(part, str):
                run.append(part)
                continue
            prefixed = self.prefix == "every" or (self.prefix == "first" and not ids)
            ids += self._plain("".join(run), prefixed)
            run = []
            if part is not None:
                ids.append(part)
        return ids

    def parse(self, text: str) -> list[int]:
        """The ids of `text` with its control tokens recognised: not for users' text."""
        return self.join(self.split(text))

    def piece(self, token: int) -> bytes:
        """The bytes of one token; b"" for a control token and for an id without a token."""
        return self.backend.pieces.get(int(token), b"")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, control tokens left out."""
        text = b"".join(map(self.piece, ids)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.prefix != "never" else text

    def _plain(self, text: str, prefixed: bool) -> list[int]:
        # A lone surrogate has no UTF-8 form; "?" takes its place.
        text = text.encode("utf-8", "replace").decode("utf-8")
        if prefixed and text:
            text = " " + text
        with refusing("the tokenizer cannot read a text"):
            ids = [i for portion in portions(text) for i in self.backend.encode(portion)]
        # The backends are built so that this cannot be; a model's turns must not hang on that.
        if not self._hidden.isdisjoint(ids):
            raise FormatError("the tokenizer gives a control token for plain text; do not use it")
        return ids

    @functools.cached_property
    def _hidden(self) -> frozenset[int]:
        return frozenset(self.control.values())

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Finds control tokens, the longest first where several begin."""
        texts = sorted(self.control, key=len, reverse=True)
        plain = [t for t in texts if t not in self.special.strips]
        forms = [f"(?P<token>{'|'.join(map(re.escape, plain))})"] if plain else []
        for number, text in enumerate(t for t in texts if t in self.special.strips):
            sides = self.special.strips[text]
            # From the beginning of the white space only, or its length would count squared.
            left = r"(?<!\s)\s*" if "l" in sides else ""
            right = r"\s*" if "r" in sides else ""
            forms.insert(number, f"{left}(?P<token{number}>{re.escape(text)}){right}")
        return re.compile("|".join(forms) or r"(?!)")


def assemble(
    kind: str, backend: Any, special: Special, source: str, prefix: Prefix = "never"
) -> Opened:
    """Puts a tokenizer together and checks it.

    Raises:
      FormatError: ids collide or are absurd, or texts do not come back as they were.
    """
    ids = [*backend.pieces, *special.control.values()]
    vocab = check_ids(ids, source)
    for text in special.control:
        if not text or not is_unicode(text):
            raise FormatError(f"{source}: the control token {text[:40]!r} is no text")
    wrong = [i for i in (special.bos, *special.ends) if i is not None and not 0 <= i < vocab]
    if wrong:
        raise FormatError(
            f"{source}: the special token id {wrong[0]} is not below the vocabulary of {vocab}; "
            "expected ids of its tokens"
        )
    opened = Opened(kind, backend, special, vocab, prefix)
    with refusing(source):
        for probe in PROBES:
            if opened.decode(opened.encode(probe)) != probe:
                raise FormatError(
                    f"{source}: the text {probe[:16]!r}... does not come back from its ids; "
                    "expected a tokenizer that loses nothing"
                )
    return opened
