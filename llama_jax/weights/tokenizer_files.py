"""The tokenizer of a checkpoint: wherever its format keeps it, in the form another one wants."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_jax.errors import FormatError
from llama_jax.formats.source import inside, read_json
from llama_jax.text.files import NAMES
from llama_jax.text.no_tokenizer import NoTokenizer
from llama_jax.text.pretrained import Pretrained, open_tokenizer
from llama_jax.text.tokenizer import NAMED, Tokenizer
from llama_jax.weights.opened import Checkpoint

MOST_BYTES = 48 << 20  # of one of them
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
UNUSED = 5  # GGUF's type of a token that no text gives


def tokenizer(checkpoint: Checkpoint) -> Pretrained:
    """Opens the tokenizer that came with the weights, and checks that it fits them.

    Raises:
      FormatError: there is none, it is damaged, or it has more ids than the model has embeddings.
    """
    place = checkpoint.tokenizer_place
    if place is None:
        raise FormatError(_missing(checkpoint))
    if checkpoint.kind == "gguf":
        from llama_jax.text.gguf import from_fields
        from llama_jax.weights.gguf import open_gguf

        found = from_fields(open_gguf(place).fields)
    else:
        found = open_tokenizer(place)
    vocab = checkpoint.model.vocab
    # A token that was added and never trained, such as Llama 2's <pad>, may have no embedding.
    if found.needed > vocab:
        raise FormatError(
            f"{place}: the tokenizer has ids up to {found.needed - 1} and the model {vocab} "
            "embeddings; it is another model's tokenizer"
        )
    return found


def tokenizer_if_any(checkpoint: Checkpoint) -> Pretrained:
    """The same, or what refuses texts and takes ids where no tokenizer came with the weights.

    Raises:
      FormatError: it is damaged, or another model's.
    """
    if checkpoint.tokenizer_place is not None:
        return tokenizer(checkpoint)
    eos = Companions(checkpoint).ids().get("eos_token_id")
    ends = frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])
    return NoTokenizer(checkpoint.model.vocab, _missing(checkpoint), ends)


def _missing(checkpoint: Checkpoint) -> str:
    way = "put tokenizer.json or tokenizer.model beside it"
    if checkpoint.kind == "gguf":
        way = "a GGUF file holds its own, so take one that does"
    return f"{checkpoint.place} has no tokenizer; {way}"


@dataclass(frozen=True)
class Companions:
    """The tokenizer of a checkpoint."""

    checkpoint: Checkpoint

    def files(self, to: str) -> dict[str, bytes]:
        """Its files by name, for a folder of format `to`; those of a folder stay as they are.

        Raises:
          FormatError: it is damaged, or `to` has no form for it.
        """
        place = self.checkpoint.tokenizer_place
        if place is None:
            return {}
        if to != "orbax" and (trained := self._trained()) is not None:
            return {"tokenizer.json": trained.content(), "tokenizer_config.json": _config(trained)}
        if place.is_dir():
            return {n: _content(inside(place, n)) for n in NAMES if (place / n).exists()}
        from llama_jax.text.export import files

        return files(tokenizer(self.checkpoint))

    def ids(self) -> dict[str, int | list[int] | None]:
        """bos_token_id and eos_token_id.

        Raises:
          FormatError: the tokenizer is damaged, or of a kind that is not known.
        """
        place = self.checkpoint.place
        if self.checkpoint.kind == "huggingface":
            folder = place if place.is_dir() else place.absolute().parent
            config = read_json(inside(folder, "config.json"))
            if self.checkpoint.family is not None:
                config = self.checkpoint.family.huggingface.spoken(config)
            return {name: config.get(name) for name in IDS if _is_ids(config.get(name))}
        if self.checkpoint.tokenizer_place is None:
            return {}
        found = tokenizer(self.checkpoint)
        ends = sorted(found.ends)
        eos = ends if len(ends) > 1 else next(iter(ends), None)
        # A text of some models begins with none, though they name one.
        bos = found.control.get(found.named.get("bos_token", ""), found.bos)
        return {"bos_token_id": bos, "eos_token_id": eos}

    def fields(self) -> dict[str, Any]:
        """GGUF's key-values, filled up to the rows of the embedding.

        Raises:
          FormatError: it is damaged, or GGUF has no name for it.
        """
        if self.checkpoint.kind == "gguf":
            from llama_jax.weights.gguf import open_gguf

            return dict(open_gguf(self.checkpoint.place).fields)
        if self.checkpoint.tokenizer_place is None:
            return {}
        from llama_jax.text.gguf import to_fields

        fields = to_fields(tokenizer(self.checkpoint))
        tokens = fields["tokenizer.ggml.tokens"]
        more = range(len(tokens), self.checkpoint.model.vocab)
        fills = {"tokens": [f"[PAD{i}]" for i in more], "scores": [0.0] * len(more)}
        fills["token_type"] = [UNUSED] * len(more)
        for key, fill in fills.items():
            if (name := f"tokenizer.ggml.{key}") in fields:
                fields[name] = [*fields[name], *fill]
        return fields

    def _trained(self) -> Tokenizer | None:
        """The tokenizer, if a training run of ours made it."""
        file = (self.checkpoint.tokenizer_place or Path()) / "tokenizer.json"
        if self.checkpoint.kind != "run" or not file.is_file():
            return None
        return Tokenizer.read(_content(file))


def _config(trained: Tokenizer) -> bytes:
    """Hugging Face's tokenizer_config.json."""
    config: dict[str, Any] = {f"{name[1:-1]}_token": name for name in NAMED}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return json.dumps(config, indent=2).encode()


def _content(path: Path) -> bytes:
    if path.stat().st_size > MOST_BYTES:
        raise FormatError(f"{path} has more than {MOST_BYTES:,} bytes; a tokenizer was expected")
    return path.read_bytes()


def _is_ids(value: Any) -> bool:
    listed = value if isinstance(value, list) else [value]
    return bool(listed) and all(type(i) is int and 0 <= i < 2**31 for i in listed)
