import dataclasses
import json
import math

import pytest

from llama_jax import presets
from llama_jax.config import BPE, File, Mesh, Run, edit, from_json, to_json
from llama_jax.data import PlainText, Tfds
from llama_jax.errors import UserError
from llama_jax.optim.optimizer import WSD, AdamW, Cosine


@dataclasses.dataclass(frozen=True)
class Goal:
    """Somebody's own config class."""

    on: str = "text"
    weight: float = 1.0
    sizes: tuple[int, ...] = (1, 2)


@pytest.fixture
def run():
    return Run("mine", Goal(), {"text": Goal()}, {"lm": Goal()})


def test_edit_replaces_one_field_however_deep_and_leaves_the_rest(run):
    found = edit(run, "objectives.lm.weight", 0.5)
    assert found.objectives["lm"].weight == 0.5 and run.objectives["lm"].weight == 1.0
    assert dataclasses.replace(found, objectives=run.objectives) == run
    assert edit(run, "model.sizes.1", 7).model.sizes == (1, 7)
    assert edit(run, "optimizer.schedule", WSD()).optimizer.schedule == WSD()
    assert edit(run, "optimizer.rate", 1).optimizer.rate == 1.0


def test_edit_takes_a_string_for_a_source_or_a_tokenizer():
    run = presets.get("smollm2_135m")
    found = edit(run, "data.text.source", "my.txt")
    assert found.data["text"] == dataclasses.replace(run.data["text"], source=PlainText("my.txt"))
    assert edit(run, "data.text.source", "kjv").data["text"].source == Tfds("kjv")
    assert edit(run, "tokenizer", "runs/a").tokenizer == File("runs/a")
    assert edit(presets.get("tiny_decoder"), "tokenizer", "words.json").tokenizer.path


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optimizer.rat", 1.0, "no 'rat' in 'optimizer.rat'.*Did you mean 'rate'"),
        ("objectives.mlm.weight", 1.0, "no 'mlm'.*dict has lm.*Did you mean 'lm'"),
        ("model.sizes.5", 1, "no '5' in 'model.sizes.5'; tuple has 0, 1"),
        ("steps.more", 1, "int has no fields"),
        ("steps", "ten", "steps='ten' is of type str; int was expected, e.g. 1000"),
        ("optimizer.rate", True, "bool; float was expected"),
        ("steps", -1, "steps=-1: give 0 or more"),
        ("optimizer.schedule", "wsdd", "unknown schedule 'wsdd'.*Did you mean 'wsd'"),
        ("objectives.lm", "lm", r"'lm' is of type str; a value such as Goal\(\.\.\.\)"),
        (
            "batch_schedule",
            ((5, 2), (3, 4)),
            r"batch_schedule=\(\(5, 2\), \(3, 4\)\): give \(step, times\)",
        ),
        (
            "batch_schedule",
            ((1, "x"),),
            r"^batch_schedule=\(\(1, 'x'\),\) is of .* tuple\[tuple\[int, int\], ...\]",
        ),
        ("batch_schedule", (1, 2), r"^batch_schedule=\(1, 2\) is of type tuple"),
        ("data.text.sizes.0", "x", "^data.text.sizes.0='x' is of type str; int was expected"),
        ("optimizer.groups", ((1,),), r"^optimizer.groups=\(\(1,\),\): path=1 of Group is"),
        ("optimizer.groups", (("*", "x"),), r"^optimizer.groups=\(\('\*', 'x'\),\): "),
        ("batch_schedule", 3, "batch_schedule=3 is of type int; tuple was expected"),
        ("ema", 1.0, "^ema=1.0: give a decay between 0 and 1"),
        ("ema", "hello", r"^ema='hello' is of type str; float \| None was expected, e.g. None"),
        ("steps", None, "^steps=None is of type NoneType; int was expected, e.g. 1000"),
        ("steps", -3, "^steps=-3: give 0 or more"),
        ("dtype", "float23", "^dtype='float23': give float32 or bfloat16"),
        ("optimizer.clip", "no", "^optimizer.clip='no' is of type str"),
        ("optimizer.clip", -1, "^optimizer.clip=-1.0: give more than 0"),
        ("optimizer.rate", -1, "^optimizer.rate=-1.0: give 0 or more"),
        ("optimizer.rate", math.nan, "^optimizer.rate=nan is no number; float was expected"),
        ("optimizer.b2", 1.5, "^optimizer.b2=1.5: give a number from 0 to 1"),
        ("optimizer.schedule.warmup", -5, "^optimizer.schedule.warmup=-5: give 0 or more"),
        ("seed", 2**64, "^seed=18446744073709551616: give a whole number from 0 to"),
        ("optimizer.schedule.floor", 2, "^optimizer.schedule.floor=2.0: give a number from 0 to 1"),
        ("optimizer.schedule", None, "^optimizer.schedule=None is of type NoneType"),
        ("init_from", 3, r"^init_from=3 is of type int; str \| None was expected"),
    ],
)
def test_edit_says_what_is_wrong(run, path, value, message):
    with pytest.raises(UserError, match=message):
        edit(run, path, value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("repeats", 0, r"^model.stack.repeats=0: give 1 or more"),
        ("pattern", (), r"^model.stack.pattern=\(\): give at least one block"),
        ("remat", "blok", r"remat='blok' is not one of none, block, .* Did you mean 'block'"),
        ("bias", "x", r"^model.stack.bias='x' is of type str"),
    ],
)
def test_a_stack_without_layers_is_refused_before_anything_is_made(path, value, message):
    with pytest.raises(UserError, match=message):
        edit(presets.get("tiny_decoder"), f"model.stack.{path}", value)


