import base64
import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.errors import FormatError
from llama_jax.text import Pretrained, limits, open_tokenizer
from llama_jax.text.export import files
from llama_jax.text.limits import LONGEST_RUN, MOST_CHARACTERS, portions
from llama_jax.text.vocabulary import Vocabulary
from tests.text.small import (
    ADDED,
    KINDS,
    SPECIAL,
    TEXTS,
    bpe_json,
    opened,
    sentencepiece_model,
    smollm2_fields,
    tiktoken_file,
)

# SmolLM2's vocabulary has no tokens for some control characters and for the empty planes.
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
SPELLABLE = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"]), max_size=80)


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return opened(request.param)


def tree(**changes):
    """The small tokenizer.json with other values at its top."""
    return json.dumps(json.loads(bpe_json()) | changes).encode()


def refusal(tmp_path, data, name="tokenizer.json"):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FormatError) as caught:
        open_tokenizer(tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_every_kind_keeps_the_promises_of_both_protocols(tokenizer):
    assert isinstance(tokenizer, Pretrained) and isinstance(tokenizer, Vocabulary)
    assert max(tokenizer.control.values()) < tokenizer.vocab
    assert tokenizer.ends and tokenizer.ends <= set(tokenizer.control.values())


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece", "tiktoken"])
@given(ANY)
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back_from_plain_ids(kind, text):
    tokenizer = opened(kind)
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab for i in ids)
    assert set(ids).isdisjoint(tokenizer.control.values())
    assert tokenizer.decode(ids) == text


@given(SPELLABLE)
@settings(max_examples=300, deadline=None)
def test_any_printable_text_comes_back_from_smollm2(text):
    tokenizer = opened("smollm2")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_character_without_bytes_in_the_vocabulary_is_left_out_as_others_do():
    tokenizer = opened("smollm2")
    assert tokenizer.decode(tokenizer.encode("a\x04b\x05")) == "ab\x05"


def test_lone_surrogates_become_question_marks(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


def test_the_name_of_a_control_token_is_ordinary_text_and_a_control_token_for_templates(tokenizer):
    hidden = set(tokenizer.control.values())
    for name, number in tokenizer.control.items():
        for text in (name, f"a{name}b", f" {name}\n"):
            ids = tokenizer.encode(text)
            assert hidden.isdisjoint(ids) and tokenizer.decode(ids) == text
        assert tokenizer.parse(name) == [number]
        assert tokenizer.piece(number) == b""
        assert number in tokenizer.parse(f"a{name}b")


def test_decode_leaves_control_tokens_and_unknown_ids_out(tokenizer):
    ids = tokenizer.encode("hello")
    end = min(tokenizer.ends)
    assert tokenizer.decode([end, *ids, end, tokenizer.vocab + 5, -1]) == "hello"


def test_pieces_are_the_bytes_of_the_text(tokenizer):
    front = b" " if tokenizer.kind == "sentencepiece" else b""
    for text in TEXTS[1:]:
        assert b"".join(map(tokenizer.piece, tokenizer.encode(text))) == front + text.encode()


def test_parse_is_split_and_join(tokenizer):
    name, number = next(iter(tokenizer.control.items()))
    text = f"The lazy{name}{name}brown fox"
    assert tokenizer.split(text) == ["The lazy", number, number, "brown fox"]
    parts = ["The ", "lazy", number, number, "brown", " fox"]
    assert tokenizer.join(parts) == tokenizer.parse(text)
    begin = tokenizer.encode("The lazy")
    assert tokenizer.parse(text) == [*begin, number, number, *tokenizer.encode("brown fox")]
    assert tokenizer.parse("") == tokenizer.join([]) == []


def test_ids_equal_those_of_tokenizers_on_texts_without_control_tokens(tmp_path):
    import tokenizers

    theirs = tokenizers.Tokenizer.from_str(bpe_json().decode())
    ours = opened("bpe")
    for text in TEXTS[:-1]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ours.encode(text)) == theirs.decode(ours.encode(text))
    assert ours.bos == theirs.encode("").ids[0]
    mixed = "<|start_header_id|>user<|end_header_id|>\n\na <think>b hello world<|eot_id|>"
    assert ours.parse(mixed) == theirs.encode(mixed, add_special_tokens=False).ids


def test_ids_equal_those_of_sentencepiece_on_texts_without_its_symbols():
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    ours = opened("sentencepiece")
    for text in ("", " ", "The brown fox", "  lazy  dogs\n\n\t1234", "你好 🙂 naïve \x00"):
        assert ours.encode(text) == theirs.Encode(text)
    assert (ours.bos, ours.ends) == (theirs.bos_id(), {theirs.eos_id()})
    assert {"<s>", "</s>", "<unk>", "<control>"} == ours.control.keys()


