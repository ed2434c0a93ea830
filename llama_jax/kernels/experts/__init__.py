"""Feed-forwards of which each token goes through a few (a mixture of experts)."""
