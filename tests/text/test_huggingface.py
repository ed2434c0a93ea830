"""tokenizer.json files of the kinds that people have: what each part does to a text."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from llama_jax.errors import FormatError
from llama_jax.text import open_tokenizer
from llama_jax.text.export import files
from llama_jax.text.gguf import from_fields, to_fields

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACED = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
     decoders.Strip(" ", 1, 0)]
)  # fmt: skip


def of_bytes(*texts, special=("<s>", "</s>"), merges=()):
    """The 256 bytes, then special tokens, then added ones that are text."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {"".join(pair): 256 + i for i, pair in enumerate(merges)}
    made = tokenizers.Tokenizer(models.BPE(vocab, list(merges)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(special))
    made.add_tokens(list(texts))
    return made


def spaced(scheme="first"):
    """SentencePiece's bytes and a few letters."""
    names = ["<unk>", "<s>", "</s>", *BYTES, "▁", "▁▁", "▁l", *"lead"]
    vocab = {name: i for i, name in enumerate(names)}
    merges = [("▁", "▁"), ("▁", "l")]
    made = tokenizers.Tokenizer(models.BPE(vocab, merges, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.decoder = SPACED
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def saved(folder, made, **config):
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return open_tokenizer(folder)


def tokens(tokenizer, text):
    return [tokenizer.piece(i).decode() for i in tokenizer.encode(text)]


def test_an_added_token_stays_text_through_every_conversion(tmp_path):
    before = saved(tmp_path, of_bytes("<think>", "</think>", merges=[("a", "b")]))
    fields = to_fields(before)
    types = fields["tokenizer.ggml.token_type"]
    assert [types[before.texts[t]] for t in ("<think>", "</think>")] == [4, 4]
    assert [types[before.control[t]] for t in ("<s>", "</s>")] == [3, 3]
    for name, data in files(from_fields(fields)).items():
        (tmp_path / name).write_bytes(data)
    for after in (from_fields(fields), open_tokenizer(tmp_path)):
        ids = after.encode("x<think>ab</think><s>")
        assert ids == before.encode("x<think>ab</think><s>")
        assert after.decode(ids) == "x<think>ab</think><s>"
        assert after.texts == before.texts and after.control == before.control


def test_a_tokenizer_of_bytes_without_merges_goes_through_gguf(tmp_path):
    before = saved(tmp_path, of_bytes("<think>"))
    fields = to_fields(before)
    assert "tokenizer.ggml.merges" not in fields
    assert from_fields(fields).encode("a <think> b") == before.encode("a <think> b")


@pytest.mark.parametrize(
    ("scheme", "texts"),
    [
        ("first", {"lead": ["▁l", "e"], " lead": ["▁l", "e"], "  lead": ["▁▁", "l"]}),
        ("always", {"lead": ["▁l", "e"], " lead": ["▁l", "e"], "  lead": ["▁▁", "l"]}),
        ("never", {"lead": ["l", "e"], " lead": ["▁l", "e"], "  lead": ["▁▁", "l"]}),
    ],
)
def test_metaspace_puts_a_space_before_a_text_that_has_none(tmp_path, scheme, texts):
    tokenizer = saved(tmp_path, spaced(scheme))
    for text, front in texts.items():
        assert tokens(tokenizer, text)[:2] == [token.replace("▁", " ") for token in front]
    after = tokenizer.parse("<s>lead")
    assert (tokenizer.piece(after[1]) == b" l") == (scheme == "always")


def test_a_llama_tokenizer_is_read_as_that_class_reads_it(tmp_path):
    legacy = spaced()
    legacy.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    legacy.pre_tokenizer = None  # pyright: ignore
    assert tokens(saved(tmp_path, legacy), " lead")[0] == "  "
    kind = {"tokenizer_class": "LlamaTokenizerFast"}
    assert tokens(saved(tmp_path, legacy, **kind), " lead")[0] == " l"
    assert tokens(saved(tmp_path, legacy, add_prefix_space=False, **kind), "lead")[0] == "l"


@pytest.mark.parametrize("config", [{}, {"add_bos_token": False, "add_eos_token": False}])
def test_the_post_processor_says_what_stands_around_a_text(tmp_path, config):
    made = of_bytes()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", 257)]
    )
    tokenizer = saved(tmp_path, made, bos_token="<s>", eos_token="</s>", **config)
    assert (tokenizer.bos, tokenizer.closes) == (256, 257)
    again = from_fields(to_fields(tokenizer))
    assert (again.bos, again.closes) == (256, 257)
    made.post_processor = None  # pyright: ignore
    tokenizer = saved(tmp_path, made, bos_token="<s>", eos_token="</s>", add_bos_token=True)
    assert (tokenizer.bos, tokenizer.closes) == (None, None)


def test_more_than_one_token_before_a_text_is_refused(tmp_path):
    made = of_bytes()
    made.post_processor = processors.TemplateProcessing(
        single="<s> <s> $A", special_tokens=[("<s>", 256)]
    )
    with pytest.raises(FormatError, match="one token before it and one after it at most"):
        saved(tmp_path, made)


def test_a_file_beside_it_says_whether_an_added_token_is_special(tmp_path):
    entry = {"content": "<tool>", "special": True}
    tokenizer = saved(tmp_path, of_bytes("<tool>"), added_tokens_decoder={"258": entry})
    assert tokenizer.control["<tool>"] == 258 and not tokenizer.texts
    (tmp_path / "added_tokens.json").write_text('{"<more>": 259}')
    tokenizer = saved(tmp_path, of_bytes("<tool>"))
    assert tokenizer.texts == {"<tool>": 258, "<more>": 259}


def test_models_name_special_tokens_of_their_own(tmp_path):
    tokenizer = saved(tmp_path, of_bytes("<image>"), image_token="<image>", pad_token="!")
    assert tokenizer.control["<image>"] == 258
    assert tokenizer.words == {"image_token": "<image>", "pad_token": "!"}


@pytest.mark.parametrize(
    ("normalizer", "text", "read"),
    [
        (normalizers.NFC(), "e\u0301", "é"),
        (normalizers.NFKC(), "ﬁ²", "fi2"),
        (normalizers.Lowercase(), "ÀB", "àb"),
        (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), "é", "e"),
        (normalizers.Strip(), "  a b ", "a b"),
        (normalizers.Replace("a", "o"), "banana", "bonono"),
        (normalizers.Prepend("x"), "y", "xy"),
    ],
)
def test_normalizers_of_the_file_are_applied(tmp_path, normalizer, text, read):
    made = of_bytes("<T>")
    made.normalizer = normalizer
    tokenizer = saved(tmp_path, made)
    assert tokenizer.decode(tokenizer.encode(text)) == read


def unigram(fallback):
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁a", -1.0), ("b", -2.0), ("▁", -3.0)]
    pieces += [(name, -9.0) for name in BYTES] if fallback else []
    made = tokenizers.Tokenizer(models.Unigram(pieces, 0, fallback))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = SPACED if fallback else decoders.Metaspace()
    made.add_special_tokens(["<unk>", "</s>"])
    made.add_tokens(["<think>"])
    return made


@pytest.mark.parametrize("fallback", [True, False])
def test_a_unigram_model_keeps_its_ids(tmp_path, fallback):
    made = unigram(fallback)
    tokenizer, think = saved(tmp_path, made, eos_token="</s>"), made.token_to_id("<think>")
    assert tokenizer.encode("ab<think>a") == [2, 3, think, 2]
    unknown = 5 + ord("c") if fallback else 0
    assert tokenizer.encode("abc") == [2, 3, unknown]
    # "</s>" is four characters, and "<unk>" no way to say the token of unknown ones.
    assert 1 not in tokenizer.encode("</s>") and tokenizer.parse("</s>") == [1]
    with pytest.raises(FormatError, match="Unigram model"):
        to_fields(tokenizer)
    for name, data in files(tokenizer).items():
        (tmp_path / name).write_bytes(data)
    assert open_tokenizer(tmp_path).encode("ab<think>c") == tokenizer.encode("ab<think>c")


def test_the_end_that_config_json_names_is_read(tmp_path):
    made = of_bytes()
    (tmp_path / "config.json").write_text('{"eos_token_id": 97}')
    assert saved(tmp_path, made, eos_token="</s>").ends == {97, 257}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [98, 4000]}')
    assert saved(tmp_path, made, eos_token="</s>").ends == {98, 257}


def test_chat_templates_have_names(tmp_path):
    saved(tmp_path, of_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ 1 }}")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/tool_use.jinja").write_text("{{ 2 }}")
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.template == "{{ 1 }}" and tokenizer.templates == {"tool_use": "{{ 2 }}"}
    again = from_fields(to_fields(tokenizer))
    assert (again.template, again.templates) == (tokenizer.template, tokenizer.templates)
