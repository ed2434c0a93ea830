"""From one format to another, a tensor at a time: `llama-jax convert SRC DST --to FORMAT`.

Hugging Face's and GGUF files are written while the source is read, so a model may be larger than
the memory; to become a run, it must fit.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llama_jax.axes import DATA, make_mesh
from llama_jax.checked import checked_call
from llama_jax.errors import FormatError, UserError, nearest
from llama_jax.families.names import Name, tensors
from llama_jax.families.sizes import check_alone
from llama_jax.formats.folder import check_free
from llama_jax.formats.source import Source
from llama_jax.trees import nested
from llama_jax.weights import origin
from llama_jax.weights.opened import Checkpoint, load_params, open_checkpoint
from llama_jax.weights.tokenizer_files import Companions
from llama_jax.weights.write import inference

FORMATS = ("huggingface", "gguf", "orbax")
DTYPES = ("float32", "bfloat16", "float16", "q8_0")
# Bits of precision and of the exponent: what does not fit into a type is lost.
BITS = {"float64": (53, 11), "float32": (24, 8), "bfloat16": (8, 8), "float16": (11, 5)}
GGUF_KINDS = {"float32": "F32", "float16": "F16", "q8_0": "Q8_0"}
Progress = Callable[[Iterable[Name]], Iterable[Name]]


@checked_call
def convert(
    src: str | Path,
    dst: str | Path,
    to: str,
    dtype: str | None = None,
    pickle: bool = False,
    progress: Progress = iter,
    say: Callable[[str], None] = lambda line: None,
) -> Checkpoint:
    """Writes a checkpoint in another format, with its tokenizer.

    Args:
      src: what `open_checkpoint` opens.
      dst: a folder, or with to="gguf" a file; must not be there, or be an empty folder.
      to: a format, one of `FORMATS`.
      dtype: a name of `DTYPES`; by default the source's own (float32 for a quantised source, and
        float16 in place of bfloat16 in GGUF); of a run that began with a Hugging Face folder, and
        becomes one again, the type of that folder.
      pickle: whether Meta's .pth files may be opened.
      progress: wraps the tensors while they are converted.
      say: told in a line what is lost.

    Returns:
      The source.

    Raises:
      UserError: a wish that cannot be met; nothing is written.
      FormatError: a file that is not what it should be.
    """
    if to not in FORMATS:
        raise UserError(
            f"format {to!r}; one of {', '.join(FORMATS)} was expected{nearest(to, FORMATS)}"
        )
    check_free(dst, file=to == "gguf")
    source = open_checkpoint(src, pickle)
    params, stored = weights(source)
    about = origin.config_of(source) if to == "huggingface" else None
    kind = _kind(stored[0], dtype or (origin.dtype_of(about) if about else None), to)
    for loss in dict.fromkeys(_loss(one, kind) for one in stored):
        if loss is not None:
            say(loss)
    model, companions = inference(source.model), Companions(source)
    name = Path(src).absolute().name.removesuffix(".gguf")
    if source.tokenizer_place is None:
        say(f"{src} has no tokenizer, so {dst} has none")

    def known(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        # Weights without a tokenizer are of use; that they have none is said.
        try:
            return read()
        except FormatError as error:
            say(f"{dst} gets no tokenizer, for {error}")
            return {}

    if to == "huggingface":
        from llama_jax.weights.huggingface_write import write_huggingface

        files, ids = known(lambda: companions.files(to)), known(companions.ids)
        write_huggingface(
            *(dst, model, params, files, kind),
            ids=ids,
            progress=progress,
            family=source.family,
            about=about and origin.written(about, np.dtype(kind)),
        )
    elif to == "gguf":
        from llama_jax.text.gguf import OWN_FILE
        from llama_jax.weights.gguf_write import write_gguf

        fields = {"general.name": name} | known(companions.fields)
        if OWN_FILE in fields:
            say(
                f"GGUF's own fields cannot say all that this tokenizer does: {dst} has its "
                "tokenizer.json too, for llama-jax; other programs read some texts otherwise"
            )
        numbers: Any = GGUF_KINDS[kind]
        write_gguf(dst, model, params, fields, numbers, progress, source.family)
    else:
        from llama_jax.weights.run import write_run

        check_alone(model)
        if source.source is not None:
            params = load_params(source, dtype=kind, progress=progress)
        files = known(lambda: companions.files(to)) | origin.kept(source)
        write_run(dst, model, params, files, kind, name)
    return source


@dataclass(frozen=True)
class Unread:
    """A weight of a file that is read when it is asked for, layer by layer or whole."""

    source: Source
    layers: dict[int | None, Name]

    def __getitem__(self, layer: int) -> np.ndarray:
        name = self.layers[layer]
        return name.ours(self.source.read(name.tensor))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        name = self.layers[None]
        return np.asarray(name.ours(self.source.read(name.tensor)), dtype)


def weights(checkpoint: Checkpoint) -> tuple[dict[str, Any], list[str]]:
    """Params for `export`, not read yet if the checkpoint has names; their types, the main first.

    Raises:
      FormatError: a tensor that is missing, one too many, or of another shape.
    """
    source, table = checkpoint.source, checkpoint.table
    if source is None or table is None:
        from llama_jax.weights.run import read_run

        mesh = make_mesh(devices=jax.devices()[:1])
        params = read_run(checkpoint.place, checkpoint.model, mesh, DATA, None)
        return params, [jax.tree.leaves(params)[0].dtype.name]
    checkpoint.check_tied()
    names = tensors(checkpoint.model, table)
    source.check({name.tensor: name.shape for name in names}, checkpoint.unused)
    found: dict[str, Unread] = {}
    numbers: Counter[str] = Counter()
    for name in names:
        found.setdefault(name.path, Unread(source, {})).layers[name.layer] = name
        numbers[source.tensors[name.tensor].dtype] += math.prod(name.shape)
    return nested(found), [kind for kind, _ in numbers.most_common()]


def _kind(stored: str, wanted: str | None, to: str) -> str:
    """The type to write."""
    if wanted is not None and wanted not in DTYPES:
        raise UserError(
            f"dtype {wanted!r}; one of {', '.join(DTYPES)} was expected{nearest(wanted, DTYPES)}"
        )
    if wanted is None:
        wanted = stored if stored in BITS and stored != "float64" else "float32"
        return "float16" if to == "gguf" and wanted == "bfloat16" else wanted
    if to == "gguf" and wanted not in GGUF_KINDS:
        raise UserError(f"a GGUF file is written in {', '.join(GGUF_KINDS)}, not in {wanted}")
    if to != "gguf" and wanted == "q8_0":
        raise UserError("q8_0 is a type of GGUF files; with --to gguf it can be had")
    return wanted


def _loss(stored: str, kind: str) -> str | None:
    """What is lost on the way, in a line."""
    if kind == "q8_0":
        return "q8_0 keeps 8 bits of each number of the matrices"
    if stored not in BITS:
        return (
            "the source is quantised: its values are kept, as plain numbers, and what quantising "
            "lost is not back"
        )
    precision, exponent = (a > b for a, b in zip(BITS[stored], BITS[kind], strict=True))
    if not precision and not exponent:
        return None
    rounded = "rounds to fewer digits" * precision
    small = "rounds numbers below 6e-5 and cannot hold those above 65504" * exponent
    return f"{stored} to {kind} {' and '.join(filter(None, (rounded, small)))}"
