#!/usr/bin/env bash
# bitsandbytes on a CPU gives wrong numbers for a 4-bit matrix whose rows are no whole number of blocks.
#
# bitsandbytes 0.50.2, torch 2.13.0 (CPU wheel), x86-64, 2026-11-30. quantize_4bit cuts a matrix into blocks of 64
# numbers from end to end, across rows, and scales each by its largest magnitude. dequantize_4bit on a CPU gives
# such a matrix back if its rows are 64, 128, ... long; of rows of 96 or 160 many numbers are off, some by as much
# as the largest, without an error or a warning. The packed numbers are right: codes times scales, block by block
# from end to end, give the matrix back.
# What to do: on a CPU expand such matrices by the definition, as below; or take a width that the block size divides.
# Fails if this changes.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q "bitsandbytes==0.50.2" "torch==2.13.0" "numpy"
cat > "$place/rows.py" <<'PY'
import torch
from bitsandbytes import functional

torch.manual_seed(0)
for width in (64, 96, 128, 160):
    x = torch.randn(4, width)
    packed, state = functional.quantize_4bit(x, blocksize=64, quant_type="nf4")
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], dim=1).flatten()
    scales = state.absmax.repeat_interleave(state.blocksize)[: x.numel()]
    defined = (state.code[codes[: x.numel()].long()] * scales).reshape(x.shape)
    library = functional.dequantize_4bit(packed, state)
    right = float((defined - x).abs().max()) < 0.45  # half of nf4's widest step, times the scale
    same = torch.equal(library, defined)
    print(f"rows of {width}: by the definition {'right' if right else 'wrong'}, the library", end=" ")
    print("the same" if same else "gives other numbers")
PY
"$place/venv/bin/python" "$place/rows.py" 2>/dev/null | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
rows of 64: by the definition right, the library the same
rows of 96: by the definition right, the library gives other numbers
rows of 128: by the definition right, the library the same
rows of 160: by the definition right, the library gives other numbers
SEEN
echo "as stated"
