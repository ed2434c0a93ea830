"""Tokenizers against Meta's own of Llama 3 and 4, and against transformers: the same ids."""

from pathlib import Path

import pytest

llama3 = pytest.importorskip("llama_models.llama3.tokenizer")
llama4 = pytest.importorskip("llama_models.llama4.tokenizer")
transformers = pytest.importorskip("transformers")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from llama_jax.text import open_tokenizer  # noqa: E402
from llama_jax.text.export import files  # noqa: E402
from llama_jax.text.gguf import from_fields, to_fields  # noqa: E402
from tests.text.small import CORPUS, TEXTS, opened, smollm2_file  # noqa: E402

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=120)
# Long enough for merges of every depth: this project's own words and code.
LONG = "\n".join(
    path.read_text(encoding="utf-8")
    for path in sorted((Path(__file__).parents[2] / "llama_jax").rglob("*.py"))[:40]
)


@pytest.fixture(scope="module", params=[llama3, llama4], ids=["llama3", "llama4"])
def pair(request):
    """Meta's tokenizer and ours, of the same file."""
    path = Path(request.param.__file__).parent / "tokenizer.model"
    return request.param.Tokenizer(path), open_tokenizer(path)


def theirs(tokenizer, text):
    return tokenizer.encode(text, bos=False, eos=False)


def benign(text, tokenizer):
    """A text without the names of control tokens, in which transformers sees the tokens."""
    for name in tokenizer.control:
        text = text.replace(name, "")
    return text


def test_special_tokens_and_their_ids_are_metas(pair):
    meta, ours = pair
    assert ours.control == meta.special_tokens
    assert ours.vocab == meta.n_words and ours.bos == meta.bos_id
    assert ours.ends == set(meta.stop_tokens)


def test_plain_ids_are_metas(pair):
    meta, ours = pair
    for text in (*TEXTS, *CORPUS, LONG):
        assert ours.encode(text) == theirs(meta, text)
        assert ours.decode(ours.encode(text)) == meta.decode(theirs(meta, text)) == text

    @given(TEXT)
    @settings(max_examples=300, deadline=None)
    def any_text(text):
        assert ours.encode(text) == theirs(meta, text)

    any_text()


def test_long_runs_are_cut_as_meta_cuts_them(pair):
    meta, ours = pair
    for text in ("a" * 60_000 + " " * 60_000, "ab " * 150_000, "x" * 25_001):
        assert ours.encode(text) == theirs(meta, text)


def test_no_control_token_can_be_typed(pair):
    _, ours = pair
    hidden = set(ours.control.values())
    assert len(hidden) >= 256
    for name in ours.control:
        for text in (name, f"say {name}\n"):
            ids = ours.encode(text)
            assert hidden.isdisjoint(ids) and ours.decode(ids) == text


def test_control_tokens_of_templates_are_metas(pair):
    meta, ours = pair
    text = "".join(f"{name} x\n" for name in ours.control)
    allowed = meta.encode(text, bos=False, eos=False, allowed_special="all")
    assert ours.parse(text) == allowed


def test_transformers_reads_what_we_write(pair, tmp_path):
    _, ours = pair
    for name, data in files(ours).items():
        (tmp_path / name).write_bytes(data)
    hf = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(hf) == ours.vocab
    for text in (*TEXTS[:-1], *CORPUS[:2], LONG):
        text = benign(text, ours)
        assert hf.encode(text, add_special_tokens=False) == ours.encode(text)
    assert hf.encode("x") == [ours.bos, *ours.encode("x")]
    mixed = "".join(list(ours.control)[::50]) + "hi"
    assert hf.encode(mixed, add_special_tokens=False) == ours.parse(mixed)

    @given(TEXT)
    @settings(max_examples=300, deadline=None)
    def any_text(text):
        text = benign(text, ours)
        assert hf.encode(text, add_special_tokens=False) == ours.encode(text)

    any_text()


def test_gguf_fields_give_the_same_ids(pair):
    _, ours = pair
    made = from_fields(to_fields(ours))
    for text in (*TEXTS, *CORPUS[:2], LONG):
        assert made.encode(text) == ours.encode(text)
    assert made.control == ours.control and made.ends == ours.ends


@pytest.fixture(scope="module")
def smollm2():
    """transformers' reading of the GGUF file that ours is read from."""
    path = smollm2_file()
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def test_smollm2_reads_texts_as_transformers_does(smollm2):
    ours = opened("smollm2")
    for text in (*TEXTS[:3], *CORPUS, "naïve 你好 🙂", LONG):
        # transformers does not know this file's pre-tokenizer and leaves figures together with the
        # spaces before them: SmolLM2 was trained on figures one by one.
        text = benign("".join(letter for letter in text if not letter.isnumeric()), ours)
        assert ours.encode(text) == smollm2.encode(text, add_special_tokens=False)
    mixed = "<|im_start|>user\nHi<|im_end|>\n<jupyter_code>"
    assert ours.parse(mixed) == smollm2.encode(mixed, add_special_tokens=False)
    assert len(smollm2) == ours.vocab


def test_smollm2_written_by_us_reads_figures_one_by_one_in_transformers_too(tmp_path):
    ours = opened("smollm2")
    for name, data in files(ours).items():
        (tmp_path / name).write_bytes(data)
    hf = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("in  2024, 3.14", *CORPUS, LONG):
        text = benign(text, ours)
        assert hf.encode(text, add_special_tokens=False) == ours.encode(text)
    assert hf.chat_template == ours.template