def test_ids_equal_those_of_tiktoken():
    import tiktoken

    from llama_jax.text.meta import GENERATIONS

    ours = opened("tiktoken")
    lines = [line.split() for line in tiktoken_file().splitlines()]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    theirs = tiktoken.Encoding(
        "x",
        pat_str=GENERATIONS[128_000].pattern,
        mergeable_ranks=ranks,
        special_tokens=dict(ours.control),
    )
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, disallowed_special=())
    mixed = "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
    assert ours.parse(mixed) == theirs.encode(mixed, allowed_special="all")


def test_llama_4_is_told_by_the_number_of_tokens(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(tiktoken_file(200_000))
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.vocab == 202_048
    assert tokenizer.control["<|begin_of_text|>"] == tokenizer.bos == 200_000
    assert tokenizer.control["<|header_start|>"] == 200_005
    assert tokenizer.control["<|patch|>"] == 200_092
    assert tokenizer.ends == {200_001, 200_007, 200_008}
    (tmp_path / "tokenizer.model").write_bytes(tiktoken_file(1000))
    with pytest.raises(FormatError, match="has 1000 tokens; expected 128000"):
        open_tokenizer(tmp_path)


def test_smollm2_says_what_its_file_says():
    tokenizer = opened("smollm2")
    assert tokenizer.vocab == 49_152 and tokenizer.bos is None
    assert tokenizer.named["eos_token"] == "<|im_end|>" and tokenizer.ends == {0, 2}
    assert len(tokenizer.control) == 17
    assert tokenizer.template == smollm2_fields()["tokenizer.chat_template"]


def test_a_word_that_is_a_token_may_skip_its_merges_but_is_never_a_control_token(tmp_path):
    content = json.loads(bpe_json())
    # One word for the pattern, and tokens that no merge makes.
    vocab, size = content["model"]["vocab"], opened("bpe").vocab
    vocab["zebra"], vocab["zebras"] = size, size + 1
    content["added_tokens"].append({"id": size, "content": "zebra", "special": True})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.encode("zebras") == [size + 1]
    assert size not in tokenizer.encode("zebra") and tokenizer.parse("zebra") == [size]


def test_merges_that_make_a_control_token_are_left_out(tmp_path):
    content = json.loads(bpe_json())
    the = content["model"]["vocab"]["Ġthe"]
    assert the in opened("bpe").encode(" the")
    content["added_tokens"].insert(0, {"id": the, "content": "Ġthe", "special": True})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = open_tokenizer(tmp_path)
    assert the not in tokenizer.encode(" the") and tokenizer.decode(tokenizer.encode(" the"))


def test_files_beside_a_tokenizer_name_roles_ends_and_template(tmp_path):
    eot, eom = (opened("bpe").control[t] for t in ("<|eot_id|>", "<|eom_id|>"))
    (tmp_path / "tokenizer.json").write_bytes(bpe_json())
    config = {
        "bos_token": {"content": "<|begin_of_text|>"},
        "eos_token": "<|eot_id|>",
        "pad_token": "!",
        "chat_template": [
            {"name": "default", "template": "{{ 1 }}"},
            {"name": "tool_use", "template": "{{ 3 }}"},
        ],
        "added_tokens_decoder": {str(eot): {"content": "<|eot_id|>", "rstrip": True}},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [eot, 7]}))
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.ends == {eot, eom, 7, opened("bpe").control["<|end_of_text|>"]}
    assert tokenizer.templates == {"tool_use": "{{ 3 }}"}
    assert tokenizer.named == {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    assert tokenizer.template == "{{ 1 }}" and "!" not in tokenizer.control
    # It takes in the white space to its right, as its file says.
    assert tokenizer.split("a <|eot_id|> \n b") == ["a ", eot, "b"]

    (tmp_path / "chat_template.jinja").write_text("{{ 2 }}")
    config["add_bos_token"] = False
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = open_tokenizer(tmp_path)
    # The post-processor of the file has the word, as in transformers.
    assert tokenizer.template == "{{ 2 }}" and tokenizer.bos == tokenizer.control[SPECIAL[0]]
    # A file is read without its neighbours.
    assert open_tokenizer(tmp_path / "tokenizer.json").template is None


def test_white_space_that_a_control_token_takes_in_is_found_in_linear_time(tmp_path):
    content = json.loads(bpe_json())
    for entry in content["added_tokens"]:
        entry["lstrip"] = entry["special"] = entry["content"] == "<think>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = open_tokenizer(tmp_path)
    think = tokenizer.control["<think>"]
    assert tokenizer.split("a \n<think> b<think>") == ["a", think, " b", think]
    begin = time.perf_counter()
    assert tokenizer.split(" " * 200_000) == [" " * 200_000]
    assert time.perf_counter() - begin < 2  # 0.01 s; squared it would be minutes


def test_tokens_that_another_file_adds_to_a_sentencepiece_model_are_control_tokens(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": 420, "<image>": 421}))
    config = {"pad_token": "<pad>", "additional_special_tokens": ["▁the"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.vocab == 422 and tokenizer.control["<pad>"] == 420
    ids = tokenizer.encode("over the lazy <pad>")
    assert tokenizer.control["▁the"] not in ids and tokenizer.control["<pad>"] not in ids
    assert tokenizer.decode(ids) == "over the lazy <pad>"


@pytest.mark.parametrize("kind", ["sentencepiece", "tiktoken"])
def test_a_token_that_another_file_adds_without_calling_it_special_is_text(tmp_path, kind):
    make = sentencepiece_model if kind == "sentencepiece" else tiktoken_file
    (tmp_path / "tokenizer.model").write_bytes(make())
    size = opened(kind).vocab
    added = {"<think>": size, "<|pad|>": size + 1}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<|pad|>"}')
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.texts == {"<think>": size} and tokenizer.control["<|pad|>"] == size + 1
    text = "the lazy <think>fox</think><|pad|>"
    ids = tokenizer.encode(text)
    assert size in ids and size + 1 not in ids and tokenizer.decode(ids) == text
    assert tokenizer.needed <= size < tokenizer.vocab
    for name, data in files(tokenizer).items():
        (tmp_path / name).write_bytes(data)
    again = open_tokenizer(tmp_path)
    assert again.encode(text) == ids and again.texts == tokenizer.texts


def test_user_defined_symbols_of_a_sentencepiece_model_are_read_as_the_library_reads_them(tmp_path):
    import sentencepiece

    data = sentencepiece_model(user_defined_symbols=["<user>", "quick"])
    (tmp_path / "tokenizer.model").write_bytes(data)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    ours = open_tokenizer(tmp_path)
    assert ours.texts.keys() == {"<user>", "quick"}
    for text in ("The quick brown", "<user>the", " a<user> ▁b", "quickquick"):
        assert ours.encode(text) == theirs.Encode(text)
        assert ours.decode(ours.encode(text)) == theirs.Decode(theirs.Encode(text))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model": {"type": "WordLevel", "vocab": []}}, "'WordLevel' model; expected 'BPE'"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0], ["a", 0.0]]}}, "there twice"),
        ({"model": None}, "expected dict where 'None' stands"),
        (
            {
                "normalizer": {
                    "type": "Sequence",
                    "normalizers": [
                        {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
                    ]
                    * 7,
                }
            },
            "more than 64 times as long",
        ),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 65}}, "more than 64 times as long"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "words of 0 characters"),
        ({"normalizer": {"type": "Shuffle"}}, "the normalizer 'Shuffle' is not supported"),
        ({"pre_tokenizer": {"type": "Words"}}, "the pre-tokenizer 'Words' is not supported"),
        ({"pre_tokenizer": None}, "the decoder is ByteLevel"),
        ({"decoder": {"type": "WordPiece"}}, "the decoder 'WordPiece' is not supported"),
        ({"post_processor": {"type": "BertProcessing"}}, "post-processor 'BertProcessing'"),
        ({"added_tokens": [{"id": 2**32 - 1, "content": SPECIAL[0]}]}, "4294967295 is too large"),
        ({"added_tokens": [{"id": 5, "content": "<x>"}]}, "post-processor names"),
        ({"added_tokens": [{"id": -1, "content": "<|begin_of_text|>"}]}, "'-1' is no index"),
        ({"added_tokens": [{"id": 5, "content": "<|begin_of_text|>"}]}, "two tokens the same id"),
        ({"added_tokens": [{"content": "<x>"}]}, "is damaged or there twice"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[:40],
)
def test_what_is_no_lossless_byte_pair_encoding_is_refused_by_name(tmp_path, change, why):
    assert why in refusal(tmp_path, tree(**change))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"vocab": {"a": 0, "b": 0}}, "two tokens the same id"),
        ({"vocab": {"a": 2**32 - 1}}, "too large"),
        ({"vocab": {"a": 1.5}}, "'1.5' is no index"),
        ({"vocab": {"a": 0}, "merges": []}, "lacks 255 bytes"),
        ({"merges": [["a", "zzz"]]}, "zzz"),
        ({"merges": ["a b c"]}, "is not a pair"),
        ({"merges": [7]}, "is not a pair"),
        ({"dropout": 0.5}, "dropout is not supported"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[:40],
)
def test_a_damaged_model_is_refused(tmp_path, change, why):
    assert why in refusal(tmp_path, bpe_json(**change))


