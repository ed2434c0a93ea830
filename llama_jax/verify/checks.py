"""`verify`: all checks in order.

ledger = verify("Llama-3.2-1B")
print(ledger.text())
assert not ledger.failed
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from llama_jax.checked import checked_call
from llama_jax.errors import UserError, nearest
from llama_jax.families.sizes import sizes
from llama_jax.generate.engine import Engine
from llama_jax.verify import compare
from llama_jax.verify.consistency import consistency, whole
from llama_jax.verify.declared import said
from llama_jax.verify.facts import facts
from llama_jax.verify.layout import prediction
from llama_jax.verify.reference import Unavailable, reference
from llama_jax.verify.report import Ledger, Line, Section, unchecked
from llama_jax.verify.rope import rope
from llama_jax.verify.rounding import tolerance
from llama_jax.verify.text import Tokens, tokens
from llama_jax.verify.tokenizer import words
from llama_jax.weights.opened import Checkpoint

AGAINST = ("transformers", "none")
TITLE = "against another program"


@checked_call
def verify(
    path: Any = None,
    text: str | None = None,
    against: str = "transformers",
    dtype: Any = "float32",
    pickle: bool = False,
    progress: Callable[[Iterable], Iterable] = iter,
    say: Callable[[str], None] = lambda line: None,
) -> Ledger:
    """Checks weights of any format.

    Args:
      path: as for `llama_jax.load`.
      text: to try them on; a built-in one by default.
      against: "transformers", or "none".
      dtype: what we compute in; the other program computes in float32.
      pickle: whether Meta's .pth files may be opened.
      progress: wraps the tensors while they are read.
      say: told in a line what is being done.

    Raises:
      UserError: nothing there, a file that is not what it should be, or a text too short.
    """
    from llama_jax.generate.lm import open_engine
    from llama_jax.weights.find import find
    from llama_jax.weights.opened import open_checkpoint

    if against not in AGAINST:
        raise UserError(
            f"--against {against}: {' or '.join(AGAINST)} was expected{nearest(against, AGAINST)}"
        )
    checkpoint = open_checkpoint(find(path), pickle=pickle)
    sizes(checkpoint.model)  # refuses models of other blocks before anything is read
    say("reading the weights")
    held = [open_engine(checkpoint, dtype=dtype, progress=progress)]
    # Popped, so that nobody but `examine` holds the weights, which lets go of them in time.
    return examine(checkpoint, held.pop(), text, against, say)


def examine(
    checkpoint: Checkpoint,
    engine: Engine,
    text: str | None = None,
    against: str = "transformers",
    say: Callable[[str], None] = lambda line: None,
) -> Ledger:
    """Checks a model that is open; see `verify`."""
    model, told = engine.module.config, said(checkpoint)
    size = sizes(model)
    tokenizer, vocabulary = words(checkpoint)
    chosen = tokens(text, tokenizer, model.vocab, model.context)
    # Accelerators multiply float32 in fewer digits unless told not to.
    with jax.default_matmul_precision("highest"):
        sections = [
            facts(checkpoint, model, told),
            vocabulary,
            rope(size.rope, size.head_dim, told),
        ]
        say("computing logits in three ways")
        logits_TV = whole(engine, chosen.ids)
        sections.append(consistency(engine, chosen.ids, logits_TV))
        sections.append(_prediction(checkpoint, engine, chosen, logits_TV))
        far = _apart(engine, chosen)
        far_TV = None if far is None else whole(engine, chosen.ids, far)
    share = tolerance(model, engine.module.dtype)
    del engine  # the other program's weights may need its memory
    if against == "none":
        last = Section(TITLE, (unchecked("transformers", "not asked for"),))
    else:
        say("computing the same in transformers")
        last = _reference(checkpoint, chosen, logits_TV, far, far_TV, share)
    return Ledger(str(checkpoint.place), (*sections, last))


def _prediction(
    checkpoint: Checkpoint, engine: Engine, chosen: Tokens, logits_TV: np.ndarray
) -> Section:
    about = Line("tokens", chosen.about, numbers={"count": len(chosen.ids)})
    if not chosen.real:
        reason = "random tokens cannot be predicted"
        found = Section(
            "how well the text is predicted", (unchecked("q and k the other way", reason),)
        )
    else:
        interleaved = checkpoint.table is not None and checkpoint.table.interleaved
        found = prediction(engine, chosen.ids, logits_TV, interleaved)
    return Section(found.title, (about, *found.lines))


def _apart(engine: Engine, chosen: Tokens) -> list[int] | None:
    """The first half at the beginning of the context, the second at its end.

    Keys are then as far from queries as they can be, and near ones still where a model expects
    them: with tokens evenly spread over the context, rounding is amplified ten times.
    """
    context, count = engine.context, len(chosen.ids)
    if context is None:
        return None
    half = count // 2
    return [*range(half), *range(context - (count - half), context)]


def _reference(
    checkpoint: Checkpoint,
    chosen: Tokens,
    logits_TV: np.ndarray,
    far: list[int] | None,
    far_TV: np.ndarray | None,
    share: float,
) -> Section:
    try:
        theirs = reference(checkpoint)
    except Unavailable as error:
        return Section(TITLE, (unchecked("transformers", str(error)),))
    found = [Line("read there", note) for note in theirs.notes]
    near = compare.compare(logits_TV, theirs.logits(chosen.ids), chosen.ids)
    found += compare.lines("positions from 0", near, share)
    size = sizes(checkpoint.model)
    if far is None or far_TV is None:
        found.append(unchecked("logits, far apart", "the model states no context"))
    elif size.chunks or size.tuning is not None:
        reason = "transformers counts chunks, and how queries grow, by places in the row"
        found.append(unchecked("logits, far apart", reason))
    else:
        apart = compare.compare(far_TV, theirs.logits(chosen.ids, far), chosen.ids)
        found += compare.lines(f"second half up to {far[-1]:,}", apart, share)
    return Section(f"against {theirs.name}, float32 on the CPU", tuple(found))
