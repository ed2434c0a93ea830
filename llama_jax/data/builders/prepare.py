"""Prepares our TFDS data sets: once, whole or not at all, and safely when several processes try."""

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_jax.errors import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

ENV = "LLAMA_JAX_DATA"
OURS = {
    "bbc_news": "BbcNews",
    "bbc_topics": "BbcTopics",
    "chatterbot": "Chatterbot",
    "easy_vqa": "EasyVqa",
    "easy_vqa_clips": "EasyVqaClips",
    "easy_vqa_dialogues": "EasyVqaDialogues",
    "interface_texts": "InterfaceTexts",
    "kjv": "Kjv",
    "mathematics": "Mathematics",
    "number_words": "NumberWords",
    "reviews_zh": "ReviewsZh",
}
DRAFT = ".preparing-"
STALE = 3600  # seconds after which a draft must belong to a process that was killed

log = logging.getLogger(__name__)


def default_dir() -> Path:
    """Where prepared data lives: $LLAMA_JAX_DATA, else ~/.cache/llama_jax/tfds."""
    return Path(os.environ.get(ENV) or Path.home() / ".cache" / "llama_jax" / "tfds")


def package(module: str, pip_name: str, extra: str = "demo") -> Any:
    """Imports a package that ships data.

    Args:
      module: the dotted name to import.
      pip_name: what pip calls the package.
      extra: the extra of pyproject.toml that brings it.

    Raises:
      UserError: it is not installed, with the pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise _missing(pip_name, extra) from None


def folder(module: str, pip_name: str, extra: str = "tasks") -> Path:
    """The folder of an installed package, found without running any code of it.

    Args:
      module: the name of the package, without dots.
      pip_name: what pip calls it.
      extra: the extra of pyproject.toml that brings it.

    Raises:
      UserError: it is not installed, with the pip command.
    """
    try:
        spec = importlib.util.find_spec(module)
    except ValueError:  # a module without a spec is no installed package
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise _missing(pip_name, extra)
    return Path(next(iter(spec.submodule_search_locations)))


def _missing(pip_name: str, extra: str) -> UserError:
    return UserError(
        f"package {pip_name!r} is not installed and its data is needed; "
        f"try: pip install 'llama-jax[{extra}]'"
    )


@contextlib.contextmanager
def _without_warning() -> Iterator[None]:
    """TFDS warns of every configuration that a class does not list: here, every `limit`."""

    def other(record: logging.LogRecord) -> bool:
        return "custom data configuration" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def prepared(
    name: str, data_dir: str | os.PathLike[str] | None = None, limit: int | None = None
) -> "tfds.core.DatasetBuilder":
    """The builder of one of `OURS` with its files in place.

    The files are written in a folder of this process and then renamed, which either happens or
    does not. If another process was faster, its files (the same) are used and ours thrown away.

    Args:
      name: a key of `OURS`.
      data_dir: where to keep the files; None for `default_dir()`.
      limit: keep only the first examples of each split (for tests).

    Raises:
      UserError: the folder cannot be written or a package is missing.
    """
    builder_class = getattr(importlib.import_module(f"llama_jax.data.builders.{name}"), OURS[name])
    root = Path(data_dir) if data_dir else default_dir()
    with _without_warning():
        builder = builder_class(data_dir=os.fspath(root), limit=limit)
    final = Path(os.fspath(builder.data_path))
    if (final / "dataset_info.json").exists():
        return builder
    log.info("Preparing %s in %s (once)", name, root)
    draft = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        draft = Path(tempfile.mkdtemp(prefix=f"{DRAFT}{name}-", dir=root))
        with _without_warning():
            writer = builder_class(data_dir=os.fspath(draft), limit=limit)
        _build(writer)
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(os.fspath(writer.data_path), final)
        except OSError:
            if not (final / "dataset_info.json").exists():
                raise
    except OSError as error:
        raise UserError(
            f"data folder {str(root)!r} cannot be written ({error.strerror or error}); expected a "
            f"folder with about 60 MB free; try another one with {ENV}=DIR"
        ) from None
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    with _without_warning():
        return builder_class(data_dir=os.fspath(root), limit=limit)  # reads the written metadata


def _build(builder: "tfds.core.DatasetBuilder") -> None:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints two lines about downloads
        builder.download_and_prepare()


def _sweep(root: Path) -> None:
    """Removes drafts of processes that were killed."""
    for draft in root.glob(f"{DRAFT}*"):
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > STALE:
                shutil.rmtree(draft, ignore_errors=True)
