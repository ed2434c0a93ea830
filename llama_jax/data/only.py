"""Rows of a source that have one value in a field: one language of several, one topic."""

from llama_jax.checked import checked
from llama_jax.data.images import light
from llama_jax.data.rows import Rows, Source, get
from llama_jax.errors import UserError, nearest


@checked
class Only:
    """A part of a source.

    Attributes:
      source: what it is a part of.
      field: the field that decides, such as "language".
      value: what it has to be, such as "fr".
    """

    source: Source
    field: str
    value: str

    def open(self) -> Rows:
        """Opens the source, whose rows are all read once.

        Raises:
          UserError: the source cannot be opened, or no row has the value.
        """
        rows = self.source.open()
        values = [str(get(light(rows, i), self.field, rows.name)) for i in range(len(rows))]
        keep = [i for i, value in enumerate(values) if value == self.value]
        if not keep:
            there = sorted({*values})
            raise UserError(
                f"{rows.name} has no row whose {self.field} is {self.value!r}; there are "
                f"{', '.join(there[:8])}{nearest(self.value, there)}"
            )
        name = f"{rows.name}, {self.field} {self.value}"
        return Rows(name, len(keep), lambda i: rows[keep[i]], rows.files)
