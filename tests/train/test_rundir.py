import json
import os
import resource
import subprocess
import sys

import pytest

from llama_jax.errors import UserError
from llama_jax.train.rundir import RunDir

RUN = {"class": "Run", "optimizer": {"rate": 1e-3}, "steps": 10, "mesh": {"data": 1}, "seed": 0}


def test_a_second_run_in_one_directory_is_refused_with_the_pid_of_the_first(tmp_path):
    with RunDir(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} is training in"):
        RunDir(tmp_path).__enter__()
    with RunDir(tmp_path):
        pass  # given back


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    code = (
        "import os, signal; from llama_jax.train.rundir import RunDir\n"
        f"RunDir({str(tmp_path)!r}).__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    assert (tmp_path / "lock").read_text().isdigit()
    with RunDir(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_a_path_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/run"):
        with pytest.raises(
            UserError, match="made or written .Not a directory.; give another --run-dir$"
        ):
            RunDir(tmp_path / place).__enter__()


def test_a_disk_that_takes_no_bytes_is_refused_before_any_step(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(UserError, match="the disk under .* cannot be written"):
            RunDir(tmp_path / "run").__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with RunDir(tmp_path / "run"):
        pass  # the lock was given back


def test_a_disk_too_small_for_a_checkpoint_is_refused(tmp_path):
    with RunDir(tmp_path) as place:
        place.require_space(1000)
        with pytest.raises(
            UserError, match=r"needs 1000000000.0 GB and the disk .* has .* GB left"
        ):
            place.require_space(10**18)


def test_a_run_goes_on_with_other_steps_or_another_mesh(tmp_path):
    with RunDir(tmp_path) as place:
        place.write("run.json", json.dumps(RUN))
        place.check_same(RUN | {"steps": 20, "mesh": {"data": 8}})


def test_a_run_does_not_go_on_with_other_settings_and_names_them(tmp_path):
    with RunDir(tmp_path) as place:
        place.write("run.json", json.dumps(RUN))
        with pytest.raises(
            UserError, match=r"optimizer.rate was 0.001, is 0.1; seed was 0, is 1\."
        ):
            place.check_same(RUN | {"optimizer": {"rate": 0.1}, "seed": 1, "steps": 3})
        (tmp_path / "run.json").write_text("{")
        with pytest.raises(UserError, match="no readable run.json"):
            place.check_same(RUN)


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://bucket/run", "hf://datasets/x"])
def test_a_bucket_is_refused_before_anything_is_trained(path):
    with pytest.raises(UserError, match="lies on a disk that can lock.*mount the bucket"):
        RunDir(path)
