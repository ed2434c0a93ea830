"""A small valid value of every config that the public rooms have, as the fields to make it of."""

from typing import Any

from llama_jax import config, data, evals, objectives
from llama_jax.axes import Rules
from llama_jax.layers import attention, block, divided, mlp, norm, positions, rope, stack
from llama_jax.models import (
    coattention,
    decoder,
    fusion,
    heads,
    multimodal,
    stem,
    text_encoder,
    vision,
)
from llama_jax.optim import optimizer
from llama_jax.train.profile import Profile

A = attention.Attention(2, 1, 8)
B = block.Block(A, mlp.SwiGLU(32))
S = stack.Stack((B,))
TEXT = text_encoder.TextEncoder(300, 16, S)
LM = decoder.Decoder(300, 16, S)
STREAM = data.Stream(data.PlainText("x.txt"), data.LanguageModel(16), 8)
ON = {"on": "text"}
EVAL = {"name": "e", "on": "text"}
PICTURES = {"length": 16}
CONFIGS: dict[type, dict[str, Any]] = {
    attention.Attention: {"heads": 2, "kv_heads": 1, "head_dim": 8},
    block.Block: {"attention": A, "ffn": mlp.SwiGLU(32)},
    block.Gated: {"part": A},
    divided.DividedBlock: {"temporal": A, "spatial": A, "ffn": mlp.MLP(8)},
    mlp.MLP: {"hidden": 32},
    mlp.SwiGLU: {"hidden": 32},
    norm.LayerNorm: {},
    norm.RMSNorm: {},
    positions.Learned: {"lengths": (16,)},
    positions.RelativeBias: {"heads": 2},
    rope.Rope: {},
    rope.Llama3Rope: {},
    stack.Stack: {"pattern": (B,)},
    coattention.CoAttention: {"attention": A, "block": B},
    decoder.Decoder: {"vocab": 300, "width": 16, "stack": S},
    fusion.Concat: {"stack": S},
    fusion.Reading: {"stack": S},
    fusion.Perceiver: {"latents": 4, "stack": S, "inner": fusion.Late()},
    heads.MaskedHead: {},
    heads.LabelHead: {},
    heads.PairHead: {},
    heads.AlignHead: {},
    multimodal.Multimodal: {"text": TEXT, "fusion": fusion.Late()},
    stem.Patches: {"size": 8},
    stem.Convolutions: {},
    text_encoder.TextEncoder: {"vocab": 300, "width": 16, "stack": S},
    vision.SpaceTime: {"stack": S},
    vision.Factorised: {"space": S, "time": S},
    vision.VisionEncoder: {"width": 16, "layers": vision.SpaceTime(S)},
    objectives.ITC: ON,
    objectives.ITM: ON,
    objectives.MIM: ON,
    objectives.MLM: ON,
    objectives.NSP: ON,
    objectives.SOP: ON,
    objectives.Caption: ON,
    objectives.CausalLM: ON,
    objectives.Classify: ON,
    objectives.RollITM: ON,
    objectives.Seq2Seq: ON,
    objectives.SigmoidITC: ON,
    objectives.Sown: ON,
    optimizer.AdamW: {},
    optimizer.Adafactor: {},
    optimizer.Lion: {},
    optimizer.Muon: {},
    optimizer.SGD: {},
    optimizer.Constant: {},
    optimizer.Cosine: {},
    optimizer.Linear: {},
    optimizer.WSD: {},
    optimizer.Group: {},
    data.Captions: PICTURES,
    data.Denoise: {"length": 16},
    data.Describe: PICTURES,
    data.ImageFolder: {"path": "pictures"},
    data.JsonLines: {"path": "x.jsonl"},
    data.Labels: {},
    data.LanguageModel: {},
    data.Masking: {},
    data.Negatives: {},
    data.Mix: {"sources": (data.Prepared("a"),), "weights": (1.0,)},
    data.Parquet: {"path": "x.parquet"},
    data.PlainText: {"path": "x.txt"},
    data.Prepared: {"path": "a"},
    data.Questions: PICTURES,
    data.SentencePairs: {},
    data.Seq2Seq: {},
    data.Stream: {"source": data.PlainText("x"), "task": data.LanguageModel(), "batch": 8},
    data.Tfds: {"name": "mnist"},
    data.Union: {"sources": {"a": data.PlainText("x")}},
    evals.ExactMatch: EVAL,
    evals.Matching: EVAL,
    evals.Pixels: EVAL,
    evals.Retrieval: EVAL,
    evals.Scores: EVAL,
    evals.Tasks: EVAL,
    evals.Vqa: EVAL,
    config.BPE: {},
    config.File: {},
    config.Mesh: {},
    config.Run: {
        "name": "tiny",
        "model": LM,
        "data": {"text": STREAM},
        "objectives": {"lm": objectives.CausalLM(on="text")},
    },
    Rules: {"weights": (("D", "fsdp"),), "activations": (("B", ("data", "fsdp")),)},
    Profile: {"start": 1, "stop": 2},
}
