"""A run over prepared data: stopped, gone on with, refused; its state brought together."""

import contextlib
import dataclasses
import json

import pytest

from llama_jax.config import BPE, File, from_json, to_json
from llama_jax.data import LanguageModel, Mix, PlainText, Prepared, Stream, prepare
from llama_jax.data.loader import Loader, merged
from llama_jax.errors import UserError
from llama_jax.evals import run_eval
from llama_jax.text.files import open_for_training
from llama_jax.train.loop import train
from tests.train.tiny import losses, text_run

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def folder(text, tmp_path_factory):
    out, source = tmp_path_factory.mktemp("prepared") / "lambs", PlainText(str(text))
    words = prepare.trained(source, 300, None, out)
    prepare.prepare(source, out, words, {"tokenizer.json": words.content()}, workers=1)
    return out


def run_of(folder, text, pack="fit", **changes):
    source = Mix((Prepared(str(folder)), Prepared(str(folder))), (3.0, 1.0))
    stream = Stream(source, LanguageModel(length=16, pack=pack), batch=8)
    run = text_run(text, data={"text": stream}, tokenizer=File(str(folder)))
    return dataclasses.replace(run, **changes)


def test_a_stopped_run_over_packed_data_ends_with_the_same_bits(folder, text, tmp_path, capsys):
    run = run_of(folder, text)
    assert from_json(to_json(run)) == run
    train(run, tmp_path / "whole")
    assert "75.0% of the tokens, 60 documents" in capsys.readouterr().err
    train(run, tmp_path / "parts", steps=6, progress=False)
    train(run, tmp_path / "parts", progress=False)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 10


def test_a_run_says_how_often_its_growing_batches_read_the_data(folder, text, tmp_path, capsys):
    run = run_of(folder, text, pack="split", steps=3, batch_schedule=((1, 2),))
    train(run, tmp_path)
    assert run.data["text"].batch == 8 and run.data["text"].task.length == 16
    times = 0.75 * (1 + 2 + 2) * 8 * 16 / Prepared(str(folder)).open().manifest.pairs
    assert f"read {times:.3g} times; " in capsys.readouterr().err


def test_a_run_does_not_go_on_over_other_documents(folder, text, tmp_path):
    run = run_of(folder, text, steps=1)
    train(run, tmp_path / "run", progress=False)
    path = tmp_path / "run/checkpoints/1/data.json"
    state = json.loads(path.read_text())["loader"]
    state["flows"]["text"]["content"] = "0" * 64
    with pytest.raises(UserError, match="not those that the run began with"):
        Loader(run.data, open_for_training(folder), run.seed).restore(state)


def test_a_run_needs_the_tokenizer_of_its_data(folder, text, tmp_path):
    with pytest.raises(UserError, match="holds tokens and no text.*--set tokenizer="):
        train(run_of(folder, text, tokenizer=BPE(300)), tmp_path / "a", progress=False)
    other = prepare.trained(PlainText(str(text)), 310, None, tmp_path)
    other.save(tmp_path / "tokenizer.json")
    run = run_of(folder, text, tokenizer=File(str(tmp_path)))
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, vocab=310))
    with pytest.raises(UserError, match="was prepared with the tokenizer [0-9a-f]{12} .*run has"):
        train(run, tmp_path / "b", progress=False)


def test_the_states_of_two_processes_are_that_of_one(folder, text):
    run, words = run_of(folder, text), open_for_training(folder)

    def state(*part):
        with contextlib.closing(Loader(run.data, words, run.seed, *part)) as loader:
            for _ in range(3):
                next(loader)
            return loader.state()

    assert merged([state(0, 2), state(1, 2)]) == merged([state()])


def test_a_run_over_packed_data_is_evaluated(folder, text, tmp_path, capsys):
    train(run_of(folder, text, steps=1), tmp_path / "run", progress=False)
    run_eval(tmp_path / "run", json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["lm_perplexity"]["value"] > 1
