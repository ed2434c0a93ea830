"""Decoding with an explicit cache, and answers about images."""
