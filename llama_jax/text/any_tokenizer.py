"""One tokenizer out of any file: plain text, control tokens and their borders.

A backend turns plain text into ids and knows no control token, so nothing that a user types can
become one. Control tokens come in by their ids only, between runs of plain text.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from llama_jax.checked import checked_call
from llama_jax.errors import FormatError
from llama_jax.kinds import check_text, whole_number, whole_numbers
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
# Where plain text stands: it begins a text, it follows a control token, or it is the rest of a run
# that was too long.
Place = Literal["start", "run", "rest"]
# What decoding takes away at the beginning of a text: nothing, one space, the first token's spaces.
Front = Literal["", "space", "blanks"]


class Backend(Protocol):
    """Plain text to ids and back; without control tokens."""

    @property
    def pieces(self) -> Mapping[int, bytes]:
        """The bytes of every id that plain text may give."""
        ...

    @property
    def texts(self) -> Mapping[str, int]:
        """Added tokens that are text: found in a text, and shown."""
        ...

    @property
    def front(self) -> Front:
        """What decoding takes away, if the backend itself puts something there."""
        ...

    @property
    def unknown(self) -> int | None:
        """The token of characters that the vocabulary lacks, if there may be such."""
        ...

    @property
    def lossless(self) -> bool:
        """Whether every text has to come back from its ids."""
        ...

    def encode(self, text: str, place: Place = "start") -> list[int]:
        """The ids of `text`, which is valid Unicode and within the limits."""
        ...


@dataclasses.dataclass(frozen=True)
class Text:
    """An added token that is text.

    Attributes:
      id: what stands for it.
      flags: fields of tokenizer.json that are true: single_word, lstrip, rstrip, normalized.
    """

    id: int
    flags: frozenset[str] = frozenset()

    def entry(self, content: str) -> dict[str, Any]:
        """An entry of tokenizer.json's added_tokens."""
        flags = {name: name in self.flags for name in FLAGS}
        return {"id": self.id, "content": content} | flags | {"special": False}


FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@dataclasses.dataclass(frozen=True)
class Special:
    """What a file says of its control tokens.

    Attributes:
      control: special tokens by their text.
      named: roles of tokens in the file's own words, such as `{"bos_token": "<s>"}`.
      words: texts of tokens by their role as templates may write them, control tokens or not.
      bos: what begins every text.
      closes: what ends every text that is read, such as a document; no prompt of a chat.
      ends: tokens that end generation, those of `ENDS` not included.
      template: the Jinja chat template.
      templates: further ones by their names.
      strips: tokens that take in the white space to their left or right, or that are found as whole
        words only: "l", "r", "w" and together.
      texts: added tokens that are text, by their text.
    """

    control: Mapping[str, int]
    named: Mapping[str, str] = dataclasses.field(default_factory=dict)
    bos: int | None = None
    closes: int | None = None
    ends: frozenset[int] = frozenset()
    template: str | None = None
    templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    strips: Mapping[str, str] = dataclasses.field(default_factory=dict)
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    texts: Mapping[str, "Text"] = dataclasses.field(default_factory=dict)


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
    def closes(self) -> int | None:
        """What ends every text that is read; None if nothing is added."""
        return self.special.closes

    @property
    def front(self) -> Front:
        """What decoding takes away at the beginning of a text."""
        return "space" if self.prefix != "never" else self.backend.front

    @property
    def texts(self) -> Mapping[str, int]:
        """Added tokens that are text: found in a text, and shown."""
        return self.backend.texts

    @property
    def needed(self) -> int:
        """How many embeddings a model has to have: added tokens may be beyond them."""
        added = {*self.control.values(), *self.texts.values()}
        return 1 + max((i for i in self.backend.pieces if i not in added), default=-1)

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end generation."""
        return self.special.ends | {self.control[t] for t in ENDS if t in self.control}

    @property
    def control(self) -> Mapping[str, int]:
        """All special tokens by their text."""
        return self.special.control

    @property
    def named(self) -> Mapping[str, str]:
        """Roles of tokens in the file's own words, such as `{"bos_token": "<s>"}`."""
        return self.special.named

    @property
    def words(self) -> Mapping[str, str]:
        """Texts of tokens by their role as templates may write them, control tokens or not."""
        return {**self.special.words, **self.named}

    @property
    def template(self) -> str | None:
        """The file's Jinja chat template."""
        return self.special.template

    @property
    def templates(self) -> Mapping[str, str]:
        """Further chat templates of the file by their names, such as "tool_use"."""
        return self.special.templates

    def encode(self, text: str) -> list[int]:
        """The ids of plain text: never a control token, whatever the text says."""
        return self._plain(check_text(text), "start")

    @checked_call
    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many plain texts."""
        return [self.encode(text) for text in texts]

    def split(self, text: str) -> list[str | int]:
        """`text` as plain runs and the ids of the control tokens between them."""
        parts, at = [], 0
        for match in self._pattern.finditer(check_text(text)):
            parts += [text[at : match.start()], self.control[match[match.lastgroup or 0]]]
            at = match.end()
        return [part for part in (*parts, text[at:]) if part != ""]

    @checked_call
    def join(self, parts: Iterable[str | int]) -> list[int]:
        """The ids of plain runs and control tokens; neighbouring strings are one run."""
        ids: list[int] = []
        run: list[str] = []
        for part in (*parts, None):
            if isinstance(part, str):
                run.append(part)
                continue
            ids += self._plain("".join(run), "run" if ids else "start")
            run = []
            if part is not None:
                ids.append(part)
        return ids

    def parse(self, text: str) -> list[int]:
        """The ids of `text` with its control tokens recognised: not for users' text."""
        return self.join(self.split(text))

    def piece(self, token: int) -> bytes:
        """The bytes of one token; b"" for a control token and for an id without a token."""
        return self.backend.pieces.get(whole_number(token, "an id"), b"")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, control tokens left out."""
        said = [token for token in whole_numbers(ids, "a row of ids") if self.piece(token)]
        pieces = [*map(self.opening, said[:1]), *map(self.piece, said[1:])]
        return b"".join(pieces).decode("utf-8", "replace")

    def opening(self, token: int) -> bytes:
        """The bytes of a token with which a text begins: without the space put in front of it."""
        piece = self.piece(token)
        if self.front == "space":
            return piece.removeprefix(b" ")
        if self.front == "blanks" and token not in self.texts.values():
            return piece.replace(b" ", b"")
        return piece

    def _plain(self, text: str, place: Place) -> list[int]:
        # A lone surrogate has no UTF-8 form; "?" takes its place.
        text = text.encode("utf-8", "replace").decode("utf-8")
        if text and (self.prefix == "every" or (self.prefix == "first" and place == "start")):
            text = " " + text
        ids: list[int] = []
        with refusing("the tokenizer cannot read a text"):
            for number, portion in enumerate(portions(text)):
                ids += self.backend.encode(portion, "rest" if number else place)
        # The backends are built so that this cannot be; a model's turns must not hang on that.
        if not self._hidden.isdisjoint(ids):
            raise FormatError("the tokenizer gives a control token for plain text; do not use it")
        return ids

    @functools.cached_property
    def _hidden(self) -> frozenset[int]:
        # That of an unknown character says nothing, so it may also be called special.
        return frozenset(self.control.values()) - {self.backend.unknown}

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
            word = re.escape(text)
            word = rf"(?<!\w){word}(?!\w)" if "w" in sides else word
            forms.insert(number, f"{left}(?P<token{number}>{word}){right}")
        return re.compile("|".join(forms) or r"(?!)")


def assemble(
    kind: str, backend: Any, special: Special, source: str, prefix: Prefix = "never"
) -> Opened:
    """Puts a tokenizer together and checks it.

    Raises:
      FormatError: ids collide or are absurd, or texts do not come back as they were.
    """
    ids = [*backend.pieces, *special.control.values()]
    for text, i in backend.texts.items():
        if not text or not is_unicode(text) or i in special.control.values():
            raise FormatError(f"{source}: the added token {text[:40]!r} is no text of its own")
    vocab = check_ids(ids, source)
    for text in special.control:
        if not text or not is_unicode(text):
            raise FormatError(f"{source}: the control token {text[:40]!r} is no text")
    wrong = [i for i in (special.bos, special.closes) if i is not None and not 0 <= i < vocab]
    if wrong:
        raise FormatError(
            f"{source}: the special token id {wrong[0]} is not below the vocabulary of {vocab}; "
            "expected ids of its tokens"
        )
    # Configs of small models keep the ends of large ones: no token of theirs, so never met.
    ends = frozenset(i for i in special.ends if 0 <= i < vocab)
    opened = Opened(kind, backend, dataclasses.replace(special, ends=ends), vocab, prefix)
    with refusing(source):
        for probe in PROBES:
            if opened.decode(opened.encode(probe)) != probe and backend.lossless:
                raise FormatError(
                    f"{source}: the text {probe[:16]!r}... does not come back from its ids; "
                    "expected a tokenizer that loses nothing"
                )
    return opened
