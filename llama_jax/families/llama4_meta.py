"""Meta's folders of Llama 4: params.json and consolidated.NN.pth, in any number of files.

Each file holds the part of one device. Some tensors are several, one below the other, and so are
taken apart in each file before the files are put together (`llama_models/llama4`, the hooks of
`model.py`, `moe.py` and `ffn.py`):

attention.wqkv.weight                   wq, wk, wv
mlp.fc1_weight                          w1, w3, and fc2_weight is w2
experts.moe_w_in_eD_F, moe_w_swiglu_eD_F, moe_w_out_eF_D     w1, w3, w2 of all experts
*.layer_norm_weight, feed_forward.norm.weight                the norm before them
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.errors import FormatError
from llama_jax.families.llama4_names import META
from llama_jax.families.llama4_params import Llama4Shapes, model
from llama_jax.families.llama_meta import LLAMA4, source
from llama_jax.families.names import Table
from llama_jax.formats import pth
from llama_jax.formats.source import Source, inside, read_json
from llama_jax.models.decoder import Decoder

VISION = ("vision_embeddings.", "vision_projection.")  # not read
UNUSED = "rope.freqs"
# Another name -> the one in our table; of tensors that are as they are.
RENAMED = {
    "attention.wqkv.layer_norm_weight": "attention_norm.weight",
    "feed_forward.mlp.layer_norm_weight": "ffn_norm.weight",
    "feed_forward.norm.weight": "ffn_norm.weight",
    "feed_forward.mlp.fc2_weight": "feed_forward.w2.weight",
    "feed_forward.w_in_shared_FD.weight": "feed_forward.shared_expert.w1.weight",
    "feed_forward.w_swiglu_FD.weight": "feed_forward.shared_expert.w3.weight",
    "feed_forward.w_out_shared_DF.weight": "feed_forward.shared_expert.w2.weight",
}
# A fused tensor -> its parts, one below the other.
FUSED = {
    "attention.wqkv.weight": ("attention.wq.weight", "attention.wk.weight", "attention.wv.weight"),
    "feed_forward.mlp.fc1_weight": ("feed_forward.w1.weight", "feed_forward.w3.weight"),
}
FLAT = {
    "feed_forward.experts.moe_w_in_eD_F": "feed_forward.experts.w1",
    "feed_forward.experts.moe_w_swiglu_eD_F": "feed_forward.experts.w3",
    "feed_forward.experts.moe_w_out_eF_D": "feed_forward.experts.w2",
}
# Along which axis the files split a tensor; the others are in all of them.
AXES = {
    r"(wq|wk|wv|w1|w3)\.weight": 0,
    r"(wo|w2)\.weight": 1,
    r"experts\.(w1|w3)": 2,
    r"experts\.w2": 1,
    r"(tok_embeddings|output)\.weight": 0,
}
SPLIT = [(re.compile(rf"(.*\.)?{pattern}"), axis) for pattern, axis in AXES.items()]
# Meta's words to Hugging Face's, one after the other: a second program than the tables.
WORDS = {
    "tok_embeddings": "model.embed_tokens",
    "output.": "lm_head.",
    "layers.": "model.layers.",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.w": "self_attn.",
    "shared_expert.w": "shared_expert.",
    "feed_forward.w": "feed_forward.",
    "router_DE": "router.weight",
    "experts.w1": "experts.gate_up_proj[0]",
    "experts.w3": "experts.gate_up_proj[1]",
    "experts.w2": "experts.down_proj",
}
PROJECTIONS = {"q": "q", "k": "k", "v": "v", "o": "o", "1": "gate", "3": "up", "2": "down"}


@dataclass(frozen=True)
class Llama4Meta:
    """How Llama 4 is written down in Meta's folders.

    Attributes:
      table: the names of tensors, when they are taken apart.
      assumed: see `base.Meta`.
    """

    table: Table = META
    assumed: tuple[float, float | None, float] = (500_000.0, 16.0, 1.0)

    def claims(self, params: Mapping[str, Any]) -> bool:
        """Whether a params.json is of this family."""
        return any(params.get(field) for field in LLAMA4)

    def open(
        self, folder: str | Path, pickle: bool = False
    ) -> tuple[Decoder, Source, tuple[str, ...]]:
        """The language model of a folder, its tensors, and the names of those that are not read.

        Args:
          folder: with params.json and consolidated.00.pth.
          pickle: whether .pth files may be opened.

        Raises:
          UserError: they may not, or torch is missing or too old.
          FormatError: a file that is missing or is not what it should be.
        """
        place = Path(folder)
        params = read_json(inside(place, "params.json"))
        files = pth.files(place)
        shards = [apart(shard, params, files[0]) for shard in pth.load(files, pickle)]
        axes = {name: _axis(name) if len(shards) > 1 else None for name in shards[0]}
        whole = {name: pth.whole(name, shards, axis) for name, axis in axes.items()}
        ours = model(params, Llama4Shapes.of(whole, files[0]), place / "params.json")
        unused = tuple(name for name in whole if name.startswith((*VISION, UNUSED)))
        return ours, source(place, files, shards, axes, ours, self.table), unused

    def renamed(self, model: Decoder, name: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
        """A tensor as Hugging Face has it: pairs stay side by side, the router is turned."""
        for theirs, other in WORDS.items():
            name = name.replace(theirs, other)
        short = re.fullmatch(r"(.*\.)([qkvo123])\.weight", name)
        if short is not None:
            name = f"{short[1]}{PROJECTIONS[short[2]]}_proj.weight"
        name = "model.norm.weight" if name == "norm.weight" else name
        return name, tensor.T if name.endswith("router.weight") else tensor


def apart(shard: dict[str, Any], params: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The tensors of one file under the names of the table; views, so nothing is read.

    Raises:
      FormatError: a fused tensor that does not divide.
    """
    found: dict[str, Any] = {}
    heads = params.get("n_heads"), params.get("n_kv_heads") or params.get("n_heads")
    experts = (params.get("moe_args") or {}).get("num_experts")
    for name, tensor in shard.items():
        layer, rest = re.fullmatch(r"(layers\.\d+\.)?(.*)", name).groups("")  # pyright: ignore
        if rest.endswith("._extra_state"):  # of the program that trained it
            continue
        if rest in FUSED:
            shares = (heads[0], heads[1], heads[1]) if len(FUSED[rest]) == 3 else (1, 1)
            rows = _divided(len(tensor), shares, name, file)
            parts = tensor.split(rows)
            found |= {layer + part: one for part, one in zip(FUSED[rest], parts, strict=True)}
        elif rest in FLAT:
            _divided(len(tensor), (experts,), name, file)
            found[layer + FLAT[rest]] = tensor.reshape(experts or 1, -1, tensor.shape[-1])
        else:
            found[layer + RENAMED.get(rest, rest)] = tensor
    return found


def _divided(rows: int, shares: tuple[Any, ...], name: str, file: Path) -> list[int]:
    """The rows of each part."""
    whole = all(type(share) is int and share > 0 for share in shares)
    if not whole or rows % sum(shares):
        raise FormatError(
            f"{file}: tensor {name!r:.90} has {rows} rows, which the numbers of params.json, "
            f"{list(shares)}, do not divide"
        )
    return [rows * share // sum(shares) for share in shares]


def _axis(name: str) -> int | None:
    """The axis along which a tensor is split over the files, or None."""
    return next((axis for pattern, axis in SPLIT if pattern.fullmatch(name)), None)
