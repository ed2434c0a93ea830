"""The same checkpoint as transformers' model; the only file that knows torch and transformers.

Hugging Face   transformers reads the folder by itself
GGUF           transformers reads the file by itself, all but `rope_freqs.weight`
Meta           its tensors under Hugging Face's names, q and k turned here, not by `weights`
a run          what `convert --to huggingface` writes, in memory
"""

import contextlib
import importlib.util
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_jax.layers.rope import Llama3Rope
from llama_jax.models.decoder import Decoder
from llama_jax.verify.declared import rope_of
from llama_jax.weights.opened import Checkpoint

# Meta's names, below a layer, to Hugging Face's.
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


class Unavailable(Exception):
    """Why there is nothing to compare with."""


@dataclass(frozen=True)
class Reference:
    """Transformers' model.

    Attributes:
      model: it, float32, on the CPU.
      name: with its version.
      notes: what it was told, because it cannot read it.
    """

    model: Any
    name: str
    notes: tuple[str, ...]

    def logits(self, ids: Sequence[int], positions: Sequence[int] | None = None) -> np.ndarray:
        """Of a sequence, [T,V] float32."""
        import torch

        ids_BT = torch.tensor([list(ids)])
        at = None if positions is None else torch.tensor([list(positions)])
        # Without a mask it would take positions with gaps for several sequences in one row.
        mask = torch.ones_like(ids_BT)
        with torch.no_grad():
            found = self.model(ids_BT, attention_mask=mask, position_ids=at, use_cache=False)
        return found.logits[0].numpy()


def reference(checkpoint: Checkpoint) -> Reference:
    """Opens a checkpoint in transformers.

    Raises:
      Unavailable: a package is missing, or transformers refuses it.
    """
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        said = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
        raise Unavailable(f"{said}; pip install 'llama-jax[parity]'")
    import transformers

    name = f"transformers {transformers.__version__}"
    openers = {"huggingface": _folder, "gguf": _gguf, "meta": _meta, "run": _run}
    try:
        with _quietly():
            model, notes = openers[checkpoint.kind](checkpoint)
    except Unavailable:
        raise
    except Exception as error:  # it has no type of its own for files that it does not like
        said = " ".join(str(error).split())[:200]
        raise Unavailable(f"{name} does not open it ({type(error).__name__}: {said})") from None
    return Reference(model.eval(), name, notes)


def _settings() -> dict[str, Any]:
    import torch

    # "eager" is the published formula, without a kernel of torch's choice.
    return {"dtype": torch.float32, "attn_implementation": "eager"}


def _folder(checkpoint: Checkpoint) -> tuple[Any, tuple[str, ...]]:
    from transformers import LlamaForCausalLM

    place = checkpoint.place
    folder = place if place.is_dir() else place.absolute().parent
    made = LlamaForCausalLM.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, **_settings()
    )
    return made, ("the folder, read by transformers itself",)


def _gguf(checkpoint: Checkpoint) -> tuple[Any, tuple[str, ...]]:
    if importlib.util.find_spec("accelerate") is None:
        raise Unavailable("transformers opens GGUF only with accelerate; pip install accelerate")
    from transformers import LlamaConfig, LlamaForCausalLM

    file = checkpoint.place.absolute()
    config = LlamaConfig.from_pretrained(file.parent, gguf_file=file.name)
    notes = ["the file, read by transformers itself"]
    rope = rope_of(checkpoint.model)
    seen = getattr(config, "rope_parameters", None) or {}
    if isinstance(rope, Llama3Rope) and seen.get("rope_type") != "llama3":
        config.rope_parameters = scaling(rope)
        notes.append(
            "transformers does not read the file's rope_freqs.weight and would compute another "
            "model; it was told the scaling, which the rope section compares with the file"
        )
    made = LlamaForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, config=config, **_settings()
    )
    return made, tuple(notes)


def _meta(checkpoint: Checkpoint) -> tuple[Any, tuple[str, ...]]:
    source = checkpoint.source
    assert source is not None
    state = {}
    for name in source.tensors:
        if name in checkpoint.unused:
            continue
        tensor = np.asarray(source.read(name), np.float32)
        state[_renamed(name)] = _torch(_halves(name, tensor, checkpoint.model))
    return _built(checkpoint.model, state), (
        "Meta's tensors, with q and k put into Hugging Face's order by a second program",
    )


def _renamed(name: str) -> str:
    if not name.startswith("layers."):
        ends = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
        return f"{ends[name.removesuffix('.weight')]}.weight"
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{LAYER[rest.removesuffix('.weight')]}.weight"


def _halves(name: str, tensor: np.ndarray, model: Decoder) -> np.ndarray:
    """Rows 0, 2, 4, ... of each head of q and k first, then 1, 3, 5, ..."""
    if not name.endswith(("wq.weight", "wk.weight")):
        return tensor
    head = model.stack.pattern[0].attention.head_dim  # pyright: ignore
    order = np.concatenate([np.arange(0, head, 2), np.arange(1, head, 2)])
    rows = np.arange(0, len(tensor), head)[:, None] + order
    return tensor[rows.reshape(-1)]


def _run(checkpoint: Checkpoint) -> tuple[Any, tuple[str, ...]]:
    from llama_jax.weights.convert import weights
    from llama_jax.weights.names import HUGGING_FACE
    from llama_jax.weights.write import export

    params, _ = weights(checkpoint)
    state = {
        name.tensor: _torch(np.asarray(tensor, np.float32))
        for name, tensor in export(checkpoint.model, params, HUGGING_FACE)
    }
    return _built(checkpoint.model, state), ("our own export, which no other program has read",)


def _torch(tensor: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(tensor))


def _built(model: Decoder, state: dict[str, Any]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    from llama_jax.weights.huggingface_write import config
    from llama_jax.weights.write import inference

    about = config(inference(model), np.dtype(np.float32), {})
    if model.tied:
        state.pop("lm_head.weight", None)
    return LlamaForCausalLM.from_pretrained(
        None, config=LlamaConfig(**about), state_dict=state, **_settings()
    )


def scaling(rope: Llama3Rope) -> dict[str, Any]:
    """Transformers' words for Llama 3.1's rope."""
    return {
        "rope_type": "llama3",
        "rope_theta": rope.theta,
        "factor": rope.factor,
        "low_freq_factor": rope.low,
        "high_freq_factor": rope.high,
        "original_max_position_embeddings": rope.original,
    }


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without its progress bars and advice."""
    import warnings

    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
