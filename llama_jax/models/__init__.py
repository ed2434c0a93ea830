"""Models of the seed's system and of the LLaMA series, composed from `llama_jax.layers`."""
