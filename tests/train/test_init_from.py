"""Training that begins from real weights, and what comes of it."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import llama_jax
from llama_jax import presets
from llama_jax.config import BPE, File, Mesh, edit
from llama_jax.data import LanguageModel, Loader, PlainText, SentencePairs, Seq2Seq, Stream
from llama_jax.errors import UserError
from llama_jax.evals import run_eval
from llama_jax.text.files import NAMES, open_for_training
from llama_jax.text.tokenizer import Tokenizer
from llama_jax.train.from_weights import FromWeights, tokenizer_of
from llama_jax.train.init_from import Start, trusting
from llama_jax.train.load import load
from llama_jax.train.loop import train
from llama_jax.weights.convert import convert
from tests.generate import small
from tests.train.tiny import text_run, write_text
from tests.weights import test_meta

# float32 sums in another order: rows apart, not packed; and on one device, not eight.
LOSS = 1e-5
STACKED = dataclasses.replace(
    small.MODEL, stack=dataclasses.replace(small.STACK, scan=True), context=200
)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same weights as a Hugging Face folder, a GGUF file and a run; and a text."""
    place = tmp_path_factory.mktemp("weights")
    folder = small.folder(place / "hf")
    convert(folder, place / "small.gguf", "gguf")
    convert(folder, place / "run", "orbax")
    return place, write_text(place / "lambs.txt")


def tuning(places, source="hf", **changes):
    """A run of a tiny decoder that begins from one of the places."""
    place, text = places
    run = text_run(
        text, model=STACKED, tokenizer=File(), init_from=str(place / source), steps=2, save_every=1
    )
    return dataclasses.replace(run, **changes)


