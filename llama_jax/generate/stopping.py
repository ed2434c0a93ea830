"""From tokens to text as it is shown: end tokens, stop strings, whole characters."""

from dataclasses import dataclass, field

from llama_jax.errors import UserError
from llama_jax.text.detokenize import Detokenizer
from llama_jax.text.pretrained import Pretrained


@dataclass(frozen=True)
class Stop:
    """Strings at which a text ends, before them."""

    strings: tuple[str, ...] = ()

    def __post_init__(self):
        if not all(isinstance(s, str) and s for s in self.strings):
            raise UserError(f"stop={list(self.strings)}: strings of one character or more")

    def find(self, text: str, start: int) -> int:
        """Where the first of them begins in `text`, from `start` on; -1 if none is there."""
        found = [text.find(s, max(0, start - len(s) + 1)) for s in self.strings]
        return min((place for place in found if place >= 0), default=-1)

    def safe(self, text: str) -> int:
        """How many characters can be shown: those after may be the front of a string."""
        held = 0
        for s in self.strings:
            for size in range(min(len(s) - 1, len(text)), held, -1):
                if text.endswith(s[:size]):
                    held = size
                    break
        return len(text) - held


@dataclass
class Writer:
    """The text of one row while its tokens come.

    Attributes:
      tokenizer: what made the tokens.
      stops: strings that end it.
      text: up to where it ended.
      ids: all tokens, the last one included.
      logprobs: log-probability of each token.
      finished: an end token or a stop string came.
    """

    tokenizer: Pretrained
    stops: Stop = Stop()
    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False

    def __post_init__(self):
        self._detokenizer = Detokenizer(self.tokenizer)
        self._shown = 0
        self._cut = False  # by a stop string: half a character after it is none of the text

    def push(self, token: int, logprob: float, ends: bool) -> str:
        """Takes a token; returns the text that is certain now. Nothing follows the end."""
        if self.finished:
            return ""
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.finished = ends
        return self._add("" if ends else self._detokenizer.push(token))

    def end(self) -> str:
        """What was held back, once no more tokens come."""
        shown = "" if self._cut else self._add(self._detokenizer.end())
        rest, self._shown = self.text[self._shown :], len(self.text)
        return shown + rest

    def _add(self, piece: str) -> str:
        before = len(self.text)
        self.text += piece
        if (place := self.stops.find(self.text, before)) >= 0:
            self.text, self.finished, self._cut = self.text[:place], True, True
        shown = self._shown
        self._shown = max(shown, len(self.text) if self._cut else self.stops.safe(self.text))
        return self.text[shown : self._shown]
