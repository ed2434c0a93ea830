"""Texts of user interfaces as people translated them from English into four languages."""

from llama_jax.data.tfds import Tfds
from llama_jax.tasks.base import Task
from llama_jax.tasks.number_words import LANGUAGES

TASK = Task(
    name="interface_texts",
    says="texts of programs, from English into French, German, Spanish and Chinese",
    source=Tfds("interface_texts"),
    instructions=tuple(f"translate to {language}" for language in LANGUAGES),
    example="translate to French: Delete this page",
    metrics=("chrf", "bleu", "exact"),
    baselines=("copy", "nearest"),
    by="language",
    weight=3.0,
)
