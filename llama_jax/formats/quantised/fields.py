"""Settings of a `quantization_config`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_jax.errors import FormatError
from llama_jax.messages import short


@dataclass(frozen=True)
class Config:
    """A JSON object of config.json, which says in messages where it stands.

    Attributes:
      place: the file.
      path: names of the objects that lead to this one, as "quantization_config".
      fields: the settings.
    """

    place: Path | str
    path: str
    fields: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        """A setting; the default if it is absent or null."""
        value = self.fields.get(name)
        return default if value is None else value

    def one_of(self, name: str, *values: Any) -> Any:
        """A setting that has one of these values; absent or null means the last.

        Raises:
          FormatError: another value.
        """
        value = self.get(name, values[-1])
        if not any(type(value) is type(known) and value == known for known in values):
            known = [repr(value) for value in values if value is not None]
            raise self.wrong(name, " or ".join(known))
        return value

    def size(self, name: str, default: int | None = None) -> int | None:
        """A whole number of 1 or more, or -1, which stands for all.

        Raises:
          FormatError: another value.
        """
        value = self.get(name, default)
        if value is not None and (type(value) is not int or not (value > 0 or value == -1)):
            raise self.wrong(name, "a whole number of 1 or more, or -1,")
        return value

    def block(self, name: str, value: Any) -> tuple[int, int]:
        """Rows and columns of a block, of a value of the setting.

        Raises:
          FormatError: no two sizes.
        """
        rows, columns = value if isinstance(value, list) and len(value) == 2 else (0, 0)
        if type(rows) is not int or type(columns) is not int or rows < 1 or columns < 1:
            raise self.wrong(name, "two sizes such as [128, 128]")
        return rows, columns

    def inner(self, name: str) -> "Config | None":
        """An object within this one, or None.

        Raises:
          FormatError: a value that is no object.
        """
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Config(self.place, f"{self.path}.{name}", value)

    def wrong(self, name: str, expected: str) -> FormatError:
        """An error about a setting."""
        value = self.fields.get(name)
        path = f"{self.path}.{name}"[:150]
        return FormatError(f"{self.place}: {path}={short(value)}; {expected} was expected")
