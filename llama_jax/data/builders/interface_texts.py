"""Texts of user interfaces, translated by people from English into four languages.

Source: the gettext catalogues in the PyPI packages `django` and `wagtail` (both BSD-3-Clause; the
translations are their communities'), read with `polib`. Entries that are fuzzy, obsolete or not
translated are left out, and those whose placeholders ("%(count)d", "{name}") differ between the
two sides, so that a right translation always keeps them. A text with a plural gives two rows, of
its first form and of its last; a language without plurals has the same words for both.

A language has one translation a source text: the first of the catalogues in the order of their
paths. A text is in the same split in all languages, and in the same as its plural. Different
sources may have the same translation ("Remove" and "Delete"), on both sides of a split too.

Examples (measured): train 8,013, validation 445, test 896; 2,XXX
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from llama_jax.data.builders.number_words import LANGUAGES
from llama_jax.data.builders.prepare import folder, package
from llama_jax.data.builders.texts import Row, Texts, key, split_of

PACKAGES = {"django": "django", "wagtail": "wagtail"}
FOLDERS = {"fr": "fr", "de": "de", "es": "es", "zh": "zh_Hans"}
PLACEHOLDER = re.compile(
    r"%\(\w+\)[#0 +-]*\d*(?:\.\d+)?[a-zA-Z]|%[#0+-]*\d*(?:\.\d+)?[sdifgxr%]|\{[^{} ]*\}"
)
Pair = tuple[str, str, str]


def placeholders(text: str) -> Counter[str]:
    """What a program fills in: how often a text has which."""
    return Counter(PLACEHOLDER.findall(text))


def pairs(entry: Any) -> Iterator[Pair]:
    """Source, target and head (the text that decides on the split) of one entry of a catalogue."""
    if entry.msgid_plural:
        forms = entry.msgstr_plural
        yield entry.msgid, forms[min(forms)], entry.msgid
        yield entry.msgid_plural, forms[max(forms)], entry.msgid
    else:
        yield entry.msgid, entry.msgstr, entry.msgid


def translations(language: str) -> Iterator[tuple[str, Pair]]:
    """The package and the pairs of all catalogues of a language.

    Raises:
      UserError: a package is missing.
    """
    polib = package("polib", "polib", "tasks")
    for name, pip_name in PACKAGES.items():
        below = folder(name, pip_name)
        for path in sorted(below.glob(f"**/locale/{FOLDERS[language]}/LC_MESSAGES/*.po")):
            for entry in polib.pofile(str(path), encoding="utf-8"):
                if entry.translated():
                    yield from ((name, pair) for pair in pairs(entry))


def heads(found: dict[str, list[tuple[str, Pair]]]) -> dict[str, str]:
    """The text that decides on the split of each source text: itself, or that it is a plural of.

    One of several is the first by its letters, and followed to its own.
    """
    above: dict[str, str] = {}
    for entries in found.values():
        for _, (source, _, head) in entries:
            mine, first = key(source), key(head)
            if mine != first:
                above[mine] = min(first, above.get(mine, first))
    ends = {}
    for start in above:
        end, passed = start, {start}
        while end in above and above[end] not in passed:
            end = above[end]
            passed.add(end)
        ends[start] = min(passed) if end in above else end  # a circle has one name
    return ends


class InterfaceTexts(Texts):
    """Builds `interface_texts`; `limit` keeps the first rows of each split (for tests)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Django and Wagtail, four languages."}
    FIELDS = {"language": str, "package": str}
    ABOUT = "Texts of user interfaces, from English into four languages."
    HOMEPAGE = "https://docs.djangoproject.com/en/stable/topics/i18n/"

    def rows(self, split: str) -> Iterator[Row]:
        """The texts of one language, then of the next."""
        found = {language: list(translations(language)) for language in LANGUAGES}
        above = heads(found)
        for language, entries in found.items():
            seen = set()
            for origin, (source, target, _) in entries:
                source, target = source.strip(), target.strip()
                mine = key(source)
                if mine in seen or placeholders(source) != placeholders(target):
                    continue
                seen.add(mine)
                if split_of(above.get(mine, mine)) == split:
                    yield {
                        "source": source,
                        "target": target,
                        "task": f"translate to {LANGUAGES[language]}",
                        "language": language,
                        "package": origin,
                    }
