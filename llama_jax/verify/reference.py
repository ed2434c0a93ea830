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
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax import families
from llama_jax.families.base import Family
from llama_jax.families.fused import joined, joined_state
from llama_jax.families.huggingface_rope import scaling
from llama_jax.families.sizes import sizes
from llama_jax.formats.source import inside, read_json
from llama_jax.models.decoder import Decoder
from llama_jax.weights.opened import Checkpoint


class Unavailable(Exception):
    """Why there is nothing to compare with."""


@dataclass(frozen=True)
class Reference:
    """Transformers' model.

    Attributes:
      model: the other program's model, float32, on the CPU.
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
    place = checkpoint.place
    folder = place if place.is_dir() else place.absolute().parent
    method, expanding = _expanding(folder)
    made = _class(checkpoint).from_pretrained(
        folder, use_safetensors=True, local_files_only=True, **_settings(), **expanding
    )
    if method == "bitsandbytes":
        made = made.dequantize(dtype=_settings()["dtype"])
    note = "the folder, read by transformers itself"
    return made, (note if method is None else f"{note}, and expanded from {method}",)


def _expanding(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """How a folder is quantised, and what makes transformers read its numbers, as we do.

    Untold, it computes with packed weights, and quantises what goes into each layer.
    """
    import transformers

    about = read_json(inside(folder, "config.json")).get("quantization_config")
    method = about.get("quant_method") if isinstance(about, dict) else None
    if method == "compressed-tensors":
        return method, {
            "quantization_config": transformers.CompressedTensorsConfig(dequantize=True)
        }
    if method == "fp8":
        return method, {"quantization_config": transformers.FineGrainedFP8Config(dequantize=True)}
    return method, {}


def _gguf(checkpoint: Checkpoint) -> tuple[Any, tuple[str, ...]]:
    if importlib.util.find_spec("accelerate") is None:
        raise Unavailable("transformers opens GGUF only with accelerate; pip install accelerate")
    kind, file = _class(checkpoint), checkpoint.place.absolute()
    config = kind.config_class.from_pretrained(file.parent, gguf_file=file.name)
    notes = ["the file, read by transformers itself"]
    rope = sizes(checkpoint.model).rope
    seen = getattr(config, "rope_parameters", None) or {}
    told = scaling(rope)
    if rope is not None and told is not None and seen.get("rope_type") != told["rope_type"]:
        config.rope_parameters = told | {"rope_theta": rope.theta}
        notes.append(
            "transformers does not read the file's rope_freqs.weight and would compute another "
            "model; it was told the scaling, which the rope section compares with the file"
        )
    made = kind.from_pretrained(file.parent, gguf_file=file.name, config=config, **_settings())
    return made, tuple(notes)


def _meta(checkpoint: Checkpoint) -> tuple[Any, tuple[str, ...]]:
    source, family = checkpoint.source, checkpoint.family
    assert source is not None and family is not None and family.meta is not None
    state = {}
    for name in source.tensors:
        if name in checkpoint.unused:
            continue
        tensor = np.asarray(source.read(name), np.float32)
        theirs, turned = family.meta.renamed(checkpoint.model, name, tensor)
        state[theirs] = turned
    state = {name: _torch(tensor) for name, tensor in joined_state(state).items()}
    return _built(family, checkpoint.model, state), (
        "Meta's tensors, with q and k put into Hugging Face's order by a second program",
    )


def _run(checkpoint: Checkpoint) -> tuple[Any, tuple[str, ...]]:
    from llama_jax.weights.convert import weights
    from llama_jax.weights.write import export, inference

    family = families.describing(inference(checkpoint.model), "huggingface")
    params, _ = weights(checkpoint)
    state = {
        name.tensor: _torch(np.asarray(tensor, np.float32))
        for name, tensor in joined(export(checkpoint.model, params, family.huggingface.table))
    }
    return _built(family, checkpoint.model, state), (
        "our own export, which no other program has read",
    )


def _torch(tensor: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(tensor))


def _built(family: Family, model: Decoder, state: dict[str, Any]) -> Any:
    import transformers

    from llama_jax.weights.huggingface_write import config
    from llama_jax.weights.write import inference

    words = family.huggingface
    about = config(words, inference(model), np.dtype(np.float32), {})
    if model.tied:
        state.pop(words.table.ends[1], None)
    kind = getattr(transformers, words.architecture)
    return kind.from_pretrained(
        None, config=kind.config_class(**about), state_dict=state, **_settings()
    )


def _class(checkpoint: Checkpoint) -> Any:
    """Transformers' class of the checkpoint's family."""
    import transformers

    assert checkpoint.family is not None
    return getattr(transformers, checkpoint.family.huggingface.architecture)


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
