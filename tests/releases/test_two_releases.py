"""A run of one release of jax goes on in another, from its checkpoint, with the same losses.

`make newest` gives the interpreters of both as RELEASES="PYTHON OTHER".
"""

import os
import shutil
import subprocess

import pytest

from tests.train.tiny import STEPS, losses, write_text

# Another release compiles another order of sums: float32 over ten steps of training.
TOLERANCE = 1e-5
KILLED = 5  # after the checkpoint of step 3
CACHE = "LLAMA_JAX_CACHE"
PYTHONS = os.environ["RELEASES"].split()


def trained(python, place, text, *kill):
    """Trains in a process of a release, which is killed if a step is given."""
    command = [python, "-m", "tests.train.tiny", place, text, str(STEPS), *kill]
    # A release knows neither the flags nor the compiled programs of another.
    mine = {name: x for name, x in os.environ.items() if name not in ("XLA_FLAGS", CACHE)}
    done = subprocess.run(
        command, env=mine, capture_output=True, text=True, check=False, timeout=240
    )
    assert (done.returncode != 0) == bool(kill), done.stderr
    return place


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """By interpreter: a run that ended and one that was killed, over the same text."""
    folder = tmp_path_factory.mktemp("runs")
    text = write_text(folder / "lambs.txt")
    return text, {
        python: (
            trained(python, folder / f"whole{i}", text),
            trained(python, folder / f"killed{i}", text, str(KILLED)),
        )
        for i, python in enumerate(PYTHONS)
    }


def test_the_interpreters_have_two_releases_of_jax():
    code = "import jax; print(jax.__version__)"
    said = {subprocess.check_output([python, "-c", code], text=True) for python in PYTHONS}
    assert len(said) == 2, said


@pytest.mark.parametrize("first, second", [PYTHONS, PYTHONS[::-1]], ids=["up", "down"])
def test_a_run_goes_on_in_another_release_with_the_losses_of_the_first(
    begun, first, second, tmp_path
):
    text, runs = begun
    whole, killed = runs[first]
    place = shutil.copytree(killed, tmp_path / "run")
    trained(second, place, text)
    found, expected = losses(place), losses(whole)
    assert found.keys() == expected.keys() == set(range(1, STEPS + 1))
    for step, loss in expected.items():
        assert float(found[step]) == pytest.approx(float(loss), abs=TOLERANCE), step
