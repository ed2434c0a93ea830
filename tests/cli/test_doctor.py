"""The doctor says what is here, and tries the kernels of the device."""

import json
import sys

import pytest

from llama_jax.__main__ import main
from llama_jax.kernels import assembler, target
from llama_jax.kernels.attention import proof
from llama_jax.kernels.attention.trials import Row

RIGHT = Row("pallas_gpu", "causal", 4.9e-3, 2e-2, 8.7, None)
WRONG = Row("pallas_gpu", "packed", None, 2e-2, 1.25, "no answer within 120 s in 'packed'")


@pytest.fixture
def gpu(monkeypatch):
    """Says that the device is a GPU, on which every kernel shows the same rows."""

    def shows(*rows):
        monkeypatch.setattr(target, "platform", lambda: "gpu")

        def examine(name, kind):
            return [r._replace(kernel=name) for r in rows] if kind == "bfloat16" else []

        monkeypatch.setattr(proof, "examine", examine)

    return shows


def test_it_names_versions_devices_and_data(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "jax 0." in out and "device 0: cpu" in out and "easy-vqa" in out
    assert "large pages: " in out or sys.platform != "linux"


def test_on_a_gpu_it_says_which_assembler_there_is(gpu, monkeypatch, capsys):
    gpu()
    monkeypatch.setattr(assembler, "ptxas", lambda: None)
    monkeypatch.setattr(assembler, "version", lambda: None)
    assert main(["doctor"]) == 0
    assert "ptxas: none found, so nothing compiles for a GPU; pip" in capsys.readouterr().out


def test_it_shows_a_row_for_each_case_and_fails_if_one_does(gpu, capsys):
    gpu(RIGHT)
    assert main(["doctor", "--kernels"]) == 0
    first, head, *rows = capsys.readouterr().out.splitlines()
    assert first == "on cpu" and head.split() == "kernel case error bound seconds verdict".split()
    assert [row.split()[0] for row in rows] == ["mosaic_gpu", "pallas_gpu_decode", "pallas_gpu"]
    assert rows[-1].split()[1:] == ["causal", "4.9e-03", "2e-02", "8.7", "right"]
    gpu(RIGHT, WRONG)
    assert main(["doctor", "--kernels"]) == 1
    assert capsys.readouterr().out.endswith(
        "  -        2e-02  1.2      no answer within 120 s in 'packed'\n"
    )


def test_it_gives_json(gpu, capsys):
    gpu(RIGHT, WRONG)
    assert main(["doctor", "--kernels", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["device"] == "cpu" and said["rows"][-1] == WRONG._asdict()


def test_without_an_accelerator_it_says_so(capsys):
    assert main(["doctor", "--kernels"]) == 2
    error = capsys.readouterr().err
    assert "no kernel is written for cpu: there is no GPU and no TPU here" in error


def test_json_is_for_kernels(capsys):
    assert main(["doctor", "--json"]) == 2
    assert "--json is for kernels; give --kernels too" in capsys.readouterr().err
