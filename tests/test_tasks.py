"""Tasks as values, found by their files, and put together into streams."""

import dataclasses

import pytest

from llama_jax import tasks
from llama_jax.config import from_json, to_json
from llama_jax.data import Tfds
from llama_jax.errors import UserError
from llama_jax.tasks import Task, corpus, mixture

TASK = Task(
    name="mine",
    says="words",
    source=Tfds("mine"),
    instructions=("spell", "count the letters"),
    example="spell: word",
    metrics=("exact",),
    baselines=("copy",),
    tests=("test", "hard"),
)


@pytest.mark.parametrize("name", tasks.NAMES)
def test_a_task_has_the_name_of_its_file_and_knows_its_example(name):
    task = tasks.get(name)
    assert task.name == name and task.knows(task.example)
    assert from_json(to_json(task)) == task


def test_files_without_a_task_are_none_and_an_unknown_name_is_told_the_nearest():
    assert "base" not in tasks.NAMES and "number_words" in tasks.NAMES
    with pytest.raises(UserError, match="no task 'number_word'.*Did you mean 'number_words'"):
        tasks.get("number_word")
    with pytest.raises(AttributeError, match="no attribute 'Tusk'"):
        _ = tasks.Tusk


def test_no_two_tasks_read_the_same_source_for_then_their_rows_could_not_be_told_apart():
    sources = [tasks.get(name).source for name in tasks.NAMES]
    assert len(set(sources)) == len(sources)


def test_a_task_is_measured_on_its_test_splits():
    assert TASK.tested() == {"test": Tfds("mine", "test"), "hard": Tfds("mine", "hard")}


def test_a_task_knows_texts_that_begin_with_an_instruction_and_a_colon():
    assert TASK.knows("count the letters: word")
    assert not any(map(TASK.knows, ["word", "spell word", "Spell: word", "spelling: word"]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metrics": ()}, r"metrics=\(\) of task 'mine'"),
        ({"tests": ()}, r"tests=\(\) of task 'mine'"),
        ({"example": "word"}, "such as 'spell: ...'"),
        ({"weight": 0.0}, "expected more than 0"),
        ({"length": 0}, "length=0: give 1 or more"),
        ({"source": "x"}, "source='x' of Task is of type str"),
    ],
)
def test_a_wrong_task_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TASK, **fields)


def test_short_texts_are_in_one_stream_and_articles_in_another():
    streams = mixture(["number_words", "sentiment", "headlines", "topics"], 64)
    assert {name: sorted(s.source.parts()) for name, s in streams.items()} == {
        "texts": ["number_words"],
        "articles": ["headlines", "sentiment", "topics"],
    }
    assert [s.task.length for s in streams.values()] == [32, 256]
    assert all(s.task.instruction == "task" for s in streams.values())
    assert list(mixture(["topics"], 8)) == ["articles"]


def test_a_step_has_as_many_rows_of_each_task_as_it_weighs():
    names = ["number_words", "sentiment", "headlines"]
    streams = mixture(names, 64, {"number_words": 5, "sentiment": 1, "headlines": 2})
    assert {name: stream.batch for name, stream in streams.items()} == {"texts": 40, "articles": 24}
    assert streams["articles"].source.weights == {"sentiment": 1.0, "headlines": 2.0}
    few = mixture(names, 64, {"headlines": 0.01, "sentiment": 0.01})
    assert few["articles"].batch == 4
    assert few["texts"].source.weights["number_words"] == tasks.get("number_words").weight


def test_a_tokenizer_learns_from_the_part_of_training_that_a_task_names():
    assert corpus(["topics"]) == (tasks.get("topics").source,)
    [words] = corpus(["number_words"])
    assert words.split.startswith("train[") and words.name == "number_words"


@pytest.mark.parametrize(
    ("names", "weights", "batch", "message"),
    [
        ([], {}, 8, "a mixture of no tasks"),
        (["topics", "topics"], {}, 8, "expected different tasks"),
        (["topic"], {}, 8, "Did you mean 'topics'"),
        (["topics"], {"topic": 1.0}, 8, "weights name 'topic'.*Did you mean 'topics'"),
        (["topics"], {"topics": 0.0}, 8, "topics=0.0; expected a number above 0"),
        (["topics", "replies"], {}, 7, "batch=7 for the streams articles, texts"),
    ],
)
def test_a_wrong_mixture_is_refused_in_one_line(names, weights, batch, message):
    with pytest.raises(UserError, match=message) as error:
        mixture(names, batch, weights)
    assert "\n" not in str(error.value)