def test_a_run_survives_json(run):
    changed = edit(run, "optimizer", AdamW(rate=3e-4, schedule=Cosine(warmup=7), clip=None))
    text = to_json(dataclasses.replace(changed, tokenizer=BPE(300), mesh=Mesh(fsdp=2)))
    found = from_json(text, classes=(Goal,))
    assert to_json(found) == text
    assert found.optimizer == changed.optimizer and found.model == Goal()
    assert json.loads(text)["optimizer"]["rate"] == 3e-4  # plain to other readers


@pytest.mark.parametrize("name", sorted(presets.NAMES))
def test_every_preset_survives_json(name):
    run = presets.get(name)
    assert from_json(to_json(run)) == run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(stepz=3), "Run has no field 'stepz'.*Did you mean 'steps'"),
        (lambda v: v.update(version=99), "version 99, this llama_jax reads version 1"),
        (
            lambda v: v["optimizer"].update({"class": "llama_jax.optim:AdamX"}),
            "unknown class 'llama_jax.optim:AdamX'. Did you mean 'AdamW'",
        ),
        (
            lambda v: v["optimizer"].update({"class": "fractions:Fraction"}),
            "'fractions:Fraction' is not part of llama_jax",
        ),
        (
            lambda v: v["optimizer"].update({"class": "llama_jax.layers.linear:Einsum"}),
            "unknown class",  # a module is no config
        ),
        (
            lambda v: v["optimizer"].update({"class": "llama_jax.nothing:X"}),
            "no configs in 'nothing'",
        ),
        (lambda v: v.pop("name"), "missing.*'name'"),
    ],
)
def test_json_that_is_not_ours_is_refused(run, change, message):
    value = json.loads(to_json(run))
    change(value)
    with pytest.raises(UserError, match=message):
        from_json(json.dumps(value), classes=(Goal,))
    with pytest.raises(UserError, match="not JSON"):
        from_json("{")


def test_a_class_of_somebody_elses_is_made_only_if_it_is_given(run):
    with pytest.raises(UserError, match="Goal' is not part of llama_jax"):
        from_json(to_json(run))


def test_an_objective_that_reads_no_stream_is_refused(run):
    with pytest.raises(UserError, match="'lm' reads stream 'texts'.*Did you mean 'text'"):
        edit(run, "objectives.lm.on", "texts")


def test_a_mesh_for_other_devices_is_refused():
    with pytest.raises(UserError, match="8 are here"):
        Mesh(data=3).build()


def test_presets_are_named_and_described():
    assert {"seed_demo", "seed_vqa", "tiny_decoder"} <= presets.NAMES.keys()
    assert all(presets.describe(name) for name in presets.NAMES)
    with pytest.raises(UserError, match="Did you mean 'tiny_decoder'"):
        presets.get("tiny_decode")


def test_digits_are_tokens_of_their_own_where_a_tokenizer_is_told_so(tmp_path):
    (tmp_path / "x.txt").write_text("1917 1917 1917 seventeen seventeen " * 50)
    corpus = (PlainText(str(tmp_path / "x.txt")),)
    single = BPE(400, corpus, digits="single").build([])
    merged = BPE(400, corpus).build([])
    assert len(merged.encode("1917")) == 1 and len(single.encode("1917")) == 4
    assert len(single.encode("seventeen")) == 1 and single.decode(single.encode("x1917")) == "x1917"
    with pytest.raises(UserError, match="digits='one' of BPE is not one of merged, single"):
        BPE(digits="one")  # pyright: ignore[reportArgumentType]
