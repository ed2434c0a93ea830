"""How much memory it takes to open a checkpoint, measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llama_jax.weights.read import OVERHEAD
from tests.weights.small import BFLOAT16, save, weights

ROOT = Path(__file__).parents[2]
# 320 MB of float32 parameters, the largest of them 64 MB.
SIZES = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 3}
SIZES |= {"vocab_size": 16_384, "num_attention_heads": 16}
SMALL = {"hidden_size": 64}

CHILD = """
import json, sys
import jax
from llama_jax.weights.opened import load_params, open_checkpoint
from llama_jax.weights.convert import convert
def kilobytes(key):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(key + ":")).split()[1])
def peak(do):
    before = kilobytes("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # VmHWM counts anew
    result = do()
    return 1024 * (kilobytes("VmHWM") - before), result
small, large, dtype, out = sys.argv[1:]
convert(small, out + "-small", "huggingface", dtype)
load_params(open_checkpoint(small), dtype=dtype)
written, _ = peak(lambda: convert(large, out, "huggingface", dtype))
loaded, params = peak(lambda: load_params(open_checkpoint(large), dtype=dtype))
print(json.dumps([written, loaded - sum(leaf.nbytes for leaf in jax.tree.leaves(params))]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts it")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_takes_the_largest_tensor_and_a_constant(tmp_path, dtype):
    save(tmp_path / "small", weights(0, BFLOAT16, **SMALL), **SMALL)
    rows = {name: tensor.astype(BFLOAT16) for name, tensor in weights(0, **SIZES).items()}
    save(tmp_path / "large", rows, 3, **SIZES)
    arguments = [tmp_path / "small", tmp_path / "large", dtype, tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    written, beyond = json.loads(done.stdout.splitlines()[-1])
    in_file = max(tensor.nbytes for tensor in rows.values())
    print(f"{dtype}: loading {beyond / 2**20:.0f} MB beyond, converting {written / 2**20:.0f} MB")
    assert beyond <= in_file + OVERHEAD
    # Converting: the tensor as it was, as it will be, and which of its numbers are finite.
    size = np.dtype(BFLOAT16 if dtype == "bfloat16" else dtype).itemsize
    assert written <= in_file * (1 + size / 2 + 1 / 2) + OVERHEAD
