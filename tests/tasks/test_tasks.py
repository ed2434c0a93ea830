"""The tasks' data are what the tasks say, and a short training learns one of them."""

import dataclasses
from collections import Counter

import pytest

from llama_jax import presets, tasks
from llama_jax.config import BPE
from llama_jax.data import Tfds, Union
from llama_jax.evals.ask import replies
from llama_jax.train.load import load
from llama_jax.train.loop import train

STEPS, LEARNED = 300, 0.5
ROWS = 3400  # those of numbers below 1,000, in four languages


@pytest.mark.parametrize("name", tasks.NAMES)
def test_rows_have_what_the_task_says(name, data_dir):
    task = tasks.get(name)
    for source in (task.source, *task.tested().values()):
        rows = list(dataclasses.replace(source, data_dir=data_dir, limit=200).open())
        assert {row["task"] for row in rows} <= set(task.instructions)
        assert all(row["source"].strip() and row["target"].strip() for row in rows)
        assert task.by is None or all(row[task.by] for row in rows)


def test_topics_are_asked_of_the_articles_that_headlines_are_written_for(data_dir):
    for split in ("train", "test"):
        news, topics = (
            Tfds(n, split, data_dir=data_dir).open() for n in ("bbc_news", "bbc_topics")
        )
        assert Counter((r["source"], r["topic"], r["target"]) for r in news) == Counter(
            (r["source"], r["target"], r["headline"]) for r in topics
        )
        assert len({row["target"] for row in list(topics)[:30]}) == 5  # they come mixed


def nearest(row, known):
    """The translation of the number of a language that shares the most words with this one."""
    words = set(row["source"].split())
    same = [one for one in known if one["language"] == row["language"]]
    return max(same, key=lambda one: len(words & set(one["source"].split())))["target"]


def test_a_short_training_translates_numbers_that_it_never_saw(data_dir, tmp_path):
    """Copying and the nearest number of training are never right: a new number has new words."""
    source = Tfds("number_words", data_dir=data_dir, limit=ROWS)
    run = presets.get("seed_numbers")
    task = dataclasses.replace(run.data["texts"].task, length=20, answer_length=20)
    stream = dataclasses.replace(
        run.data["texts"], source=Union({"number_words": source}), task=task, batch=32
    )
    run = dataclasses.replace(
        run, data={"texts": stream}, tokenizer=BPE(512), steps=STEPS, save_every=STEPS
    )
    train(run, tmp_path, progress=False)
    known = list(source.open())
    new = list(dataclasses.replace(source, split="test", limit=400).open())
    said = replies(load(tmp_path), [f"{row['task']}: {row['source']}" for row in new])
    right = sum(one.answer == row["target"] for one, row in zip(said, new, strict=True))
    print("RIGHT", right / len(new))
    assert sum(nearest(row, known) == row["target"] for row in new) == 0
    assert right / len(new) >= LEARNED
