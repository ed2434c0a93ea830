"""Llama 4 with eyes in Hugging Face's folders: in, out, and its logits those of transformers."""

import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file, save_file  # noqa: E402

import llama_jax  # noqa: E402
from llama_jax.errors import FormatError, UserError  # noqa: E402
from llama_jax.generate.engine import Engine  # noqa: E402
from llama_jax.generate.pictures import show  # noqa: E402
from llama_jax.weights.convert import convert  # noqa: E402
from llama_jax.weights.opened import load_params, open_checkpoint  # noqa: E402

# float32 logits of order 1, through two layers of the tower and four of text.
TOLERANCE = 1e-5
TILE, PATCH, VOCAB, CHUNK = 28, 7, 64, 16
BEGIN, PICTURE, PATCHES = 40, 50, 52  # as far from each other as in the published tokenizer
TOKENS = (TILE // PATCH // 2) ** 2


@pytest.fixture(autouse=True)
def whole_outputs(monkeypatch):
    """In transformers 5.24 the larger model asks its text's output for a field that it lacks."""
    outputs = transformers.modeling_outputs.MoeCausalLMOutputWithPast
    monkeypatch.setattr(outputs, "image_outputs", None, raising=False)


@pytest.fixture(scope="module")
def theirs():
    """transformers' model of random weights."""
    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128, "vision_output_dim": 24, "image_size": TILE,
        "patch_size": PATCH, "projector_input_dim": 24, "projector_output_dim": 24,
    }  # fmt: skip
    text = {
        "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 24,
        "intermediate_size_mlp": 40, "num_local_experts": 3, "attention_chunk_size": CHUNK,
        "floor_scale": 4, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": None,
    }  # fmt: skip
    config = transformers.Llama4Config(
        vision_config=vision,
        text_config=text,
        boi_token_index=BEGIN,
        eoi_token_index=BEGIN + 1,
        image_token_index=PATCHES,
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.Llama4ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            scale = 0.1 if value.ndim == 1 else value.shape[-1] ** -0.5
            shift = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            value.copy_(torch.randn_like(value) * scale + shift)
    return model


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    place = tmp_path_factory.mktemp("llama4") / "theirs"
    theirs.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def ours(folder):
    checkpoint = open_checkpoint(folder)
    return Engine(checkpoint.model.build(), load_params(checkpoint))


def logits(model, shown):
    """transformers' logits for what we show, whose missing tiles are left out."""
    given = {}
    if shown.seen:
        there = shown.seen["at_BS"][:, ::TOKENS] >= 0
        given["pixel_values"] = torch.tensor(np.moveaxis(shown.seen["pixels"][there], -1, 1))
    with torch.no_grad():
        return model(input_ids=torch.tensor(shown.prompts), **given).logits.numpy()


def picture(seed, height=28, width=28):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# A picture of one tile, one of 1 x 2 beside text before and after, two in a row and one later.
KINDS = {
    "text": ([5, 6, 7, 8], []),
    "one tile": ([1, 5, PICTURE, 6, 7], [picture(0)]),
    "several tiles": ([1, 5, 9, PICTURE, 6], [picture(1, 28, 56)]),
    "three": ([PICTURE, PICTURE, 5, PICTURE, 6, 7], [picture(2), picture(3, 56, 56), picture(4)]),
    "16 tiles": ([1, PICTURE, 6], [picture(5, 112, 112)]),
}


@pytest.mark.parametrize("name", KINDS)
def test_logits_are_those_of_transformers(theirs, ours, name):
    ids, images = KINDS[name]
    shown = show(ours.module.config, [ids], [images])
    wanted = logits(theirs, shown)
    found = np.asarray(ours.logits(np.array(shown.prompts), shown.seen))
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)
    tiles = {"text": 0, "one tile": 1, "several tiles": 3, "three": 7, "16 tiles": 17}[name]
    assert shown.prompts[0].count(PATCHES) == tiles * TOKENS


def test_a_batch_with_other_numbers_of_tiles_reads_in_chunks_what_each_row_reads_alone(
    theirs, ours
):
    rows = [KINDS[name] for name in ("three", "text", "several tiles")]
    shown = show(ours.module.config, [ids for ids, _ in rows], [own for _, own in rows])
    read = ours.rows(3, 128)
    read.look(shown.seen)
    found = np.asarray(read.feed(shown.prompts))  # of which the longest is two chunks
    assert max(map(len, shown.prompts)) > 32
    for i, (ids, images) in enumerate(rows):
        wanted = logits(theirs, show(ours.module.config, [ids], [images]))[0, -1]
        np.testing.assert_allclose(found[i], wanted, atol=TOLERANCE, rtol=0)


