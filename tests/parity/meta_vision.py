"""Meta's own Llama 3.2-Vision (package llama-models) on one CPU, tiny and with random weights."""

import sys
import types

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block, Gated, Seeing
from llama_jax.layers.mlp import MLP, SwiGLU
from llama_jax.layers.norm import LayerNorm, RMSNorm
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.cross_vision import CrossVision
from llama_jax.models.decoder import Decoder
from llama_jax.models.tiled_vision import TiledVision
from tests.parity.meta_reference import _stubs

TILE, PATCH, TILES, KEPT = 28, 14, 4, (1, 3)
WIDTH, LOCAL, ACROSS, VISION_HEADS = 32, 5, 2, 4
VOCAB, TEXT, LAYERS, HEADS, KV_HEADS, HIDDEN, CROSS = 64, 32, 4, 4, 2, 96, 2


def reference():
    """Meta's modules: those of the model, and of the pictures."""
    _stubs()
    functional = types.ModuleType("torchvision.transforms.functional")
    functional.resize = lambda image, size, interpolation: image.resize(size[::-1], interpolation)
    transforms = types.ModuleType("torchvision.transforms")
    transforms.functional = functional
    transforms.InterpolationMode = types.SimpleNamespace(BILINEAR=Image.Resampling.BILINEAR)
    transforms.ToTensor = lambda: _to_tensor
    transforms.Normalize = lambda mean, std, inplace: _normalised(mean, std)
    vision = types.ModuleType("torchvision")
    vision.transforms = transforms
    for module in (vision, transforms, functional):
        sys.modules.setdefault(module.__name__, module)
    import llama_models.llama3.multimodal.image_transform as pictures
    import llama_models.llama3.multimodal.model as meta

    meta.reduce_from_tensor_model_parallel_region = lambda x: x
    meta.gather_from_tensor_model_parallel_region = lambda x: x
    return meta, pictures


