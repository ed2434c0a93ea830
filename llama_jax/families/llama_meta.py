"""Meta's folders of Llama 1 to 3: params.json and consolidated.NN.pth, in any number of files.

rows of each file one below the other    wq, wk, wv, w1, w3, output; tok_embeddings of Llama 3
columns side by side                     wo, w2; tok_embeddings of Llama 1 and 2
in every file the same                   norms
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.errors import FormatError
from llama_jax.families.llama_params import Shapes, model
from llama_jax.families.names import Table, tensors
from llama_jax.families.sizes import sizes
from llama_jax.formats import pth
from llama_jax.formats.source import Source, Tensor, inside, read_json
from llama_jax.models.decoder import Decoder

NAMES = Table(
    embed=(("embed/w", "tok_embeddings.weight", "V D -> V D"),),
    attention=(
        ("attn_norm/scale", "layers.{layer}.attention_norm.weight", "D -> D"),
        ("attn/q/w", "layers.{layer}.attention.wq.weight", "(N H r) D -> D N (r H)"),
        ("attn/k/w", "layers.{layer}.attention.wk.weight", "(K H r) D -> D K (r H)"),
        ("attn/v/w", "layers.{layer}.attention.wv.weight", "(K H) D -> D K H"),
        ("attn/o/w", "layers.{layer}.attention.wo.weight", "D (N H) -> N H D"),
    ),
    ffn=(
        ("ffn_norm/scale", "layers.{layer}.ffn_norm.weight", "D -> D"),
        ("ffn/gate/w", "layers.{layer}.feed_forward.w1.weight", "F D -> D F"),
        ("ffn/up/w", "layers.{layer}.feed_forward.w3.weight", "F D -> D F"),
        ("ffn/down/w", "layers.{layer}.feed_forward.w2.weight", "D F -> F D"),
    ),
    out=(
        ("norm/scale", "norm.weight", "D -> D"),
        ("out/w", "output.weight", "V D -> D V"),
    ),
)
TYPES = ("float64", "float32", "float16", "bfloat16")
EMBED, W1 = "tok_embeddings.weight", "layers.0.feed_forward.w1.weight"
COLUMNS = ("attention.wo.weight", "feed_forward.w2.weight")
UNUSED = "rope.freqs"
# Fields of params.json that Llama 4 alone has.
LLAMA4 = ("moe_args", "nope_layer_interval", "attention_chunk_size", "use_qk_norm", "ffn_exp")

# Of Llama 3.2-Vision: how many layers look at pictures.
VISION = "vision_num_cross_attention_layers"

# Below a layer, Meta's names to Hugging Face's: a second program than the tables, for `verify`.
LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
ENDS = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True)
class LlamaMeta:
    """How Llama is written down in Meta's folders.

    Attributes:
      table: the names of tensors.
      assumed: see `base.Meta`.
    """

    table: Table = NAMES
    assumed: tuple[float, float | None, float] = (10_000.0, None, 4.0)

    def claims(self, params: Mapping[str, Any]) -> bool:
        """Whether a params.json is of this family."""
        return not any(params.get(field) for field in (*LLAMA4, VISION))

    def open(
        self, folder: str | Path, pickle: bool = False
    ) -> tuple[Decoder, Source, tuple[str, ...]]:
        """The model of a folder, its tensors, and the names of those that are not read.

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
        shards = pth.load(files, pickle)
        first = shards[0]
        for name in (EMBED, W1):
            if name not in first or first[name].ndim != 2:
                raise FormatError(
                    f"{files[0]}: tensor {name!r} is missing; is this a Llama of Meta?"
                )
        shapes = Shapes(
            vocab=pth.whole(EMBED, shards, _axis(EMBED, shards, params.get("dim")))[0],
            hidden=sum(shard[W1].shape[0] for shard in shards),
            output="output.weight" in first,
        )
        ours = model(params, shapes, place / "params.json")
        axes = {name: _axis(name, shards, ours.width) for name in first}
        unused = tuple(name for name in first if name == UNUSED)
        return ours, source(place, files, shards, axes, ours, self.table), unused

    def renamed(self, model: Decoder, name: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
        """A tensor as Hugging Face has it: of q and k rows 0, 2, 4, ... of each head come first."""
        short = name.removesuffix(".weight")
        if not name.startswith("layers."):
            return f"{ENDS[short]}.weight", tensor
        _, layer, rest = short.split(".", 2)
        if rest in ("attention.wq", "attention.wk"):
            head = sizes(model).head_dim
            order = np.concatenate([np.arange(0, head, 2), np.arange(1, head, 2)])
            rows = np.arange(0, len(tensor), head)[:, None] + order
            tensor = tensor[rows.reshape(-1)]
        return f"model.layers.{layer}.{LAYER[rest]}.weight", tensor


def source(
    place: Path,
    files: list[Path],
    shards: list[dict[str, Any]],
    axes: Mapping[str, int | None],
    model: Decoder,
    table: Table,
) -> Source:
    """The tensors of a set of files.

    Args:
      place: the folder.
      files: the set.
      shards: the tensors of each.
      axes: along which the files split each tensor; None if it is in all of them.
      model: the model.
      table: the names of its tensors.

    Raises:
      FormatError: a weight of a type that is none of numbers, or files of several shapes.
    """
    found = {}
    for name, axis in axes.items():
        kind = str(shards[0][name].dtype).removeprefix("torch.")
        found[name] = Tensor(pth.whole(name, shards, axis), kind, files[0])
    # What is no weight (and of no type that can be one) is told by the check of the names.
    known = {name.tensor for name in tensors(model, table)}
    for name in known & found.keys():
        if found[name].dtype not in TYPES:
            raise FormatError(
                f"{files[0]}: tensor {name!r} is of type {found[name].dtype}; {', '.join(TYPES)} "
                "can be read (a quantised checkpoint? take the original one)"
            )
    return Source(place, found, lambda name: pth.read(name, shards, axes[name]))


def _axis(name: str, shards: list, width: object) -> int | None:
    """The axis along which a tensor is split over the files, or None."""
    shape = shards[0][name].shape
    if len(shards) == 1 or len(shape) != 2:
        return None
    # Llama 3 has whole rows of the embedding in a file, Llama 1 and 2 a part of each.
    split_embedding = name == EMBED and shape[1] != width
    return 1 if split_embedding or name.endswith(COLUMNS) else 0
