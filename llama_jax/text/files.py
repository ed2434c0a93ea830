"""The files of a tokenizer: which belong together, and what a run opens them as."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from llama_jax.text.limits import read_bytes

if TYPE_CHECKING:
    from llama_jax.text.pretrained import Pretrained
    from llama_jax.text.tokenizer import Tokenizer

MAIN = ("tokenizer.json", "tokenizer.model")
# Files of a Hugging Face folder that belong to its tokenizer or to generating.
NAMES = (
    *MAIN,
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json"),
)


def files_of(path: str | os.PathLike[str]) -> dict[str, bytes]:
    """The files of a tokenizer by the names that a folder keeps them under.

    Args:
      path: a folder; or its tokenizer.json or tokenizer.model, to which the other files beside it
        belong; or a file of another name, which stands alone.

    Raises:
      FormatError: a file cannot be read, or is too large for one.
    """
    path = Path(path)
    if path.is_dir():
        files = {name: read_bytes(path / name) for name in NAMES if (path / name).is_file()}
        return _with_ends(path, files)
    data = read_bytes(path)
    files = {MAIN[0] if data.lstrip()[:1] == b"{" else MAIN[1]: data}
    if folder := _beside(path):
        others = [name for name in NAMES if name not in MAIN and (folder / name).is_file()]
        files |= {name: read_bytes(folder / name) for name in others}
    return files


def _with_ends(folder: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    """The files of a folder; what ends generation may stand in the model's config alone."""
    from llama_jax.text.config_files import ends_of

    ends = sorted(ends_of(folder))
    if files and ends and "generation_config.json" not in files:
        files["generation_config.json"] = json.dumps({"eos_token_id": ends}).encode()
    return files


def open_for_training(path: str | os.PathLike[str]) -> "Tokenizer | Pretrained":
    """Opens the tokenizer that a run reads its data with.

    Args:
      path: see `files_of`.

    Returns:
      A `Tokenizer`, with `<cls>`, `<mask>` and sentinels, if training made the file; else whatever
      `open_tokenizer` gives.

    Raises:
      UserError: there is none, or it is damaged or of a kind that is not supported.
    """
    from llama_jax.text.pretrained import open_tokenizer
    from llama_jax.text.tokenizer import Tokenizer

    path = Path(path)
    file = path / MAIN[0] if path.is_dir() else path
    if file.is_file() and (trained := Tokenizer.read(read_bytes(file), str(file))) is not None:
        return trained
    return open_tokenizer(path, _beside(path))


def _beside(path: Path) -> Path | None:
    return path.absolute().parent if path.name in MAIN else None
