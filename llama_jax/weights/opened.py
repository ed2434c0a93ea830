"""Any checkpoint, opened: what is in a folder decides how it is read.

    checkpoint = open_checkpoint("Llama-3.2-1B")       # or a .gguf file, or a run directory
    params = load_params(checkpoint, dtype="bfloat16")
    logits, _ = checkpoint.model.build().apply({"params": params}, ids, method="decode")

config.json, *.safetensors          Hugging Face's
params.json, consolidated.NN.pth    Meta's, a pickle: only with pickle=True
*.gguf                              llama.cpp's
run.json, checkpoints/              ours
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from llama_jax import families
from llama_jax.axes import FSDP_TENSOR, Rules, make_mesh
from llama_jax.errors import FormatError
from llama_jax.families.base import Family
from llama_jax.families.names import Name, Notation, tensors
from llama_jax.formats.links import following as links_followed
from llama_jax.formats.quantised.expand import expanded, idle_biases
from llama_jax.formats.quantised.scheme import scheme_of
from llama_jax.formats.source import INDEX, Source, inside, read_json, safetensors
from llama_jax.weights.read import read

__all__ = ["Checkpoint", "links_followed", "load_params", "open_checkpoint"]

CONFIG = "config.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk; its weights are not read yet.

    Attributes:
      place: the file or folder.
      kind: whose format it is.
      family: what its files say it is; None of a run, which may be of none.
      model: config of the model.
      source: where tensors are read; None for a run, whose weights need no names.
      table: which tensor is which weight; None of a run.
      unused: tensors that are there and are not read.
      tokenizer_place: the file or folder with its tokenizer, or None.
    """

    place: Path
    kind: Literal["huggingface", "gguf", "meta", "run"]
    family: Family | None
    model: Any
    source: Source | None
    table: Notation | None
    unused: tuple[str, ...]
    tokenizer_place: Path | None

    def check_tied(self) -> None:
        """Checks that an output layer in the file of a tied model is the embedding.

        Raises:
          FormatError: it is not.
        """
        if self.source is None or self.table is None or not self.model.tied:
            return
        embed, out = self.table.ends
        if out not in self.source.tensors:
            return
        # Digests, for the two may be the largest tensors that there are.
        if _digest(self.source, embed) != _digest(self.source, out):
            raise FormatError(
                f"{self.place}: the embedding is said to be the output layer too, and {out!r} is "
                f"not {embed!r}; if it is right, set tie_word_embeddings to false in {CONFIG}"
            )


def open_checkpoint(path: str | Path, pickle: bool = False) -> Checkpoint:
    """Opens a file or a folder; what it is follows from what is in it.

    Args:
      path: a folder of Hugging Face, of Meta or of a run, or a .gguf or .safetensors file.
      pickle: whether Meta's .pth files may be opened.

    Raises:
      UserError: nothing there that is known, or a pickle that was not allowed.
      FormatError: a file that is not what it should be.
    """
    place = Path(path)
    if place.is_file():
        return _open_file(place, pickle)
    if not place.is_dir():
        raise FormatError(f"{place} does not exist; give a checkpoint's file or folder")
    if (place / "run.json").is_file() and (place / "checkpoints").is_dir():
        return _run(place)
    there = sorted(entry.name for entry in place.iterdir())
    ggufs = [name for name in there if name.endswith(".gguf")]
    if CONFIG in there and any(name.endswith(".safetensors") for name in there):
        return _huggingface(place, place)
    if "params.json" in there:
        return _meta(place, pickle)
    if len(ggufs) == 1:
        return _gguf(inside(place, ggufs[0]))
    if ggufs:
        raise FormatError(f"{place} holds {', '.join(ggufs[:8])}; give one of these files")
    raise _unknown(place, there)


def load_params(
    checkpoint: Checkpoint,
    mesh: Mesh | None = None,
    rules: Rules = FSDP_TENSOR,
    dtype: Any = jnp.float32,
    progress: Callable[[Iterable[Name]], Iterable[Name]] = iter,
) -> dict[str, Any]:
    """The parameters of a checkpoint, on the devices; see `read`.

    Args:
      checkpoint: from `open_checkpoint`.
      mesh: over which to split them; the first device alone by default.
      rules: which mesh axis splits which letter.
      dtype: what parameters are kept in.
      progress: wraps the tensors while they are read (not of a run, which orbax reads).

    Raises:
      UserError: no good checkpoint in a run.
      FormatError: a tensor that is missing, one too many, of another shape, or not finite.
    """
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    if checkpoint.source is None or checkpoint.table is None:
        from llama_jax.weights.run import read_run

        return read_run(checkpoint.place, checkpoint.model, mesh, rules, dtype)
    checkpoint.check_tied()
    return read(
        checkpoint.model,
        checkpoint.source,
        checkpoint.table,
        mesh,
        rules,
        dtype,
        checkpoint.unused,
        progress,
    )


