#!/usr/bin/env bash
# transformers scales Llama 4's queries by the place in the row, whatever position_ids say.
#
# transformers 5.24.0, torch 2.13.0, CPU, 2026-12-01. In layers without rotary positions Llama 4 makes queries grow with
# their position (attn_temperature_tuning): log(floor((position + 1) / floor_scale) + 1) * attn_scale + 1. transformers
# counts 0, 1, 2, ... over the columns of the batch instead. So position_ids, which rotary layers follow, do nothing
# there: rows that are padded on the left, or several texts packed in one row, get other logits than the same text alone
# once a place is past floor_scale (8,192 in the published models), and nothing says so.
# What to do: one text a row, padded on the right, where places are positions.
# Fails if this changes.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q "transformers==5.24.0" "torch==2.13.0" "numpy"
cat > "$place/tuning.py" <<'PY'
import torch
from transformers import Llama4ForCausalLM, Llama4TextConfig

ids = torch.arange(3, 11)[None]
# The same tokens behind four that the mask hides, at the same positions.
padded = torch.cat([torch.full((1, 4), 3), ids], 1)
mask = torch.tensor([[0] * 4 + [1] * 8])
behind = torch.clamp(torch.arange(12) - 4, min=0)[None]


def made(tuned):
    torch.manual_seed(0)
    config = Llama4TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, intermediate_size_mlp=32,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        num_local_experts=2, pad_token_id=None, bos_token_id=1, eos_token_id=2,
        max_position_embeddings=512, no_rope_layers=[0, 0],  # 0: without rotary positions
        attn_temperature_tuning=tuned, floor_scale=4, attn_scale=1.0,
    )
    model = Llama4ForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn_like(weight) * weight.shape[-1] ** -0.5)
    return model


def logits(model, text, positions, mask=None):
    with torch.no_grad():
        given = dict(position_ids=positions, attention_mask=mask, use_cache=False)
        return model(text, **given).logits[0, -1]


def compared(a, b):
    return "equal" if (a - b).abs().max() < 1e-4 else "differ"


for tuned in (False, True):
    model, first = made(tuned), torch.arange(8)[None]
    alone = logits(model, ids, first)
    print(f"tuning {tuned}: at positions 0 and 100 logits", compared(alone, logits(model, ids, first + 100)))
    print(f"tuning {tuned}: behind padding logits", compared(alone, logits(model, padded, behind, mask)))
PY
"$place/venv/bin/python" "$place/tuning.py" 2>/dev/null | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
tuning False: at positions 0 and 100 logits equal
tuning False: behind padding logits equal
tuning True: at positions 0 and 100 logits equal
tuning True: behind padding logits differ
SEEN
echo "as stated"
