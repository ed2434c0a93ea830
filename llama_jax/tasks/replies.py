"""What is replied to something said, in English and Chinese: small talk, and facts to remember."""

from llama_jax.data.tfds import Tfds
from llama_jax.tasks.base import Task

TASK = Task(
    name="replies",
    says="a reply to something said, in English or Chinese",
    source=Tfds("chatterbot"),
    instructions=("reply",),
    example="reply: What is your name?",
    metrics=("chrf", "rouge_l", "exact"),
    baselines=("most_frequent", "copy", "nearest"),
    by="language",
)
