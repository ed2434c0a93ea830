"""Our own run directories as checkpoints: read, and written from the weights of other worlds."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from llama_jax.axes import Rules
from llama_jax.config import File, Run, from_json, to_json
from llama_jax.data import LanguageModel, Stream, Tfds
from llama_jax.errors import FormatError
from llama_jax.formats.folder import writing
from llama_jax.models.decoder import Decoder
from llama_jax.objectives import CausalLM
from llama_jax.trees import flat
from llama_jax.weights.fitting import check_sizes
from llama_jax.weights.orbax import restore_params, save_params
from llama_jax.weights.read import abstract


def open_run(folder: Path) -> Decoder:
    """The model of a run; without a context of its own it gets that of the longest texts.

    Raises:
      FormatError: a model of another kind.
      UserError: a run.json that cannot be read.
    """
    try:
        run = from_json((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{folder / 'run.json'} cannot be read ({error})") from None
    model = run.model
    if not isinstance(model, Decoder):
        raise FormatError(
            f"{folder} is a run of a {type(model).__name__}; only a Decoder, a language model "
            "alone, can be opened as a checkpoint"
        )
    lengths = [getattr(stream.task, "length", 0) for stream in run.data.values()]
    if model.context is None and any(lengths):
        model = dataclasses.replace(model, context=max(lengths))
    return model


def read_run(
    folder: Path, model: Decoder, mesh: Mesh, rules: Rules, dtype: Any = None
) -> dict[str, Any]:
    """The weights of `model`, a run's newest good step, in `dtype` or in the type they have.

    Raises:
      UserError: none of its checkpoints is good, or they are of another model.
    """
    wanted = {f"decoder/{path}": box.value for path, box in abstract(model).items()}
    params, step = restore_params(folder / "checkpoints", mesh, rules)
    check_sizes(folder / "checkpoints" / str(step), flat(params), wanted)
    return params if dtype is None else jax.tree.map(lambda weight: weight.astype(dtype), params)


def write_run(
    folder: str | Path,
    model: Decoder,
    params: dict[str, Any],
    tokenizer_files: Mapping[str, bytes] | None = None,
    dtype: str = "float32",
    name: str = "converted",
) -> None:
    """Writes a run directory with one checkpoint, of step 0 and of weights alone.

    `llama-jax train PRESET --init-from FOLDER` begins from it. Its run.json says how to go on
    training on C4; put your own data in its place.

    Args:
      folder: made here; must not exist, or be empty.
      model: the config.
      params: the nested dict {"decoder": ...}, on devices.
      tokenizer_files: by name.
      dtype: what weights are kept in.
      name: what the run is called.

    Raises:
      UserError: the folder is not empty, or cannot be written.
    """
    kind = jnp.dtype(dtype)
    length = min(model.context or 2048, 8192)
    run = Run(
        name=name,
        model=model,
        data={"text": Stream(Tfds("c4"), LanguageModel(length), batch=8)},
        objectives={"lm": CausalLM(on="text")},
        tokenizer=File(),
        dtype="bfloat16" if kind == jnp.bfloat16 else "float32",
    )
    letters = {f"decoder/{path}": box.letters for path, box in abstract(model).items()}
    params = jax.tree.map(lambda weight: weight.astype(kind), params)
    with writing(folder) as draft:
        (draft / "run.json").write_text(to_json(run), encoding="utf-8")
        for file, content in (tokenizer_files or {}).items():
            (draft / file).write_bytes(content)
        save_params(draft / "checkpoints", 0, params, letters)
