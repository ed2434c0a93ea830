"""Containers of tensors: bytes to names, arrays and fields; no file here knows a model."""
