"""Text to numbers and back."""

from llama_jax.text.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
