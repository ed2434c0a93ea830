"""Tags, run.json files of older versions, and files that name what they should not."""

import ast
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from llama_jax import presets
from llama_jax.config import as_now, edit, from_json, to_json
from llama_jax.config.differences import differences
from llama_jax.config.tags import DECLARED, PACKAGE, declared, our_class, tag
from llama_jax.errors import UserError
from llama_jax.models.decoder import Decoder
from llama_jax.objectives import CausalLM
from llama_jax.optim.optimizer import AdamW, Cosine

# The classes that a run.json of commit 2babaf5 may name, by their modules then.
OLD = """
config:Run,Mesh,BPE,File axes:Rules
data.loader:Stream data.shards:Mix,Prepared data.sources:ImageFolder,JsonLines,Parquet,PlainText
data.catalogue:Tfds data.corrupt:Masking data.language:LanguageModel data.labels:Labels
data.vision:Captions,Describe,Questions data.documents:SentencePairs data.sequences:Denoise,Seq2Seq
evals.text:ExactMatch,Scores evals.vision:Matching,Retrieval,Vqa
layers.attention:Attention layers.block:Block,Gated,Merged layers.divided:DividedBlock
layers.mlp:SwiGLU,MLP layers.norm:LayerNorm,RMSNorm layers.rope:Llama3Rope,Rope
layers.positions:Learned,RelativeBias layers.stack:Stack
models.coattention:CoAttention models.decoder:Decoder models.fusion:Concat,Reading,Perceiver,Late
models.multimodal:Multimodal models.stem:Convolutions,Patches models.text:TextEncoder
models.vision:VisionEncoder,SpaceTime,Factorised
objectives.alignment:ITC,ITM,RollITM,SigmoidITC objectives.classify:Classify
objectives.language:Caption,CausalLM,Seq2Seq objectives.masked:MLM,NSP,SOP
train.optimizer:AdamW,Adafactor,Lion,Muon,SGD,Constant,Cosine,WSD train.parameters:Group
train.schedules:Constant,Cosine,Linear,WSD
"""


def old_tags():
    for word in OLD.split():
        module, _, names = word.partition(":")
        yield from (f"llama_jax.{module}:{name}" for name in names.split(","))


@pytest.mark.parametrize("name", list(old_tags()))
def test_classes_that_older_files_name_are_found_where_they_are_now(name):
    assert our_class(name).__name__ == name.rpartition(":")[2]


def test_a_tag_names_the_package_and_not_the_file():
    assert tag(Decoder) == "llama_jax.models:Decoder" and tag(AdamW) == "llama_jax.optim:AdamW"
    assert our_class("llama_jax.models:Decoder") is Decoder
    text = to_json(presets.get("tiny_decoder"))
    assert "llama_jax.config:Run" in text and "llama_jax.models.decoder" not in text


def test_no_package_has_two_config_classes_of_one_name():
    for room in {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")} - {
        "formats"
    }:
        files = [PACKAGE / room] if room.endswith(".py") else sorted((PACKAGE / room).rglob("*.py"))
        names = [n for file in files for n in DECLARED.findall(file.read_text(encoding="utf-8"))]
        assert len(names) == len(set(names)), room


def test_every_frozen_dataclass_is_seen_without_importing_it():
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            frozen = [ast.unparse(d) for d in getattr(node, "decorator_list", [])]
            if isinstance(node, ast.ClassDef) and any("frozen=True" in d for d in frozen):
                assert node.name in declared(room), f"{path}: {node.name}"


def test_finding_a_class_imports_its_module_alone():
    code = (
        "import sys; from llama_jax.config.tags import our_class\n"
        "before = set(sys.modules); our_class('llama_jax.models:TextEncoder')\n"
        "new = {m for m in set(sys.modules) - before if m.startswith('llama_jax.')}\n"
        "assert 'llama_jax.models.text_encoder' in new, new\n"
        "assert 'llama_jax.models.vision' not in new, new"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=True)


def older(run):
    """The JSON of a run as commit 2babaf5 wrote it, with a wrapper that a decoder had."""
    value = json.loads(to_json(run))
    homes = {"models:Decoder": "models.decoder", "optim:AdamW": "train.optimizer"}
    homes |= {"optim:Cosine": "train.schedules", "config:Run": "config"}

    def as_then(item):
        if isinstance(item, list):
            return list(map(as_then, item))
        if not isinstance(item, dict):
            return item
        found = {key: as_then(value) for key, value in item.items()}
        if str(found.get("class")).removeprefix("llama_jax.") in homes:
            home = homes[found["class"].removeprefix("llama_jax.")]
            found["class"] = f"llama_jax.{home}:{found['class'].partition(':')[2]}"
        return found

    value = as_then(value)
    value["growth"] = value.pop("batch_schedule")
    value["model"] = {"class": "llama_jax.models.decoder:DecoderLM", "decoder": value["model"]}
    return json.dumps(value)


