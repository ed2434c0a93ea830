"""The small data sets and the tokenizer that the tests of other data have."""

from tests.data.conftest import chapters, pictures, tokenizer

__all__ = ["chapters", "pictures", "tokenizer"]
