"""Numbers in words from English into four languages; the numbers of the tests are new ones."""

from llama_jax.data.tfds import Tfds
from llama_jax.tasks.base import Task

LANGUAGES = ("French", "German", "Spanish", "Chinese")

# Of numbers of six digits a few: they hold no new words, but so many of them that a tokenizer would
# learn the commonest neighbours, "hundertsechstausenddrei", in the place of the words.
WORDS = "train[:3600]+train[-2000:]"

TASK = Task(
    name="number_words",
    says="numbers in words, from English into French, German, Spanish and Chinese",
    source=Tfds("number_words"),
    instructions=tuple(f"translate to {language}" for language in LANGUAGES),
    example="translate to German: three thousand, four hundred and twelve",
    metrics=("exact", "chrf"),
    baselines=("copy", "nearest"),
    tests=("test", "longer"),
    by="language",
    length=32,
    answer_length=36,
    weight=3.0,
    words=WORDS,
)
