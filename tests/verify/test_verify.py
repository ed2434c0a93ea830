"""The checks of `llama-jax verify` that need no other program; tests/parity has the others."""

import gc
import json
import weakref
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import presets
from llama_jax.__main__ import main
from llama_jax.config import edit
from llama_jax.generate import lm
from llama_jax.generate.engine import Engine
from llama_jax.layers.rope import Llama3Rope, Rope
from llama_jax.layers.slots import KV, Contiguous
from llama_jax.models.decoder import DecoderModule
from llama_jax.verify import checks
from llama_jax.verify.checks import examine, verify
from llama_jax.verify.declared import Said
from llama_jax.verify.facts import facts
from llama_jax.verify.layout import BETTER, nats
from llama_jax.verify.reference import Unavailable, reference
from llama_jax.verify.report import Ledger, Line, Section, unchecked, within
from llama_jax.verify.rope import frequencies, rope
from llama_jax.verify.rounding import tolerance
from llama_jax.verify.text import tokens
from llama_jax.weights.convert import convert
from llama_jax.weights.opened import open_checkpoint
from tests.generate import small


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.folder(tmp_path_factory.mktemp("verify") / "small")


@pytest.fixture(scope="module")
def checkpoint(folder):
    return open_checkpoint(folder)


@pytest.fixture(autouse=True)
def uncached(monkeypatch):
    monkeypatch.setattr("llama_jax.__main__._enable_compilation_cache", lambda cache: None)


def statuses(ledger):
    return {line.name: line.status for line in ledger.lines}


def test_it_says_what_was_read(folder, capsys):
    assert main(["verify", str(folder), "--against", "none"]) == 0
    out = capsys.readouterr().out
    for said in (
        "width 32, layers 2, heads 4, kv heads 2, head 8, feed-forward 48, vocabulary 300",
        "parameters",
        "the embedding (tied)",
        "halves",
        "plain, theta 10000",
        "config.json: rope_theta",
        "</s> (297)",
        "the file's own template",
        "none has these sizes",
        "not checked: not asked for",
    ):
        assert said in out
    assert "\x1b" not in out and "FAILED" not in out


