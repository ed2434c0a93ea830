"""Meta's tokenizer.model of Llama 3 and 4: lines of base64 and rank, read by tiktoken.

The file holds plain tokens only. The control tokens have the ids behind them; their names are those
of `llama_models/llama3/tokenizer.py` and `llama_models/llama4/tokenizer.py`.
"""

import base64
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llama_jax.errors import FormatError
from llama_jax.text import patterns
from llama_jax.text.any_tokenizer import Front, Opened, Place, assemble
from llama_jax.text.config_files import Added, ConfigFiles
from llama_jax.text.limits import check_ids, refusing

if TYPE_CHECKING:
    import tiktoken


def _reserved(kind: str, numbers: range) -> list[str]:
    return [f"<|{kind}reserved_special_token_{n}|>" for n in numbers]


def _bars(names: str) -> list[str]:
    return [f"<|{name}|>" for name in names.split()]


_LLAMA3 = _bars(
    "begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 "
    "finetune_right_pad_id step_id start_header_id end_header_id eom_id eot_id python_tag image"
)
_LLAMA4 = [
    *_bars("begin_of_text end_of_text fim_prefix fim_middle fim_suffix"),
    *_bars("header_start header_end eom eot step"),
    *_reserved("text_post_train_", range(6)),
    *_bars("python_start python_end finetune_right_pad"),
    *_reserved("text_post_train_", range(8, 69)),
    *_bars("image_start image_end"),
    *_reserved("vision_", range(2)),
    *_bars("tile_x_separator tile_y_separator"),
    *_reserved("vision_", range(2, 6)),
    "<|image|>",
    *_reserved("vision_", range(6, 7)),
    "<|patch|>",
    *_reserved("vision_", range(7, 1048)),
    *_reserved("reasoning_", range(8)),
    *_bars("reasoning_thinking_start reasoning_thinking_end"),
]


@dataclasses.dataclass(frozen=True)
class Generation:
    """What the file does not say, and the number of its lines tells."""

    pattern: str
    control: tuple[str, ...]
    pre: str  # its name in GGUF files


GENERATIONS = {
    128_000: Generation(
        patterns.LLAMA3,
        (*_LLAMA3, *_reserved("", range(2, 2 + 256 - len(_LLAMA3)))),
        "llama-bpe",
    ),
    200_000: Generation(
        patterns.LLAMA4, (*_LLAMA4, *_reserved("", range(2048 - len(_LLAMA4)))), "llama4"
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Tiktoken:
    """A backend of `Opened`; its library is told of no control token at all.

    Attributes:
      backend: the library's object.
      pieces: the bytes of every plain token, those that are added included.
      generation: which Llama it belongs to.
      texts: added tokens that are text.
    """

    backend: "tiktoken.Encoding" = dataclasses.field(repr=False)
    pieces: Mapping[int, bytes] = dataclasses.field(repr=False)
    generation: Generation = dataclasses.field(repr=False)
    texts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    front: Front = ""
    unknown: int | None = None
    lossless: bool = True

    def encode(self, text: str, place: Place = "start") -> list[int]:
        """The ids of plain text."""
        return self.backend.encode(text, allowed_special=set(self.texts), disallowed_special=())


def read(data: bytes, others: ConfigFiles, source: str) -> Opened:
    """Reads a tokenizer.model of Llama 3 or 4.

    Raises:
      FormatError: a line is damaged, or it belongs to neither of them.
    """
    import tiktoken

    ranks = _ranks(data, source)
    generation = GENERATIONS.get(len(ranks))
    if generation is None:
        raise FormatError(
            f"{source} has {len(ranks)} tokens; expected 128000 (Llama 3) or 200000 (Llama 4)"
        )
    control = {text: Added(len(ranks) + n, True) for n, text in enumerate(generation.control)}
    named = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    others = dataclasses.replace(others, named={**named, **others.named})
    borders = (control["<|begin_of_text|>"].id, None)
    special = others.special({}, control, borders, source)
    texts = {text: token.id for text, token in special.texts.items()}
    check_ids([*ranks.values(), *special.control.values(), *texts.values()], source)
    with refusing(source):
        # "Special" in the words of the library: of ours, only what is text is looked for.
        backend = tiktoken.Encoding(
            "llama", pat_str=generation.pattern, mergeable_ranks=ranks, special_tokens=texts
        )
    pieces = {rank: token for token, rank in ranks.items()}
    pieces |= {i: text.encode() for text, i in texts.items()}
    return assemble("tiktoken", Tiktoken(backend, pieces, generation, texts), special, source)


def _ranks(data: bytes, source: str) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines()):
        fields = line.split()
        # Ranks are ids, and the files have them in order.
        if len(fields) != 2 or fields[1] != b"%d" % number:
            raise FormatError(
                f"{source}: line {number + 1} is {str(line[:40])[1:]}; expected base64 and the "
                f"rank {number}"
            )
        with refusing(f"{source}: line {number + 1} is not base64"):
            ranks[base64.b64decode(fields[0], validate=True)] = number
    if len(ranks) != len(data.splitlines()) or b"" in ranks:
        raise FormatError(f"{source} has a token twice, or an empty one; expected each once")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise FormatError(f"{source} has no token for the byte {missing[0]}; expected all 256")
    return ranks
