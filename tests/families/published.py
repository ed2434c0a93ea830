"""The page of published models, docs/models.md, made of published.json.

python -m tests.families.published        writes the page anew
"""

import json
import math
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from llama_jax import families
from llama_jax.errors import FormatError
from llama_jax.families.names import tensors
from llama_jax.families.sizes import sizes
from llama_jax.models.decoder import Decoder
from llama_jax.verify.facts import describe

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs/models.md"
DATA = json.loads((HERE / "published.json").read_text(encoding="utf-8"))
MODELS: dict[str, dict[str, Any]] = {entry["model"]: entry for entry in DATA["models"]}
PLACE = "config.json"

HEAD = """# Published models

What becomes of the `config.json` of {count} published models: {read} are read, {refused} are
refused by the name of the field that says why. The facts, with the source of each, are in
[published.json](../tests/families/published.json), and
[a test](../tests/families/test_published.py) reads every one; this page is made of them.
[weights.md](weights.md#families) has the families, and says how to add one.

Parameters are those of the files; where a source does not tell whether the output layer is the
embedding, they are left out.

| model | class | read as | parameters | rope |
|---|---|---|---|---|
"""


@cache
def read(name: str) -> "tuple[str, Decoder] | str":
    """The family and the model of an entry, or why it is refused."""
    config = MODELS[name]["config"]
    try:
        family = families.of(config, PLACE)
        return family.name, family.huggingface.model(config, PLACE)
    except FormatError as error:
        return str(error)


def parameters(model: Decoder) -> int:
    """How many numbers the files of a model hold."""
    table = families.describing(model, "huggingface").table("huggingface")
    return sum(math.prod(name.shape) for name in tensors(model, table))


def row(name: str) -> str:
    """The line of a model."""
    entry, found = MODELS[name], read(name)
    [kind] = entry["config"]["architectures"]
    if isinstance(found, str):
        why = found.removeprefix(f"{PLACE}: ").partition(";")[0]
        return f"| {name} | {kind} | refused: `{why}` | | |"
    family, model = found
    # Without a word on it the output layer may or may not be the embedding.
    told = "tie_word_embeddings" in entry["config"]
    count = f"{parameters(model):,}" if told else ""
    given = sizes(model)
    windows = Counter(window for window in given.windows if window is not None)
    more = [f"window {w:,} in {n} of {given.layers} layers" for w, n in windows.items()]
    return f"| {name} | {kind} | {family} | {count} | {'; '.join([describe(given.rope), *more])} |"


def page() -> str:
    """The whole page: what is read first, then what is refused, each in the order of the data."""
    refused = [name for name in MODELS if isinstance(read(name), str)]
    names = [*(name for name in MODELS if name not in refused), *refused]
    counts = {"count": len(names), "read": len(names) - len(refused), "refused": len(refused)}
    return HEAD.format(**counts) + "".join(f"{row(name)}\n" for name in names)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