def losses(place) -> list[float]:
    lines = map(json.loads, (place / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def loss_by_hand(lm, batch) -> float:
    """Each document of the packed rows is read alone, by the decoding engine."""
    rows, targets, weights = [], [], []
    for given, target, weight, segments in zip(
        *(batch[k] for k in ("tokens", "targets", "loss_weights", "segments")), strict=True
    ):
        for segment in range(1, segments.max() + 1):
            ends = np.flatnonzero(segments == segment)[[0, -1]] + [0, 1]
            pad = (0, len(given) - (ends[1] - ends[0]))
            for whole, cut in zip((given, target, weight), (rows, targets, weights), strict=True):
                cut.append(np.pad(whole[slice(*ends)], pad))
    logp_BTV = jax.nn.log_softmax(lm.logits(np.stack(rows)), axis=-1)
    logp_BT = np.take_along_axis(np.asarray(logp_BTV), np.stack(targets)[..., None], -1)[..., 0]
    return float(-np.sum(logp_BT * np.stack(weights)) / np.sum(weights))


@pytest.mark.parametrize("source", ["hf", "small.gguf", "run"])
def test_the_first_loss_is_that_of_the_weights(places, tmp_path, source):
    run = tuning(places, source, steps=1)
    train(run, tmp_path, progress=False)
    lm = llama_jax.load(places[0] / "hf")
    batch = Loader(run.data, lm.tokenizer, run.seed).batch(0)["text"]
    assert batch["segments"].max() > 1
    assert losses(tmp_path)[0] == pytest.approx(loss_by_hand(lm, batch), abs=LOSS)


@pytest.fixture(scope="module")
def tuned(places, tmp_path_factory):
    """A run of four steps that was stopped after two."""
    place = tmp_path_factory.mktemp("runs") / "tuned"
    train(tuning(places), place, progress=False)
    assert train(tuning(places, steps=4), place, progress=False).step == 4
    return place


def test_a_run_from_weights_goes_on_as_if_it_had_not_stopped(places, tuned, tmp_path):
    train(tuning(places, steps=4), tmp_path, progress=False)
    assert losses(tmp_path) == losses(tuned)
    assert losses(tuned)[-1] < 0.9 * losses(tuned)[0]


def test_the_run_keeps_the_tokenizer_of_the_weights(places, tuned):
    for name, content in small.files().items():
        assert (tuned / name).read_bytes() == content
    words = load(tuned).tokenizer
    # The file's post-processor puts nothing before a text, so neither does training.
    assert (words.bos, words.eos) == (None, small.CONTROL["</s>"])


def test_what_was_trained_is_evaluated_generates_and_becomes_a_folder_again(
    places, tuned, tmp_path, capsys
):
    assert {row.name for row in run_eval(tuned, limit=8)} >= {"lm_perplexity"}
    lm = llama_jax.load(tuned)
    said = lm.generate("Lamb 7 went", max_new_tokens=8)
    assert isinstance(said, str) and said
    assert lm.chat_ids("hello")[0] == small.CONTROL["<s>"]  # the template came along
    convert(tuned, tmp_path / "out", "huggingface")
    again = llama_jax.load(tmp_path / "out")
    assert again.generate("Lamb 7 went", max_new_tokens=8) == said
    ids = [lm.ids("Lamb 7 went to 0 places.")]
    np.testing.assert_array_equal(again.logits(ids), lm.logits(ids))
    came, went = (place / "config.json" for place in (places[0] / "hf", tmp_path / "out"))
    assert went.read_bytes() == came.read_bytes()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_run_does_not_go_on_with_another_tokenizer(places, tmp_path, name):
    train(tuning(places, steps=1), tmp_path, progress=False)
    file = tmp_path / name
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(UserError, match="is not the tokenizer of these checkpoints"):
        train(tuning(places), tmp_path, progress=False)


def test_a_run_goes_on_though_its_weights_are_gone(places, tmp_path):
    folder = small.folder(tmp_path / "hf")
    run = tuning(places, init_from=str(folder), steps=1)
    train(run, tmp_path / "run", progress=False)
    folder.rename(tmp_path / "moved")
    assert train(edit(run, "steps", 2), tmp_path / "run", progress=False).step == 2


def test_layers_may_have_arrays_of_their_own(places, tuned, tmp_path):
    train(tuning(places, model=small.MODEL, steps=1), tmp_path, progress=False)
    assert losses(tmp_path)[0] == pytest.approx(losses(tuned)[0], abs=LOSS)


def test_weights_are_split_over_the_mesh_as_they_are_read(places, tuned, tmp_path):
    run = tuning(places, steps=1, mesh=Mesh(data=2, fsdp=2, tensor=2))
    train(run, tmp_path, progress=False)
    assert losses(tmp_path)[0] == pytest.approx(losses(tuned)[0], abs=LOSS)


def test_a_tokenizer_that_the_run_names_comes_before_that_of_the_weights(places, tmp_path):
    words = Tokenizer.train(["a lamb went to sea"] * 9, vocab=300)
    words.save(tmp_path / "words.json")
    run = edit(tuning(places, steps=1), "tokenizer", str(tmp_path / "words.json"))
    train(run, tmp_path / "run", progress=False)
    assert (tmp_path / "run/tokenizer.json").read_bytes() == words.content()
    assert not (tmp_path / "run/tokenizer_config.json").exists()


def test_nothing_of_an_earlier_try_stays_beside_the_tokenizer(places, tmp_path):
    train(tuning(places, steps=0), tmp_path, progress=False)
    assert (tmp_path / "tokenizer_config.json").exists()
    train(text_run(places[1], steps=0), tmp_path, progress=False)
    assert [name for name in NAMES if (tmp_path / name).exists()] == ["tokenizer.json"]
    assert isinstance(open_for_training(tmp_path), Tokenizer)


def test_other_constants_are_said_and_taken(places, tmp_path, capsys):
    train(edit(tuning(places, steps=0), "model.norm.eps", 1e-3), tmp_path)
    assert "not as in" in (said := capsys.readouterr().err)
    assert "model.norm.eps was 1e-05, is 0.001" in said


STREAM = "data.text.task"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("model.vocab", 400, "hf holds another model than tiny: .*vocab was 300, is 400"),
        ("model.stack.repeats", 3, "another model .*stack.repeats was 2, is 3; take its"),
        (f"{STREAM}.length", 300, f"rows of 300 tokens and .*context is 200; .*{STREAM}.length"),
        (STREAM, SentencePairs(), "the task SentencePairs needs <cls>, <sep>, <mask>"),
        (STREAM, Seq2Seq("text", "text"), "the task Seq2Seq needs <cls>"),
        ("init_from", None, "tiny has no tokenizer; give --init-from WEIGHTS"),
        ("init_from", "owner-without-model", "does not exist; give a checkpoint's file or folder"),
    ],
)
def test_what_does_not_fit_is_one_line_before_any_step(places, tmp_path, path, value, said):
    with pytest.raises(UserError, match=said) as caught:
        train(edit(tuning(places), path, value), tmp_path, progress=False)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(places, tmp_path):
    model = edit(tuning(places), "model.vocab", 290).model
    with pytest.raises(UserError, match="vocab is 290 and the tokenizer's vocabulary is 300"):
        named = File(str(places[0] / "hf"))
        train(tuning(places, model=model, init_from=None, tokenizer=named), tmp_path)


