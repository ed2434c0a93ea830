"""Beam search: the most probable texts of an encoder-decoder, several of them a row.

Every step takes the most probable continuations of a row's beams. Those that end are kept beside
the beams, by their score: the sum of the log-probabilities of a text's tokens, its end token among
them, divided by their number to the power of the length penalty. The rules, and so the scores, are
those of transformers (`generate(num_beams=...)`), which has them from Wu et al. 2016
(arXiv:1609.08144) without its coverage penalty.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llama_jax.checked import checked
from llama_jax.errors import UserError
from llama_jax.layers.cache import Cache
from llama_jax.models.tokens import Tokens, repeat_rows


@checked
class Beam:
    """How a beam search goes.

    Attributes:
      width: beams a row; 1 is greedy decoding.
      length_penalty: above 0 favours long texts, below 0 short ones; 0 takes the sums as they are.
      ends: when a row has ended, of which `width` texts have: "likely" as soon as the best beam,
        ended now, would be no better than the worst of them (transformers' early_stopping=False);
        "full" at once (True); "never" when no beam can become better at any length ("never").
      best: so many texts a row, the best ones.
    """

    width: int = 4
    length_penalty: float = 1.0
    ends: Literal["likely", "full", "never"] = "likely"
    best: int = 1

    def __post_init__(self):
        if self.width < 1:
            raise UserError(f"width={self.width}: a beam search has at least 1 beam")
        if not 1 <= self.best <= self.width:
            raise UserError(
                f"best={self.best}: of {self.width} beams there are 1 to {self.width} texts; "
                "give more beams (width)"
            )

    def score(self, logp: Any, tokens: Any) -> Any:
        """The score of texts of so many tokens with these sums of log-probabilities."""
        return logp / jnp.float32(tokens) ** self.length_penalty


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Found:
    """The best texts of each row, the best one first.

    Attributes:
      ids: new tokens, up to and with the end token, then padding.
      scores: see `Beam.score`; texts that `max_new` cut off have one too.
    """

    ids: Int[Array, "B N T"]
    scores: Float[Array, "B N"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Search:
    """Where a search is after `step` tokens: W open beams and W ended texts a row."""

    step: Int[Array, ""]
    cache: Cache
    ids: Int[Array, "B W T"]
    logp: Float[Array, "B W"]
    ended: Found
    open: Bool[Array, " B"]  # an open beam may still be better than what has ended


@functools.partial(jax.jit, static_argnames=("model", "beam", "bos", "eos", "max_new", "pad"))
def search(
    model: Any,
    variables: Any,
    memory: Tokens,
    beam: Beam,
    *,
    bos: int,
    eos: int,
    max_new: int,
    pad: int = 0,
) -> Found:
    """The best texts for each row of a memory.

    Args:
      model: a module with a method `decode`, a `dtype` and a `config` that has a Decoder.
      variables: variables of the model, {"params": ...}.
      memory: what cross-attention reads, once a row.
      beam: how to search.
      bos: the token that a text begins with; it is not in the result.
      eos: the token that ends a text.
      max_new: at most so many tokens.
      pad: what follows the end.

    Raises:
      UserError: no token to make, or more beams than the vocabulary has words.
    """
    if max_new < 1:
        raise UserError(f"max_new={max_new}: use at least 1")
    B, W = len(memory.x), beam.width
    cache = model.config.empty_cache(B * W, 1 + max_new, model.dtype)
    begin = jnp.full((B * W, 1), bos, jnp.int32)
    logits, cache = model.apply(
        variables, begin, repeat_rows(memory, B * W), cache, method="decode"
    )
    V = logits.shape[-1]
    if V < W:
        raise UserError(f"width={W}: more beams than the vocabulary's {V} words; use at most {V}")
    nothing = jnp.full((B, W), -jnp.inf)
    ids = jnp.full((B, W, max_new), pad, jnp.int32)
    # All beams are the same at first: one counts.
    begun = _Search(
        jnp.int32(0), cache, ids, nothing.at[:, 0].set(0.0), Found(ids, nothing), jnp.ones(B, bool)
    )

    def body(now: _Search) -> _Search:
        last = jax.lax.dynamic_index_in_dim(now.ids, now.step - 1, 2, keepdims=False)
        logits, cache = model.apply(
            variables, last.reshape(-1, 1), None, now.cache, method="decode"
        )
        return _chosen(replace(now, cache=cache), logits, beam, eos)

    def unfinished(now: _Search):
        return (now.step < max_new) & jnp.any(now.open)

    ended = jax.lax.while_loop(unfinished, body, _chosen(begun, logits, beam, eos)).ended
    return Found(ended.ids[:, : beam.best], ended.scores[:, : beam.best])


def _chosen(now: _Search, logits: jax.Array, beam: Beam, eos: int) -> _Search:
    """One token more: the best 2W continuations of a row, at least W of which do not end."""
    B, W, T = now.ids.shape
    logp_BWV = jax.nn.log_softmax(logits[:, -1].astype(jnp.float32)).reshape(B, W, -1)
    V = logp_BWV.shape[-1]
    logp_BC, at_BC = jax.lax.top_k((now.logp[..., None] + logp_BWV).reshape(B, -1), 2 * W)
    parent_BC, token_BC = at_BC // V, at_BC % V
    ids_BCT = _rows(now.ids, parent_BC).at[:, :, now.step].set(token_BC)
    step = now.step + 1
    ends_BC = (token_BC == eos) | (step == T)

    open_BC = jnp.where(ends_BC, -jnp.inf, logp_BC)
    logp_BW, kept_BW = jax.lax.top_k(open_BC, W)
    beams = _rows(jnp.arange(B * W).reshape(B, W), _rows(parent_BC, kept_BW))

    counts_BC = ends_BC & (jnp.arange(2 * W) < W) & now.open[:, None]
    scores_BC = jnp.where(counts_BC, beam.score(logp_BC, step), -jnp.inf)
    scores = jnp.concatenate([now.ended.scores, scores_BC], axis=1)
    scores_BW, best_BW = jax.lax.top_k(scores, W)
    ended_BWT = _rows(jnp.concatenate([now.ended.ids, ids_BCT], axis=1), best_BW)

    full_B = jnp.all(jnp.isfinite(scores_BW), axis=1)
    length = T if beam.ends == "never" and beam.length_penalty > 0 else step
    better_B = beam.score(logp_BW[:, 0], length) > scores_BW[:, -1]
    return _Search(
        step,
        now.cache.taken(beams.reshape(-1)),
        _rows(ids_BCT, kept_BW),
        logp_BW,
        Found(ended_BWT, scores_BW),
        now.open & (~full_B | (better_B & (beam.ends != "full"))),
    )


def _rows(x_BN: jax.Array, index_BM: Int[Array, "B M"]) -> jax.Array:
    """Of each row's N the M of these numbers."""
    return jax.vmap(lambda x, index: x[index])(x_BN, index_BM)
