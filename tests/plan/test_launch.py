"""The line that carries a plan out starts as it is printed."""

import shlex

import jax

from llama_jax import presets
from llama_jax.__main__ import main
from llama_jax.cli.options import set_field
from llama_jax.plan.launch import launch, wanted
from llama_jax.plan.legend import AXES, STORES, legend
from llama_jax.plan.policies import REMATS
from llama_jax.plan.program import changed
from llama_jax.plan.topology import parse
from llama_jax.train.load import load


def test_the_line_of_a_plan_trains_what_was_planned(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [f"data.text.source={text}", "steps=2", "model.stack.repeats=1", "tokenizer.vocab=300"]
    given += ["model.vocab=300"]
    given += ["param_dtype=bfloat16", "optimizer.mu_dtype=bfloat16"]
    run = presets.get("tiny_decoder")
    for field in given:
        run = set_field(run, field)
    topology, policy = parse(f"h100:{len(jax.devices())}"), "offload:input,q"
    run = changed(run, {"data": 1, "fsdp": topology.size}, policy, 16, sequence=32)
    words = shlex.split(launch(topology, "tiny_decoder", run, given))
    assert words[:3] == ["XLA_PYTHON_CLIENT_MEM_FRACTION=.92", "llama-jax", "train"]
    assert main(words[2:]) == 0
    trained = load(tmp_path / "runs" / "tiny_decoder")
    assert trained.step == 2
    assert trained.run == run


def test_a_preset_without_a_tokenizer_says_what_to_put_in():
    run = presets.get("llama3_1_8b")
    assert wanted(run) == ["TOKENIZER"]
    assert "--set tokenizer=TOKENIZER" in launch(parse("v6e:2x2"), "llama3_1_8b", run)
    run = set_field(run, "tokenizer=words/tokenizer.json")
    said = launch(parse("v6e:2x2"), "llama3_1_8b", run, ["tokenizer=words/tokenizer.json"])
    assert wanted(run) == [] and said.count("tokenizer=") == 1


def test_every_word_of_a_plan_is_explained():
    assert AXES.keys() == presets.get("tiny_decoder").mesh.__dataclass_fields__.keys()
    assert STORES.keys() == {*REMATS}
    said = "\n".join(legend({"data": 1, "fsdp": 4}, "offload:input,q"))
    for word in ("fsdp", "remat=offload", "input", "  q ", "offloaded", "checkpoint", "MFU"):
        assert word in said
    explained = [line.split()[0] for line in said.splitlines()]
    assert len(set(explained)) == len(explained) and not {"tensor", "attention"} & {*explained}