def _open_file(place: Path, pickle: bool) -> Checkpoint:
    try:
        with place.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise FormatError(f"{place} cannot be read ({error.strerror})") from None
    folder = place.absolute().parent
    if head.startswith(b"GGUF"):
        return _gguf(place)
    if head.startswith((b"PK", b"\x80")):  # a zip archive, as torch writes, or a bare pickle
        if place.name.startswith("consolidated.") and (folder / "params.json").exists():
            return _meta(folder, pickle)
        raise _pickled(place)
    if head[8:] == b"{":
        return _huggingface(folder, folder if (folder / INDEX).exists() else place)
    if place.suffix in PICKLES:
        raise _pickled(place)
    raise FormatError(
        f"{place} is no safetensors, GGUF or .pth file; give one of these, or a checkpoint's folder"
    )


def _huggingface(folder: Path, place: Path) -> Checkpoint:
    if not (folder / CONFIG).exists():
        raise FormatError(f"{folder} has no {CONFIG}, which says what model {place.name} is of")
    file = inside(folder, CONFIG)
    config = read_json(file)
    source = expanded(safetensors(place), scheme_of(config, file))
    family = families.of(config, file)
    model = family.huggingface.model(config, file)
    source = family.huggingface.source(model, source, config)
    wanted = [name.tensor for name in tensors(model, family.huggingface.table)]
    unused = (*family.huggingface.unused(model, source.tensors), *idle_biases(source, wanted))
    tokenizer = folder if any(folder.glob("tokenizer*")) else None
    return _checkpoint(place, "huggingface", family, model, source, unused, tokenizer)


def _meta(folder: Path, pickle: bool) -> Checkpoint:
    family = families.of_meta(read_json(inside(folder, "params.json")), folder)
    assert family.meta is not None
    model, source, unused = family.meta.open(folder, pickle)
    # One tokenizer may lie beside the folders of several sizes.
    files = [where / "tokenizer.model" for where in (folder, folder.absolute().parent)]
    tokenizer = next((file for file in files if file.is_file()), None)
    return _checkpoint(folder, "meta", family, model, source, unused, tokenizer)


def _gguf(file: Path) -> Checkpoint:
    from llama_jax.weights.gguf import open_gguf

    found = open_gguf(file)
    wordless = found.fields.get("tokenizer.ggml.model", "no_vocab") == "no_vocab"
    words = None if wordless else file
    return _checkpoint(file, "gguf", found.family, found.model, found.source, found.unused, words)


def _run(folder: Path) -> Checkpoint:
    from llama_jax.weights.run import open_run

    return Checkpoint(folder, "run", None, open_run(folder), None, None, (), folder)


def _checkpoint(
    place: Path,
    kind: Literal["huggingface", "gguf", "meta"],
    family: Family,
    model: Any,
    source: Source,
    unused: Iterable[str],
    tokenizer: Path | None,
) -> Checkpoint:
    table = family.table(kind)
    # An output layer of a tied model is no weight; `check_tied` looks whether it is the embedding.
    _, out = table.ends
    if model.tied and out in source.tensors:
        unused = (*unused, out)
    return Checkpoint(place, kind, family, model, source, table, tuple(unused), tokenizer)


def _digest(source: Source, name: str) -> tuple[str, bytes]:
    tensor = np.ascontiguousarray(source.read(name))
    return tensor.dtype.name, hashlib.sha256(tensor.reshape(-1).view(np.uint8).data).digest()


def _unknown(place: Path, there: list[str]) -> FormatError:
    pickles = [name for name in there if name.endswith(PICKLES)]
    if pickles:
        return _pickled(place / pickles[0])
    held = ", ".join(repr(name)[1:-1] for name in there[:8]) or "nothing"
    more = f" and {len(there) - 8} more" if len(there) > 8 else ""
    return FormatError(
        f"{place} is no checkpoint: it holds {held}{more}; {CONFIG} with .safetensors, a .gguf "
        "file, params.json with consolidated.00.pth, or run.json with checkpoints was expected"
    )


def _pickled(file: Path) -> FormatError:
    return FormatError(
        f"{file} is a pickle, which can run any program while it is read, and is not opened; take "
        "the model's safetensors (most repositories have both, or a branch refs/pr with them)"
    )
