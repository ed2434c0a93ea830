"""The headline of a BBC article; its first words are a baseline that is hard to beat."""

from llama_jax.data.tfds import Tfds
from llama_jax.tasks.base import ARTICLES, Task

TASK = Task(
    name="headlines",
    says="the headline of an English news article",
    source=Tfds("bbc_news"),
    instructions=("summarise",),
    example="summarise: Shares in the airline rose by a tenth after it sold more seats in March.",
    metrics=("rouge_l", "rouge_1"),
    baselines=("lead", "nearest"),
    stream=ARTICLES,
    length=256,
    answer_length=24,
)
