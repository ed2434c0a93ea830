"""Parquet by row group, the least that such a file lets one read."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_jax.data.file_bytes import changed, stamp
from llama_jax.errors import UserError, nearest

GROUPS = 4  # kept in memory; reading in order needs one


class RowGroup(Sequence):
    """The rows of one row group, read when one of them is."""

    def __init__(self, path: Path, number: int, count: int, columns: tuple[str, ...]):
        """Names it."""
        self.path, self.number, self.total, self.columns = path, number, count, columns
        self.stamp = stamp(path)

    def __len__(self) -> int:
        """Its rows."""
        return self.total

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """A row, a dict.

        Raises:
          UserError: the file has changed since it was opened.
        """
        if stamp(self.path) != self.stamp:
            raise changed(self.path)
        table = _table(self.path, self.number, self.columns, self.stamp)
        return table.slice(index, 1).to_pylist()[0]


def row_groups(path: Path, columns: tuple[str, ...]) -> list[RowGroup]:
    """The row groups of a file.

    Raises:
      UserError: it is no Parquet, or has no such column.
    """
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            meta, names = file.metadata, file.schema_arrow.names
            sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{str(path)!r} is no readable Parquet file ({reason})") from None
    for column in columns:
        if column not in names:
            raise UserError(
                f"{str(path)!r} has no column {column!r}; it has {', '.join(names)}"
                + nearest(column, names)
            )
    return [RowGroup(path, i, n, columns) for i, n in enumerate(sizes)]


@functools.lru_cache(maxsize=GROUPS)
def _table(path: Path, number: int, columns: tuple[str, ...], stamp: tuple[int, int]) -> Any:
    import pyarrow.parquet

    del stamp  # a part of the key
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return file.read_row_group(number, columns=list(columns) or None)
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{str(path)!r}: row group {number} cannot be read ({reason})") from None
