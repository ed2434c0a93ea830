"""Evaluations of a model whose answers are known, and how they are chosen."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_jax import axes
from llama_jax.data import JsonLines, Stream, Tfds
from llama_jax.errors import UserError
from llama_jax.evals import (
    Eval,
    ExactMatch,
    Matching,
    Retrieval,
    Row,
    Scores,
    Vqa,
    evaluations,
    report,
)
from llama_jax.evals.base import held_out, unmasked
from llama_jax.evals.inputs import Tower, in_batches
from llama_jax.evals.text import BATCHES, majority, over_batches, unigram
from llama_jax.evals.vision import another, usual_answers
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.stack import Stack
from llama_jax.models.coattention import CoAttention
from llama_jax.models.decoder import Decoder
from llama_jax.models.multimodal import Multimodal
from llama_jax.models.stem import Patches
from llama_jax.models.text_encoder import TextEncoder
from llama_jax.models.tokens import Tokens, text_positions
from llama_jax.models.vision import SpaceTime, VisionEncoder
from llama_jax.objectives import ITC, ITM, MLM, NSP, Caption, Objective, Seq2Seq, losses
from llama_jax.train.step import initializer

VQA = {"vqa": Seq2Seq("questions")}


def values(rows):
    return {row.name: row.value for row in rows}


def test_vqa_by_answer_type_with_controls(trained):
    rows = Vqa("vqa", "questions", batch=4).rows(trained(VQA))
    color = np.array([0, 1, 2, 3, 0, 1])
    still_right = np.sum(color[another(6)] == color)
    # 11 questions: 6 colours, which the model names, and 5 of yes or no, where it names them too.
    assert values(rows) == {
        "vqa_accuracy": pytest.approx(6 / 11),
        "vqa_accuracy_color": 1.0,
        "vqa_accuracy_yes_no": 0.0,
        "vqa_accuracy_shuffled_images": pytest.approx(still_right / 11),
        "vqa_accuracy_question_only": pytest.approx(4 / 11),  # It says "no" without a picture.
    }
    by_name = {row.name: row for row in rows}
    assert by_name["vqa_accuracy"].count == 11
    assert by_name["vqa_accuracy"].data.endswith("(training data)")
    # Most frequent answers: "no" to "is it red" (4 of 5), red or green to the colour (2 of 6).
    assert by_name["vqa_accuracy"].baseline == pytest.approx(6 / 11)
    assert by_name["vqa_accuracy_yes_no"].baseline == pytest.approx(4 / 5)
    assert by_name["vqa_accuracy_question_only"].baseline == pytest.approx(4 / 11)
    assert by_name["vqa_accuracy_question_only"].baseline_name == "always 'no'"


def test_the_batch_size_changes_nothing(trained):
    few, many = (Vqa("vqa", "questions", batch=n).rows(trained(VQA)) for n in (2, 64))
    assert few == many


def test_a_limit_takes_the_first_rows(trained):
    rows = Vqa("vqa", "questions", limit=4, batch=4).rows(trained(VQA))
    assert rows[0].count == 3  # The first picture has one question, and its second slot is empty.


def test_usual_answers_are_those_of_the_training_data(trained):
    state = trained(VQA)
    usual, by_question = usual_answers(state.run.data["questions"], state.tokenizer)
    assert usual == "no"
    assert by_question["is it red"] == "no"
    assert by_question["what color"] in ("red", "green")


def test_captions_must_match_exactly(trained):
    state = trained({})
    rows = ExactMatch("caption", "questions", only="image").rows(state)
    assert values(rows) == {"caption_exact_match": pytest.approx(6 / 11)}


@given(st.integers(2, 50))
def test_no_picture_keeps_its_place(count):
    moved = another(count)
    assert sorted(moved) == list(range(count))
    assert not np.any(moved == np.arange(count))


def test_retrieval_counts_any_partner_of_the_class(trained):
    rows = Retrieval("retrieval", "captions", batch=4).rows(trained({"itc": ITC("captions")}))
    assert values(rows) == {
        "retrieval_r1": 1.0,
        "retrieval_r1_text_to_image": 1.0,
        "retrieval_r1_image_to_text": 1.0,
    }
    # Red and green twice, blue and black once: 4 + 4 + 1 + 1 of 36 pairs.
    assert rows[0].baseline == pytest.approx(10 / 36)


def test_any_caption_of_a_picture_is_right(trained, pictures):
    lines = [json.loads(line) for line in (pictures / "pictures.jsonl").read_text().splitlines()]
    for line in lines:  # the two red pictures, which look green, may be called so
        line["captions"] = [line["caption"]] + ["a green circle"] * ("red" in line["caption"])
    (pictures / "several.jsonl").write_text("\n".join(map(json.dumps, lines)))
    state = trained({}, fooled=1)
    captions = dataclasses.replace(state.run.data["captions"].task, caption="captions")
    source = JsonLines(str(pictures / "several.jsonl"))
    stream = dataclasses.replace(state.run.data["captions"], source=source, task=captions)
    run = dataclasses.replace(state.run, data=state.run.data | {"captions": stream})
    state = dataclasses.replace(state, run=run)
    rows = values(Retrieval("retrieval", "captions").rows(state))
    assert rows["retrieval_r1_image_to_text"] == 1
    hard = values(Matching("itm", "captions").rows(state))["itm_accuracy_hardest"]
    # Still refused with their first caption, but a green caption is no negative of theirs.
    assert hard == pytest.approx((4 / 6 + 1) / 2)


def test_retrieval_notices_what_the_model_mistakes(trained):
    rows = values(Retrieval("retrieval", "captions").rows(trained({}, fooled=1)))
    # The two red pictures look green: found by neither side.
    assert rows["retrieval_r1_image_to_text"] == pytest.approx(4 / 6)
    assert rows["retrieval_r1_text_to_image"] < 1


def test_matching_is_balanced(trained):
    rows = Matching("itm", "captions", batch=4).rows(trained({}))
    names = ("itm_accuracy", "itm_accuracy_hard", "itm_accuracy_hardest")
    assert values(rows) == dict.fromkeys(names, 1.0)
    # 6 pairs that belong together, 6 random ones, and 6 drawn each way.
    assert (rows[0].count, rows[2].count) == (12, 18) and 12 <= rows[1].count <= 18
    assert all(row.baseline == 0.5 for row in rows)


def test_hard_negatives_are_where_the_model_is_wrong(trained):
    random, hard, hardest = Matching("itm", "captions").rows(trained({}, fooled=1))
    # Red pictures look green: 2 of 6 pairs are refused; of the hard ones, both green captions get a
    # red picture and both red pictures a green caption, and all four are taken for pairs.
    assert hardest.value == pytest.approx((4 / 6 + 8 / 12) / 2)
    # In batches of 4 and 2 not every caption meets the picture that fools it.
    assert hardest.value <= hard.value and random.value > hardest.value


def test_hard_negatives_come_from_a_batch_of_the_training_streams_size(trained):
    state = trained({}, fooled=1)
    stream = dataclasses.replace(state.run.data["captions"], batch=6)
    run = dataclasses.replace(state.run, data=state.run.data | {"captions": stream})
    _, hard, hardest = Matching("itm", "captions").rows(dataclasses.replace(state, run=run))
    assert (hard.value, hard.count) == (hardest.value, hardest.count)


def test_scores_of_a_model_that_knows_nothing(trained):
    objectives = {"mlm": MLM("documents"), "nsp": NSP("documents")}
    state = trained(objectives)
    rows = {row.name: row for row in Scores("documents", "documents", batch=4).rows(state)}
    assert rows["mlm_perplexity"].value == pytest.approx(state.tokenizer.vocab, rel=1e-5)
    assert 1 < rows["mlm_perplexity"].baseline < 40  # Ten words, and smoothing over all ids seen.
    assert rows["mlm_perplexity"].strong_name == "trigrams of both sides"
    assert 1 < rows["mlm_perplexity"].strong < rows["mlm_perplexity"].baseline
    assert rows["nsp_accuracy"].strong is None
    assert rows["nsp_accuracy"].count == 12
    assert 0 <= rows["nsp_accuracy"].value <= 1


def test_unigram_perplexity_by_hand():
    # Counts plus one: probabilities 1/2, 1/4, 1/4.
    assert unigram(np.array([2.0, 2.0, 0.0]), np.array([1.0, 0.0, 0.0])) == pytest.approx(8**0.5)
    assert unigram(np.array([0.0, 0.0, 0.0, 1.0]), np.array([3.0])) == pytest.approx(7)


def test_majority_is_the_one_of_the_training_data():
    assert majority(np.array([1.0, 3.0]), np.array([9.0, 1.0])) == 0.25
    assert majority(np.array([1.0]), np.array([0.0, 5.0])) == 0


def test_each_distinct_input_is_encoded_once():
    calls = []

    def encode(x):
        calls.append(x.tolist())
        rows = len(x)
        return Tokens(jnp.asarray(x)[..., None], jnp.ones((rows, 1), bool), text_positions(rows, 1))

    tower = Tower(jax.tree_util.Partial(encode), batch=2)
    rows = np.array([[5.0], [6.0], [5.0], [7.0]])
    np.testing.assert_array_equal(tower(rows), [0, 1, 0, 2])
    np.testing.assert_array_equal(tower(rows[::-1]), [2, 0, 1, 0])
    np.testing.assert_array_equal(tower.tokens().x[:, 0, 0], [5, 6, 7])
    assert calls == [[[5.0], [6.0]], [[7.0], [7.0]]]


def test_batches_are_filled_up_and_cut():
    shapes = []

    def double(x):
        shapes.append(x.shape)
        return x * 2

    np.testing.assert_array_equal(in_batches(double, 2, np.arange(5)), [0, 2, 4, 6, 8])
    assert shapes == [(2,)] * 3


def test_held_out_data_is_the_test_split(trained, monkeypatch):
    stream = trained({}).run.data["captions"]
    opened = []

    def fake(self):
        opened.append(self.split)
        if self.split != "validation":
            raise UserError("no such split")
        return [None]

    class Named(list):
        name = "set:validation"

    monkeypatch.setattr(Tfds, "open", lambda self: (fake(self), Named())[1])
    found, name = held_out(Stream(Tfds("set"), stream.task, 4, fraction=0.1))
    assert (found.source.split, found.fraction, name) == ("validation", 1.0, "set:validation")
    assert opened == ["test", "validation"]
    assert unmasked(stream).task.mlm is None


def test_evaluations_follow_from_the_objectives(trained):
    objectives = VQA | {
        "mlm": MLM("documents"),
        "nsp": NSP("documents"),
        "itc": ITC("captions"),
        "itm": ITM("captions"),
        "caption": Caption("captions"),
    }
    run = trained(objectives).run
    assert evaluations(run, limit=5) == [
        Vqa("vqa", "questions", limit=5),
        Scores("documents", "documents", limit=5),
        Retrieval("retrieval", "captions", limit=5),
        Matching("itm", "captions", limit=5),
        ExactMatch("caption", "captions", limit=5, only="image"),
    ]


def test_an_objective_of_ones_own_brings_its_evaluation(trained):
    @dataclasses.dataclass(frozen=True)
    class Mine(Eval):
        def rows(self, trained):
            return [Row(f"{self.name}_share", 0.5, 0.25, "a guess", 4, self.on)]

    @dataclasses.dataclass(frozen=True)
    class Own(Objective):
        def evaluation(self, name, run):
            return Mine(name, self.on, limit=len(run.data))

    @dataclasses.dataclass(frozen=True)
    class Sharper(MLM):
        """An heir is evaluated as its parent is."""

    @dataclasses.dataclass(frozen=True)
    class Wrong(MLM):
        evaluation = "score"

    state = trained({"own": Own("documents"), "mlm": Sharper("documents")})
    documents = Scores("documents", "documents")
    assert evaluations(state.run)[1:] == [documents]
    assert evaluations(state.run)[0].limit == len(state.run.data)
    assert evaluations(state.run, limit=7)[0].limit == 7
    assert [row.name for row in report.evaluate(state)][0] == "own_share"
    assert evaluations(trained({"none": Objective("documents")}).run) == []
    with pytest.raises(UserError, match="Wrong.evaluation is 'score'.*Did you mean 'scores'"):
        evaluations(trained({"mlm": Wrong("documents")}).run)


def test_the_evaluations_of_the_run_itself_are_in_the_table_too(trained):
    own = Vqa("own", "questions", limit=6)
    run = dataclasses.replace(trained({}).run, evaluations={"own": own, "function": print})
    assert evaluations(run) == [own]


def test_an_evaluation_can_run_while_training(trained):
    state = trained(VQA)
    found = Vqa("vqa", "questions", every=10)(state.model, state.params, state.tokenizer, state.run)
    assert found["vqa_accuracy"] == pytest.approx(6 / 11)
    with pytest.raises(UserError, match="stream 'question';.*Did you mean 'questions'"):
        Vqa("vqa", "question").rows(state)


def test_run_eval_prints_a_table_or_json(trained, monkeypatch, capsys):
    monkeypatch.setattr(report, "load", lambda run_dir, step: trained(VQA))
    rows = report.run_eval("runs/x")
    table = capsys.readouterr().out
    assert "runs/x, step 7" in table
    assert "54.5 %" in table
    assert report.run_eval("runs/x", json=True) == rows
    found = json.loads(capsys.readouterr().out)
    assert found["step"] == 7
    assert found["metrics"]["vqa_accuracy"]["value"] == rows[0].value
    assert found["metrics"]["vqa_accuracy"]["baseline_name"] == "usual answer to the question"


def test_nothing_to_evaluate_is_said(trained):
    with pytest.raises(UserError, match="no evaluation"):
        report.evaluate(trained({}))


@pytest.mark.meshes
def test_a_run_over_several_devices_is_evaluated_as_on_one(trained, mesh):
    """The weights lie split over the mesh, as in a training loop; the counts do not divide by 8."""
    attention = Attention(heads=2, kv_heads=2, head_dim=8, rope=None)
    block = Block(attention, SwiGLU(8))
    state = trained(VQA | {"itm": ITM("captions"), "mlm": MLM("documents")})
    model = Multimodal(
        text=TextEncoder(state.tokenizer.vocab, 8, Stack((block,))),
        fusion=CoAttention(attention, block, layers=1),
        vision=VisionEncoder(8, SpaceTime(Stack((block,))), stem=Patches(4)),
        decoder=Decoder(
            state.tokenizer.vocab, 8, Stack((dataclasses.replace(block, cross=attention),))
        ),
    ).build()
    objectives = state.run.objectives
    fields = {name: s.fields(state.tokenizer) for name, s in state.run.data.items()}
    init = jax.jit(initializer(model, losses(objectives), fields))
    params = nn.meta.unbox(init(jax.random.key(0)))
    chosen = evaluations(state.run)

    def values(params):
        args = model, params, state.tokenizer, state.run
        return {k: v for e in chosen for k, v in dataclasses.replace(e, batch=8)(*args).items()}

    one = values(params)
    with axes.using(mesh(8)):
        everywhere = jax.NamedSharding(mesh(8), jax.sharding.PartitionSpec())
        eight = values(jax.device_put(params, everywhere))
    assert {"vqa_accuracy", "itm_accuracy_hard", "mlm_perplexity"} <= set(one)
    assert eight == pytest.approx(one, rel=1e-4)


def test_shares_of_examples_come_with_their_intervals(trained):
    state = trained(VQA | {"itc": ITC("captions"), "itm": ITM("captions")}, fooled=1)
    for row in report.evaluate(state):
        assert row.low is not None and row.high is not None
        assert 0 <= row.low <= row.value <= row.high <= 1
    first = report.evaluate(state)[0]
    assert first.low < first.value < first.high


def test_a_perplexity_has_an_interval_from_twenty_batches_on():
    sums = np.random.default_rng(0).uniform(1, 2, (BATCHES, 2)) * [90, 60]
    value, low, high = over_batches(sums, np.exp)
    assert value == pytest.approx(np.exp(sums[:, 0].sum() / sums[:, 1].sum()))
    assert low < value < high
    assert over_batches(sums[1:], np.exp)[1:] == (None, None)


def test_a_row_has_a_strong_baseline_in_the_table_and_in_json_only_if_there_is_one(capsys):
    plain = Row("perplexity", 9.25, 40.0, "unigram", 7, "texts")
    row = Row.of("chrf", (0.5, 0.48, 0.52), 0.1, "most frequent text", 7, "texts")
    strong = row.beside((0.25, 0.2, 0.3), "nearest neighbour")
    report.show([plain, row], "")
    without = capsys.readouterr().out
    assert "50.0 % (48.0 to 52.0)" in without and "9.2 " in without and "strong" not in without
    report.show([plain, strong], "")
    table = capsys.readouterr().out
    assert "25.0 % (20.0 to 30.0)" in table and "nearest neighbour" in table
    old = {"value": 9.25, "baseline": 40.0, "baseline_name": "unigram", "count": 7, "data": "texts"}
    found = report.as_json([plain, strong])["metrics"]
    assert found["perplexity"] == old
    assert set(found["chrf"]) - set(old) == {
        *("low", "high", "strong", "strong_name", "strong_low", "strong_high")
    }