@pytest.mark.parametrize(
    ("regex", "why"),
    [
        # None of these takes long: it is their shape that is refused.
        ("(ab)+", "repeats a group"),
        ("(?:a|b)*", "repeats a group"),
        ("(a){2}", "repeats a group"),
        ("a{1000}", "counts to more than 999"),
        ("a{,1000}", "counts to more than 999"),
        ("a" * 4097, "longer than 4096"),
        ("(", "unmatched parenthesis"),
    ],
)
def test_a_regular_expression_that_may_run_away_is_refused(tmp_path, regex, why):
    steps = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ]
    pre = {"type": "Sequence", "pretokenizers": steps}
    assert why in refusal(tmp_path, tree(pre_tokenizer=pre))


class Panic(BaseException):
    """As of a library in Rust, which are no Exceptions."""


def test_a_panic_of_the_library_is_a_format_error(monkeypatch):
    def panics(self, text, place="start"):
        raise Panic("retry-limit of a match\nin a library")

    tokenizer = opened("bpe")
    monkeypatch.setattr(type(tokenizer.backend), "encode", panics)
    with pytest.raises(FormatError, match="cannot read a text: retry-limit of a match$"):
        tokenizer.encode("x")


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(FormatError, match="holds no tokenizer"):
        open_tokenizer(tmp_path)
    with pytest.raises(FormatError, match="cannot be read"):
        open_tokenizer(tmp_path / "none.json")
    assert "is not JSON" in refusal(tmp_path, b'{"a": ')
    assert "neither" in refusal(tmp_path, b"\x80\x04\x95junk", "tokenizer.model")
    assert "tokenizer.model is empty" in refusal(tmp_path, b"", "tokenizer.model")
    assert "tokenizer.json is empty" in refusal(tmp_path, b"\n")
    assert "line 2 is 'AQ== 2'" in refusal(tmp_path, b"AA== 0\nAQ== 2\n", "tokenizer.model")


