"""Tokenizers of every kind, trained on a few lines, as folders that transformers and we open."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from llama_jax.text import patterns
from tests.text.small import CORPUS

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TEXT = [
    AddedToken("<think>"),
    AddedToken("</think>", normalized=False),
    AddedToken("<tool>", lstrip=True),
    AddedToken("[end]", rstrip=True),
    AddedToken("word", single_word=True),
    AddedToken("    ", normalized=False),
]
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
N, P, D = normalizers, pre_tokenizers, decoders


def _finish(t: Tokenizer, folder: Path, single: str = "<s> $A", **config: Any) -> Path:
    t.add_special_tokens(SPECIAL)
    t.add_tokens(TEXT)
    names = [name for name in ("<s>", "</s>") if name in single]
    t.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(name, t.token_to_id(name)) for name in names]
    )
    folder.mkdir()
    t.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | ROLES | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def bytes_(*steps: Any, normalizer: Any = None, use_regex: bool = False, prefix: bool = False,
           single: str = "<s> $A", **model: Any) -> Callable[[Path], Path]:  # fmt: skip
    """Byte-level BPE behind some pre-tokenizers."""

    def make(folder: Path) -> Path:
        t = Tokenizer(models.BPE(**model))
        level = P.ByteLevel(add_prefix_space=prefix, use_regex=use_regex)
        t.pre_tokenizer = P.Sequence([*steps, level])
        if normalizer is not None:
            t.normalizer = normalizer
        t.decoder = D.ByteLevel()
        alphabet = sorted(P.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=alphabet, show_progress=False
        )
        t.train_from_iterator(CORPUS, trainer)
        return _finish(t, folder, single)

    return make


def spaced(pre: Any = None, normalizer: Any = None, strip: bool = True, decoder: Any = None,
           **config: Any) -> Callable[[Path], Path]:  # fmt: skip
    """BPE of SentencePiece's tokens with a byte for what is not in the vocabulary."""

    def make(folder: Path) -> Path:
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = P.Metaspace(split=False)
        trainer = trainers.BpeTrainer(vocab_size=120, show_progress=False, initial_alphabet=["▁"])
        learner.train_from_iterator(CORPUS, trainer)
        model = json.loads(learner.to_str())["model"]
        words = [w for w, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
        vocab = {w: i for i, w in enumerate([*SPECIAL[:3], *BYTES, *words])}
        merges = [tuple(pair) for pair in model["merges"]]
        t = Tokenizer(
            models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        )
        if pre is not None:
            t.pre_tokenizer = pre
        if normalizer is not None:
            t.normalizer = normalizer
        steps = [D.Replace("▁", " "), D.ByteFallback(), D.Fuse()]
        t.decoder = decoder or D.Sequence([*steps, *([D.Strip(" ", 1, 0)] if strip else [])])
        return _finish(t, folder, **config)

    return make


def unigram(normalizer: Any = None, fallback: bool = False) -> Callable[[Path], Path]:
    """A unigram model of SentencePiece's tokens."""

    def make(folder: Path) -> Path:
        learner = Tokenizer(models.Unigram())
        learner.pre_tokenizer = P.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=150, show_progress=False, special_tokens=SPECIAL[:3], unk_token="<unk>"
        )
        learner.train_from_iterator(CORPUS, trainer)
        listed = [tuple(entry) for entry in json.loads(learner.to_str())["model"]["vocab"]]
        if fallback:
            listed = [*listed[:3], *((name, -20.0) for name in BYTES), *listed[3:]]
        t = Tokenizer(models.Unigram(listed, 0, fallback))
        t.pre_tokenizer = P.Metaspace()
        if normalizer is not None:
            t.normalizer = normalizer
        t.decoder = D.Metaspace()
        if fallback:
            steps = [D.Replace("▁", " "), D.ByteFallback(), D.Fuse(), D.Strip(" ", 1, 0)]
            t.decoder = D.Sequence(steps)
        return _finish(t, folder, "$A </s>")

    return make


def split(regex: str) -> Any:
    """A cut at every match."""
    return P.Split(Regex(regex), "isolated")


LEGACY = N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")])
FOLD = N.Sequence([N.NFKC(), N.Strip(), N.Replace(Regex(" {2,}"), " "), N.NFD(), N.StripAccents(),
                   N.Lowercase()])  # fmt: skip
KINDS: dict[str, Callable[[Path], Path]] = {
    "bytes": bytes_(use_regex=True),
    "bytes of Llama 3": bytes_(split(patterns.LLAMA3)),
    "bytes of Qwen 2": bytes_(split(patterns.QWEN2), normalizer=N.NFC()),
    "bytes of SmolLM": bytes_(P.Digits(individual_digits=True), use_regex=True, single="$A"),
    "bytes of Tekken": bytes_(split(patterns.TEKKEN)),
    "bytes of DeepSeek": bytes_(
        *map(split, patterns.DEEPSEEK_CODER), P.Digits(individual_digits=True)
    ),
    "bytes of DeepSeek LLM": bytes_(*map(split, patterns.DEEPSEEK_LLM)),
    "bytes with a space in front": bytes_(use_regex=True, prefix=True, single="<s> $A </s>"),
    "bytes, folded": bytes_(use_regex=True, normalizer=FOLD),
    "bytes by script": bytes_(P.UnicodeScripts(), P.Punctuation("merged_with_previous")),
    "bytes of five": bytes_(P.FixedLength(5)),
    "first": spaced(P.Metaspace(prepend_scheme="first", split=False)),
    "always": spaced(P.Metaspace(prepend_scheme="always", split=False), decoder=D.Metaspace()),
    "never": spaced(P.Metaspace(prepend_scheme="never", split=False), strip=False),
    "always, in words": spaced(P.Metaspace(prepend_scheme="always", split=True)),
    "legacy": spaced(normalizer=LEGACY),
    "LlamaTokenizer": spaced(normalizer=LEGACY, tokenizer_class="LlamaTokenizer"),
    "LlamaTokenizer, legacy": spaced(
        normalizer=LEGACY, tokenizer_class="LlamaTokenizerFast", legacy=True
    ),
    "LlamaTokenizer without a space": spaced(
        normalizer=LEGACY, tokenizer_class="LlamaTokenizer", add_prefix_space=False
    ),
    "unigram": unigram(),
    "unigram, folded": unigram(N.Sequence([N.Nmt(), N.NFKC(), N.Lowercase()])),
    "unigram of bytes": unigram(fallback=True),
}
