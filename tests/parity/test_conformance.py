"""Every generation, tiny: transformers' logits, a ledger without a failed line; faults are found.

The models, which transformers writes, are those of experiments/conformance.py.
"""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from einops import rearrange  # noqa: E402

from experiments.conformance import GENERATIONS, row, tiny  # noqa: E402
from llama_jax.__main__ import main  # noqa: E402
from llama_jax.config import edit  # noqa: E402
from llama_jax.families import llama  # noqa: E402
from llama_jax.generate.engine import Engine  # noqa: E402
from llama_jax.generate.lm import open_engine  # noqa: E402
from llama_jax.verify.checks import examine, verify  # noqa: E402
from llama_jax.verify.consistency import whole  # noqa: E402
from llama_jax.weights.convert import convert  # noqa: E402
from llama_jax.weights.opened import open_checkpoint  # noqa: E402

# float32 logits of order 1 through two layers.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> folder and transformers' model."""
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder, tiny(folder, **GENERATIONS[name])
        return made[name]

    return make


@pytest.mark.parametrize("name", GENERATIONS)
def test_the_logits_of_a_generation_are_transformers(folders, name):
    folder, theirs = folders(name)
    engine = open_engine(open_checkpoint(folder))
    ids = np.random.default_rng(1).integers(0, 61, 12)
    for start in (0, 9_000, 131_000) if "scaling" in GENERATIONS[name] else (0, 1000):
        positions = np.arange(start, start + 12)
        with torch.no_grad():
            expected = theirs(torch.tensor(ids[None]), position_ids=torch.tensor(positions[None]))
        found = whole(engine, ids, positions)
        np.testing.assert_allclose(
            found, expected.logits[0].numpy(), atol=TOLERANCE, rtol=TOLERANCE
        )


@pytest.mark.parametrize("name", GENERATIONS)
def test_the_ledger_of_a_generation_has_no_failed_line(folders, name):
    ledger = verify(folders(name)[0])
    assert not ledger.failed
    unchecked = {line.name for line in ledger.lines if line.status == "unchecked"}
    assert unchecked == {"tokenizer", "q and k the other way"}  # there is no tokenizer
    context = GENERATIONS[name].get("max_position_embeddings", 131_072)
    for check in ("positions from 0", f"second half up to {context - 1:,}"):
        assert ledger.line(f"logits, {check}").numbers["found"] <= TOLERANCE
    for check in ("prefill, one row", "decode, 4 rows, left-padded"):
        assert ledger.line(check).numbers["found"] <= TOLERANCE
    assert row(name, ledger).endswith("| passed |")


@pytest.mark.parametrize("to", ["gguf", "orbax"])
@pytest.mark.parametrize("name", ["llama2_70b", "llama3_2"])
def test_so_has_that_of_other_formats(folders, tmp_path, name, to):
    place = tmp_path / ("x.gguf" if to == "gguf" else "x")
    convert(folders(name)[0], place, to)
    ledger = verify(place)
    assert not ledger.failed
    told = [line.text for line in ledger.lines if line.name == "read there"]
    # transformers leaves Llama 3.1's scaling in a GGUF file unread.
    assert ("rope_freqs" in " ".join(told)) == (to == "gguf" and name == "llama3_2")
    assert ledger.line("logits, positions from 0").numbers["found"] <= TOLERANCE


@pytest.mark.parametrize("ways", [1, 2])
def test_and_that_of_metas_files(tmp_path, ways):
    from tests.parity.test_convert import META_GENERATIONS, meta_folder

    meta_folder(tmp_path / "meta", ways, **META_GENERATIONS["llama3_1"])
    ledger = verify(tmp_path / "meta", pickle=True)
    assert not ledger.failed
    assert ledger.line("logits, positions from 0").numbers["found"] <= TOLERANCE
    assert ledger.line("rope").text.startswith("llama3, theta 500000, factor 8")


ATTENTION = "stack.pattern.0.attention"


def with_config(engine, path, value):
    model = edit(engine.module.config, path, value)
    return Engine(model.build(), engine.params)


def with_weights(engine, change):
    """change: path -> what becomes of the weight, or None."""

    def turn(path, weight):
        made = change("/".join(key.key for key in path))
        return weight if made is None else made(weight)

    return Engine(engine.module, jax.tree_util.tree_map_with_path(turn, engine.params))


def smaller_factor(engine):
    return with_config(engine, f"{ATTENTION}.rope.factor", 8.0)


def smaller_eps(engine):
    """That of Llama 1 in place of Llama 2's."""
    model = edit(engine.module.config, "norm.eps", 1e-6)
    model = edit(model, "stack.pattern.0.norm.eps", 1e-6)
    return Engine(model.build(), engine.params)


def pairs_side_by_side(engine):
    def turn(weight):
        return rearrange(weight, "... (h r) -> ... (r h)", r=2)

    return with_weights(engine, lambda p: turn if p.endswith(("attn/q/w", "attn/k/w")) else None)


