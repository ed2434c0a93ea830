"""How well a text is predicted, and whether q and k are in the order that the format promises.

A file whose q and k lie in the other order (Meta's pairs side by side, or Hugging Face's halves)
loads without a complaint and talks nonsense; the other order then predicts the text better.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from llama_jax.axes import using
from llama_jax.generate.engine import Engine
from llama_jax.verify.consistency import log_softmax
from llama_jax.verify.report import Line, Section

# Nats a token. Right weights lose several by the wrong order; random ones win or lose hundredths.
BETTER = 0.5


def prediction(
    engine: Engine, ids: Sequence[int], logits_TV: np.ndarray, interleaved: bool
) -> Section:
    """Scores the text as the weights were read, and with q and k in the other order.

    Args:
      engine: the model.
      ids: tokens of a text.
      logits_TV: for them.
      interleaved: whether the format has pairs side by side.
    """
    read = nats(logits_TV, ids)
    uniform = float(np.log(logits_TV.shape[1]))
    with using(engine.mesh, engine.rules):
        ids_BT = jnp.array([ids], jnp.int32)
        turned = _turned(engine.module, engine.params, ids_BT, interleaved=interleaved)
    other = nats(np.asarray(turned)[0], ids)
    much_better = not other > read - BETTER
    lines = (
        Line(
            "as read",
            f"{read:.4f} nats a token, perplexity {np.exp(read):.4g} (a guess: {uniform:.2f} nats)",
            numbers={"nats": read, "uniform": uniform},
        ),
        Line(
            "q and k the other way",
            f"{other:.4f} nats a token"
            + (
                "; that is the right order, so the file has not the one of its format"
                if much_better
                else ""
            ),
            "failed" if much_better else "ok",
            {"nats": other, "better_by_at_most": BETTER},
        ),
    )
    return Section("how well the text is predicted", lines)


def nats(logits_TV: np.ndarray, ids: Sequence[int]) -> float:
    """Mean negative log-probability of each token but the first."""
    scores = log_softmax(logits_TV[:-1])[np.arange(len(ids) - 1), list(ids[1:])]
    return float(-scores.mean())


@partial(jax.jit, static_argnames=("module", "interleaved"))
def _turned(module, params, ids_BT, *, interleaved: bool):
    """Logits with q and k as if the file's order were the other one; inside one program, so that
    no second copy of all of them is needed."""

    def turn(path: Any, weight: jax.Array) -> jax.Array:
        names = [key.key for key in path]
        if "attn" not in names or names[-2] not in ("q", "k"):
            return weight
        if interleaved:  # was turned from pairs into halves: back
            return rearrange(weight, "... (r h) -> ... (h r)", r=2)
        return rearrange(weight, "... (h r) -> ... (r h)", r=2)

    turned = jax.tree_util.tree_map_with_path(turn, params)
    return module.apply({"params": turned}, ids_BT, method="decode")[0]
