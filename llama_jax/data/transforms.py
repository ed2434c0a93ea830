"""Every task: what a stream makes of its rows. A task is a frozen dataclass.

`task.fields(batch, tokenizer)` gives shapes and dtypes without opening data; `task.prepare(...)`
lays out the examples. To add one, write a class with these two methods; nothing lists them.
"""

from llama_jax.data.among import SeenAmong
from llama_jax.data.corrupt import Masking
from llama_jax.data.documents import SentencePairs
from llama_jax.data.drawing import Drawing, Pixels
from llama_jax.data.fields import Examples, Fields, Task
from llama_jax.data.labels import Labels
from llama_jax.data.language import LanguageModel
from llama_jax.data.seen import Seen
from llama_jax.data.sequences import Denoise, Seq2Seq
from llama_jax.data.vision import Captions, Describe, Questions

__all__ = [
    "Captions",
    "Denoise",
    "Describe",
    "Drawing",
    "Examples",
    "Fields",
    "Labels",
    "LanguageModel",
    "Masking",
    "Pixels",
    "Questions",
    "Seen",
    "SeenAmong",
    "SentencePairs",
    "Seq2Seq",
    "Task",
]
