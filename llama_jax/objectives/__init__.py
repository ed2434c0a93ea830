"""Objectives: values that mix: `losses({"mlm": MLM("documents"), "itc": ITC("captions")})`."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from llama_jax.objectives.alignment import ITC, ITM, RollITM, SigmoidITC
    from llama_jax.objectives.base import Acts, Loss, Objective, View, check, losses
    from llama_jax.objectives.classify import Classify
    from llama_jax.objectives.language import AmongLM, Caption, CausalLM, SeenLM, Seq2Seq
    from llama_jax.objectives.masked import MLM, NSP, SOP
    from llama_jax.objectives.masked_image import MIM
    from llama_jax.objectives.reconstruct import Draw, Reconstruct
    from llama_jax.objectives.replies import Reply
    from llama_jax.objectives.sown import Sown

__all__ = [
    "ITC",
    "ITM",
    "MIM",
    "MLM",
    "NSP",
    "SOP",
    "Acts",
    "AmongLM",
    "Caption",
    "CausalLM",
    "Classify",
    "Draw",
    "Loss",
    "Objective",
    "Reply",
    "Reconstruct",
    "RollITM",
    "SeenLM",
    "Seq2Seq",
    "SigmoidITC",
    "Sown",
    "View",
    "check",
    "losses",
]