def _to_tensor(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float().div(255)


def _normalised(mean, std):
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return lambda x: x.sub(mean).div(std)


def drawn(module, seed):
    """The module with weights of order one, gates too, so that nothing hides."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            fan = value.shape[-1] if value.ndim > 1 else 4
            value.copy_(torch.randn(value.shape, generator=generator) * fan**-0.5)
            if "norm" in name or "ln_" in name:
                value.add_(1 if name.endswith("weight") else 0)
    return module.eval()


def models(positions):
    """Meta's tower with its projection, and its text model, whose schedule is that of 11B."""
    meta, _ = reference()
    tower = meta.VisionEncoder(
        TILES,
        image_size=TILE,
        patch_size=PATCH,
        width=WIDTH,
        layers=LOCAL,
        heads=VISION_HEADS,
        n_global_layers=ACROSS,
        global_model=True,
        return_intermediate=list(KEPT),
    )
    projection = torch.nn.Linear(WIDTH * (len(KEPT) + 1), TEXT)
    args = meta.ModelArgs(
        dim=TEXT,
        n_layers=LAYERS,
        n_heads=HEADS,
        n_kv_heads=KV_HEADS,
        vocab_size=VOCAB,
        multiple_of=HIDDEN,
        rope_theta=1e4,
        max_batch_size=2,
        max_seq_len=positions,
        vision_num_cross_attention_layers=CROSS,
    )
    text = meta.CrossAttentionTransformerText(args)
    text = drawn(text, 2)
    text.setup_cache(2, torch.device("cpu"), torch.float32)
    return drawn(tower, 0), drawn(projection, 1), text


def config():
    """The same model as a value of ours."""
    heads = Attention(VISION_HEADS, VISION_HEADS, WIDTH // VISION_HEADS, rope=None)
    mlp, norm = MLP(4 * WIDTH, bias=True), LayerNorm()
    vision = TiledVision(
        WIDTH,
        TEXT,
        local=Stack((Block(heads, mlp, norm=norm),), LOCAL),
        across=Stack((Block(Gated(heads), Gated(mlp), norm=norm),), ACROSS),
        kept=KEPT,
        tile=TILE,
        patch=PATCH,
    )
    size, ffn = TEXT // HEADS, SwiGLU(HIDDEN)
    own = Block(Attention(HEADS, KV_HEADS, size, rope=Rope(1e4), causal=True), ffn)
    looks = Attention(HEADS, KV_HEADS, size, rope=None, qk_norm=RMSNorm())
    cross = Block(None, Seeing(ffn), cross=Gated(looks))
    decoder = Decoder(VOCAB, TEXT, Stack((own, cross, own), CROSS), tied=False)
    return CrossVision(decoder, vision)


def _numpy(tensor):
    return tensor.detach().numpy()


def _vision_block(get, gated):
    found = {
        "attn_norm": {"scale": get("ln_1.weight"), "bias": get("ln_1.bias")},
        "ffn_norm": {"scale": get("ln_2.weight"), "bias": get("ln_2.bias")},
        "attn": {
            **{
                name: {"w": rearrange(get(f"attn.w{name}.weight"), "(N H) D -> D N H", N=4)}
                for name in "qkv"
            },
            "o": {"w": rearrange(get("attn.wo.weight"), "D (N H) -> N H D", N=4)},
        },
        "ffn": {
            "up": {"w": get("mlp.c_fc.weight").T, "b": get("mlp.c_fc.bias")},
            "down": {"w": get("mlp.c_proj.weight").T, "b": get("mlp.c_proj.bias")},
        },
    }
    if gated:
        found |= {"attn_gate": get("gate_attn")[0], "ffn_gate": get("gate_ffn")[0]}
    return found


def _ffn(get):
    names = {"gate": "w1", "up": "w3", "down": "w2"}
    return {ours: {"w": get(f"feed_forward.{name}.weight").T} for ours, name in names.items()}


def _self_block(get):
    halves = "(N H r) D -> D N (r H)"  # Meta holds the pairs of a rotation side by side
    return {
        "attn_norm": {"scale": get("attention_norm.weight")},
        "ffn_norm": {"scale": get("ffn_norm.weight")},
        "attn": {
            "q": {"w": rearrange(get("attention.wq.weight"), halves, N=HEADS, r=2)},
            "k": {"w": rearrange(get("attention.wk.weight"), halves, N=KV_HEADS, r=2)},
            "v": {"w": rearrange(get("attention.wv.weight"), "(N H) D -> D N H", N=KV_HEADS)},
            "o": {"w": rearrange(get("attention.wo.weight"), "D (N H) -> N H D", N=HEADS)},
        },
        "ffn": _ffn(get),
    }


def _cross_block(get):
    heads = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
    cross = {
        name: {"w": rearrange(get(f"attention.w{name}.weight"), "(N H) D -> D N H", N=n)}
        for name, n in heads.items()
    }
    cross |= {f"{n}_norm": {"scale": get(f"attention.{n}_norm.weight")} for n in "qk"}
    cross["o"] = {"w": rearrange(get("attention.wo.weight"), "D (N H) -> N H D", N=HEADS)}
    return {
        "cross_norm": {"scale": get("attention_norm.weight")},
        "ffn_norm": {"scale": get("ffn_norm.weight")},
        "cross": cross,
        "ffn": _ffn(get),
        "gate": get("gate_attn")[0],
        "ffn_gate": get("gate_ffwd")[0],
    }


def _stacked(trees):
    import jax

    return jax.tree.map(lambda *a: np.stack(a), *trees)


def params(tower, projection, text):
    """Meta's weights as parameters of ours."""
    t = {name: _numpy(value) for name, value in tower.named_parameters()}
    w = {name: _numpy(value) for name, value in text.named_parameters()}

    def below(tensors, prefix):
        return lambda name: tensors[f"{prefix}.{name}"]

    def norm(name):
        return {"scale": t[f"{name}.weight"], "bias": t[f"{name}.bias"]}

    def stack(name, layers, gated):
        every = [below(t, f"{name}.resblocks.{i}") for i in range(layers)]
        return {"layers": {"block_0": _stacked([_vision_block(get, gated) for get in every])}}

    vision = {
        "patches": {"w": t["conv1._linear.weight"].T},
        "first": t["class_embedding"],
        "place": t["positional_embedding"],
        "places": t["gated_positional_embedding"],
        "places_gate": t["gated_positional_embedding_gate"][0],
        "before": t["pre_tile_pos_embed.embedding"],
        "before_gate": t["pre_tile_pos_embed.gate"][0],
        "after": t["post_tile_pos_embed.embedding"],
        "after_gate": t["post_tile_pos_embed.gate"][0],
        "pre_norm": norm("ln_pre"),
        "post_norm": norm("ln_post"),
        "local": stack("transformer", LOCAL, False),
        "across": stack("global_transformer", ACROSS, True),
        "out": {"w": _numpy(projection.weight).T, "b": _numpy(projection.bias)},
    }
    own = [_self_block(below(w, f"layers.{i}")) for i in range(LAYERS)]
    cross = [_cross_block(below(w, f"cross_attention_layers.{i}")) for i in range(CROSS)]
    layers = {
        "block_0": _stacked(own[0::2]),
        "block_1": _stacked(cross),
        "block_2": _stacked(own[1::2]),
    }
    return {
        "vision": vision,
        "extra": {"w": w["learnable_embedding.weight"]},
        "decoder": {
            "embed": {"w": w["tok_embeddings.weight"]},
            "stack": {"layers": layers},
            "norm": {"scale": w["norm.weight"]},
            "out": {"w": w["output.weight"].T},
        },
    }


def logits(tower, projection, text, ids_BT, pixels, grid_BI2, spans):
    """Meta's logits; `pixels` [B,I,M,Y,X,R] or None, `spans` who sees each picture of each row."""
    meta, _ = reference()
    ids = torch.tensor(ids_BT)
    positions = torch.arange(ids.shape[1])
    with torch.no_grad():
        h = text.get_partially_trainable_embedding(ids)
        if pixels is None:
            return _numpy(text.forward(positions, h, None, None, None, text_only_inference=True))
        images = torch.tensor(rearrange(pixels, "B I M Y X R -> B I M R Y X"))
        tokens = projection(tower(images, torch.tensor(grid_BI2)))
        flat = tokens.flatten(1, 3)
        caches = torch.stack([l.compute_xattn_kv_cache(flat) for l in text.cross_attention_layers])
        counts = [[int(rows * columns) for rows, columns in row] for row in grid_BI2]
        masks = meta._pad_masks(
            [[list(s) for s in row] for row in spans], counts, len(ids[0]), TILES
        )
        mask, rows = text._get_xattn_mask(len(ids[0]), "cpu", torch.float32, tokens, masks)
        return _numpy(text.forward(positions, h, mask, rows, caches))


def leaves(params):
    """All weights, in one order."""
    import jax

    return jax.tree.leaves(params)
