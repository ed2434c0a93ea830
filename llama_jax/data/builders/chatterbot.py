"""Things said and what was said to them, in English and Chinese.

Source: the PyPI package `chatterbot-corpus` (BSD-3-Clause; "all training data contained within this
corpus is user contributed"). A conversation of many turns gives a row for every turn after the
first. The same thing said with the same reply, but for punctuation, is one row; with another reply
another row, in the same split.

What is replied to is in one split only. A reply of training may be what is replied to in the test,
where a conversation begins as another ends.

Examples (measured): train 1,521 (1,052 English, 469 Chinese), validation 82 (54, 28), test 172
(120, 52).
"""

from collections.abc import Iterator

import tensorflow_datasets as tfds

from llama_jax.data.builders.prepare import folder, package
from llama_jax.data.builders.texts import Row, Texts, key, split_of

LANGUAGES = {"en": "english", "zh": "chinese"}


def conversations(language: str) -> Iterator[tuple[str, list[str]]]:
    """The topic (name of a file) and the turns of every conversation.

    Raises:
      UserError: a package is missing.
    """
    yaml = package("yaml", "pyyaml", "tasks")
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # texts only: "No" is not False
    data = folder("chatterbot_corpus", "chatterbot-corpus") / "data" / LANGUAGES[language]
    for path in sorted(data.glob("*.yml")):
        reader = loader(path.read_text(encoding="utf-8"))
        try:
            content = reader.get_single_data()
        finally:
            reader.dispose()
        for turns in content["conversations"]:
            yield path.stem, [" ".join(turn.split()) for turn in turns if isinstance(turn, str)]


class Chatterbot(Texts):
    """Builds `chatterbot`; `limit` keeps the first rows of each split (for tests)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "English and Chinese."}
    FIELDS = {"language": str, "topic": str}
    ABOUT = "What was said, and a reply."
    HOMEPAGE = "https://github.com/gunthercox/chatterbot-corpus"

    def rows(self, split: str) -> Iterator[Row]:
        """The pairs of one language, then of the next."""
        seen = set()
        for language in LANGUAGES:
            for topic, turns in conversations(language):
                for said, reply in zip(turns, turns[1:], strict=False):
                    pair = key(said), key(reply)
                    if not (said and reply) or pair in seen:
                        continue
                    seen.add(pair)
                    if split_of(said) == split:
                        yield {
                            "source": said,
                            "target": reply,
                            "task": "reply",
                            "language": language,
                            "topic": topic,
                        }
