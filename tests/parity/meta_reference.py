"""Meta's own model (package llama-models) on one CPU: fairscale's parallel layers as plain ones."""

import sys
import types

import torch


def _linear(size_in, size_out, bias=False, **_):
    return torch.nn.Linear(size_in, size_out, bias=bias)


def _embedding(rows, width, **_):
    return torch.nn.Embedding(rows, width)


def _stubs():
    """Stands in for fairscale, with one device."""
    names = ("initialize", "layers", "mappings")
    modules = {name: types.ModuleType(f"fairscale.nn.model_parallel.{name}") for name in names}
    modules["initialize"].get_model_parallel_world_size = lambda: 1
    modules["initialize"].get_model_parallel_rank = lambda: 0
    modules["layers"].ColumnParallelLinear = modules["layers"].RowParallelLinear = _linear
    modules["layers"].VocabParallelEmbedding = _embedding
    modules["mappings"].reduce_from_model_parallel_region = lambda x: x
    packages = ("fairscale", "fairscale.nn", "fairscale.nn.model_parallel")
    for name in packages:
        sys.modules.setdefault(name, types.ModuleType(name))
    for module in modules.values():
        sys.modules.setdefault(module.__name__, module)


def transformer(params: dict, tensors: dict, positions: int):
    """Meta's Transformer with these weights, for sequences within `positions`.

    Args:
      params: params.json.
      tensors: of one file that holds all.
      positions: how long its tables are.
    """
    _stubs()
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    # Its tables have twice as many positions as its cache.
    args = ModelArgs(**params, max_batch_size=2, max_seq_len=positions // 2)
    model = Transformer(args).eval()
    model.load_state_dict(tensors, strict=True)
    return model


def transformer4(params: dict, tensors: dict, positions: int):
    """Meta's Llama 4, as a function (ids, from which position) -> logits, and its cache.

    Args:
      params: params.json.
      tensors: of one file that holds all, under the names of the published files or of the program.
      positions: how long its cache is.
    """
    _stubs()
    before, torch.Tensor.cuda = torch.Tensor.cuda, lambda self: self
    try:
        from llama_models.llama4.args import ModelArgs
        from llama_models.llama4.datatypes import TransformerInput
        from llama_models.llama4.model import Transformer

        model = Transformer(ModelArgs(**params, max_batch_size=2, max_seq_len=positions)).eval()
    finally:
        torch.Tensor.cuda = before
    model.load_state_dict(dict(tensors), strict=True)

    def logits(ids, start=0):
        return model(TransformerInput(torch.as_tensor(ids), start)).logits.numpy()

    return logits
