"""Llama 3.2-Vision in Hugging Face's folders: in, out, and where transformers departs from Meta."""

import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from PIL import Image  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

import llama_jax  # noqa: E402
from llama_jax.data.tiles import sees  # noqa: E402
from llama_jax.generate.engine import Engine  # noqa: E402
from llama_jax.generate.pictures import END, show  # noqa: E402
from llama_jax.weights.convert import convert  # noqa: E402
from llama_jax.weights.opened import load_params, open_checkpoint  # noqa: E402

# float32 logits of order 1, through eight layers of the tower and six of text.
TOLERANCE = 1e-5
TILE, PATCH, VOCAB, T = 28, 14, 64, 12
KEPT = [1, 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as transformers writes it, with gates that let through."""
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig

    seen = {
        "hidden_size": 32, "attention_heads": 4, "num_hidden_layers": 5, "num_global_layers": 2,
        "intermediate_size": 48, "image_size": TILE, "patch_size": PATCH, "vision_output_dim": 96,
        "intermediate_layers_indices": KEPT, "max_num_tiles": 4,
    }  # fmt: skip
    text = {
        "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 96, "cross_attention_layers": [1, 4],
        "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    }  # fmt: skip
    assert MllamaTextConfig(**text).cross_attention_layers == [1, 4]
    config = transformers.MllamaConfig(
        vision_config=seen, text_config=text, image_token_index=VOCAB
    )
    torch.manual_seed(0)
    model = transformers.MllamaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "gate" in name and value.ndim == 1 and value.shape[0] == 1:
                value.fill_(0.7)
            elif "norm" in name:
                value.add_(0.1 * torch.randn_like(value))
            else:
                value.copy_(torch.randn_like(value) * value.shape[-1] ** -0.5)
    place = tmp_path_factory.mktemp("mllama") / "theirs"
    model.save_pretrained(place)
    return place


def theirs(folder, kept=KEPT):
    """transformers' model, whose tower keeps these layers."""
    model = transformers.MllamaForConditionalGeneration.from_pretrained(folder).eval()
    model.model.vision_model.intermediate_layers_indices = list(kept)
    return model


@pytest.fixture(scope="module")
def ours(folder):
    """The same model read by us."""
    checkpoint = open_checkpoint(folder)
    return Engine(checkpoint.model.build(), load_params(checkpoint))


def text(places):
    ids = np.random.default_rng(1).integers(3, VOCAB, (1, T)).astype(np.int32)
    ids[0, places] = VOCAB
    return ids


def logits(model, ids, shown):
    """transformers' logits for what we show."""
    if not shown:
        return model(torch.tensor(ids)).logits.detach().numpy()
    grids = shown["grid_BI2"]
    known = model.config.vision_config.supported_aspect_ratios
    numbers = [[known.index(tuple(map(int, g))) + 1 if tuple(map(int, g)) in known else
                known.index(list(map(int, g))) + 1 for g in row] for row in grids]  # fmt: skip
    tiles = [[[int(t < r * c) for t in range(4)] for r, c in row] for row in grids]
    mask = np.zeros((1, ids.shape[1], grids.shape[1], 4), int)
    for i, (first, end) in enumerate(sees(ids[0].tolist(), VOCAB, ids.shape[1])):
        mask[0, first:end, i] = tiles[0][i]
    pixels = np.moveaxis(shown["pixels"], -1, 3)
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(ids),
            pixel_values=torch.tensor(pixels),
            aspect_ratio_ids=torch.tensor(numbers),
            aspect_ratio_mask=torch.tensor(tiles),
            cross_attention_mask=torch.tensor(mask),
        ).logits.numpy()


def picture(seed, height=28, width=56):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def both(folder, ours, places, kept):
    ids = text(places)
    images = [picture(i, 28 * (1 + i), 56) for i in range(len(places))]
    shown = show(ours.module.config, ids.tolist(), [images])
    wanted = logits(theirs(folder, kept), ids, shown.seen)
    return np.asarray(ours.logits(ids, shown.seen)), wanted


@pytest.mark.parametrize("places", [[], [0], [0, 1], [0, 5]])
def test_logits_are_transformers_where_a_picture_comes_first(folder, ours, places):
    # Its tower keeps the output of a layer where Meta's keeps the input.
    found, wanted = both(folder, ours, places, [layer - 1 for layer in KEPT])
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)


def test_transformers_departs_from_meta_in_the_layers_that_are_kept(folder, ours):
    found, wanted = both(folder, ours, [0], KEPT)
    assert np.abs(found - wanted).max() > 100 * TOLERANCE


def test_transformers_departs_from_meta_where_text_comes_before_the_first_picture(folder, ours):
    found, wanted = both(folder, ours, [4], [layer - 1 for layer in KEPT])
    assert np.abs(found - wanted)[:, :4].max() > 100 * TOLERANCE
    # Before a picture a text reads as if there were none; theirs is changed by it.
    alone = np.asarray(ours.logits(text([4])[:, :4]))
    np.testing.assert_allclose(found[:, :4], alone, atol=TOLERANCE, rtol=0)


def test_a_folder_written_back_is_the_same_to_the_bit_and_transformers_opens_it(
    folder, tmp_path, ours
):
    said: list[str] = []
    convert(folder, tmp_path / "ours", "huggingface", say=said.append)
    before, after = (
        load_file(place / "model.safetensors") for place in (folder, tmp_path / "ours")
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor, name)
    ids = text([0])
    shown = show(ours.module.config, ids.tolist(), [[picture(0)]])
    wanted = logits(theirs(folder), ids, shown.seen)
    np.testing.assert_array_equal(logits(theirs(tmp_path / "ours"), ids, shown.seen), wanted)
    config = json.loads((tmp_path / "ours/config.json").read_text())
    assert config["text_config"]["cross_attention_layers"] == [1, 4]


def test_text_is_generated_about_pictures_and_the_cache_gives_what_the_whole_does(folder, tmp_path):
    lm = llama_jax.load(folder)
    ids = [1, 9, 8, 7]
    image = Image.fromarray(picture(3))
    file = tmp_path / "a.png"
    image.save(file)
    [done] = lm.complete([ids], 5, images=[[file]])
    shown = lm.shown([ids], [[image]])
    assert shown.prompts == [[VOCAB, *ids]]
    written = list(shown.prompts[0])
    for token in done.ids:
        scores = np.asarray(lm.engine.logits(np.array([written]), shown.seen))[0, -1]
        assert int(scores.argmax()) == token
        written.append(token)
    assert int(shown.seen["spans_BI2"][0, 0, 1]) == END
    other = lm.complete([ids], 5, images=[[picture(4)]])[0]
    assert other.logprobs != done.logprobs


def test_a_model_is_described_by_its_config(folder):
    model = open_checkpoint(folder).model
    family = open_checkpoint(folder).family
    assert family is not None and family.huggingface.lacks(model) is None
    changed = dataclasses.replace(model, extra=9)
    assert family.huggingface.lacks(changed) == "model.extra is 9"
