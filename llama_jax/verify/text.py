"""The text that weights are tried on, if no other is given, and its tokens."""

from dataclasses import dataclass

import numpy as np

from llama_jax.errors import UserError
from llama_jax.text.pretrained import Pretrained

MOST = 512  # tokens of a text that are read
LEAST = 16
RANDOM = 192  # tokens, where there is no tokenizer

# Prose, a list, numbers, a program, other alphabets: some 200 tokens.
TEXT = """The lighthouse stood on a rock two miles from the harbour. Every evening the keeper \
climbed its 143 steps, lit the lamp, and wrote the hour and the weather into a book with a blue \
cover. On the first of March he wrote: "Wind from the west, a clear sky, four ships." On the \
second he wrote nothing, because the ink was frozen.

What a keeper needs:
1. oil for the lamp
2. a cloth for the glass
3. patience

His daughter counted the ships for him. She had written a small program for it:

def count(ships):
    total = 0
    for ship in ships:
        if ship.lights > 0:
            total += 1
    return total

In French the place is called « le phare », in Greek φάρος, in Japanese 灯台. When the lamp was \
replaced by an electric one, the keeper and his daughter moved to the city, and the book with the \
blue cover was given to the museum, where it is kept to this day."""


@dataclass(frozen=True)
class Tokens:
    """What is read.

    Attributes:
      ids: at most `MOST` and the model's context.
      real: whether they are a text, which a trained model can predict.
      about: where they are from, in words.
    """

    ids: tuple[int, ...]
    real: bool
    about: str


def tokens(
    text: str | None, tokenizer: Pretrained | None, vocab: int, context: int | None
) -> Tokens:
    """The tokens of a text, of the built-in one, or random ones if there is no tokenizer.

    Raises:
      UserError: a text was given and there is no tokenizer, or it is too short.
    """
    most = min(MOST, context or MOST)
    if tokenizer is None:
        if text is not None:
            raise UserError("these weights have no tokenizer, so no text can be read; omit --text")
        drawn = np.random.default_rng(0).integers(0, vocab, min(RANDOM, most))
        return Tokens(tuple(drawn.tolist()), False, f"{len(drawn)} random ones (no tokenizer)")
    bos = tokenizer.bos
    ids = [*([] if bos is None else [bos]), *tokenizer.encode(TEXT if text is None else text)]
    if len(ids) < LEAST:
        raise UserError(f"a text of {len(ids)} tokens; at least {LEAST} were expected")
    name = "the built-in text" if text is None else "the given text"
    cut = f", of {len(ids):,}" if len(ids) > most else ""
    ids = ids[:most]
    return Tokens(tuple(ids), True, f"{len(ids)} of {name}{cut}")
