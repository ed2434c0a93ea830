"""Questions of arithmetic, about numbers and comparisons; some tests ask for larger numbers."""

from llama_jax.data.tfds import Tfds
from llama_jax.tasks.base import Task

TASK = Task(
    name="mathematics",
    says="questions of arithmetic, about numbers and comparisons",
    source=Tfds("mathematics"),
    instructions=("answer",),
    example="answer: What is 17 - 58?",
    metrics=("exact",),
    baselines=("most_frequent", "nearest"),
    tests=("interpolate", "extrapolate"),
    by="module",
    length=80,
    answer_length=24,
    weight=4.0,
)
