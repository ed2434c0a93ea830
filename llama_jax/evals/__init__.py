"""Evaluation on held-out data; every figure stands beside what needs no model."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from llama_jax.evals.base import Eval, Row
    from llama_jax.evals.combinations import Combinations
    from llama_jax.evals.dialogues import Dialogues
    from llama_jax.evals.drawing import Drawings, Reconstructions
    from llama_jax.evals.moving import Clips
    from llama_jax.evals.pixels import Pixels
    from llama_jax.evals.report import as_json, evaluate, evaluations, run_eval, show
    from llama_jax.evals.tasks import Tasks
    from llama_jax.evals.text import ExactMatch, Scores
    from llama_jax.evals.vision import Matching, Retrieval, Vqa

__all__ = [
    "Clips",
    "Combinations",
    "Dialogues",
    "Eval",
    "ExactMatch",
    "Matching",
    "Pixels",
    "Drawings",
    "Eval",
    "ExactMatch",
    "Matching",
    "Reconstructions",
    "Retrieval",
    "Row",
    "Scores",
    "Tasks",
    "Vqa",
    "as_json",
    "evaluate",
    "evaluations",
    "run_eval",
    "show",
]