def test_of_two_vocabularies_it_is_said_which_wins_and_how_to_change_it(places, tmp_path):
    train(text_run(places[1], steps=0), tmp_path / "first", progress=False)
    model = edit(text_run(places[1]), "model.vocab", 280).model
    run = text_run(
        places[1], model=model, tokenizer=BPE(280), init_from=str(tmp_path / "first"), steps=0
    )
    with pytest.raises(
        UserError,
        match=r"vocab is 280 and the vocabulary of .*/first's tokenizer, which init_from takes "
        r"along, is 300; --set model.vocab=300 keeps it, --set tokenizer=PATH .* takes another",
    ):
        train(run, tmp_path / "second", progress=False)
    words = Tokenizer.train(["a lamb went to sea"] * 9, vocab=280)
    words.save(tmp_path / "words.json")
    said = edit(run, "tokenizer", str(tmp_path / "words.json"))
    assert Start.of(said).tokenizer()[1] == {"tokenizer.json": words.content()}


@pytest.mark.parametrize("name", ["seed_draw", "seed_all_demo"])
def test_a_run_that_draws_with_nothings_words_is_refused_before_its_data_are_read(name):
    with pytest.raises(
        UserError, match=r"needs weights pictures/\* .* none came; give --init-from"
    ):
        Start.of(presets.get(name))


def test_a_mistyped_path_is_answered_with_the_nearest(places, tmp_path):
    run = tuning(places, "small.guf")
    with pytest.raises(
        UserError, match="'.*small.guf' does not exist. Did you mean '.*small.gguf'"
    ):
        train(run, tmp_path, progress=False)


@pytest.mark.parametrize("other", ["nowher", "nowhere.txt", ".nowhere", "nowheres/notes.txt"])
def test_only_what_may_be_a_tokenizer_is_suggested_for_one(tmp_path, other):
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / other).write_text("")
    with pytest.raises(
        UserError, match="tokenizer: '.*/nowhere' does not exist; a file or folder of"
    ):
        tokenizer_of(str(tmp_path / "nowhere"))
    (tmp_path / "nowhere2").mkdir()
    (tmp_path / "nowhere2/tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="does not exist. Did you mean '.*/nowhere2'"):
        tokenizer_of(str(tmp_path / "nowhere"))


def test_pickles_are_not_opened_and_the_way_round_is_said(places, tmp_path):
    (tmp_path / "params.json").write_text("{}")
    with pytest.raises(UserError, match="llama-jax convert .* --allow-pickle"):
        train(tuning(places, init_from=str(tmp_path)), tmp_path / "run", progress=False)


def test_pickles_are_begun_with_when_they_are_trusted(places, tmp_path):
    folder = test_meta.save(tmp_path / "meta", test_meta.weights())
    model = test_meta.model(test_meta.PARAMS, test_meta.SHAPES)
    with trusting():
        origin = Start.of(tuning(places, model=model, init_from=str(folder))).origin
    assert isinstance(origin, FromWeights) and origin.checkpoint.kind == "meta"


def test_a_model_trained_from_nothing_may_use_a_tokenizer_of_others(places, tmp_path):
    run = text_run(places[1], model=STACKED, tokenizer=File(str(places[0] / "hf")), steps=1)
    train(run, tmp_path, progress=False)
    assert llama_jax.load(tmp_path).tokenizer.named["eos_token"] == "</s>"
    data = {"text": Stream(PlainText(str(places[1])), LanguageModel(16, packed=False), 8)}
    train(dataclasses.replace(run, data=data), tmp_path / "unpacked", progress=False)


def test_our_own_runs_still_give_their_tokenizer(places, tmp_path):
    train(text_run(places[1], steps=1), tmp_path / "first", progress=False)
    run = text_run(places[1], steps=1, init_from=str(tmp_path / "first"), tokenizer=BPE(300))
    train(run, tmp_path / "second", progress=False)
    both = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("first", "second")]
    assert both[0] == both[1]
