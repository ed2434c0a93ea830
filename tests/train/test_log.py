import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llama_jax.train.log import Log
from llama_jax.train.rundir import RunDir
from llama_jax.train.throughput import Machine
from llama_jax.train.trackers import forget_after, last_metrics

ROOT = Path(__file__).parents[2]

BATCH = {"text": {"ids": np.zeros((4, 3)), "text_valid": np.ones((4, 3), bool)}}


def test_a_log_does_not_import_torch(tmp_path):
    # tensorboardX would take seconds to; in a process of its own, for other tests import it here.
    script = (
        "import sys\n"
        "from llama_jax.train.log import Log\n"
        "from llama_jax.train.rundir import RunDir\n"
        f"log = Log(RunDir({str(tmp_path)!r}), steps=2); log.start(0)\n"
        "log.evaluation(1, 'vqa', {'accuracy': 0.25}); log.close()\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
    assert any((tmp_path / "tensorboard").iterdir())


def test_metrics_go_to_json_lines_and_tensorboard_and_plain_lines(tmp_path, capsys):
    log = Log(RunDir(tmp_path), steps=20)
    log.start(0)
    log.rates.begin(Machine())
    log.rates.count(BATCH)
    log.metrics(1, {"loss": 1.5, "mlm/loss": math.nan})
    log.evaluation(1, "vqa", {"accuracy": 0.25})
    log.close()
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["step"] == 1 and first["loss"] == 1.5
    assert first["mlm/loss"] is None  # JSON has no NaN
    assert first["examples_per_second"] > 0
    assert first["tokens_per_second"] == pytest.approx(3 * first["examples_per_second"])
    assert last_metrics(tmp_path / "metrics.jsonl") == first
    assert second == {"step": 1, "vqa/accuracy": 0.25}
    assert any((tmp_path / "tensorboard").iterdir())
    out = capsys.readouterr()
    assert out.out == ""
    assert "step 1/20  loss 1.5" in out.err and "vqa at step 1: accuracy 0.25" in out.err


def test_the_time_left_is_shown_once_a_speed_is_known(tmp_path, capsys):
    log = Log(RunDir(tmp_path), steps=20)
    log.start(0)
    log.metrics(1, {"loss": 1.5})
    log.rates.begin(Machine())
    log.rates.count(BATCH)
    log.metrics(2, {"loss": 1.25})
    log.close()
    compiled, measured = capsys.readouterr().err.splitlines()
    assert "left" not in compiled and "left 0:" in measured


def test_nothing_is_shown_if_progress_is_not_wanted(tmp_path, capsys):
    log = Log(RunDir(tmp_path), steps=20, progress=False)
    log.start(0)
    log.metrics(1, {"loss": 1.5})
    log.say("hello")
    log.close()
    assert capsys.readouterr() == ("", "")


def test_lines_after_the_restored_step_and_torn_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 2, "lo')
    forget_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    forget_after(tmp_path / "none", 2)