def test_json_has_every_line_with_its_numbers(folder, capsys):
    assert main(["verify", str(folder), "--against", "none", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] is False and "1 not checked" in found["verdict"]
    lines = {line["name"]: line for lines in found["sections"].values() for line in lines}
    assert lines["sizes"]["numbers"]["L"] == 2
    assert lines["decode, one row"]["numbers"]["found"] <= 1e-5
    assert {line["status"] for line in lines.values()} == {"told", "ok", "unchecked"}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere.gguf"], "does not exist"),
        (["FOLDER", "--weights", "FOLDER"], "weights named twice"),
        (["FOLDER", "--text", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["FOLDER", "--text", "SHORT"], "a text of 1 tokens; at least 16"),
        (["FOLDER", "--against", "transformer"], "Did you mean 'transformers'?"),
        (["FOLDER", "--agianst", "none"], "Did you mean '--against'?"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(folder, tmp_path, capsys, args, said):
    (tmp_path / "short.txt").write_text("a")
    places = {"FOLDER": str(folder), "SHORT": str(tmp_path / "short.txt")}
    assert main(["verify", *(places.get(arg, arg) for arg in args)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err


def test_a_text_of_ones_own_is_read_up_to_the_context(folder, tmp_path):
    text = "the sea is deep and the little king is blue; " * 50
    ledger = verify(folder, text, "none")
    told = ledger.line("tokens")
    assert told.numbers["count"] == small.CONTEXT and told.text.startswith("200 of the given text")


def test_without_tokenizer_random_tokens_are_read_and_the_text_is_not_scored(tmp_path, folder):
    place = small.folder(tmp_path / "bare")
    (place / "tokenizer.json").unlink()
    (place / "tokenizer_config.json").unlink()
    ledger = verify(place, against="none")
    assert not ledger.failed
    assert statuses(ledger)["tokenizer"] == statuses(ledger)["q and k the other way"] == "unchecked"
    with pytest.raises(ValueError, match="no tokenizer, so no text can be read"):
        verify(place, "hello", "none")


def test_a_damaged_tokenizer_is_a_failed_line_and_the_weights_are_checked_all_the_same(tmp_path):
    place = small.folder(tmp_path / "damaged")
    (place / "tokenizer.json").write_text("{}")
    ledger = verify(place, against="none")
    assert ledger.failed and statuses(ledger)["tokenizer"] == "failed"
    assert statuses(ledger)["prefill, one row"] == "ok"


@pytest.mark.parametrize("to", ["gguf", "orbax"])
def test_other_formats_are_checked_too(folder, tmp_path, to, monkeypatch):
    # A folder's tokenizer comes along in neither of these tests.
    place = tmp_path / ("x.gguf" if to == "gguf" else "x")
    bare = small.folder(tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    (bare / "tokenizer_config.json").unlink()
    convert(bare, place, to)
    ledger = verify(place, against="none")
    assert not ledger.failed
    order = {"gguf": "pairs side by side", "orbax": "halves"}[to]
    assert ledger.line("q and k in the file").text == order
    types = ledger.line("types of the tensors")
    assert (types.status == "unchecked") == (to == "orbax")


def test_the_weights_are_let_go_before_the_other_program_reads_them(folder, monkeypatch):
    held, opened = [], lm.open_engine

    def remembered(*args, **kwargs):
        engine = opened(*args, **kwargs)
        held.append(weakref.ref(engine))
        return engine

    def watched(_):
        gc.collect()
        assert held and held[0]() is None
        raise Unavailable("seen")

    monkeypatch.setattr(lm, "open_engine", remembered)
    monkeypatch.setattr(checks, "reference", watched)
    assert verify(folder).line("transformers").text == "not checked: seen"


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ({"transformers"}, "torch is"),
        ({"torch"}, "transformers is"),
        (set(), "torch and transformers are"),
    ],
)
def test_missing_packages_are_said_with_what_to_install(checkpoint, monkeypatch, there, missing):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in there else None)
    with pytest.raises(Unavailable) as caught:
        reference(checkpoint)
    assert str(caught.value) == f"{missing} not installed; pip install 'llama-jax[parity]'"


SAID = Said(500_000.0, (32.0, 1.0, 4.0, 8192.0), None, 1e-5, "a test")


@pytest.mark.parametrize("head_dim", [16, 64, 96, 128])
@pytest.mark.parametrize(
    ("model", "scaling"),
    [
        (Rope(500_000.0), None),
        (Llama3Rope(), (8.0, 1.0, 4.0, 8192.0)),
        (Llama3Rope(factor=32.0), (32.0, 1.0, 4.0, 8192.0)),
        (Llama3Rope(factor=16.0, high=1.0), (16.0, 1.0, 1.0, 8192.0)),
    ],
)
def test_right_angles_are_within_the_bound_of_float32(model, scaling, head_dim):
    told = Said(500_000.0, scaling, None, 1e-5, "a test")
    found = rope(model, head_dim, told)
    assert [line.status for line in found.lines[1:]] == ["ok"] * 4
    # The bound is no formality: rounding takes a good part of it.
    assert max(line.numbers["found"] for line in found.lines[1:]) > 0.1


@pytest.mark.parametrize(
    "wrong",
    [
        Llama3Rope(factor=8.0),
        Llama3Rope(factor=32.0, original=4096),
        Llama3Rope(factor=32.0, high=2.0),
        Llama3Rope(theta=500_100.0, factor=32.0),
        Rope(500_000.0),
    ],
)
def test_wrong_numbers_of_rope_are_beyond_it(wrong):
    found = rope(wrong, 64, SAID)
    assert found.lines[-1].status == "failed"


def test_angles_in_bfloat16_are_beyond_it():
    class Coarse(Rope):
        def angles(self, positions_BTA, head_dim):
            return super().angles(positions_BTA, head_dim).astype(jnp.bfloat16)

    told = Said(10_000.0, None, None, 1e-5, "a test")
    assert [line.status for line in rope(Coarse(), 64, told).lines[2:]] == ["failed"] * 3


def test_divisors_of_a_file_are_the_rule_s():
    from llama_jax.families.gguf_llama3 import divisors

    theirs = np.asarray(divisors(Llama3Rope(factor=32.0), 64), np.float64)
    by_file, bound = frequencies(Said(500_000.0, None, theirs, 1e-5, ""), 64)
    by_rule, _ = frequencies(SAID, 64)
    np.testing.assert_array_less(abs(by_file - by_rule), bound)


def with_rope(model, **fields):
    for name, value in fields.items():
        model = edit(model, f"stack.pattern.0.attention.rope.{name}", value)
    return model


def preset_line(checkpoint, model):
    found = facts(checkpoint, model, Said(10_000.0, None, None, 1e-5, ""))
    return next(line for line in found.lines if line.name == "preset")


def test_the_published_model_with_these_numbers_is_named(checkpoint):
    line = preset_line(checkpoint, presets.get("llama3_2_1b").model)
    assert (line.status, line.text) == ("told", "equals llama3_2_1b")
    line = preset_line(checkpoint, presets.get("llama3_3_70b").model)
    assert line.text == "equals llama3_1_70b, llama3_3_70b"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: with_rope(m, factor=8.0), "factor 8, low 1, high 4, original 8192, there"),
        (lambda m: edit(m, "norm.eps", 1e-6), "norm eps: 1e-06, there 1e-05"),
        (lambda m: edit(m, "tied", False), "tied: False, there True"),
    ],
)
def test_a_published_model_with_another_number_is_to_be_looked_at(checkpoint, change, said):
    line = preset_line(checkpoint, change(presets.get("llama3_2_1b").model))
    assert line.status == "differs" and line.text.startswith("sizes of llama3_2_1b; ")
    assert said in line.text


