"""Meta's own tower of Llama 4 (package llama-models) on one CPU, tiny and with random weights."""

import sys

import jax
import numpy as np
import torch
from einops import rearrange

from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import MLP
from llama_jax.layers.norm import LayerNorm
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.shuffled_vision import ShuffledVision
from tests.parity import meta_vision
from tests.parity.meta_reference import _stubs

TILE, PATCH, WIDTH, LAYERS, HEADS, ADAPTER, OUT = 56, 14, 32, 3, 4, 24, 16


def reference():
    """Meta's modules: the tower's, its adapter's, and those of pictures and of their ids."""
    meta_vision.reference()
    # The names that Llama 4's preprocessing has for what `meta_vision` stands in.
    transforms = sys.modules["torchvision.transforms"]
    functional = sys.modules["torchvision.transforms.functional"]
    transforms.Compose = _composed  # pyright: ignore
    transforms.Resize = lambda size: lambda image: functional.resize(image, size, 2)  # pyright: ignore
    _stubs()
    for name in ("preprocess", "chat_format"):  # test_chat stands in for what has no pictures
        sys.modules.pop(f"llama_models.llama4.{name}", None)
    import llama_models.llama4.chat_format as formats
    import llama_models.llama4.preprocess as pictures
    import llama_models.llama4.vision.embedding as adapter
    import llama_models.llama4.vision.encoder as tower

    return tower, adapter, pictures, formats


def _composed(steps):
    def apply(image):
        for step in steps:
            image = step(image)
        return image

    return apply


def models():
    """Meta's tower, its adapter and its projection."""
    tower, adapter, _, _ = reference()
    # Its attention has a cache on a GPU, which a tower does not use.
    before, torch.Tensor.cuda = torch.Tensor.cuda, lambda self, *_: self  # pyright: ignore
    try:
        encoder = tower.VisionEncoder((TILE, TILE), (PATCH, PATCH), WIDTH, LAYERS, HEADS, 4.0)
    finally:
        torch.Tensor.cuda = before
    shuffle = adapter.PixelShuffleMLP(0.5, WIDTH, ADAPTER)
    projection = torch.nn.Linear(ADAPTER, OUT, bias=False)
    found = encoder, shuffle, projection
    return tuple(meta_vision.drawn(module, seed) for seed, module in enumerate(found))


def config():
    """The same tower as a value of ours."""
    size, rope = WIDTH // HEADS, Rope(split=(1, 1))
    heads = Attention(HEADS, HEADS, size, rope=rope, bias=True, out_bias=True)
    block = Block(heads, MLP(4 * WIDTH, bias=True), norm=LayerNorm())
    return ShuffledVision(WIDTH, OUT, Stack((block,), LAYERS), ADAPTER, TILE, PATCH)


def params(encoder, shuffle, projection):
    """Meta's weights as parameters of ours."""
    t = {name: value.detach().numpy() for name, value in encoder.named_parameters()}

    def norm(name):
        return {"scale": t[f"{name}.weight"], "bias": t[f"{name}.bias"]}

    def block(at):
        # Meta holds the pairs of a rotation side by side.
        into = {"q": "(N H r) ... -> ... N (r H)", "k": "(N H r) ... -> ... N (r H)"}
        attn = {}
        for n in "qkv":
            axes, r = into.get(n, "(N H) ... -> ... N H"), {"r": 2} if n in into else {}
            w, b = (t[f"{at}.attn.w{n}.{part}"] for part in ("weight", "bias"))
            attn[n] = {"w": rearrange(w, axes, N=HEADS, **r), "b": rearrange(b, axes, N=HEADS, **r)}
        out = rearrange(t[f"{at}.attn.wo.weight"], "D (N H) -> N H D", N=HEADS)
        attn["o"] = {"w": out, "b": t[f"{at}.attn.wo.bias"]}
        names = {"up": "c_fc", "down": "c_proj"}
        return {
            "attn_norm": norm(f"{at}.ln_1"),
            "ffn_norm": norm(f"{at}.ln_2"),
            "attn": attn,
            "ffn": {
                n: {"w": t[f"{at}.mlp.{name}.weight"].T, "b": t[f"{at}.mlp.{name}.bias"]}
                for n, name in names.items()
            },
        }

    blocks = [block(f"transformer.resblocks.{i}") for i in range(LAYERS)]
    stacked = jax.tree.map(lambda *a: np.stack(a), *blocks)
    return {
        "patches": {"w": t["conv1._linear.weight"].T},
        "last": t["class_embedding"],
        "place": t["positional_embedding_vlm"],
        "pre_norm": norm("ln_pre"),
        "post_norm": norm("ln_post"),
        "stack": {"layers": {"block_0": stacked}},
        "adapter": {"w": shuffle.mlp.c_fc.weight.detach().numpy().T},
        "adapter_out": {"w": shuffle.mlp.c_proj.weight.detach().numpy().T},
        "out": {"w": projection.weight.detach().numpy().T},
    }