def test_a_run_of_an_older_version_is_the_same_run():
    run = edit(presets.get("tiny_decoder"), "batch_schedule", ((3, 2),))
    assert isinstance(run.optimizer.schedule, Cosine)
    text = older(run)
    assert "DecoderLM" in text and "train.schedules" in text and "growth" in text
    assert from_json(text) == run
    assert differences(as_now(text, run), json.loads(to_json(run))) == []


def test_a_class_of_older_files_that_is_gone_is_one_line():
    value = json.loads(to_json(presets.get("tiny_decoder")))
    value["model"] = {"class": "llama_jax.models.decoder:DecoderLM"}
    with pytest.raises(UserError, match="unknown class 'llama_jax.models.decoder:DecoderLM'"):
        from_json(json.dumps(value))


@pytest.mark.parametrize(
    "name",
    [
        "evil:Payload",
        "evil.module:Payload",
        "__main__:Payload",
        "llama_jax.evil:Payload",
        "llama_jax.config.../evil:Payload",
        "llama_jax...evil:Payload",
        "llama_jax./tmp/evil:Payload",
        "llama_jax.models:os.getcwd",
        "llama_jax.models.decoder:jax",
        "llama_jax.__main__:main",
        "llama_jax:train",
        "os:getcwd",
        "",
        ":",
    ],
)
def test_a_file_of_a_stranger_never_has_code_imported(name, tmp_path, monkeypatch):
    # Where Python would find it, were it asked to.
    (tmp_path / "evil.py").write_text("import pathlib; pathlib.Path('ran').touch()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    value = json.loads(to_json(presets.get("tiny_decoder")))
    value["model"] = {"class": name, "command": "touch ran"}
    value["imports"] = {"evil.py": "0" * 64, "../evil.py": 3}
    with pytest.raises(UserError, match="class|not of llama_jax"):
        from_json(json.dumps(value))
    assert not Path("ran").exists() and "evil" not in sys.modules


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("class", None, "the config has no class; was run.json edited by hand"),
        ("model.class", 3, "^class 3 in the config; a class's name was expected"),
        ("model", {}, "^model={}: give a config"),
        ("model.width", "big", "^width='big' of Decoder is of type str; int was expected"),
        ("model.width", 1.5, "^width=1.5 of Decoder is of type float; int was expected"),
        ("model.stack", [], r"^stack=\(\) of Decoder is of type tuple; Stack was expected"),
        (
            "model.norm",
            {},
            "^norm={} of Decoder is of type dict; .*RMSNorm . .*LayerNorm was expected",
        ),
        ("optimizer", None, "^optimizer=None of Run is of type NoneType; Optimizer was expected"),
        ("objectives.lm", None, "^objective 'lm' is None, which does not say in `on`"),
        ("evaluations", {"often": 1}, "^evaluation 'often' is 1, which cannot be called"),
        ("evaluations", None, r"^evaluations=None of Run is of .*; dict\[str, Any\] was"),
        ("steps", None, "NoneType"),
    ],
)
def test_a_file_with_a_value_of_another_kind_is_one_line(path, value, said):
    whole = here = json.loads(to_json(presets.get("tiny_decoder")))
    *inner, last = path.split(".")
    for part in inner:
        here = here[part]
    here[last] = value
    with pytest.raises(UserError, match=said):
        from_json(json.dumps(whole))


def test_a_run_that_lost_its_class_is_refused_and_a_dict_of_configs_needs_none():
    whole = json.loads(to_json(presets.get("tiny_decoder")))
    del whole["class"]
    with pytest.raises(UserError, match="the config has no class"):
        from_json(json.dumps(whole))
    of = {"a": presets.get("tiny_decoder").optimizer}
    assert from_json(to_json(of)) == of


def test_a_run_that_no_file_can_hold_is_refused():
    run = presets.get("tiny_decoder")

    @dataclass(frozen=True)
    class Inner:
        on: str = "text"

    with pytest.raises(UserError, match="Inner' is made within a function, where nobody"):
        to_json(replace(run, objectives={"lm": Inner()}))
    with pytest.raises(UserError, match="of type builtin_function_or_method cannot be part"):
        to_json(replace(run, evaluations={"length": len}))


def test_a_stream_may_be_called_class():
    run = presets.get("tiny_decoder")
    run = replace(run, data={"class": run.data["text"]}, objectives={"lm": CausalLM("class")})
    assert from_json(to_json(run)) == run