def test_json_nested_too_deeply_for_pythons_reader_is_refused(tmp_path, monkeypatch):
    def loads(*_, **__):
        raise RecursionError

    monkeypatch.setattr(json, "loads", loads)
    assert "is not JSON" in refusal(tmp_path, b"{}")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"model_type": "unigram", "vocab_size": 320}, "UNIGRAM model; expected BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "changes texts by a character map"),
        ({"remove_extra_whitespaces": True}, "changes texts by remove_extra_whitespaces"),
        ({"byte_fallback": False, "vocab_size": 120}, "0 byte tokens"),
    ],
)
def test_a_sentencepiece_model_that_loses_something_is_refused(tmp_path, options, why):
    assert why in refusal(tmp_path, sentencepiece_model(**options), "tokenizer.model")


def cut_as_meta_does(text):
    """The slow twin of `portions`: one character after another."""
    for start in range(0, len(text), MOST_CHARACTERS):
        part, begin, run = text[start : start + MOST_CHARACTERS], 0, 0
        for n, letter in enumerate(part):
            same = n > 0 and letter.isspace() == part[n - 1].isspace()
            run = run + 1 if same else 1
            if run > LONGEST_RUN:
                yield part[begin:n]
                begin, run = n, 1
        yield part[begin:]


@pytest.mark.parametrize(
    "text",
    [
        "a" * LONGEST_RUN,
        "a" * (LONGEST_RUN + 1),
        "b " * 15_000 + "a" * 60_000 + " \x1c" * 30_000 + "c",
        "x" * MOST_CHARACTERS + "y z" * 40_000,
    ],
    ids=["at", "over", "runs", "long"],
)
def test_long_texts_are_cut_where_metas_tokenizer_cuts_them(text):
    assert list(portions(text)) == list(cut_as_meta_does(text))


def test_a_backend_is_given_no_longer_run_than_the_limit(tokenizer, monkeypatch):
    given, encode = [], type(tokenizer.backend).encode
    monkeypatch.setattr(limits, "LONGEST_RUN", 8)

    def noted(self, text, place="start"):
        given.append(text)
        return encode(self, text, place)

    monkeypatch.setattr(type(tokenizer.backend), "encode", noted)
    text = "a" * 20 + " " * 20
    assert tokenizer.decode(tokenizer.encode(text)) == text
    runs = [run for part in given for run in re.findall(r"\s+|\S+", part)]
    assert len(given) > 4 and max(map(len, runs)) <= 8


def test_an_added_token_that_is_not_special_is_text_and_no_control_token():
    tokenizer = opened("bpe")
    assert set(tokenizer.control) == {*SPECIAL} and set(tokenizer.texts) == {*ADDED}
    ids = tokenizer.encode("a<think>b")
    assert tokenizer.texts["<think>"] in ids and tokenizer.decode(ids) == "a<think>b"
    assert tokenizer.piece(tokenizer.texts["<think>"]) == b"<think>"
    assert tokenizer.split("a<think>b") == ["a<think>b"]
