"""Text from a stream of tokens, printed as far as it is certain."""

import codecs

from llama_jax.text.pretrained import Pretrained


class Detokenizer:
    """Gives the text of tokens one by one, never half a character.

    What all calls of `push` return and then `end`, put together, is what `decode` returns.
    """

    def __init__(self, tokenizer: Pretrained):
        """Begins a text."""
        self._tokenizer, self._begun = tokenizer, False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that `token` completes."""
        piece = self._tokenizer.piece(token)
        if piece and not self._begun:
            self._begun = True
            piece = self._tokenizer.opening(token)
        return self._decoder.decode(piece)

    def end(self) -> str:
        """What is left: U+FFFD for half a character."""
        return self._decoder.decode(b"", final=True)
