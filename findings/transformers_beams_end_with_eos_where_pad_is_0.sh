#!/usr/bin/env bash
# Where the padding token has the id 0, transformers fills up texts that beam search ended early with the end token.
#
# transformers 5.24.0, torch 2.13.0, CPU, 2026-12-01. Greedy decoding of a batch puts pad_token_id behind a text that has
# ended, beam search puts it there too if it is 3, but where it is 0, as in T5 and mT5, it puts eos_token_id: the value
# is chosen with `or`, and a tensor of 0 counts as none. Whoever counts tokens by `ids != pad`, or scores the rows again
# with these ids as labels, counts end tokens that nobody wrote.
# What to do: cut every row at its first end token, and do not rely on the padding of beams.
# Fails if this changes.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q "transformers==5.24.0" "torch==2.13.0" "numpy"
cat > "$place/beams.py" <<'PY'
import torch
from transformers import LogitsProcessorList, T5Config, T5ForConditionalGeneration

EOS = 1


def rows(pad, beams):
    torch.manual_seed(0)
    sizes = dict(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=12)
    config = T5Config(**sizes, pad_token_id=pad, eos_token_id=EOS, decoder_start_token_id=2)
    model = T5ForConditionalGeneration(config).eval()

    def steered(batch, ids):  # the first text may end at once, the second goes on for five tokens
        text = batch // beams
        return [EOS] if text == 0 or ids.shape[-1] > 5 else [4, 5]

    ids = torch.tensor([[6, 7], [8, 9]])
    asked = dict(num_beams=beams, max_new_tokens=8, do_sample=False)
    class Steer:
        def __call__(self, seen, scores):
            masked = torch.full_like(scores, -1e9)
            for row in range(len(seen)):
                for token in steered(row, seen[row]):
                    masked[row, token] = scores[row, token]
            return masked

    found = model.generate(ids, logits_processor=LogitsProcessorList([Steer()]), **asked)
    return found[0].tolist()


print("pad 3, greedy:", rows(3, 1))
print("pad 3, 2 beams:", rows(3, 2))
print("pad 0, greedy:", rows(0, 1))
print("pad 0, 2 beams:", rows(0, 2))
PY
"$place/venv/bin/python" "$place/beams.py" 2>/dev/null | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
pad 3, greedy: [2, 1, 3, 3, 3, 3, 3]
pad 3, 2 beams: [2, 1, 3, 3, 3, 3, 3]
pad 0, greedy: [2, 1, 0, 0, 0, 0, 0]
pad 0, 2 beams: [2, 1, 1, 1, 1, 1, 1]
SEEN
echo "as stated"
