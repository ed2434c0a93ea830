"""Decoding: the first call sees the prompt and the memory, each later one a single token.

The memory's keys are computed in the first call and kept in the cache.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_jax.errors import UserError
from llama_jax.generate.sample import Sampling
from llama_jax.models.tokens import Tokens


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoded:
    """What was decoded.

    Attributes:
      ids: new tokens, up to and with the end token, then padding.
      logprobs: natural logarithm of each token's probability (before temperature); 0 for padding.
    """

    ids: Int[Array, "B T"]
    logprobs: Float[Array, "B T"]


def decode(
    model: Any,
    variables: Any,
    memory: Tokens | None,
    prompt_BT: Int[Array, "B T"],
    *,
    eos: int,
    max_new: int,
    pad: int = 0,
    sampling: Sampling | None = None,
    key: jax.Array | None = None,
) -> Decoded:
    """Continues the prompts token by token until each row has ended or `max_new` are made.

    Args:
      model: a module with a method `decode`, a `dtype` and a `config` that has a Decoder.
      variables: variables of the model, {"params": ...}.
      memory: what cross-attention reads, or None.
      prompt_BT: the prompts, all of one length; [bos] a row for an encoder-decoder.
      eos: the token that ends a row.
      max_new: at most so many new tokens.
      pad: what follows the end.
      sampling: how to choose tokens; greedy by default.
      key: random key; needed only for sampling with a temperature.

    Returns:
      Tokens [B, max_new] and their log-probabilities.

    Raises:
      UserError: no token to make, or prompts of several lengths.
    """
    if max_new < 1:
        raise UserError(f"max_new={max_new}: use at least 1")
    try:
        prompt_BT = jnp.asarray(prompt_BT)
    except (TypeError, ValueError):
        raise UserError(
            "prompts of several lengths; one length was expected here, and `LM.complete` takes any"
        ) from None
    sampling = sampling or Sampling()
    key = jax.random.key(0) if key is None else key
    B, T = prompt_BT.shape
    cache = model.config.empty_cache(B, T + max_new, model.dtype)
    logits, cache = model.apply(variables, prompt_BT, memory, cache, method="decode")

    def choose(step, logits_BV, ended_B, out):
        token_B = sampling(logits_BV, jax.random.fold_in(key, step))
        logp_B = jnp.take_along_axis(jax.nn.log_softmax(logits_BV), token_B[:, None], axis=1)[:, 0]
        token_B = jnp.where(ended_B, pad, token_B)
        logp_B = jnp.where(ended_B, 0.0, logp_B)
        out = Decoded(out.ids.at[:, step].set(token_B), out.logprobs.at[:, step].set(logp_B))
        return token_B, ended_B | (token_B == eos), out

    # A loop of its own beside the engine's: it is part of a program that ends by itself, within an
    # evaluation's jit, and draws by one key a step; the engine hands tokens out between programs,
    # whose state outlives them, and draws by a key a row. Either's numbers would change.
    def body(state):
        step, token_B, ended_B, cache, out = state
        logits, cache = model.apply(variables, token_B[:, None], None, cache, method="decode")
        token_B, ended_B, out = choose(step, logits[:, -1], ended_B, out)
        return step + 1, token_B, ended_B, cache, out

    def unfinished(state):
        step, _, ended_B, _, _ = state
        return (step < max_new) & ~jnp.all(ended_B)

    out = Decoded(jnp.full((B, max_new), pad, jnp.int32), jnp.zeros((B, max_new), jnp.float32))
    token_B, ended_B, out = choose(0, logits[:, -1], jnp.zeros((B,), bool), out)
    state = (jnp.int32(1), token_B, ended_B, cache, out)
    return jax.lax.while_loop(unfinished, body, state)[-1]


def greedy(
    model: nn.Module, variables: Any, memory: Tokens, *, bos: int, eos: int, max_new: int
) -> Decoded:
    """Greedy decoding of an encoder-decoder from `bos`; see `decode`."""
    prompt_BT = jnp.full((memory.x.shape[0], 1), bos, jnp.int32)
    return decode(model, variables, memory, prompt_BT, eos=eos, max_new=max_new)
