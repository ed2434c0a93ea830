"""Weights trained on data with every number from the two, and written back as they came."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import llama_jax
from llama_jax.__main__ import main
from llama_jax.config import edit
from llama_jax.data import Completions, LanguageModel, PlainText, Prepared, Share
from llama_jax.errors import UserError
from llama_jax.plan.here import fitted, need
from llama_jax.train.finetune import before_and_after, begun, followed, tuned
from llama_jax.train.init_from import Start
from llama_jax.weights.convert import convert
from tests.generate import small
from tests.pages import example, run_example
from tests.weights import small as folders

ODD = {
    "vocab_size": 307, "hidden_size": 36, "intermediate_size": 52, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10,
    "tie_word_embeddings": True, "max_position_embeddings": 160, "torch_dtype": "bfloat16",
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "bos_token_id": 296, "eos_token_id": [297, 299], "pad_token_id": 300, "pretraining_tp": 1,
    "transformers_version": "4.45.0", "_name_or_path": "somebody/odd", "my_note": {"a": [1, None]},
}  # fmt: skip
MORE = {
    "generation_config.json": b'{"eos_token_id": [297, 299],\n "do_sample": true}',
    "special_tokens_map.json": b'{"bos_token": "<s>",  "eos_token": "</s>"}',
    "chat_template.jinja": small.TEMPLATE.encode(),
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A Hugging Face folder of odd sizes with all that may lie in one."""
    found = folders.weights(3, "bfloat16", **ODD)
    place = folders.save(tmp_path_factory.mktemp("odd") / "odd", found, **ODD)
    for name, content in (small.files() | MORE).items():
        (place / name).write_bytes(content)
    return place


@pytest.fixture(scope="module")
def finetuned(odd, text, tmp_path_factory):
    """What the command makes of it."""
    place = tmp_path_factory.mktemp("runs") / "run"
    words = ["finetune", str(odd), str(text), "--run-dir", str(place), "--quiet"]
    words += ["--optimizer.rate", "1e-2", "--steps", "6"]
    assert main(words) == 0
    return place, words


def quiet(weights, data, *args, **kwargs):
    return tuned(weights, data, *args, say=lambda line: None, **kwargs)


def test_what_is_written_back_has_the_config_it_came_with(odd, finetuned, tmp_path):
    convert(finetuned[0], tmp_path / "out", "huggingface")
    names = {"config.json", *small.files(), *MORE}
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (odd / name).read_bytes(), name
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"model.safetensors"}
    old, new = (load_file(place / "model.safetensors") for place in (odd, tmp_path / "out"))
    assert {n: (x.shape, x.dtype) for n, x in old.items()} == {
        n: (x.shape, x.dtype) for n, x in new.items()
    }
    assert not any(np.array_equal(old[name], new[name]) for name in old if "proj" in name)


