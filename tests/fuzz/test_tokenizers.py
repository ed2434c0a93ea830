"""Damaged tokenizer files: each is refused by type, or opens as a tokenizer that keeps its word."""

import json

import pytest

from llama_jax.text import Detokenizer, open_tokenizer
from llama_jax.text.export import files
from llama_jax.text.gguf import from_fields, to_fields
from tests.fuzz.mutate import damaged, damaged_json, run
from tests.text.small import TEXTS, bpe_json, opened, sentencepiece_model, tiktoken_file

pytestmark = pytest.mark.fuzz

HERE = __name__
CONFIG = {
    "added_tokens_decoder": {"386": {"content": "<|begin_of_text|>", "lstrip": False}},
    "additional_special_tokens": ["<|eot_id|>"],
    "add_bos_token": True,
    "bos_token": {"content": "<|begin_of_text|>", "rstrip": False},
    "eos_token": "<|eot_id|>",
    "pad_token": None,
    "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}],
    "eos_token_id": [387, 390],
}


def keeps_its_word(tokenizer):
    hidden = set(tokenizer.control.values()) - {tokenizer.backend.unknown}
    texts = [*TEXTS, *list(tokenizer.control)[:20], "x".join(list(tokenizer.control)[-20:])]
    for text in texts:
        ids = tokenizer.encode(text)
        assert hidden.isdisjoint(ids) and all(0 <= i < tokenizer.vocab for i in ids)
        assert tokenizer.decode(ids) == text or not tokenizer.backend.lossless
        tokenizer.decode(tokenizer.parse(text))
    assert all(0 <= i for i in tokenizer.ends)
    assert tokenizer.bos is None or tokenizer.bos in tokenizer.control.values()
    detokenizer = Detokenizer(tokenizer)
    for i in range(tokenizer.vocab):
        detokenizer.push(i)


def read_json(data, folder):
    (folder / "tokenizer.json").write_bytes(data)
    tokenizer = open_tokenizer(folder)
    keeps_its_word(tokenizer)
    files(tokenizer)


def read_model(data, folder):
    (folder / "tokenizer.model").write_bytes(data)
    keeps_its_word(open_tokenizer(folder))


def read_beside(data, folder):
    (folder / "tokenizer.json").write_bytes(bpe_json())
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        (folder / name).write_bytes(data)
    keeps_its_word(open_tokenizer(folder))


def read_fields(data, folder):
    fields = json.loads(data)
    keeps_its_word(from_fields(fields if isinstance(fields, dict) else {}))


def check(target, cases):
    report = run(f"{HERE}:{target}", cases)
    print(f"\n{target}: {report}")
    assert not report.problems, report
    assert report.refused > len(cases) // 10 and report.loaded, report


def test_1500_damaged_tokenizer_json():
    check("read_json", damaged(bpe_json(), 700) + damaged_json(bpe_json(), 800))


def test_600_damaged_sentencepiece_models():
    check("read_model", damaged(sentencepiece_model(), 600))


def test_damaged_tiktoken_files():
    check("read_model", damaged(tiktoken_file(), 60))


def test_damaged_files_beside_a_tokenizer():
    data = json.dumps(CONFIG).encode()
    check("read_beside", damaged(data, 150) + damaged_json(data, 250))


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece"])
def test_damaged_fields_of_gguf(kind):
    check("read_fields", damaged_json(json.dumps(to_fields(opened(kind))).encode(), 300))
