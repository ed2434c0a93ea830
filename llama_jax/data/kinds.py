"""What data are by what is in them: texts, or pairs of texts to read and to write."""

import dataclasses
from typing import Any

import numpy as np

from llama_jax.data.completions import Completions
from llama_jax.data.image_folder import ImageFolder
from llama_jax.data.language import LanguageModel
from llama_jax.data.rows import Rows, Source, text_of
from llama_jax.data.shards import Mix, Prepared, Tokenised
from llama_jax.errors import UserError
from llama_jax.text.vocabulary import Vocabulary

CHATS = ("messages", "conversations", "conversation", "chat")
PAIRS = (
    *(("source", "target"), ("prompt", "completion"), ("prompt", "response")),
    *(("instruction", "output"), ("instruction", "response"), ("question", "answer")),
    *(("input", "output"), ("document", "summary"), ("article", "summary")),
)
LOOKED_AT = 1000  # rows, spread over the source, that say how long texts are
SHORTEST, LONGEST = 64, 1024  # tokens of a row of joined documents
MOST = 4096  # tokens of a row of one pair


@dataclasses.dataclass(frozen=True)
class Kind:
    """What data are.

    Attributes:
      said: in words.
      task: what is made of them, of rows as long as they need.
    """

    said: str
    task: LanguageModel | Completions


def kind_of(source: Source, words: Vocabulary, context: int, fields: tuple[str, ...] = ()) -> Kind:
    """What a source holds for a decoder to learn.

    Args:
      source: the data.
      words: the tokenizer of the decoder.
      context: the most tokens that it reads.
      fields: the field of the text, or that of what is given and that of what is to be written;
        found by their names if there is none.

    Raises:
      UserError: chats, pictures, or rows in which no field is known.
    """
    if isinstance(source, ImageFolder):
        raise UserError(
            f"{source.path!r} holds pictures, which a decoder of text does not see; expected text "
            "files, or .jsonl or .parquet with a field 'text', or 'source' and 'target'"
        )
    rows = source.open()
    if isinstance(source, Prepared | Mix) or isinstance(rows, Tokenised):
        return Kind("prepared tokens", LanguageModel(min(context, LONGEST)))
    some = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), LOOKED_AT)).astype(int)).tolist()
    named = list(fields) or _named(rows, rows[0])
    if len(named) == 1:
        field = None if named[0] in ("text", "sentences") else named[0]
        longest = max(len(words.encode(text_of(rows[i], field, rows.name))) for i in some)
        length = min(max(_power(longest + 2), SHORTEST), LONGEST, context)
        return Kind(f"texts (field {named[0]!r})", LanguageModel(length, field=field))
    if len(named) > 2:
        raise UserError(
            f"fields {', '.join(named)}: give one, of texts, or two, what is given and what is to "
            "be written"
        )
    task = Completions(named[0], named[1])
    longest = max(len(task.pair(rows[i], words, f"{rows.name}, row {i}")[0]) for i in some)
    length = max(2, min(-(-longest // SHORTEST) * SHORTEST, MOST, context))
    said = f"pairs (given {named[0]!r}, to be written {named[1]!r})"
    return Kind(said, dataclasses.replace(task, length=length))


def _named(rows: Rows, row: dict[str, Any]) -> list[str]:
    """The fields to read, by their names."""
    there = ", ".join(map(str, row)) or "none"
    if chat := next((name for name in CHATS if isinstance(row.get(name), list | tuple)), None):
        raise UserError(
            f"{rows.name} holds chats (field {chat!r}), and teaching chats comes later; give texts "
            "(field 'text') or pairs ('source' and 'target') made of them"
        )
    for name in ("text", "sentences"):
        if name in row:
            return [name]
    if row.get("instruction") and "input" in row and "output" in row:
        raise UserError(
            f"{rows.name} has instructions with an input beside them; join the two in one field, "
            "such as 'source', and call the output 'target'"
        )
    for pair in PAIRS:
        if all(name in row for name in pair):
            return list(pair)
    raise UserError(
        f"{rows.name} has the fields {there}; name the one of the texts, --fields NAME, or what is "
        "given and what is to be written, --fields NAME,NAME"
    )


def _power(least: int) -> int:
    return 1 << (least - 1).bit_length()
