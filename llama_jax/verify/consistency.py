"""The same tokens as in training, in prefill and in decoding: the same log-probabilities.

These are three programs: whole sequences without a cache; prompts in chunks into a cache, padded on
the left where they are shorter than others of their batch; one token after another out of it.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.axes import using
from llama_jax.generate.engine import Engine
from llama_jax.verify.report import Line, Section, within
from llama_jax.verify.rounding import tolerance

STEPS = 16  # tokens decoded
ROWS = 4


def whole(engine: Engine, ids: Sequence[int], positions: Sequence[int] | None = None) -> np.ndarray:
    """Logits of a sequence as in training, [T,V] float32, at positions of one's choice."""
    ids_BT = np.array([ids], np.int32)
    if positions is None:
        return np.asarray(engine.logits(ids_BT))[0]
    with using(engine.mesh, engine.rules):
        found = _at(engine.module, engine.params, ids_BT, np.array([positions], np.int32))
    return np.asarray(found)[0]


@partial(jax.jit, static_argnames="module")
def _at(module, params, ids_BT, positions_BT):
    return module.apply({"params": params}, ids_BT, positions_BT=positions_BT, method="decode")[0]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In float64, so that it adds nothing to what is compared."""
    logits = logits.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def lengths(tokens: int) -> list[int]:
    """Of prompts, the longest first, such that each can be followed by `STEPS` tokens."""
    longest = tokens - STEPS
    return sorted({max(1, longest * part // ROWS - (part < ROWS)) for part in range(1, ROWS + 1)})[
        ::-1
    ]


def consistency(engine: Engine, ids: Sequence[int], logits_TV: np.ndarray) -> Section:
    """Compares prefill and decode with training, a row alone and several together.

    Args:
      engine: the model.
      ids: the tokens, at least `STEPS` + 1.
      logits_TV: what training gives for them.
    """
    scale = float(np.abs(logits_TV).max())
    share = tolerance(engine.module.config, engine.module.dtype)
    bound = share * max(scale, 1.0)
    kind = jnp.dtype(engine.module.dtype).name
    coarse = "" if kind == "float32" else ", in which only coarse faults show"
    lines = [
        Line(
            "tolerance",
            f"{bound:.1e}: {share:.1e} of the largest logit, {scale:.3g}, in {kind}{coarse}",
            numbers={"bound": bound, "scale": scale},
        )
    ]
    several = lengths(len(ids))
    cases = {"one row": several[:1], f"{len(several)} rows, left-padded": several}
    for case, sizes in cases.items():
        prefill, decode = _differences(engine, ids, sizes, logits_TV)
        for name, found in (("prefill", prefill), ("decode", decode)):
            count = len(sizes) * (STEPS if name == "decode" else 1)
            lines.append(
                within(
                    f"{name}, {case}",
                    found,
                    bound,
                    f"largest difference {found:.1e} over {count} token(s)",
                )
            )
    return Section("log-probabilities: prefill and decode against training", tuple(lines))


def _differences(
    engine: Engine, ids: Sequence[int], sizes: Sequence[int], logits_TV: np.ndarray
) -> tuple[float, float]:
    """The largest in prefill, of the text's next tokens, and in decoding, of the model's own."""
    rows = engine.rows(len(sizes), sizes[0] + STEPS)
    logits = rows.feed([ids[:size] for size in sizes])
    found = log_softmax(np.asarray(logits))
    expected = log_softmax(logits_TV[[size - 1 for size in sizes]])
    after = [ids[size] for size in sizes]
    at = np.arange(len(sizes))
    prefill = np.abs(found - expected)[at, after].max()
    steps = list(rows.tokens(logits, STEPS))
    new_BT, logp_BT = (np.concatenate(parts, 1) for parts in zip(*steps, strict=True))
    decode = 0.0
    for size, new, logp in zip(sizes, new_BT.tolist(), logp_BT, strict=True):
        # What comes later is not seen, so the sequence has the length of the program that is there.
        again = [*ids[:size], *new, *ids[size + STEPS :]]
        expected = log_softmax(whole(engine, again)[size - 1 : size - 1 + STEPS])
        decode = np.maximum(decode, np.abs(logp - expected[np.arange(STEPS), new]).max())
    return float(prefill), float(decode)