def shorter(checkpoint, by):
    """A model of which no program is compiled yet: its context is another one."""
    return replace(checkpoint, model=replace(checkpoint.model, context=small.CONTEXT - by))


def test_padding_that_is_seen_is_found(checkpoint, monkeypatch):
    extend = DecoderModule.extend

    def careless(self, ids_BT, cache, valid_BT, *more):
        return extend(self, ids_BT, cache, jnp.ones_like(valid_BT), *more)

    monkeypatch.setattr(DecoderModule, "extend", careless)
    other = shorter(checkpoint, 1)
    found = statuses(examine(other, lm.open_engine(other), against="none"))
    assert found["prefill, 4 rows, left-padded"] == "failed"


def test_a_cache_that_rounds_is_found(checkpoint, monkeypatch):
    write = Contiguous.write

    def rounding(cache, new, index):
        return write(cache, KV(new.k.astype(jnp.bfloat16), new.v.astype(jnp.bfloat16)), index)

    monkeypatch.setattr(Contiguous, "write", rounding)
    other = shorter(checkpoint, 2)
    found = statuses(examine(other, lm.open_engine(other), against="none"))
    assert found["decode, one row"] == found["prefill, 4 rows, left-padded"] == "failed"


def test_random_weights_predict_in_neither_order_of_q_and_k(checkpoint):
    """That trained ones do is tested with SmolLM2 in tests/parity."""
    ids = tokens(None, small.tokenizer(), small.VOCAB, small.CONTEXT).ids
    engine = lm.open_engine(checkpoint)
    ledger = examine(checkpoint, engine, against="none")
    read, other = (ledger.line(n).numbers["nats"] for n in ("as read", "q and k the other way"))
    assert abs(read - other) < BETTER and not ledger.failed
    logits = np.asarray(engine.logits(np.array([ids])))[0]
    assert read == pytest.approx(nats(logits, ids), abs=1e-6)


def test_the_tolerance_grows_with_depth_and_width_and_never_hides_a_fault():
    small_, large = (presets.get(n).model for n in ("smollm2_135m", "llama3_1_405b"))
    assert 1e-5 < tolerance(small_, jnp.float32) < tolerance(large, jnp.float32) < 2e-4
    assert tolerance(small.MODEL, jnp.float32) == 1e-5
    assert tolerance(small.MODEL, jnp.bfloat16) < 0.02


def test_nan_is_within_no_bound_and_no_number_in_json():
    line = within("x", float("nan"), 1.0, "text")
    ledger = Ledger("here", (Section("t", (line, unchecked("y", "no reason"))),))
    assert ledger.failed and ledger.verdict == "0 of 2 checks passed, 1 FAILED, 1 not checked"
    assert json.loads(ledger.json())["sections"]["t"][0]["numbers"]["found"] is None
    with pytest.raises(KeyError):
        ledger.line("z")


def test_what_a_file_calls_itself_does_not_reach_the_terminal_as_a_command(
    folder, capsys, monkeypatch
):
    evil = Ledger("a\x1b[2J", (Section("t", (Line("n", "\x1b]0;x\x07"),)),))
    monkeypatch.setattr(checks, "verify", lambda *_, **__: evil)
    assert main(["verify", str(folder)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_failed_check_is_exit_status_1(folder, capsys, monkeypatch):
    opened = lm.open_engine

    def faulty(*args, **kwargs):
        engine = opened(*args, **kwargs)
        model = edit(engine.module.config, "stack.pattern.0.attention.rope.theta", 5e5)
        return Engine(model.build(), engine.params)

    monkeypatch.setattr(lm, "open_engine", faulty)
    assert main(["verify", str(folder), "--against", "none"]) == 1
    out = capsys.readouterr().out
    assert "FAILED  position 131,071" in out and "3 FAILED" in out
