"""The files of a tokenizer: which belong together, and what a run opens them as."""

import json
import os
from pathlib import Path

from llama_jax.text.limits import read_bytes
from llama_jax.text.pretrained import Pretrained, open_tokenizer
from llama_jax.text.tokenizer import FORMAT, Tokenizer

MAIN = ("tokenizer.json", "tokenizer.model")
# Files of a Hugging Face folder that belong to its tokenizer or to generating.
NAMES = (
    *MAIN,
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json"),
)


def files_of(path: str | os.PathLike[str]) -> dict[str, bytes]:
    """Returns the files of a tokenizer by the names that a folder keeps them under.

    Args:
        path: A folder; or its tokenizer.json or tokenizer.model, to which the other files beside it
            belong; or a file of another name, which stands alone.

    Raises:
        FormatError: If a file cannot be read, or is too large for one.
    """
    path = Path(path)
    if path.is_dir():
        return {name: read_bytes(path / name) for name in NAMES if (path / name).is_file()}
    data = read_bytes(path)
    files = {MAIN[0] if data.lstrip()[:1] == b"{" else MAIN[1]: data}
    if (folder := _beside(path)) and not is_own(data):
        others = [name for name in NAMES if name not in MAIN and (folder / name).is_file()]
        files |= {name: read_bytes(folder / name) for name in others}
    return files


def open_any(path: str | os.PathLike[str]) -> Tokenizer | Pretrained:
    """Opens a tokenizer of ours or one that came with weights; `path` as for `files_of`.

    Raises:
        UserError: If there is none, or it is damaged or of a kind that is not supported.
    """
    path = Path(path)
    file = path / MAIN[0] if path.is_dir() else path
    if file.is_file() and is_own(read_bytes(file)):
        return Tokenizer.load(file)
    return open_tokenizer(path, _beside(path))


def is_own(data: bytes) -> bool:
    """Whether a file is a tokenizer that a run of ours trained."""
    if FORMAT.encode() not in data[:1000]:
        return False
    try:
        content = json.loads(data)
    except ValueError:
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def _beside(path: Path) -> Path | None:
    return path.absolute().parent if path.name in MAIN else None