def test_another_type_of_numbers_is_all_that_the_config_then_says_otherwise(
    finetuned, odd, tmp_path
):
    convert(finetuned[0], tmp_path / "out", "huggingface", "float16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == json.loads((odd / "config.json").read_text()) | {"torch_dtype": "float16"}


def test_the_config_survives_a_second_tuning_and_our_own_format(finetuned, odd, text, tmp_path):
    convert(finetuned[0], tmp_path / "ours", "orbax")
    words = ["finetune", str(tmp_path / "ours"), str(text), "--run-dir", str(tmp_path / "run")]
    assert main([*words, "--quiet", "--steps", "1", "--data.text.task.length", "32"]) == 0
    convert(tmp_path / "run", tmp_path / "out", "huggingface")
    assert (tmp_path / "out/config.json").read_bytes() == (odd / "config.json").read_bytes()


def test_a_config_that_no_longer_describes_the_model_is_not_written(odd, text, tmp_path):
    run = edit(quiet(odd, text), "model.context", 100)
    llama_jax.train(edit(run, "steps", 1), tmp_path / "run", progress=False)
    convert(tmp_path / "run", tmp_path / "out", "huggingface")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["max_position_embeddings"] == 100 and "my_note" not in config


def test_a_tuned_model_generates_and_knows_what_it_was_not_taught_by_heart(finetuned):
    lm = llama_jax.load(finetuned[0])
    assert lm.generate("Lamb 7 went", max_new_tokens=4)
    assert {297, 299} <= set(lm.tokenizer.ends)
    found = before_and_after(finetuned[0])
    assert found is not None and found[1] < 0.9 * found[0]


def test_the_same_places_by_other_paths_are_the_same(finetuned, odd, text, monkeypatch):
    monkeypatch.chdir(odd.parent)
    assert begun(finetuned[0], f"{odd.name}/", os.path.relpath(text)) is not None
    with pytest.raises(UserError, match="begun with other weights"):
        begun(finetuned[0], "..", str(text))


def test_the_same_command_goes_on(finetuned, tmp_path, capsys):
    place, words = finetuned
    shutil.copytree(place, tmp_path / "run")
    words = [str(tmp_path / "run") if word == str(place) else word for word in words]
    words.remove("--quiet")
    assert main(words) == 0 and "step 6 of 6 is already done" in capsys.readouterr().err
    assert main([*words[:-1], "7"]) == 0
    said = capsys.readouterr().err
    assert "going on from step 6" in said and "loss on what was held out" in said
    assert main([*words, "--epochs", "1", "--fields", "text", "--data.text.batch", "16"]) == 2
    assert "was started with other settings: data.text.batch was 8" in capsys.readouterr().err


def test_every_number_follows_from_weights_and_data(odd, text):
    run = quiet(odd, text, 2)
    stream = run.data["text"]
    assert isinstance(stream.task, LanguageModel) and stream.task.length == 64
    assert stream.batch == 8 and stream.held_out == Share(0.05)
    assert run.optimizer.rate == 5e-5
    longer = followed(run, edit(run, "data.text.task.length", 32), 2)
    assert longer.steps == pytest.approx(2 * run.steps, abs=2)
    assert longer.optimizer.schedule.warmup == int(0.03 * longer.steps)
    assert followed(run, edit(run, "steps", 200), 2).optimizer.schedule.warmup == 6
    fixed = edit(edit(run, "steps", 200), "eval_every", 7)
    assert followed(run, fixed, 2).eval_every == 7


@pytest.mark.parametrize("epochs", [0, -1, float("nan"), float("inf")])
def test_epochs_are_a_number_above_none(odd, text, epochs):
    with pytest.raises(UserError, match=f"epochs={epochs}: give a number above 0"):
        quiet(odd, text, epochs)


def test_what_holds_nothing_out_is_not_measured(odd, tmp_path):
    (tmp_path / "one.txt").write_text("Lamb 7 went to the sea.")
    run = quiet(odd, tmp_path / "one.txt")
    assert run.data["text"].held_out == Share() and run.eval_every == 0
    other = edit(run, "data.text.held_out", PlainText(str(tmp_path / "one.txt")))
    assert followed(run, other).eval_every == 1


def test_pairs_are_found_and_become_pairs(odd, tmp_path):
    file = tmp_path / "sums.jsonl"
    rows = [{"question": f"{n} and {n}?", "answer": 2 * n} for n in range(40)]
    file.write_text("\n".join(map(json.dumps, rows)))
    said = []
    run = tuned(odd, file, say=said.append)
    assert run.data["text"].task == Completions("question", "answer", length=64)
    assert "given 'question', to be written 'answer'" in said[0]


def test_prepared_data_bring_what_they_hold_out(odd, text, tmp_path, capsys):
    words = ["prepare", str(text), str(tmp_path / "p"), "--tokenizer", str(odd), "--quiet"]
    assert main([*words, "--workers", "1", "--held-out", "0.2"]) == 0
    assert " 0 empty" in capsys.readouterr().out  # what is held out is not
    run = quiet(odd, tmp_path / "p")
    assert run.data["text"].held_out == Prepared(str(tmp_path / "p/held_out"))
    assert run.steps > 1


def test_weights_of_other_formats_begin_with_the_same_model(text, tmp_path):
    folder = small.folder(tmp_path / "hf")
    convert(folder, tmp_path / "small.gguf", "gguf")
    convert(folder, tmp_path / "ours", "orbax")
    model = quiet(folder, text).model
    for place in (tmp_path / "small.gguf", tmp_path / "ours"):
        run = quiet(place, text)
        assert Start.of(run).tokenizer()[0].encode("Lamb 7") == small.tokenizer().encode("Lamb 7")
        assert run.model == model


def test_a_step_that_does_not_fit_is_made_to_or_refused(odd, text):
    run = edit(edit(quiet(odd, text, devices=1), "data.text.batch", 16), "mesh.data", -1)
    said = []
    assert fitted(run, said.append, 10**12) == run
    assert "weights" in said[0] and "activations" in said[0]
    whole = need(run, jax.devices()).total
    less = fitted(run, said.append, int(0.8 * whole))
    assert less.model.stack.remat == "block" and "remat=block" in said[-1]
    assert need(less, jax.devices()).total <= 0.8 * whole
    with pytest.raises(UserError, match=r"takes .* which has .*; try --param-dtype bfloat16"):
        fitted(run, said.append, 1000)


def test_the_example_of_the_page_runs_as_it_is_written(odd, text, tmp_path):
    code = example("import tuned")
    for old, new in (("smollm2", odd), ("my.jsonl", text), ("runs/mine", tmp_path / "run")):
        code = code.replace(f'"{old}"', repr(str(new)))
    run_example(code)
    assert llama_jax.load(tmp_path / "run").generate("Lamb 7", max_new_tokens=2)


def test_a_run_directory_of_other_weights_or_data_is_refused(finetuned, odd, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("one\n\ntwo")
    assert main(["finetune", str(odd), str(other), "--run-dir", str(finetuned[0])]) == 2
    assert "was begun with other data" in capsys.readouterr().err
