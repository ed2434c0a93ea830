"""Data: sources, tasks, and the loader that turns streams into batches. NumPy only, no JAX."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from llama_jax.data.completions import Completions
    from llama_jax.data.held_out import Share
    from llama_jax.data.loader import Loader, Stream, one_pass
    from llama_jax.data.only import Only
    from llama_jax.data.pairs import Negatives
    from llama_jax.data.replies import Replies
    from llama_jax.data.shards import Mix, Prepared
    from llama_jax.data.sources import ImageFolder, JsonLines, Parquet, PlainText, Tfds, texts
    from llama_jax.data.transforms import (
        Captions,
        Denoise,
        Describe,
        Drawing,
        Labels,
        LanguageModel,
        Masking,
        Pixels,
        Questions,
        Seen,
        SeenAmong,
        SentencePairs,
        Seq2Seq,
    )
    from llama_jax.data.union import Union

__all__ = [
    "Captions",
    "Completions",
    "Denoise",
    "Describe",
    "Drawing",
    "ImageFolder",
    "JsonLines",
    "Labels",
    "LanguageModel",
    "Loader",
    "Masking",
    "Mix",
    "Only",
    "Negatives",
    "Parquet",
    "Pixels",
    "PlainText",
    "Prepared",
    "Questions",
    "Replies",
    "Seen",
    "SeenAmong",
    "SentencePairs",
    "Seq2Seq",
    "Share",
    "Stream",
    "Tfds",
    "Union",
    "one_pass",
    "texts",
]
