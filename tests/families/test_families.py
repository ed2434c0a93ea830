"""Families: which one a file is of, and that nobody else knows one by name."""

import ast
import pathlib
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import replace

import pytest

from llama_jax import families, presets
from llama_jax.errors import FormatError, UserError
from llama_jax.families import llama, mistral
from llama_jax.families.base import Family
from llama_jax.families.huggingface import HuggingFace
from llama_jax.layers.norm import RMSNorm

PACKAGE = pathlib.Path(families.__file__).parents[1]
# Names of programs, of a rule of scaling the rotary embedding, and of the weights that a package
# brings along.
PRODUCTS = re.compile(
    r"llama[_.-](jax|cpp|gguf-split)|llama in jax|llama3rope|\bllama3\b|smollm2", re.IGNORECASE
)
TOKENIZERS = "text"  # a room with names of its own: Llama 3's tokenizer comes with other models too
NAMED = re.compile("llama|mistral|smollm|qwen|cwm", re.IGNORECASE)


def said(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Names and texts of a program, without its comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    # A text that is a statement by itself is a docstring.
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in told:
            continue
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield line, node.value
        elif isinstance(node, ast.Name):
            yield line, node.id
        elif isinstance(node, ast.Attribute):
            yield line, node.attr
        elif isinstance(node, ast.alias | ast.FunctionDef | ast.ClassDef):
            yield line, node.name
        elif isinstance(node, ast.ImportFrom):
            yield line, node.module or ""


def test_no_file_outside_this_room_knows_a_family_by_name():
    finds = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0]
        if room not in ("families", TOKENIZERS):
            finds += [
                f"{path.relative_to(PACKAGE)}:{line} says {text!r:.60}"
                for line, text in said(path)
                if NAMED.search(PRODUCTS.sub("", text))
            ]
    assert finds == []


@pytest.mark.parametrize("name", families.NAMES)
def test_a_family_is_named_as_its_file_and_stands_in_one_of_few_lines(name):
    [family] = [family for family in families.every() if family.name == name]
    config = {"model_type": family.huggingface.model_type}
    assert families.of(config) is family
    lines = (PACKAGE / f"families/{name}.py").read_text(encoding="utf-8").splitlines()
    assert name == "llama" or len(lines) <= 80


def test_a_family_of_ones_own_is_a_value_and_a_name_in_the_list(monkeypatch):
    words = HuggingFace("own", "OwnForCausalLM", read=lambda given, *_: replace(given, eps=0.5))
    module = types.ModuleType("llama_jax.families.own")
    module.__dict__["FAMILY"] = Family("own", "layers of this library", words)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(families, "NAMES", (*families.NAMES, "own"))
    config = llama.FAMILY.huggingface.config(presets.get("smollm2_135m").model)
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"]}
    found = families.of(config)
    assert found.name == "own" and found.huggingface.model(config).norm == RMSNorm(0.5)


def test_a_config_of_no_family_is_refused_by_its_name():
    with pytest.raises(FormatError) as caught:
        families.of({"model_type": "mistrall"}, "x/config.json")
    assert str(caught.value) == (
        "x/config.json: model_type='mistrall'; one of llama, mistral, qwen3, cwm, smollm3, "
        "llama4_text, llama4, mllama was expected. Did you mean 'mistral'?"
    )
    with pytest.raises(FormatError, match="general.architecture='gpt2'; one of llama, qwen3"):
        families.of_gguf({"general.architecture": "gpt2"})


def test_two_families_that_claim_a_config_are_both_named(monkeypatch):
    both = {"model_type": "llama", "architectures": ["MistralForCausalLM"]}
    with pytest.raises(FormatError, match="claimed by the families 'llama' and 'mistral'"):
        families.of(both)
    monkeypatch.setattr(mistral, "FAMILY", llama.FAMILY)
    with pytest.raises(FormatError, match="claimed by the families 'llama' and 'llama'"):
        families.of_gguf({"general.architecture": "llama"})
    with pytest.raises(FormatError, match=r"params.json: .* claimed by the families"):
        families.of_meta({})


def test_a_model_is_written_by_the_family_that_it_came_from_or_by_the_first_that_can():
    plain, windowed = presets.get("mistral_7b_v3").model, presets.get("mistral_7b").model
    assert families.describing(plain, "huggingface") is llama.FAMILY
    assert families.describing(plain, "huggingface", mistral.FAMILY) is mistral.FAMILY
    assert families.describing(windowed, "huggingface") is mistral.FAMILY
    assert families.describing(plain, "gguf", mistral.FAMILY) is llama.FAMILY
    with pytest.raises(UserError, match=r"attention.window is 4096, which none of GGUF's 'llama'"):
        families.describing(windowed, "gguf", mistral.FAMILY)
