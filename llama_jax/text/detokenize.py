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
        # SentencePiece puts a space before a text, which `decode` takes away.
        self._prefixed = tokenizer.piece(tokenizer.encode("a")[0]).startswith(b" ")

    def push(self, token: int) -> str:
        """The characters that `token` completes."""
        return self._front(self._decoder.decode(self._piece(token)))

    def end(self) -> str:
        """What is left: U+FFFD for half a character."""
        return self._front(self._decoder.decode(b"", final=True))

    def _front(self, text: str) -> str:
        if text and self._prefixed:
            self._prefixed = False
            return text.removeprefix(" ")
        return text
