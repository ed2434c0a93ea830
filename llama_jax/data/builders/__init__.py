"""TFDS builders over data that PyPI packages ship; no TensorFlow."""

from llama_jax.data.builders.prepare import OURS, default_dir, prepared

__all__ = ["OURS", "default_dir", "prepared"]
