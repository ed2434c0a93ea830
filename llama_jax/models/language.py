"""One door to every model that writes text: three methods, and all that is made of them.

    embed    ids, and vectors in the place of some  ->  Tokens
    hidden   Tokens, a memory, a cache              ->  Output: x, cache, aux, taps
    head     x                                      ->  logits, or `Logits` not formed yet

A model that wraps another overrides these three; `decode`, `extend`, `readout`, `score` and the
plain call go through them.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llama_jax.errors import UserError
from llama_jax.layers.cache import Cache
from llama_jax.layers.inputs import Memory
from llama_jax.layers.output import Output
from llama_jax.models.logits import Logits
from llama_jax.models.tokens import Placed, Tokens

# What a text is read with: a memory of cross-attention, or vectors among its own.
Seen = Tokens | Memory | Placed | None


class Language(nn.Module):
    """A model whose config has `language`, a Decoder, and whose submodule `decoder` is its part."""

    config: Any
    dtype: Any = jnp.float32

    def embed(
        self,
        ids_BT: Int[Array, "B T"],
        cache: Cache | None = None,
        positions_BT: Int[Array, "B T"] | None = None,
        valid_BT: Bool[Array, "B T"] | None = None,
        segments_BT: Int[Array, "B T"] | None = None,
        placed: Placed | None = None,
    ) -> Tokens:
        """The vectors of ids, and where they are.

        Args:
          ids_BT: the tokens.
          cache: where they go on; positions begin at its index by default.
          positions_BT: places of the tokens.
          valid_BT: tokens that exist (left-padded prompts); all by default.
          segments_BT: documents of packed rows.
          placed: vectors that stand in the place of some tokens.
        """
        start = None if cache is None else cache.index
        return self._writer().tokens(
            ids_BT, positions_BT, valid_BT, segments_BT, start, placed, self.dtype
        )

    def hidden(
        self,
        tokens: Tokens,
        memory: Tokens | Memory | None = None,
        cache: Cache | None = None,
        taps: tuple[int, ...] = (),
        fresh: bool = False,
    ) -> Output:
        """What `head` turns into logits.

        Args:
          tokens: from `embed`.
          memory: what cross-attention reads; with a cache, only in the first call.
          cache: the state after earlier calls; None processes whole sequences.
          taps: layers whose vectors are wanted too, counted from 0.
          fresh: the cache is empty; attention then need not look at its slots.
        """
        return self._writer().hidden(tokens, memory, cache, taps, fresh)

    def head(self, x: Float[Array, "*batch D"], formed: bool = True) -> Any:
        """Logits in float32 of vectors; `Logits` if they shall not be `formed` yet."""
        return self._writer().head(x, formed)

    def _writer(self) -> Any:
        if self.config.language is None:
            raise UserError("this model has no decoder; give Multimodal(decoder=...)")
        return self.decoder  # pyright: ignore[reportAttributeAccessIssue]

    def __call__(self, ids_BT: Int[Array, "B T"], memory: Seen = None) -> Float[Array, "B T V"]:
        """Logits in float32 for the token after each one."""
        return self.decode(ids_BT, memory)[0]

    def decode(
        self,
        ids_BT: Int[Array, "B T"],
        memory: Seen = None,
        cache: Cache | None = None,
        positions_BT: Int[Array, "B T"] | None = None,
        segments_BT: Int[Array, "B T"] | None = None,
        valid_BT: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T V"], Cache | None]:
        """Logits in float32 for the token after each one, and the cache with these in it.

        Arguments as for `embed` and `hidden`; a memory may also be `Placed`, by the places of a
        text that goes on from what the cache holds.
        """
        placed, read = _told(memory, cache, valid_BT, ids_BT.shape[1])
        tokens = self.embed(ids_BT, cache, positions_BT, valid_BT, segments_BT, placed)
        out = self.hidden(tokens, read, cache)
        return self.head(out.x), out.cache

    def extend(
        self,
        ids_BT: Int[Array, "B T"],
        cache: Cache,
        valid_BT: Bool[Array, "B T"],
        fresh: bool = False,
        memory: Seen = None,
    ) -> tuple[Float[Array, "B V"], Cache | None]:
        """Logits after the last token alone, and the cache with all of them in it.

        Positions go on from the tokens that each row of the cache holds. A memory is given in the
        first call, for the cache keeps what is needed of it; vectors that are `Placed` in every
        call that may reach them.
        """
        positions_BT = cache.lengths[:, None] + jnp.cumsum(valid_BT, axis=1) - 1
        positions_BT = jnp.maximum(positions_BT, 0).astype(jnp.int32)
        placed, read = _told(memory, cache, valid_BT, ids_BT.shape[1])
        tokens = self.embed(ids_BT, cache, positions_BT, valid_BT, placed=placed)
        out = self.hidden(tokens, read, cache, fresh=fresh)
        return self.head(out.x[:, -1:])[:, 0], out.cache

    def readout(
        self,
        ids_BT: Int[Array, "B T"],
        memory: Seen = None,
        positions_BT: Int[Array, "B T"] | None = None,
        segments_BT: Int[Array, "B T"] | None = None,
    ) -> Logits:
        """Logits of whole sequences for a loss, not formed yet."""
        placed, read = _told(memory, None, None, ids_BT.shape[1])
        tokens = self.embed(ids_BT, None, positions_BT, None, segments_BT, placed)
        return self.head(self.hidden(tokens, read).x, formed=False)

    def score(
        self,
        ids_BT: Int[Array, "B T"],
        targets_BT: Int[Array, "B T"],
        memory: Seen = None,
    ) -> Float[Array, "B T"]:
        """The log-probability of each target after the tokens up to the one at its place."""
        logits_BTV = self.decode(ids_BT, memory)[0]
        chosen_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
        return chosen_BT - jax.nn.logsumexp(logits_BTV, axis=-1)


def _told(
    seen: Seen, cache: Cache | None, valid_BT: Bool[Array, "B T"] | None, length: int
) -> tuple[Placed | None, Tokens | Memory | None]:
    """What `embed` and what `hidden` is given of it."""
    if not isinstance(seen, Placed):
        return None, seen
    return seen.within(0 if cache is None else cache.lengths, valid_BT, length), None
