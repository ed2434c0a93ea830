import hashlib
import json
import sys
import types

import pytest

from llama_jax.errors import UserError
from llama_jax.train.trackers import Heartbeat, WandB


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package that notes what it is told."""
    told = {"init": [], "log": [], "finished": 0}
    run = types.SimpleNamespace(
        log=lambda values, step: told["log"].append((step, values)),
        finish=lambda: told.update(finished=1),
    )
    init = lambda **named: told["init"].append(named) or run  # noqa: E731
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    monkeypatch.setenv("WANDB_API_KEY", "a-secret")
    return told


def test_wandb_gets_what_is_finite_and_never_the_key(tmp_path, wandb):
    sink = WandB("lambs", tmp_path, json.dumps({"name": "tiny"}))
    sink.write(3, {"loss": 1.5, "mlm/loss": None})
    sink.close()
    [given] = wandb["init"]
    assert given["project"] == "lambs" and given["name"] == "tiny" and given["resume"] == "allow"
    assert "a-secret" not in repr(given)
    assert wandb["log"] == [(3, {"loss": 1.5})] and wandb["finished"]
    WandB("lambs", tmp_path, "{}")
    assert wandb["init"][1]["id"] == given["id"]  # a restart goes on in the same run


def test_wandb_without_the_package_or_without_a_key_is_one_line(tmp_path, monkeypatch, wandb):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match="set WANDB_API_KEY"):
        WandB("lambs", tmp_path, "{}")
    # Who has neither is told of the package first.
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        WandB("lambs", tmp_path, "{}")


def test_the_key_of_wandb_login_is_found(tmp_path, monkeypatch, wandb):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine example.org login user password a-secret\n")
    with pytest.raises(UserError, match="give `wandb login`"):
        WandB("lambs", tmp_path, "{}")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password a-secret\n")
    WandB("lambs", tmp_path, "{}")
    assert len(wandb["init"]) == 1 and "a-secret" not in repr(wandb)


def test_a_directory_made_anew_is_another_run_of_wandb(tmp_path, wandb):
    def run(place):
        place.mkdir(exist_ok=True)
        WandB("lambs", place, "{}")
        return wandb["init"][-1]["id"]

    first = run(tmp_path / "a")
    (tmp_path / "a" / "wandb-id").unlink()
    assert first != run(tmp_path / "a") != run(tmp_path / "b")
    # One that trained before ids were noted goes on in the run that its path gave it.
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.jsonl").write_text('{"step": 1}\n')
    assert run(tmp_path / "old") == hashlib.sha256(str(tmp_path / "old").encode()).hexdigest()[:16]


def test_a_heartbeat_is_a_line_a_step_with_its_time(tmp_path):
    beat = Heartbeat(tmp_path / "heartbeats" / "1.jsonl")
    beat.write(5)
    beat.write(10)
    lines = (tmp_path / "heartbeats" / "1.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 10]
    beat.close()
