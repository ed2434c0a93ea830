"""Drawing: the words of a picture, written after a text, and the pixels that they stand for.

Only words of pictures can be drawn: the logits of all others are masked.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llama_jax.errors import UserError
from llama_jax.generate.decode import decode
from llama_jax.generate.sample import Sampling

NEVER = -1  # no id ends a picture; all of its words are written


@dataclass(frozen=True)
class Within:
    """Chooses among some ids alone, as `Sampling` does.

    Attributes:
      first: the lowest of them.
      count: how many they are.
      sampling: how to choose.
    """

    first: int
    count: int
    sampling: Sampling

    def __call__(self, logits_BV: Float[Array, "B V"], key: jax.Array | None) -> Int[Array, " B"]:
        """One id a row."""
        ids_V = jnp.arange(logits_BV.shape[-1])
        inside_V = (ids_V >= self.first) & (ids_V < self.first + self.count)
        return self.sampling(jnp.where(inside_V, logits_BV, -jnp.inf), key)


def draw(
    model: Any,
    params: Any,
    text_BT: np.ndarray,
    valid_BT: np.ndarray,
    *,
    bos: int,
    side: int,
    sampling: Sampling,
    key: jax.Array,
) -> np.ndarray:
    """Draws one picture a text.

    Args:
      model: a module with a `Multimodal` that has words for pictures.
      params: the weights.
      text_BT: ids of the texts.
      valid_BT: which of them exist.
      bos: the id that writing begins with.
      side: pixels a side.
      sampling: how each word is chosen.
      key: random key.

    Returns:
      The ids of the words, int32 [B,P], for `paint`.

    Raises:
      UserError: the model has no words for pictures, or no picture of that size.
    """
    places = drawing_part(model.config).grid(side) ** 2
    written = _writer(model, bos, places)(params, text_BT, valid_BT, sampling, key)
    return np.asarray(written)


def paint(model: Any, params: Any, ids_BP: np.ndarray) -> np.ndarray:
    """The pictures of ids of the decoder's vocabulary, uint8 [B,Y,X,R].

    Raises:
      UserError: an id that is no word of a picture, or no square of them.
    """
    codes = drawing_part(model.config).codes
    first = model.config.text.vocab
    ids_BP = np.asarray(ids_BP)
    outside = ids_BP[(ids_BP < first) | (ids_BP >= first + codes)]
    if outside.size:
        raise UserError(
            f"the image token {outside[0]} is outside of the code book; expected {first} to "
            f"{first + codes - 1}, the {codes:,} words behind the {first:,} of the text"
        )
    places = ids_BP.shape[-1]
    if round(places**0.5) ** 2 != places:
        raise UserError(f"{places} image tokens are no square; expected such as 64, 8 x 8 of them")
    pixels = _painter(model)(params, ids_BP)
    return np.asarray(jnp.round((pixels + 1) * 127.5)).astype(np.uint8)


def drawing_part(config: Any) -> Any:
    """The image tokenizer of a model's config.

    Raises:
      UserError: there is none.
    """
    part = getattr(config, "pictures", None)
    if part is None or getattr(config, "decoder", None) is None:
        raise UserError(
            f"a {type(config).__name__} came that has no words for pictures; try a run of seed_draw"
        )
    return part


@functools.lru_cache(maxsize=8)
def _writer(model: Any, bos: int, places: int):
    first, codes = model.config.text.vocab, model.config.pictures.codes

    def read(module, ids_BT, valid_BT):
        return module.join(module.fuse({"text": module.encode_text(ids_BT, valid_BT)}))

    @jax.jit
    def write(params, ids_BT, valid_BT, sampling, key):
        variables = {"params": params}
        memory: Any = model.apply(variables, ids_BT, valid_BT, method=read)
        prompt_BT = jnp.full((len(ids_BT), 1), bos, jnp.int32)
        among: Any = Within(first, codes, sampling)
        ends = {"eos": NEVER, "max_new": places}
        return decode(model, variables, memory, prompt_BT, sampling=among, key=key, **ends).ids

    return write


@functools.lru_cache(maxsize=8)
def _painter(model: Any):
    return jax.jit(lambda params, ids: model.apply({"params": params}, ids, method="paint"))
