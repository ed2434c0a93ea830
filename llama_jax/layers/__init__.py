"""Flax modules from which every model is built."""
