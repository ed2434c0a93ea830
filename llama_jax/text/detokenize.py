"""Text from a stream of tokens, printed as far as it is certain."""

import codecs

from llama_jax.text.pretrained import Pretrained


class Detokenizer:
    """Gives the text of tokens one by one, never half a character.

    What all calls of `push` return and then `end`, put together, is what `decode` returns.
    """

    def __init__(self, tokenizer: Pretrained):
        """Begins a text."""
        self._piece = tokenizer.piece
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._front = tokenizer.front

    def push(self, token: int) -> str:
        """The characters that `token` completes."""
        piece = self._piece(token)
        if piece and self._front == "blanks":
            self._front = ""
            piece = piece.replace(b" ", b"")
        return self._begin(self._decoder.decode(piece))

    def end(self) -> str:
        """What is left: U+FFFD for half a character."""
        return self._begin(self._decoder.decode(b"", final=True))

    def _begin(self, text: str) -> str:
        if text and self._front == "space":
            self._front = ""
            return text.removeprefix(" ")
        return text
