"""Families of models: what is particular to one published architecture, each in a file.

On a first reading go to `llama.py`, then to `qwen3.py`, which differs by a switch, then to
`base.py`.
"""

from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llama_jax.errors import FormatError, UserError, nearest
from llama_jax.messages import short

if TYPE_CHECKING:
    from llama_jax.families.base import Family
    from llama_jax.models.decoder import Decoder

# Modules of this folder. A model without a family's name on it takes the first that has words for
# all that it has.
NAMES = ("llama", "mistral", "qwen3", "cwm", "smollm3", "llama4", "llama4_vision", "mllama")


def every() -> "tuple[Family, ...]":
    """All families."""
    return tuple(import_module(f"{__name__}.{name}").FAMILY for name in NAMES)


def of(config: Mapping[str, Any], place: Path | str = "config.json") -> "Family":
    """The family that a config.json of Hugging Face names.

    Raises:
      FormatError: none is known by that name, or two claim it.
    """
    known = [family.huggingface.model_type for family in every()]
    claiming = [family for family in every() if family.huggingface.claims(config)]
    kind = config.get("model_type")
    what = f"model_type={short(kind)}"
    if len(claiming) > 1:
        what += f" with architectures={short(config.get('architectures'))}"
    return _one(claiming, what, known, kind, place)


def of_gguf(fields: Mapping[str, Any], place: Path | str = "the file") -> "Family":
    """The family that a GGUF file's fields name.

    Raises:
      FormatError: none is known by that name, or two claim it.
    """
    known = [f.gguf.architecture for f in every() if f.gguf is not None]
    claiming = [f for f in every() if f.gguf is not None and f.gguf.claims(fields)]
    kind = fields.get("general.architecture")
    return _one(claiming, f"general.architecture={short(kind)}", known, kind, place)


def of_meta(params: Mapping[str, Any], place: Path | str = "params.json") -> "Family":
    """The family that a params.json of Meta describes.

    Raises:
      FormatError: two claim it.
    """
    claiming = [f for f in every() if f.meta is not None and f.meta.claims(params)]
    return _one(claiming, "params.json", [], None, place)


def _one(
    claiming: "list[Family]", what: str, known: list[str], kind: Any, place: Path | str
) -> "Family":
    if len(claiming) == 1:
        return claiming[0]
    if claiming:
        names = " and ".join(repr(family.name) for family in claiming)
        raise FormatError(f"{place}: {what} is claimed by the families {names}; one was expected")
    hint = nearest(str(kind), known)
    raise FormatError(f"{place}: {what}; one of {', '.join(known)} was expected{hint}")


def describing(
    model: "Decoder", notation: Literal["huggingface", "gguf"], first: "Family | None" = None
) -> "Family":
    """A family in whose words a model can be written down.

    Args:
      model: the config.
      notation: whose files.
      first: the family that the model came from, which is asked before the others.

    Raises:
      UserError: there is none, or the model has no context, which every notation tells.
    """
    name, place = {
        "huggingface": ("Hugging Face", "config.json"),
        "gguf": ("GGUF", "a GGUF file"),
    }[notation]
    if model.context is None:
        raise UserError(
            f"the model has no context, and {place} needs one; give it the number of positions "
            "that it was trained for, e.g. edit(model, 'context', 2048)"
        )
    asked = [family for family in every() if getattr(family, notation) is not None]
    lacks = []
    for family in sorted(asked, key=lambda family: family is not first):
        if (what := getattr(family, notation).lacks(model)) is None:
            return family
        lacks.append(what)
    # What most have no words for: each of the others misses what makes one of them particular.
    [(what, _)] = Counter(lacks).most_common(1)
    known = ", ".join(repr(family.name) for family in asked)
    raise UserError(f"{what}, which none of {name}'s {known} has; it cannot be written")
