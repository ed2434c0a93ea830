"""Cross-entropy over a large vocabulary: `api` chooses, `chunked` never holds all logits."""
