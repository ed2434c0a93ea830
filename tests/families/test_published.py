"""Published models by their config.json: read as the right family, or refused by name."""

import pytest

from llama_jax.families.sizes import sizes
from llama_jax.layers.rope import Llama3Rope, Rope
from llama_jax.layers.rope_scaled import LinearRope
from tests.families.published import MODELS, PAGE, page, parameters, read

KINDS = {None: Rope, "llama3": Llama3Rope, "linear": LinearRope}


@pytest.mark.parametrize("name", MODELS)
def test_a_published_model_is_read_or_refused_by_name(name):
    entry, found = MODELS[name], read(name)
    config = entry["config"]
    if "refused" in entry:
        assert isinstance(found, str) and found.startswith(f"config.json: {entry['refused']};")
        return
    assert not isinstance(found, str), found
    family, model = found
    given = sizes(model)
    assert family == entry["family"]
    assert (given.width, given.layers, given.vocab, given.hidden) == tuple(
        config[field]
        for field in ("hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size")
    )
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    assert type(given.rope) is KINDS[scaling.get("rope_type", scaling.get("type"))]
    assert given.rope is not None
    assert given.rope.theta == config.get("rope_theta", scaling.get("rope_theta", 10_000.0))
    assert set(given.windows) <= {None, config.get("sliding_window")}
    assert given.tied == config.get("tie_word_embeddings", False)
    if "parameters" in entry:
        assert parameters(model) == entry["parameters"]


def test_every_entry_has_a_source_that_can_be_looked_up():
    assert len(MODELS) >= 60
    for entry in MODELS.values():
        assert entry["source"].startswith("https://github.com/")
        assert ("family" in entry) != ("refused" in entry)


def test_the_page_is_made_of_the_data():
    written = PAGE.read_text(encoding="utf-8")
    assert written == page(), "out of date; run python -m tests.families.published"
