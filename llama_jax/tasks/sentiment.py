"""Whether a Chinese review of a book, a hotel or goods is praise or blame."""

from llama_jax.data.tfds import Tfds
from llama_jax.tasks.base import ARTICLES, Task

TASK = Task(
    name="sentiment",
    says="whether a Chinese review is positive or negative",
    source=Tfds("reviews_zh"),
    instructions=("classify the sentiment",),
    example="classify the sentiment: 房间很干净,服务也很好",
    metrics=("accuracy",),
    baselines=("most_frequent", "naive_bayes", "nearest"),
    stream=ARTICLES,
    length=128,
    answer_length=8,
    weight=2.0,
)
