"""Every preset: its parameters by shapes alone, its round trip, and that its step can be traced."""

import dataclasses
import functools

import jax
import pytest

from llama_jax import presets
from llama_jax.axes import make_mesh, using
from llama_jax.config import children, from_json, to_json
from llama_jax.config.text import meanings
from llama_jax.errors import UserError
from llama_jax.objectives import losses
from llama_jax.text.tokenizer import Tokenizer
from llama_jax.train.load import build
from llama_jax.train.state import plan
from llama_jax.train.step import bind, initializer, make_train_step
from tests.presets.test_llama import PARAMETERS as LLAMA
from tests.presets.test_relatives import PARAMETERS as RELATIVES

WORDS = Tokenizer.train(["a b c"], 300)  # for shapes, which ask what kinds of tokens it has

# Counted by eval_shape; a change here is a change of every saved run.
PARAMETERS = (
    {
        "seed_demo": 1_935_173,
        "seed_vqa": 1_789_632,
        "seed_full": 2_324_805,
        "seed_full_vqa": 2_179_264,
        "seed_numbers": 1_448_192,
        "seed_translate": 1_628_416,
        "seed_summarise": 1_890_560,
        "seed_topics": 1_890_560,
        "seed_sentiment": 1_890_560,
        "seed_arithmetic": 1_497_344,
        "seed_replies": 1_628_416,
        "seed_clips": 973_440,
        "seed_dialogue_pictures": 1_015_648,
        "seed_smollm2": 267_277_854,
        "seed_smollm2_eyes": 137_724_036,
        "seed_image_tokenizer": 661_604,
        "seed_draw": 1_763_172,
        "seed_all_pretraining": 4_179_475,
        "seed_all": 4_927_635,
        "seed_all_demo_pretraining": 2_009_683,
        "seed_all_demo": 2_452_147,
        "tiny_cross_vision": 3_925_419,
        "tiny_early_vision": 3_579_360,
        "seed_demo_talk": 1_789_632,
        "seed_demo_words": 200_540,
        "seed_demo_draw": 860_828,
        "seed_demo_clips": 973_440,
        "tiny_decoder": 488_064,
        "decoder_25m": 23_994_240,
        # As Meta's reference counts them with tiles of 560 pixels.
        "llama3_2_11b_vision": 10_629_184_035,
        "llama3_2_90b_vision": 88_552_318_523,
        # The language models, and 811,115,008 + 39,845,888 + 4096 x 5120 of eyes.
        "llama4_scout_vision": 108_641_793_536,
        "llama4_maverick_vision": 401_583_781_376,
    }
    | LLAMA
    | RELATIVES
)


# Presets that differ by sizes alone have one program but for shapes: one of each kind is traced.
STEPS = [
    *("seed_demo", "seed_vqa", "seed_full", "seed_full_vqa", "seed_numbers"),
    *("seed_clips", "tiny_decoder", "decoder_25m", "tiny_early_vision"),
    *("seed_smollm2", "seed_smollm2_eyes"),
    *("seed_image_tokenizer", "seed_draw"),
    *("llama1_7b", "llama2_70b", "llama3_1_405b", "llama3_2_1b", "smollm2_135m"),
    *("mistral_7b", "qwen3_0_6b", "smollm3_3b", "cwm_32b", "llama4_maverick"),
]


@functools.cache
def laid_out(name):
    """A preset's run, model, losses, fields by stream and the plan of its state, on one device."""
    run, mesh = presets.get(name), make_mesh(devices=jax.devices()[:1])
    with using(mesh, run.rules):
        model, total = build(run), losses(run.objectives)
        fields = {stream: s.fields(WORDS) for stream, s in run.data.items()}
        init = initializer(model, total, fields)
        layout = plan(init, run.optimizer, run.steps, mesh, run.rules)
    return run, model, total, fields, layout


@pytest.mark.parametrize("name", presets.NAMES)
def test_the_parameters_of_a_preset_are_known(name):
    assert laid_out(name)[-1].parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", STEPS)
def test_the_step_of_a_preset_can_be_traced(name):
    run, model, total, fields, layout = laid_out(name)
    with using(make_mesh(devices=jax.devices()[:1]), run.rules):
        rate = run.optimizer.rate_at(run.steps)
        step = make_train_step(layout, bind(model, total), rate, run.objectives)
        batch = {
            stream: {k: jax.ShapeDtypeStruct(*field) for k, field in named.items()}
            for stream, named in fields.items()
        }
        state, metrics = jax.eval_shape(step, layout.abstract, batch)
    assert {f"{name}/loss" for name in run.objectives} <= set(metrics)


@pytest.mark.parametrize("name", presets.NAMES)
def test_a_preset_survives_the_round_trip_through_json(name):
    run = presets.get(name)
    assert from_json(to_json(run)) == run


SECOND = [
    ("seed_demo", "seed_vqa"),
    ("seed_full", "seed_full_vqa"),
    ("seed_image_tokenizer", "seed_draw"),
    ("seed_vqa", "seed_demo_talk"),
    ("seed_demo_words", "seed_demo_draw"),
]


@pytest.mark.parametrize("pair", SECOND)
def test_fine_tuning_has_the_model_and_tokenizer_of_pre_training(pair):
    first, second = map(presets.get, pair)
    assert (first.model, first.tokenizer) == (second.model, second.tokenizer)


def unsaid(config):
    """The fields of a config and its parts that no docstring says more of than a letter."""
    said = meanings(config) if dataclasses.is_dataclass(config) else None
    for name, value in children(config).items():
        if children(value):
            yield from unsaid(value)
        elif said is not None and len(said.get(name, "")) < 6:
            yield type(config).__name__, name


@pytest.mark.parametrize("name", ["seed_demo", "seed_vqa", "tiny_decoder", "smollm2_135m"])
def test_every_field_of_a_preset_says_in_the_help_what_it_means(name):
    assert not set(unsaid(presets.get(name)))


def test_meshes_are_at_hand_and_what_was_renamed_says_so():
    run = presets.get("tiny_decoder")
    assert presets.meshes.laid_out(run, "fsdp").mesh.fsdp == -1
    with pytest.raises(AttributeError, match="the model is the decoder now, as in model.stack"):
        run.model.decoder  # noqa: B018
    with pytest.raises(UserError, match="^name=None of get is of type NoneType"):
        presets.get(None)