def embedding_as_output(engine):
    embed = engine.params["decoder"]["embed"]["w"]
    return with_weights(engine, lambda p: (lambda w: embed.T) if p.endswith("out/w") else None)


def transposed_output(engine):
    def turn(weight):  # [N,H,D] with N H = D
        return weight.reshape(weight.shape[-1], -1).T.reshape(weight.shape)

    return with_weights(engine, lambda p: turn if p.endswith("attn/o/w") else None)


def gate_for_up(engine):
    gates = {
        f"layer_{i}": engine.params["decoder"]["stack"][f"layer_{i}"]["block_0"]["ffn"]
        for i in range(2)
    }

    def change(path):
        if not path.endswith(("ffn/gate/w", "ffn/up/w")):
            return None
        other = "up" if "gate" in path else "gate"
        return lambda w: gates[path.split("/")[2]][other]["w"]

    return with_weights(engine, change)


FAULTS = [
    ("llama3_2", smaller_factor, {"position 131,071", "logits, second half up to 131,071"}),
    ("llama2", smaller_eps, {"norm eps", "logits, positions from 0"}),
    ("llama3", pairs_side_by_side, {"logits, positions from 0"}),
    ("llama2", embedding_as_output, {"logits, positions from 0"}),
    ("llama2", transposed_output, {"logits, positions from 0"}),
    ("llama1", gate_for_up, {"logits, positions from 0"}),
]


@pytest.mark.parametrize(
    ("name", "fault", "expected"), FAULTS, ids=[fault.__name__ for _, fault, _ in FAULTS]
)
def test_a_fault_in_reading_is_a_failed_line(folders, name, fault, expected):
    checkpoint = open_checkpoint(folders(name)[0])
    ledger = examine(checkpoint, fault(open_engine(checkpoint)))
    failed = {line.name for line in ledger.lines if line.status == "failed"}
    assert expected <= failed and ledger.failed
    # The three ways share the fault, so they agree.
    assert not any(name.startswith(("prefill", "decode")) for name in failed)


def test_a_fault_is_exit_status_1(folders, monkeypatch, capsys):
    monkeypatch.setattr("llama_jax.__main__._enable_compilation_cache", lambda cache: None)
    folder = str(folders("llama3")[0])
    assert main(["verify", folder]) == 0
    assert "FAILED" not in capsys.readouterr().out
    words = llama.FAMILY.huggingface
    rows = tuple(
        (ours, theirs, axes.replace("(N H)", "(N H r)").replace("D N H", "D N (r H)"))
        if ours == "attn/q/w"
        else (ours, theirs, axes)
        for ours, theirs, axes in words.table.attention
    )
    words = replace(words, table=replace(words.table, attention=rows))
    monkeypatch.setattr(llama, "FAMILY", replace(llama.FAMILY, huggingface=words))
    assert main(["verify", folder, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] and "FAILED" in found["verdict"]
    [section] = [lines for title, lines in found["sections"].items() if "transformers" in title]
    assert section[1]["status"] == "failed"


def test_an_output_layer_that_is_not_the_embedding_of_a_tied_model_is_refused(
    folders, tmp_path, monkeypatch, capsys
):
    from safetensors.numpy import load_file, save_file

    monkeypatch.setattr("llama_jax.__main__._enable_compilation_cache", lambda cache: None)
    folder = folders("llama3_2")[0]
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"][::-1].copy()
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    assert main(["verify", str(tmp_path)]) == 2
    assert "said to be the output layer too" in capsys.readouterr().err


def test_a_model_in_bfloat16_is_within_its_own_tolerance(folders):
    checkpoint = open_checkpoint(folders("llama3_1")[0])
    ledger = examine(checkpoint, open_engine(checkpoint, dtype=jnp.bfloat16))
    assert not ledger.failed
    found = ledger.line("logits, positions from 0").numbers
    assert TOLERANCE < found["found"] < found["bound"] < 1


def test_weights_that_give_no_numbers_are_a_failed_line(folders):
    checkpoint = open_checkpoint(folders("llama1")[0])
    broken = with_weights(
        open_engine(checkpoint), lambda p: (lambda w: w * jnp.nan) if "norm" in p else None
    )
    ledger = examine(checkpoint, broken)
    assert ledger.failed and json.loads(ledger.json())["failed"]


def test_what_transformers_cannot_open_is_said_and_not_blamed(folders, monkeypatch):
    checkpoint = open_checkpoint(folders("llama1")[0])

    def refuse(*_, **__):
        raise OSError("no\nsuch thing")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", refuse)
    ledger = examine(checkpoint, open_engine(checkpoint))
    assert not ledger.failed
    line = ledger.line("transformers")
    assert line.status == "unchecked" and "OSError: no such thing" in line.text
