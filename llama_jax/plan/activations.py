"""What a block makes of a token, and what each policy leaves of it for the backward pass."""

from typing import Any

from llama_jax.config import children
from llama_jax.layers.attention import Attention
from llama_jax.layers.experts import Experts
from llama_jax.layers.mlp import MLP
from llama_jax.plan.program import stacks


def model_width(model: Any) -> int:
    """The width D of a model, which all its parts share."""
    parts = [model, *children(model).values()]
    return next(part.width for part in parts if hasattr(part, "width"))


def head_dim(model: Any) -> int:
    """The smallest H of its attention."""
    blocks = [block for stack in stacks(model).values() for block in stack.pattern]
    parts = [part for block in blocks for part in children(block).values()]
    return min(part.head_dim for part in parts if isinstance(part, Attention))


def experts_in(pattern: tuple[Any, ...]) -> int:
    """How many blocks have experts."""
    return sum(isinstance(getattr(block, "ffn", None), Experts) for block in pattern)


def hidden_width(ffn: Any) -> int:
    """The inner width F that a token goes through: of experts, those that it chooses and shares."""
    if not isinstance(ffn, Experts):
        return ffn.hidden
    return ffn.top_k * ffn.hidden + (0 if ffn.shared is None else ffn.shared.hidden)


def elements(block: Any, width: float, tensor: int) -> dict[str, float]:
    """Numbers a token that a block makes on a device that has `width` of D.

    Returns:
      "all", those that are results of "products", "keys" with values, and those that
      rematerialisation may name (`block.SAVED`).
    """
    attention, hidden = block.attention, hidden_width(block.ffn)
    q = attention.heads * attention.head_dim / tensor
    k = attention.kv_heads * attention.head_dim / tensor
    gates = 1 if isinstance(block.ffn, MLP) else 2
    products = q + 2 * k + gates * hidden / tensor + 2 * width
    return {
        "keys": 2 * k,
        "products": products,
        "input": width,
        "q": q,
        "k": k,
        "v": k,
        "all": products + 3 * width + 2 * q + k + 4 * hidden / tensor,
        "attention": q,
        "attn": width,
        "cross": width,
        "hidden": hidden / tensor,
        "ffn": width,
    }


def stored(each: dict[str, float], width: float, remat: str, names: tuple[str, ...]) -> float:
    """Numbers a token that a block leaves on the device for its backward pass.

    Args:
      each: from `elements`.
      width: the part of D that the device has.
      remat: value of `Stack.remat`.
      names: what "named" stores; with "offload" that lies in the memory of the host.
    """
    if remat in ("none", "dots"):
        return each["all" if remat == "none" else "products"]
    if "input" in names and remat in ("named", "offload"):
        width = 0.0  # it is what the name stores
    return width + (sum(each[name] for name in names) if remat == "named" else 0)
