"""BBC news of 2004 and 2005: the articles of `bbc_news`, whose answer here is their topic.

Source, licence and splits are those of `bbc_news.py`; `headline` is what was `target` there.

Examples (measured): train 1,806, validation 93, test 222.
"""

import zlib
from collections.abc import Iterator

import tensorflow_datasets as tfds

from llama_jax.data.builders.bbc_news import BbcNews, news
from llama_jax.data.builders.texts import Row, Texts


class BbcTopics(Texts):
    """Builds `bbc_topics`; `limit` keeps the first rows of each split (for tests)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Five topics."}
    FIELDS = {"headline": str}
    ABOUT = "News articles with their topics."
    HOMEPAGE = BbcNews.HOMEPAGE

    def rows(self, split: str) -> Iterator[Row]:
        """The articles in an order that does not depend on their topics."""
        for row in sorted(news(split), key=lambda row: zlib.crc32(row["source"].encode())):
            yield {
                "source": row["source"],
                "target": row["topic"],
                "task": "classify the topic",
                "headline": row["target"],
            }
