import contextlib
import dataclasses
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llama_jax import presets
from llama_jax.__main__ import main
from llama_jax.config import File
from llama_jax.config.text import at
from llama_jax.data import JsonLines
from llama_jax.errors import Stopped, UserError
from llama_jax.optim.optimizer import Constant, Group, Muon
from tests.train.tiny import write_text

ROOT = Path(__file__).parents[2]
# On two cores that other processes use too; the goal is 1.5 s on a quiet machine.
HELP_SECONDS = 1.5


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Makes `tiny_text` a preset over a small text file."""
    monkeypatch.setenv("TINY_TEXT", str(write_text(tmp_path / "lambs.txt")))
    monkeypatch.setitem(presets.NAMES, "tiny_text", "tests.train.tiny:tiny_text")
    monkeypatch.setattr("llama_jax.__main__._enable_compilation_cache", lambda cache: None)
    return "tiny_text"


@pytest.fixture
def trained(monkeypatch):
    """Collects the runs that would be trained."""
    runs = []
    loop = importlib.import_module("llama_jax.train.loop")

    def train(run, place, *rest):
        runs.append((run, place))
        return loop.Result(place, 0, {}, {}, 0, 0.0)

    monkeypatch.setattr(loop, "train", train)
    return runs


def test_help_answers_at_once_and_imports_no_jax():
    code = (
        "import sys, llama_jax.__main__ as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit as e: assert not e.code\n"
        "heavy = {'jax', 'flax', 'optax', 'grain', 'orbax', 'tensorflow_datasets'}\n"
        "sys.exit(bool(heavy & sys.modules.keys()))"
    )
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
        times.append(time.perf_counter() - begin)
        assert done.returncode == 0 and b"train" in done.stdout
    assert min(times) <= HELP_SECONDS


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["trian"], "Did you mean 'train'?"),
        ([], "COMMAND"),
        (["train"], "required: PRESET, --run-dir"),
        (["train", "tiny_text"], "required: --run-dir"),
        (
            ["train", "tiny_tex", "--run-dir", "x"],
            "no preset 'tiny_tex'. Did you mean 'tiny_text'? `llama-jax presets` lists the ",
        ),
        (["train", "tiny_text", "--run-dir", "x", "--stepz", "3"], "Did you mean '--steps'?"),
        (["train", "tiny_text", "--run-dir", "x", "--steps", "many"], "invalid int value: 'many'"),
        (["train", "tiny_text", "--run-dir", "x", "--steps", "-3"], "steps=-3: give 0 or more"),
        (
            ["train", "tiny_text", "--run-dir", "x", "--optimizer.rat", "1"],
            "unknown option '--optimizer.rat'. Did you mean '--optimizer.rate'?",
        ),
        (
            ["train", "tiny_text", "--run-dir", "x", "--optimizer.rate", "fast"],
            "llama-jax: optimizer.rate='fast' is of type str; float was expected, e.g. 0.01\n",
        ),
        (
            ["train", "tiny_text", "--run-dir", "x", "--optimizer.rate"],
            "llama-jax: --optimizer.rate has no value; it is 0.01 now\n",
        ),
        (
            ["train", "tiny_text", "--run-dir", "x", "--optimizer.rate", "1", "word"],
            "llama-jax: unexpected 'word'; a field is written --optimizer.rate 3e-4\n",
        ),
        (
            ["train", "tiny_text", "--run-dir", "x", "--optimizer", "moun"],
            "unknown optimizer 'moun'; expected adamw, adafactor, lion, muon, sgd. Did you mean",
        ),
        (["train", "tiny_text", "--run-dir", "x", "--optimizer.rate", "-1"], "rate=-1.0: give 0"),
        (["train", "tiny_text", "--run-dir", "x", "--ema", "hello"], "ema='hello' is of type str"),
        (
            ["train", "tiny_text", "--run-dir", "x", "--dtype", "fp8"],
            "llama-jax: dtype='fp8': give",
        ),
        (
            ["train", "tiny_text", "--run-dir", "x", "--steps", "2", "--profile", "5:9"],
            "profile '5:9': there are 2 steps",
        ),
        (
            ["train", "tiny_text", "--run-dir", "x", "--distributed", "--join-timeout", "0"],
            "a join timeout of 0 s: expected 1 or more",
        ),
        (["train", "tiny_text", "--run-dir", "x", "--set", "seed"], "has no '='"),
        (["train", "tiny_text", "--run-dir", "x", "--mesh", "fdsp"], "Did you mean 'fsdp'?"),
        (["train", "tiny_text", "--run-dir", "x", "--mesh", "fdsp=2"], "Did you mean 'fsdp'?"),
        (["train", "tiny_text", "--run-dir", "x", "--mesh", "fsdp=two"], "write AXIS=SIZE"),
        (["train", "tiny_text", "--run-dir", "x", "--optimizer.schedul", "wsd"], ".schedule'?"),
        (
            ["train", "tiny_text", "--run-dir", "x", "--model.decoder.stack.repeats", "2"],
            "unknown option '--model.decoder.stack.repeats'. Did you mean '--model.stack.repeats'?",
        ),
        (
            ["train", "tiny_text", "--run-dir", "x", "--set", "model.decoder.stack.repeats=2"],
            "no 'decoder' in 'model.decoder.stack.repeats'; it is model.stack.repeats now\n",
        ),
        (
            ["train", "tiny_text", "--run-dir", "x", "--set", "growth=((1,2),)"],
            "no 'growth' in 'growth'; it is batch_schedule now\n",
        ),
        (
            ["train", "tiny_text", "--run-dir", "x", "--growth", "((1,2),)"],
            "unknown option '--growth'; it is --batch_schedule now\n",
        ),
        (["train", "tiny_text", "--run-dir", "x", "--model", "Decoder"], "set one of its fields"),
        (["train", "tiny_text", "--run-dir", "x", "--mesh.stag", "2"], "'--mesh.stage'?"),
        (["train", "tiny_text", "--run-dir", "x", "--set", "sed=1"], "Did you mean 'seed'?"),
        (["presets", "--jsn"], "unknown option '--jsn'"),
        (["answer", "x", "--image", "y"], "required: --question"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tiny, trained, capsys, args, said):
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("llama-jax: ")
    assert said in err
    assert not trained


def test_options_change_the_preset(tiny, trained, tmp_path):
    args = ["train", tiny, "--run-dir", str(tmp_path), "--steps", "7", "--optimizer.rate", "3e-4"]
    args += ["--objectives.lm.weight=0.5", "--model.stack.pattern.0.ffn.hidden", "64"]
    args += ["--set", "model.stack.repeats=2", "--set", "name=other", "--mesh.fsdp", "2"]
    args += ["--set", "data.text.source=mine.jsonl", "--init-from", "smollm2"]
    assert main(args) == 0
    [(run, place)] = trained
    assert place == tmp_path and run.steps == 7 and run.name == "other" and run.mesh.fsdp == 2
    assert run.optimizer.rate == 3e-4 and run.objectives["lm"].weight == 0.5
    assert run.data["text"].source == JsonLines("mine.jsonl") and run.init_from == "smollm2"
    stack = run.model.stack
    assert stack.repeats == 2 and stack.pattern[0].ffn.hidden == 64


@pytest.mark.parametrize(
    ("words", "path", "value"),
    [
        (["--name", "123"], "name", "123"),
        (["--set", "name=123"], "name", "123"),
        (["--set", "steps=12"], "steps", 12),
        (["--optimizer.groups", "(('*', 0.5),)"], "optimizer.groups", (Group("*", 0.5),)),
        (["--batch-schedule=((2, 2), (4, 3))"], "batch_schedule", ((2, 2), (4, 3))),
        (["--ema", "0.9"], "ema", 0.9),
        (["--ema", "none"], "ema", None),
        (["--optimizer.clip", "None"], "optimizer.clip", None),
        (["--strict"], "strict", True),
        (["--strict", "--seed", "3"], "strict", True),
        (["--strict", "true"], "strict", True),
        (["--no-strict"], "strict", False),
        (["--model.stack.scan=false"], "model.stack.scan", False),
        (["--optimizer", "muon"], "optimizer", Muon(schedule=Constant())),
        (["--optimizer.schedule", "constant"], "optimizer.schedule", Constant()),
        (["--tokenizer", "words.json"], "tokenizer", File("words.json")),
        (["--model.stack.saved", "('attention',)"], "model.stack.saved", ("attention",)),
        (["--evaluations", "{}"], "evaluations", {}),
    ],
)
def test_a_field_is_read_as_what_it_is_declared_to_be(tiny, trained, words, path, value):
    assert main(["train", tiny, "--run-dir", "x", *words]) == 0
    assert at(trained[0][0], path)[0] == value


def test_the_help_of_a_preset_shows_its_fields_and_what_they_mean(tiny, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", tiny, "--help"])
    assert not ended.value.code
    said = " ".join(capsys.readouterr().out.split())
    assert "--optimizer.rate 0.01 the peak learning rate." in said
    assert "--model.stack.repeats 1" in said and "--steps 10 optimizer steps in all" in said
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = capsys.readouterr().out
    assert "--init-from" in said and "--optimizer.rate 0.01" not in said


def test_the_options_of_a_preset_are_listed(tiny, trained, capsys):
    assert main(["train", tiny, "--run-dir", "x", "--options"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "--optimizer.rate 0.01" in lines and "--model.stack.repeats 1" in lines
    assert not trained


def test_training_from_the_command_line_leaves_a_run(tiny, tmp_path, capsys):
    place = tmp_path / "run"
    assert main(["train", tiny, "--run-dir", str(place), "--steps", "2", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    lines = (place / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    # The same directory again, with other settings.
    assert main(["train", tiny, "--run-dir", str(place), "--seed", "9"]) == 2
    assert "seed was 0, is 9" in capsys.readouterr().err


def test_a_directory_that_cannot_be_written_is_status_2_before_any_step(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["train", tiny, "--run-dir", str(tmp_path / "file" / "run")]) == 2
    assert "cannot be made or written" in capsys.readouterr().err


def test_a_number_of_workers_is_checked_before_a_tokenizer_is_trained(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("a lamb\n" * 100)
    args = ["prepare", str(tmp_path / "text.txt"), str(tmp_path / "out"), "--vocab", "300"]
    assert main([*args, "--workers", "0"]) == 2
    assert "workers=0; expected 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def failing(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("a\nb"), 2, "llama-jax: a b\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (Stopped("SIGINT"), 130, ""),
        (Stopped("SIGTERM"), 143, ""),
        (ModuleNotFoundError("no", name="easy_vqa.x"), 2, "pip install 'llama-jax[demo]'"),
        (ModuleNotFoundError("no", name="some_thing"), 2, "pip install some-thing"),
    ],
)
def test_what_goes_wrong_inside_has_its_status(monkeypatch, capsys, error, status, said):
    monkeypatch.setattr("llama_jax.cli.about._presets", failing(error))
    monkeypatch.delenv("LLAMA_JAX_DEBUG", raising=False)
    assert main(["presets"]) == status
    assert said in capsys.readouterr().err


def test_a_traceback_is_shown_if_asked_for_and_for_bugs(monkeypatch):
    monkeypatch.setattr("llama_jax.cli.about._presets", failing(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["presets"])
    monkeypatch.setattr("llama_jax.cli.about._presets", failing(UserError("x")))
    monkeypatch.setenv("LLAMA_JAX_DEBUG", "1")
    with pytest.raises(UserError):
        main(["presets"])


def test_a_plugin_of_jax_that_does_not_start_is_one_line(monkeypatch, capsys):
    log = logging.getLogger("jax._src.xla_bridge")
    monkeypatch.setattr(log, "filters", [])
    monkeypatch.delenv("LLAMA_JAX_DEBUG", raising=False)
    assert main(["presets"]) == 0
    try:
        raise RuntimeError("Unable to load cuDNN. Is it installed?\nTraceback")
    except RuntimeError:
        log.exception("Exception when calling %s.initialize()", "jax_plugins.xla_cuda13")
    assert capsys.readouterr().err == (
        "llama-jax: jax_plugins.xla_cuda13 does not start (Unable to load cuDNN. Is it "
        "installed?); going on without it\n"
    )
    record = logging.LogRecord(log.name, logging.WARNING, "", 0, "a GPU may be here", (), None)
    assert log.filter(record)  # what has no traceback stays as it is
    monkeypatch.setattr(log, "filters", [])
    monkeypatch.setenv("LLAMA_JAX_DEBUG", "1")
    assert main(["presets"]) == 0 and not log.filters


def test_what_libraries_print_among_several_processes_is_no_output(
    tiny, trained, monkeypatch, capfd
):
    cluster = importlib.import_module("llama_jax.train.cluster")

    @contextlib.contextmanager
    def member(cluster):
        os.write(1, b"[Gloo] Rank 0 is connected\n")
        yield

    monkeypatch.setattr(cluster, "member", member)
    assert main(["train", tiny, "--run-dir", "x", "--distributed", "--steps", "2"]) == 0
    os.write(1, b"after\n")
    assert capfd.readouterr() == ("after\n", "[Gloo] Rank 0 is connected\n")


def test_presets_are_listed_with_a_line_each(capsys):
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("tiny_decoder  ") and len(line.split()) > 4 for line in lines)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_command_whose_training_was_stopped_does_not_count_as_done(
    tiny, monkeypatch, tmp_path, name
):
    loop = importlib.import_module("llama_jax.train.loop")
    result = loop.Result(tmp_path, 3, {}, {}, 0, 0.0, stopped=name)
    monkeypatch.setattr(loop, "train", lambda *rest: result)
    assert main(["train", tiny, "--run-dir", str(tmp_path)]) == 128 + signal.Signals[name]
    monkeypatch.setattr("llama_jax.demo.train", lambda *rest: result)
    assert main(["demo", "--run-dir", str(tmp_path)]) == 128 + signal.Signals[name]


def test_a_mesh_goes_by_its_name_and_then_by_its_sizes(tiny, trained, capsys):
    from llama_jax.axes import DATA, FSDP_TENSOR
    from llama_jax.config import Mesh
    from llama_jax.presets.meshes import LAYOUTS

    plain = ["train", tiny, "--run-dir", "x"]
    assert main([*plain, "--mesh", "data"]) == 0
    assert main([*plain, "--mesh", "pipeline", "--mesh.stage", "4", "--rules.microbatches=8"]) == 0
    data, pipeline = (run for run, _ in trained)
    assert data.rules == DATA and pipeline.mesh == Mesh(stage=4)
    assert pipeline.rules == dataclasses.replace(FSDP_TENSOR, microbatches=8)
    assert main([*plain, "--mesh", "fsdp=4, tensor=2"]) == 0
    assert trained[-1][0].mesh == Mesh(data=1, fsdp=4, tensor=2)
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(name in said.partition("--mesh MESH")[2] for name in LAYOUTS)
