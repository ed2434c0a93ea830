"""Which of five topics a BBC article has."""

from llama_jax.data.tfds import Tfds
from llama_jax.tasks.base import ARTICLES, Task

TASK = Task(
    name="topics",
    says="which of five topics an English news article has",
    source=Tfds("bbc_topics"),
    instructions=("classify the topic",),
    example="classify the topic: The striker scored twice in the second half.",
    metrics=("accuracy",),
    baselines=("most_frequent", "naive_bayes", "nearest"),
    by="target",
    stream=ARTICLES,
    length=256,
    answer_length=8,
)
