"""What the words of a plan mean: those that are in it, a line each."""

from collections.abc import Iterator

from llama_jax.layers.block import SAVED
from llama_jax.plan.policies import parsed

AXES = {
    "data": "devices that have all weights, or a share of each that is theirs alone, and own rows",
    "fsdp": "devices that each keep a share of every weight, fetch the rest by layer; own rows",
    "tensor": "devices that split heads, feed-forward and vocabulary of the same rows",
    "context": "devices that split every sequence; keys go round in a ring",
    "expert": "devices that split the experts",
    "stage": "devices that split the layers, a pipeline; micro-batches go through",
}
STORES = {
    "none": "all that the forward pass made is stored for the backward pass",
    "block": "the input of each block alone is stored; the backward pass computes the rest again",
    "dots": "products with a weight are stored too, the rest is computed again",
    "named": "block, and what it names is stored",
    "offload": "what it names waits in the host's memory; the rest is computed again",
}
ALWAYS = {
    "temporary": "gradients, activations, gathered weights at the worst moment",
    "products": "FLOPs of matrix products / (peak x the efficiency of this kind of chip)",
    "memory": "HBM traffic of the passes, hidden if shorter than the products",
    "network": "gathers and sums between devices; part of it runs beside the products",
    "MFU": "model FLOPs a second / peak: recomputation does not count",
}
HOST = {
    "offloaded": "activations that wait in the host's memory for the backward pass",
    "checkpoint": "weights and optimizer, copied there while a checkpoint is written",
}


def legend(mesh: dict[str, int], remat: str) -> Iterator[str]:
    """Lines that say what the words of a plan mean.

    Args:
      mesh: axis -> size.
      remat: the policy, as in a plan.
    """
    policy, names = parsed(remat)
    words = {axis: AXES[axis] for axis, size in mesh.items() if size > 1}
    words |= {f"remat={policy}": STORES[policy]} | {name: SAVED[name] for name in names or ()}
    words |= HOST | ALWAYS
    width = max(map(len, words))
    yield from (f"  {word:{width}}  {meaning}" for word, meaning in words.items())
