"""Configs: a Run, its fields by path, and the JSON in which a run directory keeps it.

run = presets.get("seed_demo")
deeper = edit(run, "model.text.stack.repeats", 8)
assert from_json(to_json(deeper)) == deeper
"""

from llama_jax.config.fields import edit, leaves
from llama_jax.config.run import BPE, Change, File, Mesh, Run
from llama_jax.config.run_json import as_now, from_json, run_as_now, to_json
from llama_jax.trees import children

__all__ = [
    "BPE",
    "Change",
    "File",
    "Mesh",
    "Run",
    "as_now",
    "children",
    "edit",
    "from_json",
    "leaves",
    "run_as_now",
    "to_json",
]
