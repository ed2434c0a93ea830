"""What stands between a tokenizer library and whatever comes in a file or a text."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llama_jax.errors import FormatError, UserError

# The limits of Meta's tokenizer: beyond them tiktoken's backtracking overflows its stack.
MOST_CHARACTERS = 400_000  # in one call of a backend
LONGEST_RUN = 25_000  # of characters that are all white space, or none of which is

MOST_TOKENS = 1 << 22  # twenty times the largest vocabulary of the series
MOST_BYTES = 48 << 20  # Llama 4's tokenizer.json has 27 MB
MOST_HOLES = 4096  # ids below the largest that have no token


def check_ids(ids: Sequence[Any], source: str) -> int:
    """One past the largest id.

    Raises:
      FormatError: an id is given twice, is no index, or is far beyond the number of tokens.
    """
    if not ids:
        raise FormatError(f"{source} has no tokens")
    bad = [i for i in ids if type(i) is not int or i < 0]
    if bad:
        raise FormatError(f"{source}: the token id {str(bad[0])[:40]!r} is no index")
    largest = max(ids)
    if largest >= min(MOST_TOKENS, len(ids) + MOST_HOLES):
        raise FormatError(
            f"{source}: the token id {str(largest)[:40]} is too large; expected ids close to the "
            f"number of tokens, {len(ids)}"
        )
    if len(set(ids)) != len(ids):
        raise FormatError(f"{source} gives two tokens the same id; expected one id for each token")
    return largest + 1


def portions(text: str) -> Iterator[str]:
    """Cuts a text where it is over the limits, as Meta's tokenizer does."""
    if len(text) <= LONGEST_RUN:
        yield text
        return
    for start in range(0, len(text), MOST_CHARACTERS):
        part, at = text[start : start + MOST_CHARACTERS], 0
        for run in re.finditer(r"\s+|\S+", part):
            for cut in range(run.start() + LONGEST_RUN, run.end(), LONGEST_RUN):
                yield part[at:cut]
                at = cut
        yield part[at:]


def is_unicode(text: str) -> bool:
    """Whether `text` has a UTF-8 form: lone surrogates have none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turns whatever a library raises into a FormatError that begins with `what`."""
    try:
        yield
    except (UserError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of a Rust library is no Exception
        lines = str(error).splitlines() or [type(error).__name__]
        raise FormatError(f"{what}: {lines[0][:200]}") from None


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """A file's content.

    Raises:
      FormatError: it cannot be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise FormatError(f"{str(path)!r} cannot be read ({error.strerror})") from None
    if len(data) > most:
        raise FormatError(f"{str(path)!r} has more than {most} bytes; expected a tokenizer")
    return data


def typed(value: Any, kind: type, source: str) -> Any:
    """The same value, which is of a kind.

    Raises:
      FormatError: it is of another.
    """
    if not isinstance(value, kind):
        raise FormatError(
            f"{source}: expected {kind.__name__} where {str(value)[:40]!r} stands; the file is "
            "damaged or of another version"
        )
    return value
