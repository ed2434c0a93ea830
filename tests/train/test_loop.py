"""The loop: what a run leaves, signals, corrupt checkpoints, meshes; kill -9 is in tests/chaos."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest

from llama_jax import presets
from llama_jax.__main__ import main
from llama_jax.config import Mesh, edit, to_json
from llama_jax.errors import UserError
from llama_jax.train.load import load
from llama_jax.train.loop import train
from llama_jax.train.profile import Profile
from tests.train.tiny import STEPS, Send, losses, reset_calls, text_run

pytestmark = pytest.mark.usefixtures("compiled_once")


def test_a_run_directory_holds_what_it_should(uninterrupted, text):
    names = {path.name for path in uninterrupted.iterdir()}
    assert {"run.json", "tokenizer.json", "metrics.jsonl", "checkpoints", "tensorboard"} <= names
    kept = sorted(path.name for path in (uninterrupted / "checkpoints").iterdir())
    assert kept == ["10", "9"]  # every third and the last, two of them kept
    first = json.loads((uninterrupted / "metrics.jsonl").read_text().splitlines()[0])
    wanted = {"step", "loss", "lm/loss", "lm/accuracy", "grad_norm", "rate", "skipped", "seconds"}
    assert wanted <= first.keys()
    trained = load(uninterrupted)
    assert trained.run == text_run(text) and trained.step == STEPS
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(trained.params))


def test_the_same_run_twice_gives_the_same_bits(tmp_path, text, uninterrupted):
    train(text_run(text), tmp_path, progress=False)
    assert losses(tmp_path) == losses(uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_saves_and_the_rest_comes_out_equal(
    tmp_path, text, uninterrupted, number, capsys
):
    reset_calls()
    stopping = edit(text_run(text), "evaluations", {"send": Send(at=4, number=number)})
    before = signal.getsignal(number)
    result = train(stopping, tmp_path)
    assert result.stopped == number.name and result.step < STEPS
    assert result.step in {int(p.name) for p in (tmp_path / "checkpoints").iterdir()}
    assert f"saved step {result.step} of {STEPS}" in capsys.readouterr().err
    assert signal.getsignal(number) == before
    assert train(text_run(text), tmp_path, progress=False).step == STEPS
    assert losses(tmp_path) == losses(uninterrupted)


def test_a_corrupt_checkpoint_costs_the_steps_since_the_one_before(
    tmp_path, text, uninterrupted, capsys
):
    train(text_run(text, steps=6), tmp_path, progress=False)
    victim = max((tmp_path / "checkpoints" / "6").rglob("*"), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 3] ^= 16
    victim.write_bytes(content)
    train(text_run(text), tmp_path)
    said = capsys.readouterr().err
    assert "checkpoint 6 is corrupt" in said and "going on from step 3" in said
    assert losses(tmp_path) == losses(uninterrupted)


def test_a_finished_run_has_nothing_to_do(uninterrupted, text, capsys):
    before = (uninterrupted / "metrics.jsonl").read_text()
    result = train(text_run(text), uninterrupted)
    assert result.step == STEPS and result.metrics["loss"] is not None
    assert "already done" in capsys.readouterr().err
    assert (uninterrupted / "metrics.jsonl").read_text() == before


def test_other_settings_do_not_go_on_in_the_same_directory(uninterrupted, text):
    with pytest.raises(UserError, match=r"optimizer.rate was 0.01, is 0.1\..*another --run-dir"):
        train(edit(text_run(text), "optimizer.rate", 0.1), uninterrupted, progress=False)


def test_another_tokenizer_does_not_go_on(tmp_path, text):
    train(text_run(text, steps=1), tmp_path, progress=False)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(UserError, match="is not the tokenizer of these checkpoints"):
        train(text_run(text), tmp_path, progress=False)


def test_a_run_goes_on_over_another_mesh(tmp_path, text, uninterrupted):
    train(text_run(text, steps=6), tmp_path, progress=False)
    mesh = Mesh(data=2, fsdp=2, tensor=2)
    run = edit(text_run(text, mesh=mesh), "model.stack.pattern.0.attention.kv_heads", 1)
    assert train(run, tmp_path, progress=False).step == STEPS
    one, other = losses(tmp_path), losses(uninterrupted)
    for step in one:
        assert float(one[step]) == pytest.approx(float(other[step]), abs=1e-5)


def test_fine_tuning_begins_with_the_weights_and_the_tokenizer_of_another_run(
    tmp_path, text, uninterrupted, capsys
):
    run = text_run(text, init_from=str(uninterrupted), steps=2, seed=1)
    train(run, tmp_path)
    said = capsys.readouterr().err
    total = len(jax.tree.leaves(load(tmp_path).params))
    assert f"{total} of {total} weights from" in said
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert first < 0.8 * float(losses(uninterrupted)[1])
    same = [path / "tokenizer.json" for path in (tmp_path, uninterrupted)]
    assert same[0].read_bytes() == same[1].read_bytes()


def test_a_vocabulary_that_is_not_the_tokenizers_is_refused_before_any_step(tmp_path, text):
    with pytest.raises(UserError, match="model.vocab is 400 and the tokenizer's .* is 300"):
        train(edit(text_run(text), "model.vocab", 400), tmp_path, progress=False)


def test_an_evaluation_runs_when_due_and_at_the_end(tmp_path, text):
    reset_calls()
    run = text_run(text, steps=5, evaluations={"calls": Send(at=99, every=2)})
    result = train(run, tmp_path, progress=False)
    assert result.evaluations == {"calls": {"calls": 3.0}}
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "calls/calls" in line] == [2, 4, 5]


def test_a_run_that_only_skips_is_stopped(tmp_path, text, monkeypatch):
    monkeypatch.setattr("llama_jax.train.log.HOPELESS", 3)
    run = edit(text_run(text), "optimizer.rate", 1e30)
    with pytest.raises(UserError, match="not finite"):
        train(run, tmp_path, progress=False)


def test_nothing_in_a_directory_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="holds no run.json"):
        load(tmp_path)


def test_a_profile_leaves_a_trace_of_its_steps(tmp_path, text, capsys):
    result = train(text_run(text, steps=4), tmp_path, profile=Profile(2, 4))
    assert result.step == 4
    [trace] = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000
    assert "profile in" in capsys.readouterr().err


def test_a_profile_of_steps_that_were_not_done_is_missed_even_in_a_quiet_run(
    tmp_path, text, capsys
):
    train(text_run(text, steps=2), tmp_path, progress=False, profile=Profile(5, 9))
    assert capsys.readouterr().err == (
        "no profile: steps 1 to 2 were done here, and 5:9 has none of them\n"
    )


@pytest.mark.parametrize("wrong", ["10", "13:10", "0:3", "a:b"])
def test_a_profile_that_is_no_range_of_steps_is_refused(wrong):
    with pytest.raises(UserError, match="expected START:STOP"):
        Profile.parse(wrong)


def test_the_log_counts_the_models_work_and_its_time(uninterrupted):
    lines = list(map(json.loads, (uninterrupted / "metrics.jsonl").read_text().splitlines()))
    assert lines[0]["tokens_per_second"] is None  # it compiled
    last = lines[-1]
    assert last["mfu"] is None and 0 < last["tflops_per_device"]  # a CPU has no peak in the table
    speed = last["tokens_per_second"]
    assert last["tokens_per_second_per_device"] == pytest.approx(speed / 8)
    assert 0 < last["goodput"] < 1 and last["memory_gb"] > 0 and 0 <= last["data_wait"] <= 1


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("model.width", 32, "decoder/embed/w is [300, 16] there and [300, 32] here; "
                            "look at model.width, which was 16"),
        ("model.stack.repeats", 2, "look at model.stack.repeats, which was 1"),
        ("model.stack.pattern.0.ffn.hidden", 48, "look at model.stack.pattern.0.ffn.hidden, which"),
        ("model.stack.scan", False, "stack/layer_0/block_0/attn/k/w is no weight there and [16, 1, "
                                    "8] here; look at model.stack.scan"),
    ],
)  # fmt: skip
def test_sizes_that_are_not_those_of_the_checkpoint_are_one_line(
    tmp_path, text, uninterrupted, monkeypatch, capsys, field, value, said
):
    place = tmp_path / "run"
    shutil.copytree(uninterrupted, place)
    run = edit(text_run(text), field, value)
    (place / "run.json").write_text(to_json(run))
    monkeypatch.setattr("llama_jax.__main__._enable_compilation_cache", lambda cache: None)
    monkeypatch.setitem(presets.NAMES, "edited", "tests.train.tiny:tiny_text")
    monkeypatch.setenv("TINY_TEXT", str(text))
    words = [
        ["eval", str(place)],
        ["generate", "--weights", str(place), "--prompt", "Lamb"],
        ["train", "edited", f"--{field}", str(value), "--run-dir", str(place), "--quiet"],
    ]
    for line in words:
        assert main(line) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and said in err, err
        assert f"{place}/run.json is not of the model in 10 beside it" in err
