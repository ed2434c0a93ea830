import json

import pytest
import tokenizers

from llama_jax.errors import FormatError
from llama_jax.text import open_tokenizer
from llama_jax.text.export import files
from llama_jax.text.gguf import from_fields, to_fields
from tests.text.small import CORPUS, KINDS, TEXTS, bpe_json, opened


@pytest.fixture(params=KINDS)
def written(request, tmp_path):
    for name, data in files(opened(request.param)).items():
        (tmp_path / name).write_bytes(data)
    return opened(request.param), tmp_path


def test_written_files_open_as_the_same_tokenizer(written):
    before, folder = written
    after = open_tokenizer(folder)
    for text in TEXTS:
        assert after.encode(text) == before.encode(text)
        assert after.parse(text) == before.parse(text)
    assert (after.vocab, after.bos, after.ends) == (before.vocab, before.bos, before.ends)
    assert after.control == before.control and after.template == before.template
    assert after.named.items() >= before.named.items()


def test_the_tokenizers_library_gives_the_same_ids_from_written_files(written):
    ours, folder = written
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert theirs.get_vocab_size() == ours.vocab
    front = [] if ours.bos is None else [ours.bos]
    for text in [*CORPUS[::5], "  two  spaces\n\n\n", "你好 🙂\u200d", "1234567 x2"]:
        for name in ours.control:
            text = text.replace(name, "")
        assert theirs.encode(text).ids == [*front, *ours.encode(text)]
        assert theirs.decode(ours.encode(text)) == text
    name, number = list(ours.control.items())[-1]
    assert number in theirs.encode(f"a{name}b").ids


def test_the_chat_template_is_written():
    config = json.loads(files(opened("smollm2"))["tokenizer_config.json"])
    assert config["chat_template"] == opened("smollm2").template
    assert config["eos_token"] == "<|im_end|>" and config["add_bos_token"] is False


def test_gguf_has_no_name_for_other_ways_to_cut_words(tmp_path):
    content = json.loads(bpe_json())
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] += "|xyz"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = open_tokenizer(tmp_path)
    with pytest.raises(FormatError, match="GGUF has no name for the way"):
        to_fields(tokenizer)
    assert files(tokenizer)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_sentencepiece_model_in_hugging_faces_form_goes_to_gguf(tmp_path, legacy):
    content = json.loads(files(opened("sentencepiece"))["tokenizer.json"])
    if not legacy:
        content["normalizer"] = None
        content["pre_tokenizer"] = {
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False,
        }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.kind == "tokenizers"
    fields = to_fields(tokenizer)
    assert fields["tokenizer.ggml.model"] == "llama"
    # GGUF has no field for a space that is put before texts without one: the file goes along.
    assert ("tokenizer.huggingface.json" in fields) != legacy
    theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
    for text in (*TEXTS, " led", "▁x"):
        ids = theirs.encode(text, add_special_tokens=False).ids
        if "<s>" not in text:
            assert tokenizer.encode(text) == ids
        assert from_fields(fields).encode(text) == tokenizer.encode(text)
        assert not legacy or tokenizer.encode(text) == opened("sentencepiece").encode(text)
    # Only the older form puts a space behind control tokens too.
    assert len(tokenizer.parse("<s>the")) == (2 if legacy else 3)
