"""The tokenizer of a checkpoint: its kind, end tokens and chat format; or why there is none."""

from llama_jax.errors import UserError
from llama_jax.text.pretrained import Pretrained
from llama_jax.verify.report import Line, Section, unchecked
from llama_jax.weights.opened import Checkpoint
from llama_jax.weights.tokenizer_files import tokenizer

TITLE = "tokenizer"


def words(checkpoint: Checkpoint) -> tuple[Pretrained | None, Section]:
    """The tokenizer, and what is to be said of it; a damaged one is a failed check."""
    if _absent(checkpoint):
        return None, Section(TITLE, (unchecked("tokenizer", "these weights have none"),))
    try:
        found = tokenizer(checkpoint)
    except UserError as error:
        line = Line("tokenizer", " ".join(str(error).split()), "failed")
        return None, Section(TITLE, (line,))
    return found, Section(TITLE, tuple(_describe(found)))


def _absent(checkpoint: Checkpoint) -> bool:
    place = checkpoint.tokenizer_place
    if place is None:
        return True
    return checkpoint.kind == "run" and not (place / "tokenizer.json").exists()


def _describe(found: Pretrained) -> list[Line]:
    texts = {token: text for text, token in found.control.items()}

    def named(token: int) -> str:
        return f"{texts.get(token, '?')} ({token})"

    ends = sorted(found.ends)
    return [
        Line("kind", found.kind),
        Line("ids", f"{found.vocab:,}", numbers={"count": found.vocab}),
        Line("begins a text", "nothing" if found.bos is None else named(found.bos)),
        Line("ends", ", ".join(map(named, ends)) or "none", numbers={"ids": ends}),
        Line("chat format", _chat(found)),
    ]


def _chat(found: Pretrained) -> str:
    from llama_jax.text.chat import format_of

    try:
        name = type(format_of(found)).__name__
    except UserError:
        return "none is known"
    return "the file's own template" if name == "Template" else f"that of {name}"
