"""What the experiment beside MaxText asks for, counts and prints; it compiles by hand only."""

import dataclasses
import json
import sys

import pytest

from experiments import beside_maxtext
from experiments.beside_maxtext import CASES, MAXTEXT, ROWS
from tests.plan.test_products import SAMPLE

MEMORY = {"argument": 2**30, "output": 2**29, "temp": 2**31, "peak": 3 * 2**30, "seconds": 10.0}
# A product in a loop of 5, a batch of 4, a sum over two axes, as `test_products` has them.
PRODUCTS = 5 * 2 * 16 * 8 * 32 + 2 * 4 * 16 * 8 * 32 + 2 * 4 * 16 * 8 * 8
SENT = "  %all = bf16[16,8]{1,0} all-reduce(%x), replica_groups=[1,4]<=[4], to_apply=%add\n"


@pytest.fixture
def programs(tmp_path):
    """A folder with the programs of the small case; MaxText's takes twice the memory."""
    for side, more in (("ours", 1), ("maxtext", 2)):
        place = tmp_path / "O1" / f"small-{side}"
        place.mkdir(parents=True)
        (place / "program.txt").write_text(SAMPLE.replace("  %w =", SENT + "  %w ="))
        (place / "memory.json").write_text(json.dumps({k: more * v for k, v in MEMORY.items()}))
    return tmp_path


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["beside_maxtext", *map(str, words)])
    beside_maxtext.main()


def test_programs_that_are_there_are_counted_again_and_nothing_is_compiled(
    programs, monkeypatch, capsys
):
    command(monkeypatch, "--cases", "small", "--out", programs, "--json", programs / "found.json")
    text = capsys.readouterr().out
    assert "| a chip, a step | ours | maxtext | ours / MaxText |" in text
    assert "| temporary, GiB | 2 | 4 | 0.500 |" in text
    assert "| kernel calls | 1 | 1 | 1.000 |" in text
    found = json.loads((programs / "found.json").read_text())
    [case] = found["cases"].values()
    assert found["level"] == "O1" and found["maxtext"] == MAXTEXT
    assert case["topology"] == CASES["small"].topology
    assert case["ours"]["products"] == PRODUCTS
    # Five rounds; what a chip receives of an all-reduce is twice its bytes.
    assert case["ours"]["collectives"] == case["ours"]["all-reduce"] == 5 * 2 * (16 * 8 * 2)
    assert case["ratios"] == {key: 0.5 if key in MEMORY else 1.0 for key in ROWS}


def test_json_alone_goes_to_standard_output(programs, monkeypatch, capsys):
    command(monkeypatch, "--cases", "small", "--sides", "ours", "--out", programs, "--json")
    [case] = json.loads(capsys.readouterr().out)["cases"].values()
    assert case["ours"]["temp"] == MEMORY["temp"] and "ratios" not in case


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_both_sides_are_given_the_same_sizes(case):
    run = beside_maxtext.run_of(case)
    words = dict(word.split("=") for word in beside_maxtext.words_of(case))
    chips = int(words["compile_topology"].rpartition("-")[2])
    block = run.model.stack.pattern[0]
    assert run.mesh.fsdp == chips == int(words["ici_fsdp_parallelism"])
    assert run.data["text"].batch == chips * int(words["per_device_batch_size"])
    assert run.data["text"].task.length == int(words["max_target_length"])
    assert run.model.stack.remat == "block" and words["remat_policy"] == "full"
    assert int(words["base_num_decoder_layers"]) == run.model.stack.layers
    assert int(words["base_mlp_dim"]) == block.ffn.hidden
    assert int(words["base_num_kv_heads"]) == block.attention.kv_heads
    assert words["logits_via_embedding"] == str(run.model.tied)
    assert words["dtype"] == run.dtype == "bfloat16"


def test_a_side_is_compiled_by_the_environments_python_for_no_device(tmp_path):
    python = tmp_path / "python"
    # In place of a Python: it notes what it was given, as a side that has compiled.
    python.write_text(
        '#!/bin/sh\nwhile [ "$1" != --out ]; do said="$said $1"; shift; done\n'
        'echo "$said" > "$2/program.txt"; echo "{}" > "$2/memory.json"\n'
        "echo $JAX_PLATFORMS $JAX_OPTIMIZATION_LEVEL $TPU_SKIP_MDS_QUERY\n"
    )
    python.chmod(0o755)
    place = tmp_path / "program"
    beside_maxtext.compiled("small", "maxtext", "O3", python, place)
    given = (place / "program.txt").read_text().split()
    assert given == "-m experiments.beside_maxtext --side maxtext --cases small".split()
    assert (place / "said.txt").read_text().split() == ["cpu", "O3", "1"]


def test_a_side_that_fails_says_its_last_line(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "RESOURCE_EXHAUSTED: 40G of 31G hbm" >&2; exit 1\n')
    python.chmod(0o755)
    with pytest.raises(SystemExit, match="maxtext did not compile small: RESOURCE_EXHAUSTED: 40G"):
        beside_maxtext.compiled("small", "maxtext", "O1", python, tmp_path / "program")


def test_one_pip_installs_both_so_that_one_compiler_serves_both(tmp_path):
    words = beside_maxtext.installed()
    assert MAXTEXT in words and words[-2:] == ["--editable", "."]
    # An environment that is there is taken as it is.
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / ".with").write_text(MAXTEXT)
    assert beside_maxtext.environment(tmp_path) == tmp_path / "venv" / "bin" / "python"


def test_the_small_case_differs_in_size_alone():
    small = dataclasses.asdict(CASES["small"])
    assert small["layers"] == 1 and small["length"] < CASES["1b"].length
    assert small["preset"] == CASES["1b"].preset
