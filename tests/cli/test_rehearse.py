"""What a rehearsal makes of its command; tests/chaos has rehearsals of training."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from llama_jax.__main__ import main
from llama_jax.cli.rehearse import VARIABLE, Part, on_stage


def staged(run_dir, overrides=(), settings=()):
    """What becomes of the arguments of one train command."""
    args = argparse.Namespace(run_dir=Path(run_dir), overrides=[*overrides], set=[*settings])
    on_stage(args)
    return args


@pytest.fixture
def part(tmp_path, monkeypatch):
    """The part of this process."""
    found = Part("", 1, 0, str(tmp_path), steps=3, settings=["log_every=1"])
    monkeypatch.setenv(VARIABLE, json.dumps(asdict(found)))
    return found


def test_run_directories_of_one_script_stay_apart(part, tmp_path):
    one, other, again = (staged(name).run_dir for name in ("runs/a", "runs/b", "runs/a"))
    assert one != other and one == again
    assert {one.parent, other.parent} == {tmp_path}
    assert [Path(name).name for name in part.places()] == ["a", "b"]


def test_a_run_begins_with_the_weights_of_one_rehearsed_before_it(part):
    before = staged("runs/a").run_dir
    words = ["--init-from", "runs/a", "--init-from=runs/a", "--ema", "0.9"]
    found = staged("runs/b", words, ["init_from=runs/a", "init_from=runs/c"])
    assert found.overrides == ["--init-from", f"{before}", f"--init-from={before}", "--ema", "0.9"]
    assert found.set == [f"init_from={before}", "init_from=runs/c", "log_every=1"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--", "eval", "x"], "'eval x' is neither a file nor a train command"),
        (["nowhere.sh"], "'nowhere.sh' is neither a file nor a train command"),
        (["it's"], "is neither a file nor a train command"),
        (["--", "train", "tiny_decode", "--run-dir", "x"], "Did you mean 'tiny_decoder'?"),
        (["--", "train", "tiny_decoder"], "required: --run-dir"),
        (["--set", "a", "--", "train", "tiny_decoder", "--run-dir", "x"], "--set 'a' has no '='"),
        (["script"], "ended well and trained nothing; expected a llama-jax train in it"),
    ],
)
def test_a_mistake_in_a_rehearsal_is_one_line_and_status_2(
    tmp_path, monkeypatch, capsys, args, said
):
    monkeypatch.chdir(tmp_path)
    Path("script").write_text("echo hello\n")
    assert main(["rehearse", *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("llama-jax: ")
    assert said in err
