"""Attention: `api` chooses a backend, `mask` says what is seen, `reference` is the definition."""
