"""config.json: what it may say, in which notations, and what is refused by name."""

import pytest

from llama_jax.errors import FormatError
from llama_jax.families import mistral
from llama_jax.families.llama import FAMILY
from llama_jax.layers.rope import Llama3Rope, Rope
from llama_jax.layers.rope_scaled import DynamicRope, LinearRope, LongRope, YarnRope
from tests.weights.small import CONFIG

model = FAMILY.huggingface.model
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ORIGINAL = "original_max_position_embeddings"
LLAMA3 |= {ORIGINAL: 8192}


def attention(**fields):
    return model(CONFIG | fields).stack.pattern[0].attention


def test_what_is_absent_or_null_has_the_default_of_transformers():
    absent = {k: v for k, v in CONFIG.items() if k != "num_key_value_heads"}
    assert model(absent).stack.pattern[0].attention.kv_heads == 4
    assert attention(num_key_value_heads=None).kv_heads == 4
    assert attention(head_dim=None).head_dim == 4
    assert attention(head_dim=6).head_dim == 6
    old = {k: v for k, v in CONFIG.items() if k not in ("rope_theta", "tie_word_embeddings")}
    assert model(old) == model(CONFIG)


@pytest.mark.parametrize(
    ("fields", "rope"),
    [
        ({"rope_theta": 5e5}, Rope(5e5)),
        ({"rope_theta": 500000, "rope_scaling": None}, Rope(5e5)),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_theta": 5e5}, Llama3Rope()),
        ({"rope_scaling": {"type": "llama3", **LLAMA3}, "rope_theta": 5e5}, Llama3Rope()),
        ({"rope_parameters": {"rope_theta": 1e6}}, Rope(1e6)),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, LinearRope(factor=4.0)),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, DynamicRope(1e4, (1,), 2.0, 128)),
        (
            {"rope_scaling": {"type": "yarn", "factor": 8.0, ORIGINAL: 64, "finetuned": True}},
            YarnRope(factor=8.0, original=64),
        ),
        (
            {"rope_scaling": {"type": "yarn", "mscale": 1, "mscale_all_dim": 1}, ORIGINAL: 64.0},
            YarnRope(factor=2.0, original=64, attention=1.0),
        ),
        (
            {"rope_scaling": {"type": "su", "short_factor": [1, 2], "long_factor": [3.0, 4]}}
            | {ORIGINAL: 64},
            LongRope(1e4, (1,), (1.0, 2.0), (3.0, 4.0), 64, 1.0801234),
        ),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, Rope(1e6)),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}}, Llama3Rope()),
    ],
)
def test_rope_is_read_in_the_old_and_in_the_new_notation(fields, rope):
    assert attention(**fields).rope == rope


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "gemma2"}, "model_type='gemma2'; 'llama' was expected"),
        ({"model_type": None}, "model_type=None"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures="),
        ({"sliding_window": 4096}, "sliding_window=4096"),
        ({"attention_bias": "yes"}, "attention_bias='yes'; false or true was expected"),
        ({"mlp_bias": 7}, "mlp_bias=7"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; 'silu' was expected"),
        ({"embedding_multiplier": 12}, "embedding_multiplier=12"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
        ({"num_local_experts": 8}, "num_local_experts=8"),
        ({"rope_scaling": {"type": "linear"}}, "factor=None; a positive number"),
        ({"rope_scaling": {"type": "mrope"}}, "rope_type='mrope'; one of 'default', 'linear'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "alpha": 8}}, "rope_scaling.alpha=8"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1]}}, "long_factor=None; a list"),
        ({"rope_scaling": {"type": "su", "short_factor": [1], "long_factor": [2]}}, "2 were"),
        ({"rope_scaling": {"type": "llama3"}}, "factor=None; a positive number"),
        ({"rope_scaling": 7}, "rope_scaling=7; an object"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention"),
        ({"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"rope_theta": 2}}, "not agree"),
        ({"rope_scaling": {"type": "llama3", **LLAMA3, "low_freq_factor": 9}}, "low <= high"),
        ({"rope_theta": "10000"}, "rope_theta='10000'"),
        ({"hidden_size": None}, "hidden_size=None; a whole number from 1"),
        ({"hidden_size": 16.5}, "hidden_size=16.5"),
        ({"hidden_size": 18}, "num_attention_heads=4; a divisor of hidden_size=18"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000"),
        ({"num_key_value_heads": 3}, "not a multiple of kv_heads=3"),
        ({"head_dim": 5}, "head_dim=5; an even number"),
        ({"vocab_size": True}, "vocab_size=True"),
        ({"rms_norm_eps": 0}, "rms_norm_eps=0"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes'"),
    ],
)  # fmt: skip
def test_what_would_change_the_numbers_is_refused_by_name(fields, said):
    with pytest.raises(FormatError) as caught:
        model(CONFIG | fields, "x/config.json")
    assert said in str(caught.value) and str(caught.value).startswith("x/config.json")


def test_whole_numbers_may_be_written_with_a_point():
    pointed = {"hidden_size": 16.0, "num_attention_heads": 4.0, "max_position_embeddings": 128.0}
    assert model(CONFIG | pointed) == model(CONFIG)
    assert type(model(CONFIG | pointed).width) is int


def test_biases_are_read_and_written_where_the_family_has_them():
    biased = model(CONFIG | {"attention_bias": True, "mlp_bias": True})
    [block] = biased.stack.pattern
    assert block.attention.bias and block.attention.out_bias and block.ffn.bias
    told = FAMILY.huggingface.config(biased)
    assert told["attention_bias"] is told["mlp_bias"] is True and model(told) == biased
    of_mistral = mistral.FAMILY.huggingface
    config = of_mistral.config(model(CONFIG)) | {"attention_bias": True}
    with pytest.raises(FormatError, match="attention_bias=True; False was expected"):
        of_mistral.model(config)


def test_notes_of_programs_do_no_harm():
    notes = {"_name_or_path": "x", "transformers_version": "4.40", "use_cache": True}
    notes |= {"rope_interleaved": False, "is_llama_config": True, "pretraining_tp": 2}
    notes |= {"layer_types": ["full_attention"] * 2, "max_window_layers": 28}
    notes |= {"scale_attn_weights": True, "bias_dropout_fusion": True}
    notes |= {"_attn_implementation_autoset": True, "partial_rotary_factor": 1.0}
    assert model(CONFIG | notes) == model(CONFIG)
