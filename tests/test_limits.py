"""Numbers out of their limits are refused where a config is made, and said by name."""

import dataclasses
from typing import Any

import pytest

from llama_jax import data, evals, objectives, presets
from llama_jax.config import BPE
from llama_jax.errors import UserError
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.norm import LayerNorm, RMSNorm
from llama_jax.layers.positions import RelativeBias
from llama_jax.layers.rope import Rope
from llama_jax.limits import LIMITS, check_limits
from llama_jax.models.heads import AlignHead
from llama_jax.optim.optimizer import Adafactor, AdamW, Muon
from llama_jax.train.profile import Profile

A = Attention(2, 1, 8)
ON = {"on": "text"}
EVAL = {"name": "e", "on": "text"}


@pytest.mark.parametrize(
    ("cls", "given", "field", "wrong", "right", "said"),
    [
        (Block, {"attention": A, "ffn": SwiGLU(8)}, "dropout", -1.0, 0.0, "a number from 0 to 1"),
        (Block, {"attention": A, "ffn": SwiGLU(8)}, "dropout", 1.5, 1.0, "a number from 0 to 1"),
        (RMSNorm, {}, "eps", -1e-5, 0.0, "a number from 0 to 1"),
        (LayerNorm, {}, "eps", 2.0, 1e-6, "a number from 0 to 1"),
        (Rope, {}, "theta", 0.0, 0.5, "more than 0"),
        (Attention, {"heads": 2, "kv_heads": 1, "head_dim": 8}, "scale", 0.0, 1.0, "more than 0"),
        (RelativeBias, {"heads": 2}, "heads", 0, 1, "1 or more"),
        (AlignHead, {}, "temperature", -0.07, 0.1, "more than 0"),
        (AdamW, {}, "eps", -1e-8, 0.0, "a number from 0 to 1"),
        (Muon, {}, "rms", 0.0, 0.2, "more than 0"),
        (Adafactor, {}, "factor_from", 0, 1, "1 or more"),
        (objectives.CausalLM, ON, "label_smoothing", 1.1, 0.1, "a number from 0 to 1"),
        (objectives.Seq2Seq, ON, "z_loss", -1.0, 0.0, "0 or more"),
        (objectives.ITM, ON, "rows", 0, 1, "1 or more"),
        (objectives.Classify, ON, "labels", -1, 0, "0 or more"),
        (evals.Scores, EVAL, "batch", -1, 1, "1 or more"),
        (evals.Retrieval, EVAL, "limit", 0, None, "1 or more"),
        (evals.Vqa, EVAL, "every", -1, 0, "0 or more"),
        (data.Tfds, {"name": "mnist"}, "limit", -1, 1, "1 or more"),
        (BPE, {}, "sentinels", -1, 0, "0 or more"),
    ],
)
def test_what_is_out_of_its_limits_is_refused(
    cls: type, given: dict[str, Any], field: str, wrong: float, right: float | None, said: str
):
    with pytest.raises(UserError, match=f"^{field}={wrong}: give {said}$"):
        cls(**{**given, field: wrong})
    assert getattr(cls(**{**given, field: right}), field) == right


def test_a_class_of_somebodys_own_is_checked_for_the_names_that_it_says():
    @dataclasses.dataclass(frozen=True)
    class Own:
        scale: float = -1.0
        batch: int = 0

    check_limits(Own(batch=1), "batch")
    with pytest.raises(UserError, match="^batch=0: give 1 or more"):
        check_limits(Own(), "batch")
    with pytest.raises(UserError, match="^scale=-1.0: give more than 0"):
        check_limits(Own(batch=1))
    assert all(least < most for least, most in LIMITS.values())


@pytest.mark.parametrize(
    ("buckets", "distance", "causal"),
    [(3, 128, False), (1, 9, True), (32, 8, False), (32, 16, True)],
)
def test_buckets_of_distances_need_a_distance_beyond_the_exact_ones(buckets, distance, causal):
    with pytest.raises(UserError, match=f"^buckets={buckets}, distance={distance}: give"):
        RelativeBias(2, buckets, distance, causal)
    assert RelativeBias(2, 32, 17, causal).distance == 17


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (3, 3), (-1, 2)])
def test_a_profile_has_a_first_step_and_a_later_end(start, stop):
    with pytest.raises(UserError, match=f"^start={start}, stop={stop} of a profile"):
        Profile(start, stop)
    assert Profile.parse("10:13") == Profile(10, 13)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"data": {"text": 3}},
            r"^stream 'text' is 3, which is no config; give a Stream, ",
        ),
        (
            {"data": {"text": data.Stream}},
            "^stream 'text' is <class .*Stream'>, which is no config",
        ),
        ({"evaluations": {"e": evals.Scores}}, "^evaluation 'e' is <class .*which cannot be calle"),
        ({"eval_every": -1}, "^eval_every=-1: give 0 or more"),
    ],
)
def test_a_run_is_made_of_streams_and_evaluations(change, said):
    with pytest.raises(UserError, match=said):
        dataclasses.replace(presets.get("tiny_decoder"), **change)
