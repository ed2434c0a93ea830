"""TFDS data sets as sources, ours and all others, without TensorFlow."""

import contextlib
import functools
import importlib
import os
import re
import sys
from collections.abc import Collection
from typing import Any

import numpy as np

from llama_jax.checked import checked
from llama_jax.data.builders.prepare import OURS, prepared
from llama_jax.data.rows import Rows
from llama_jax.errors import UserError, nearest
from llama_jax.limits import check_limits

SUBPACKAGES = ("text", "translate", "summarization", "video")  # not registered on plain import


@checked
class Tfds:
    """A TFDS data set: one of `OURS` ("easy_vqa", "kjv", ...), or any name that TFDS knows.

    Attributes:
      name: as TFDS writes it: "glue/sst2", "wmt14_translate/de-en", ...
      split: "train", "test[:10%]", ...
      version: refuse another version; None takes the newest.
      data_dir: where prepared files live; None for $LLAMA_JAX_DATA or the default.
      limit: keep the first examples of each split only; of our data sets, for quick trials.
    """

    name: str
    split: str = "train"
    version: str | None = None
    data_dir: str | None = None
    limit: int | None = None

    __post_init__ = check_limits

    def open(self) -> Rows:
        """Prepares the data set if that was not done before, and opens it.

        Raises:
          UserError: the name, split or version is unknown, or it cannot be prepared.
        """
        return _open_tfds(self, os.environ.get("LLAMA_JAX_DATA"))


@functools.lru_cache(maxsize=16)  # prepared data does not change under a process
def _open_tfds(source: Tfds, env: str | None) -> Rows:
    builder = _ours(source) if source.name in OURS else _theirs(source, env)
    import tensorflow_datasets as tfds

    class _Skip(tfds.decode.SkipDecoding):
        def decode_batch_example_np(self, example: Any) -> Any:  # TFDS 4.9.10 forgets lists
            return example

    version = str(builder.version)
    if source.version not in (None, version):
        raise UserError(f"{source.name} {source.version} was asked for; {version} is there")
    skip = {
        name: _Skip()  # bytes, which `images.decode` opens within its limits
        for name, feature in builder.info.features.items()
        if isinstance(
            getattr(feature, "feature", feature), tfds.features.Image
        )  # or a list of them
    }
    splits = list(builder.info.splits or ())
    if re.split(r"[\[+]", source.split)[0] not in [*splits, "all"]:
        raise UserError(
            f"{source.name} has no split {source.split!r}; it has {', '.join(splits)}"
            + nearest(source.split, splits)
        )
    try:
        data = builder.as_data_source(split=source.split, decoders=skip or None)
    except ValueError as error:
        raise UserError(f"{source.name}, split {source.split!r}: {_first_line(error)}") from None
    return Rows(f"{source.name}:{source.split}", len(data), lambda i: _row(data[i], skip))


def _ours(source: Tfds) -> Any:
    return prepared(source.name, source.data_dir, source.limit)


def _theirs(source: Tfds, env: str | None) -> Any:
    """Looks a name up in TFDS, in its sub-packages too, and prepares it."""
    import tensorflow_datasets as tfds

    name = source.name if source.version is None else f"{source.name}:{source.version}"
    options: Any = {"data_dir": source.data_dir or env, "file_format": "array_record"}
    for sub in (None, *SUBPACKAGES):
        if sub:
            importlib.import_module(f"tensorflow_datasets.{sub}")
        try:
            builder = tfds.builder(name, **options)
            break
        except tfds.core.DatasetNotFoundError:
            continue
        except (ValueError, AssertionError) as error:  # TFDS asserts that a version exists
            base, _, config = source.name.partition("/")
            configs = list(tfds.builder_cls(base).builder_configs)
            reason = _first_line(error).rpartition('": ')[2].partition(" Here are")[0]
            raise UserError(f"TFDS data set {name!r}: {reason}{nearest(config, configs)}") from None
    else:
        names = [*OURS, *tfds.list_builders(with_community_datasets=False)]
        raise UserError(
            f"no data set is called {source.name!r}; expected {', '.join(OURS)} or a name of TFDS"
            + nearest(source.name, names)
        )
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output may be read by a program
            builder.download_and_prepare()
    except Exception as error:
        raise UserError(
            f"TFDS data set {name!r} could not be prepared ({type(error).__name__}: "
            f"{_first_line(error)}); try preparing it on a machine with a network and copy its "
            "folder into LLAMA_JAX_DATA, or data of your own: --set data.text.source=my.txt"
        ) from None
    return builder


def _row(row: dict[str, Any], pictures: Collection[str]) -> dict[str, Any]:
    return {key: _packed(item) if key in pictures else _native(item) for key, item in row.items()}


def _packed(value: Any) -> Any:
    """A picture's bytes as they are, those of a clip's frames as a list."""
    return list(value) if isinstance(value, np.ndarray) and value.dtype == object else value


def _native(value: Any) -> Any:
    """Turns bytes into str and NumPy scalars into Python's, all through a value."""
    if isinstance(value, dict):
        return {key: _native(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple):
        return [_native(item) for item in value]
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [_native(item) for item in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
