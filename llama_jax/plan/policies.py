"""What the backward pass finds again, as a text: "block", "named:hidden", "offload:input,q".

A policy is a value of `Stack.remat`; after a colon come the names that it stores (`Stack.saved`),
without one those of the run itself.
"""

from typing import Any, get_args

from llama_jax.config import Run, edit
from llama_jax.errors import UserError, nearest
from llama_jax.layers.block import SAVED
from llama_jax.layers.stack import Remat
from llama_jax.models.decoder import Decoder

REMATS: tuple[str, ...] = get_args(Remat)
# Tried unasked everywhere, and of language models on TPUs: the inputs of blocks alone in the host's
# memory, which leaves the device the least of all; with all that attention takes and gives, so that
# the backward pass computes only the feed-forward again.
EVERYWHERE = tuple(remat for remat in REMATS if remat != "offload")
OFFLOADED = ("offload:input", "offload:input,q,k,v,attention")


def parsed(text: str) -> tuple[str, tuple[str, ...] | None]:
    """The value of `remat` and the names that a policy gives, None if it gives none.

    Raises:
      UserError: a policy, or a name, that there is not.
    """
    remat, colon, listed = text.partition(":")
    if remat not in REMATS:
        raise UserError(
            f"no remat policy {remat!r}; there are {', '.join(REMATS)}" + nearest(remat, REMATS)
        )
    if not colon:
        return remat, None
    if remat not in ("named", "offload"):
        raise UserError(
            f"--remat {text}: {remat} stores no names; leave out what follows the colon"
        )
    names = tuple(name.strip() for name in listed.split(","))
    for name in names:
        if name not in SAVED:
            raise UserError(
                f"--remat {text}: {name!r} names no activation; a block has {', '.join(SAVED)}"
                + nearest(name, SAVED)
            )
    return remat, names


def with_policy(run: Run, paths: Any, text: str) -> Run:
    """The run whose stacks, at these paths, have the policy.

    Raises:
      UserError: see `parsed`.
    """
    remat, names = parsed(text)
    for path in paths:
        run = edit(run, f"{path}.remat", remat)
        if names is not None:
            run = edit(run, f"{path}.saved", names)
    return run


def tried(gpu: bool, run: Run) -> tuple[str, ...]:
    """The policies that a search tries if none is asked for.

    Args:
      gpu: whether for GPUs, where nothing is offloaded unasked.
      run: the Run.
    """
    return EVERYWHERE if gpu or not isinstance(run.model, Decoder) else EVERYWHERE + OFFLOADED