def test_a_folder_written_back_is_the_same_to_the_bit_and_transformers_opens_it(
    theirs, folder, tmp_path, ours
):
    convert(folder, tmp_path / "ours", "huggingface")
    before, after = (
        load_file(place / "model.safetensors") for place in (folder, tmp_path / "ours")
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor, name)
    assert open_checkpoint(tmp_path / "ours").model == open_checkpoint(folder).model
    again = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "ours", attn_implementation="eager"
    )
    ids, images = KINDS["several tiles"]
    shown = show(ours.module.config, [ids], [images])
    np.testing.assert_array_equal(logits(again.eval(), shown), logits(theirs, shown))


def test_text_is_generated_about_pictures_and_the_cache_gives_what_the_whole_does(folder):
    lm = llama_jax.load(folder)
    [done] = lm.complete([[1, 9, 8]], 5, images=[[picture(3, 28, 56)]])
    shown = lm.shown([[1, 9, 8]], [[picture(3, 28, 56)]])
    written = list(shown.prompts[0])
    for token in done.ids:
        scores = np.asarray(lm.engine.logits(np.array([written]), shown.seen))[0, -1]
        assert int(scores.argmax()) == token
        written.append(token)
    assert lm.complete([[1, 9, 8]], 5, images=[[picture(4)]])[0].logprobs != done.logprobs


def test_the_text_alone_is_the_decoder_of_the_whole(folder, theirs, tmp_path):
    theirs.language_model.save_pretrained(tmp_path / "text")
    whole, alone = open_checkpoint(folder), open_checkpoint(tmp_path / "text")
    assert whole.model.decoder == alone.model
    ids = np.array([[1, 5, 9, 6]])
    part = Engine(whole.model.decoder.build(), {"decoder": load_params(whole)["decoder"]})
    other = Engine(alone.model.build(), load_params(alone))
    np.testing.assert_array_equal(part.logits(ids), other.logits(ids))


def test_a_run_and_a_gguf_file_are_refused_before_anything_is_written(folder, tmp_path):
    for form in ("orbax", "gguf"):
        with pytest.raises(UserError, match="a EarlyVision, of more parts than a language model"):
            convert(folder, tmp_path / form, form)
        assert not (tmp_path / form).exists()


def test_a_model_is_described_by_its_config(folder):
    checkpoint = open_checkpoint(folder)
    assert checkpoint.family is not None and checkpoint.family.name == "llama4_vision"
    words, model = checkpoint.family.huggingface, checkpoint.model
    assert words.lacks(model) is None
    fewer = dataclasses.replace(model.vision, tiles=4)
    assert words.lacks(dataclasses.replace(model, vision=fewer)) == "model.vision.tiles is 4"
    marks = dataclasses.replace(model.marks, row=3)
    assert words.lacks(dataclasses.replace(model, marks=marks)) == "model.marks.row is 3"
    assert words.lacks(model.decoder) == "the model is a Decoder"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_act", "gelu_new", "hidden_act='gelu_new'; 'gelu' was expected"),
        ("intermediate_size", 96, "intermediate_size=96; 128, of 2 x 2 was expected"),
        ("projector_input_dim", 48, "projector_input_dim=48; projector_output_dim=24 was"),
        ("gated", True, "gated=True; a file without this field"),
        ("rope_parameters", {"rope_type": "yarn"}, "a rotary embedding without scaling"),
    ],
)
def test_a_tower_that_is_not_built_is_refused_by_name(folder, field, value, message):
    checkpoint = open_checkpoint(folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"][field] = value
    assert checkpoint.family is not None
    with pytest.raises(FormatError, match=message):
        checkpoint.family.huggingface.model(config)


def test_positions_of_the_other_kind_are_refused_by_name(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    name = "vision_model.positional_embedding"
    tensors[name] = tensors.pop(f"{name}_vlm")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(FormatError, match=f"'{name}' came where {name}_vlm was expected"):
        open_checkpoint(tmp_path)
