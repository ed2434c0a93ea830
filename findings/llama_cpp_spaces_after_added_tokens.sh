#!/usr/bin/env bash
# Of a SentencePiece vocabulary with added (user-defined) tokens, llama.cpp gives other ids than SentencePiece.
#
# llama.cpp as in xllamacpp 2026.10.11549, gguf 0.19.0, sentencepiece 0.2.2, CPU, 2026-11-30. Both put a space,
# "▁", before a text. SentencePiece puts one before the text, once, even if an added token such as <think> begins it.
# llama.cpp first cuts the text at added tokens, then puts a space before every part: none before a <think> that
# begins a text, one behind each <think> in it. The same words, another row of ids, in training and in serving,
# and nothing says so.
# What to do: write the template with the space that the other program adds, or compare ids before serving a
# fine-tuned model with added tokens. Files without such tokens are not concerned.
# Fails if this changes.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q "xllamacpp==2026.10.11549" "gguf==0.19.0" "sentencepiece==0.2.2" "numpy" "protobuf"
cat > "$place/ids.py" <<'PY'
import json
import sys
import urllib.request

import gguf
import numpy as np
import sentencepiece
import xllamacpp
from sentencepiece import sentencepiece_model_pb2 as pb

path = f"{sys.argv[1]}/tiny.gguf"
NORMAL, UNKNOWN, CONTROL, ADDED, _, BYTE = range(1, 7)  # the same numbers in both formats
entries = [("<unk>", 0, UNKNOWN), ("<s>", 0, CONTROL), ("</s>", 0, CONTROL)]
entries += [(f"<0x{b:02X}>", 0, BYTE) for b in range(256)]
entries += [(w, -i, NORMAL) for i, w in enumerate(["▁", "a", "b", "▁a", "▁b"], 1)]
entries += [("<think>", 0, ADDED)]
words = [word for word, *_ in entries]

model = pb.ModelProto()
for word, score, kind in entries:
    model.pieces.add(piece=word, score=score, type=kind)
model.trainer_spec.model_type = model.trainer_spec.BPE
model.trainer_spec.byte_fallback = True
model.normalizer_spec.add_dummy_prefix = True
model.normalizer_spec.remove_extra_whitespaces = False
theirs = sentencepiece.SentencePieceProcessor()
theirs.LoadFromSerializedProto(model.SerializeToString())

file = gguf.GGUFWriter(path, "llama")
width = 32
file.add_context_length(64)
file.add_embedding_length(width)
file.add_feed_forward_length(width)
file.add_block_count(1)
file.add_head_count(1)
file.add_rope_dimension_count(width)
file.add_layer_norm_rms_eps(1e-5)
file.add_tokenizer_model("llama")
file.add_tokenizer_pre("default")
file.add_token_list(words)
file.add_token_scores([float(score) for _, score, _ in entries])
file.add_token_types([kind for *_, kind in entries])
file.add_unk_token_id(0)
file.add_bos_token_id(1)
file.add_eos_token_id(2)
file.add_add_space_prefix(True)
for name in ("token_embd", "output"):
    file.add_tensor(f"{name}.weight", np.zeros((len(words), width), np.float32))
for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
    file.add_tensor(f"{name}.weight", np.zeros(width, np.float32))
for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
    file.add_tensor(f"blk.0.{name}.weight", np.zeros((width, width), np.float32))
file.write_header_to_file()
file.write_kv_data_to_file()
file.write_tensors_to_file()
file.close()

settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.warmup = path, 64, False
server = xllamacpp.Server(settings)


def ids(text):
    body = json.dumps({"content": text, "add_special": False}).encode()
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.listening_address}/tokenize", body, kind)
    return json.load(urllib.request.urlopen(request))["tokens"]


for text in ("a b", "a<think>b", "<think>a"):
    print(f"{text}: SentencePiece", *theirs.EncodeAsPieces(text), end="; llama.cpp ")
    print(*(words[i] for i in ids(text)))
PY
"$place/venv/bin/python" "$place/ids.py" "$place" 2>/dev/null | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
a b: SentencePiece ▁a ▁b; llama.cpp ▁a ▁b
a<think>b: SentencePiece ▁a <think> b; llama.cpp ▁a <think> ▁b
<think>a: SentencePiece ▁ <think> a; llama.cpp <think> ▁a
SEEN
echo "as stated"
