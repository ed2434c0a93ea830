#!/usr/bin/env bash
# The forward pass of transformers' Llama 4 with a vision tower ends in an AttributeError, for a text alone too.
#
# transformers 5.24.0, torch 2.13.0, CPU, 2026-12-01. Llama4ForConditionalGeneration.forward asks the output of its
# language model for `image_outputs`, a field that output does not have; so every call fails, whatever goes in, and so
# does generate(). The language model by itself works. Loading and saving work too, so a folder looks fine.
# What to do: take an earlier release, or compare with the language model (model.language_model) and the tower apart.
# Fails if this changes.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q "transformers==5.24.0" "torch==2.13.0" "numpy" "pillow"
cat > "$place/forward.py" <<'PY'
import torch
from transformers import Llama4Config, Llama4ForConditionalGeneration

torch.manual_seed(0)
text = dict(
    vocab_size=64, hidden_size=32, intermediate_size=32, intermediate_size_mlp=32, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=2, pad_token_id=None,
    bos_token_id=1, eos_token_id=2, max_position_embeddings=512,
)
seen = dict(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128, image_size=28,
    patch_size=14, vision_output_dim=32, projector_input_dim=32, projector_output_dim=32,
)
model = Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=seen)).eval()
ids = torch.arange(3, 11)[None]
with torch.no_grad():
    inner = model.language_model(ids)
    print("its language model alone:", tuple(inner.logits.shape))
    try:
        print("the whole, given the same text:", tuple(model(ids).logits.shape))
    except AttributeError as error:
        print("the whole, given the same text: AttributeError:", error)
PY
"$place/venv/bin/python" "$place/forward.py" 2>/dev/null | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
its language model alone: (1, 8, 64)
the whole, given the same text: AttributeError: 'MoeCausalLMOutputWithPast' object has no attribute 'image_outputs'
SEEN
echo "as stated"
