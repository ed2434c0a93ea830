#!/usr/bin/env bash
# transformers reads a Llama 3.1 GGUF file without its rope scaling, and reports nothing missing.
#
# transformers 5.24.0, gguf 0.19.0, torch 2.13.0, CPU, 2026-11-29. llama.cpp's converter stores the scaling of
# Llama 3.1 and later as a tensor, rope_freqs.weight: what each pair's frequency is divided by.
# AutoModelForCausalLM.from_pretrained(folder, gguf_file=...) leaves it unread: rope_type is
# "default", `output_loading_info` lists no missing, unexpected or mismatched key, and logits are the very
# ones of the same file without the tensor. A prompt within the trained length comes out a little
# worse, a long one much worse, and nothing says so.
# What to do: give rope_parameters in a config of your own, or read the tensor with the gguf package.
# Fails if any of this changes.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q "transformers==5.24.0" "gguf==0.19.0" "torch==2.13.0" "accelerate>=1.12"
cat > "$place/seen.py" <<'PY'
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM

WIDTH, HEADS, KV_HEADS, HEAD, HIDDEN, VOCAB = 64, 4, 2, 16, 96, 32
# A pair that turns slowly is slowed by 8, one that turns fast is left alone.
DIVISORS = np.array([1, 1, 2, 4, 8, 8, 8, 8], np.float32)


def write(path, scaled):
    file, rng = gguf.GGUFWriter(str(path), "llama"), np.random.default_rng(0)
    file.add_context_length(4096)
    file.add_embedding_length(WIDTH)
    file.add_block_count(1)
    file.add_feed_forward_length(HIDDEN)
    file.add_head_count(HEADS)
    file.add_head_count_kv(KV_HEADS)
    file.add_rope_dimension_count(HEAD)
    file.add_rope_freq_base(10_000.0)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_vocab_size(VOCAB)
    file.add_tokenizer_model("gpt2")
    file.add_token_list([f"t{i}" for i in range(VOCAB)])
    shapes = {
        "token_embd": (VOCAB, WIDTH),
        "output_norm": (WIDTH,),
        "blk.0.attn_norm": (WIDTH,),
        "blk.0.attn_q": (HEADS * HEAD, WIDTH),
        "blk.0.attn_k": (KV_HEADS * HEAD, WIDTH),
        "blk.0.attn_v": (KV_HEADS * HEAD, WIDTH),
        "blk.0.attn_output": (WIDTH, HEADS * HEAD),
        "blk.0.ffn_norm": (WIDTH,),
        "blk.0.ffn_gate": (HIDDEN, WIDTH),
        "blk.0.ffn_up": (HIDDEN, WIDTH),
        "blk.0.ffn_down": (WIDTH, HIDDEN),
    }
    for name, shape in shapes.items():
        file.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32) * 0.3)
    if scaled:
        file.add_tensor("rope_freqs.weight", DIVISORS)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def read(path):
    model, report = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, output_loading_info=True, dtype=torch.float32
    )
    with torch.no_grad():
        logits = model(torch.arange(512)[None] % VOCAB).logits.numpy()
    return model.config.rope_parameters["rope_type"], {k: v for k, v in report.items() if v}, logits


found = {}
for scaled in (False, True):
    path = Path(sys.argv[1]) / f"{scaled}.gguf"
    write(path, scaled)
    there = any(tensor.name == "rope_freqs.weight" for tensor in gguf.GGUFReader(path).tensors)
    rope, report, found[scaled] = read(path)
    print(f"rope_freqs.weight in the file: {there}; rope_type {rope}; reported: {report or 'nothing'}")
print("logits bit-equal:", np.array_equal(found[False], found[True]))
PY
"$place/venv/bin/python" "$place/seen.py" "$place" 2>"$place/said" | tee "$place/seen" ||
    { cat "$place/said" >&2; exit 1; }
diff "$place/seen" - <<'SEEN'
rope_freqs.weight in the file: False; rope_type default; reported: nothing
rope_freqs.weight in the file: True; rope_type default; reported: nothing
logits bit-equal: True
SEEN
if grep -i rope "$place/said"; then echo "it says so now" >&2; exit 1; fi
echo "as stated"
