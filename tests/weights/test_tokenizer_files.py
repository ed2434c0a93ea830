"""A tokenizer goes along with its weights: the same ids in every format."""

import json

import numpy as np
import pytest

import llama_jax
from llama_jax.errors import FormatError, UserError
from llama_jax.weights.convert import convert
from llama_jax.weights.opened import open_checkpoint
from llama_jax.weights.tokenizer_files import tokenizer
from tests.text.small import TEXTS, bpe_json, sentencepiece_model
from tests.weights import test_meta
from tests.weights.small import save, weights

ROWS = 448  # more than the tokenizers have ids: embeddings are often filled up


def folder_with(place, files: dict[str, bytes]):
    save(place, weights(vocab_size=ROWS), vocab_size=ROWS)
    for name, content in files.items():
        (place / name).write_bytes(content)
    return place


def same(a, b):
    a, b = tokenizer(a), tokenizer(b)
    assert [a.encode(text) for text in TEXTS] == [b.encode(text) for text in TEXTS]
    assert (a.bos, a.ends) == (b.bos, b.ends)
    # Rows beyond the tokenizer's own have become control tokens that nobody can write.
    assert set(a.control.items()) <= set(b.control.items())


@pytest.mark.parametrize(
    ("name", "make"),
    [("tokenizer.json", bpe_json), ("tokenizer.model", sentencepiece_model)],
    ids=["byte-level", "sentencepiece"],
)
def test_ids_are_the_same_in_gguf_and_back_and_in_a_run(tmp_path, name, make):
    source = open_checkpoint(folder_with(tmp_path / "a", {name: make()}))
    heard = []
    convert(tmp_path / "a", tmp_path / "b.gguf", "gguf", say=heard.append)
    convert(tmp_path / "b.gguf", tmp_path / "c", "huggingface", say=heard.append)
    convert(tmp_path / "b.gguf", tmp_path / "d", "orbax", say=heard.append)
    assert heard == []
    for place in ("b.gguf", "c", "d"):
        same(source, open_checkpoint(tmp_path / place))
    tokens = open_checkpoint(tmp_path / "b.gguf")
    assert tokens.model.vocab == ROWS
    known = tokenizer(source)
    config = json.loads((tmp_path / "c/config.json").read_text())
    ends = config["eos_token_id"]
    assert set(ends if isinstance(ends, list) else [ends]) == known.ends
    assert config["bos_token_id"] == known.bos


def test_metas_tokenizer_is_written_for_transformers(tmp_path):
    vocab = {"vocab_size": ROWS}
    rng = np.random.default_rng(0)
    found = test_meta.weights() | {
        name: rng.normal(size=(ROWS, 64)).astype("float32")
        for name in ("tok_embeddings.weight", "output.weight")
    }
    folder = test_meta.save(tmp_path / "meta", found, 2, params=test_meta.PARAMS | vocab)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    heard = []
    convert(folder, tmp_path / "hf", "huggingface", pickle=True, say=heard.append)
    assert heard == []
    same(open_checkpoint(folder, pickle=True), open_checkpoint(tmp_path / "hf"))


def test_another_models_tokenizer_is_told_and_left(tmp_path):
    place = save(tmp_path / "a", weights(vocab_size=100), vocab_size=100)
    (place / "tokenizer.json").write_bytes(bpe_json())
    heard = []
    convert(place, tmp_path / "b.gguf", "gguf", say=heard.append)
    [line] = heard
    assert "b.gguf gets no tokenizer, for" in line and "it is another model's tokenizer" in line


def test_a_gguf_file_without_a_tokenizer_is_said_to_have_none(tmp_path):
    save(tmp_path / "a", weights())
    convert(tmp_path / "a", tmp_path / "b.gguf", "gguf", say=lambda line: None)
    heard = []
    convert(tmp_path / "b.gguf", tmp_path / "c", "huggingface", say=heard.append)
    assert heard == [f"{tmp_path / 'b.gguf'} has no tokenizer, so {tmp_path / 'c'} has none"]
    with pytest.raises(FormatError, match="b.gguf has no tokenizer; a GGUF file holds its own"):
        tokenizer(open_checkpoint(tmp_path / "b.gguf"))


def test_what_other_programs_will_not_read_in_a_gguf_file_is_said(tmp_path):
    tree = json.loads(bpe_json())
    word = {"id": 394, "content": "word", "single_word": True, "special": False}
    more = {"lstrip": False, "rstrip": False, "normalized": False}
    tree["added_tokens"].append(word | more)
    size = 395
    place = save(tmp_path / "a", weights(vocab_size=size), vocab_size=size)
    (place / "tokenizer.json").write_text(json.dumps(tree))
    heard = []
    convert(place, tmp_path / "b.gguf", "gguf", say=heard.append)
    [line] = heard
    assert "b.gguf has its tokenizer.json too" in line and "other programs read" in line
    found, again = (tokenizer(open_checkpoint(tmp_path / name)) for name in ("a", "b.gguf"))
    assert found.encode("a word") == again.encode("a word") != again.encode("a words")


def test_an_added_token_may_be_beyond_the_embedding(tmp_path):
    place = save(tmp_path / "a", weights(vocab_size=394), vocab_size=394)
    (place / "tokenizer.json").write_bytes(bpe_json())
    (place / "added_tokens.json").write_text('{"<pad>": 394}')
    found = tokenizer(open_checkpoint(place))
    assert found.vocab == 395 and found.needed <= 394


def test_a_link_out_of_the_folder_is_not_copied(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    place = save(tmp_path / "a", weights())
    (place / "tokenizer.json").symlink_to(secret)
    heard = []
    convert(place, tmp_path / "b", "huggingface", say=heard.append)
    assert "a link that leads out of the checkpoint's folder" in heard[0]
    assert not (tmp_path / "b/tokenizer.json").exists()


@pytest.mark.parametrize("to", ["huggingface", "gguf"])
def test_weights_without_a_tokenizer_take_ids_and_refuse_texts(tmp_path, to):
    save(tmp_path / "a", weights(), eos_token_id=[2, 5])
    place = tmp_path / "a"
    if to == "gguf":
        place = tmp_path / "b.gguf"
        convert(tmp_path / "a", place, to, say=lambda line: None)
    lm = llama_jax.load(place)
    assert lm.logits([[1, 2, 3]]).shape == (1, 3, lm.tokenizer.vocab)
    assert lm.perplexity([1, 2, 3]) > 1
    [done] = lm.complete([[1, 2, 3]], max_new_tokens=2, temperature=0.0)
    assert 1 <= len(done.ids) <= 2 and done.text == ""
    assert lm.tokenizer.ends == ({2, 5} if to == "huggingface" else frozenset())
    for ask in (lm.ids, lm.generate, lm.chat, lambda text: lm.generate([1, 2])):
        with pytest.raises(UserError, match="has no tokenizer.*|choose one of"):
            ask("a text")
