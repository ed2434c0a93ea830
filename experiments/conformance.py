"""Does every generation of LLaMA, read from Hugging Face's folder, give transformers' logits?

Tiny random models, two layers each, with the numbers that tell the generations apart. transformers
writes them; `llama-jax verify` reads them and compares: rope with the formula in float64, prefill
and decode with training, logits with transformers at positions from 0 and with the second half of
the tokens at the end of the context.

Command:  python -m experiments.conformance    (with the extra "parity")

Machine:  one of 2 CPU cores, others at work too: 85 s of a processor; transformers 5.23.0

| generation | rope                    | eps   | tied | rope  | prefill | decode | logits | far   |
|------------|-------------------------|-------|------|-------|---------|--------|--------|-------|
| llama1     | theta 1e4               | 1e-06 | no   | 5e-04 | 1e-07   | 8e-07  | 1e-06  | 1e-06 |
| llama2     | theta 1e4               | 1e-05 | no   | 5e-04 | 2e-07   | 8e-07  | 8e-07  | 1e-06 |
| llama2_70b | theta 1e4               | 1e-05 | no   | 5e-04 | 2e-07   | 7e-07  | 9e-07  | 1e-06 |
| code_llama | theta 1e6               | 1e-05 | no   | 1e-04 | 1e-07   | 7e-07  | 1e-06  | 9e-07 |
| llama3     | theta 5e5               | 1e-05 | no   | 2e-03 | 6e-08   | 1e-06  | 1e-06  | 1e-06 |
| llama3_1   | theta 5e5, llama3 by 8  | 1e-05 | no   | 2e-03 | 2e-07   | 8e-07  | 8e-07  | 8e-07 |
| llama3_2   | theta 5e5, llama3 by 32 | 1e-05 | yes  | 2e-03 | 2e-07   | 8e-07  | 1e-06  | 1e-06 |
| llama3_3   | theta 5e5, llama3 by 8  | 1e-05 | no   | 2e-05 | 2e-07   | 5e-07  | 9e-07  | 7e-07 |
| smollm2    | theta 1e5               | 1e-05 | yes  | 4e-04 | 2e-07   | 7e-07  | 1e-06  | 1e-06 |

Largest differences: of rope's cosines and sines at position 131,071 from the formula in float64,
which is what float32 angles cost; of log-probabilities from those of training; of logits from
transformers', of order 3, at positions from 0 and with half the tokens at the context's end.

Verdict: yes, every generation, to 1.1e-6.
"""

import tempfile
from pathlib import Path
from typing import Any

from llama_jax.verify.checks import verify
from llama_jax.verify.report import Ledger

SCALED = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED |= {"rope_type": "llama3", "original_max_position_embeddings": 8192}

GENERATIONS: dict[str, dict[str, Any]] = {
    "llama1": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    "llama2": {"max_position_embeddings": 4096},
    "llama2_70b": {"num_key_value_heads": 2, "max_position_embeddings": 4096},
    "code_llama": {
        "rope_theta": 1e6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 16_384,
    },
    "llama3": {"rope_theta": 5e5, "num_key_value_heads": 2, "max_position_embeddings": 8192},
    "llama3_1": {"rope_theta": 5e5, "num_key_value_heads": 2, "scaling": {"factor": 8.0}},
    "llama3_2": {
        "rope_theta": 5e5,
        "num_key_value_heads": 2,
        "scaling": {"factor": 32.0},
        "tie_word_embeddings": True,
        "head_dim": 32,
    },
    "llama3_3": {
        "rope_theta": 5e5,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "scaling": {"factor": 8.0},
    },
    "smollm2": {
        "rope_theta": 1e5,
        "hidden_size": 72,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    },
}


def tiny(folder: Path, scaling: dict | None = None, **fields: Any) -> Any:
    """A random model in a folder; the weights are large enough for every part to matter."""
    import transformers

    fields = {
        "rms_norm_eps": 1e-5,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "rope_theta": 1e4,
        "max_position_embeddings": 131_072,
        "attn_implementation": "eager",
    } | fields
    theta = fields.pop("rope_theta")
    rope = {"rope_theta": theta, "rope_type": "default"} | (SCALED | scaling if scaling else {})
    config = transformers.LlamaConfig(
        vocab_size=61, intermediate_size=96, num_hidden_layers=2, rope_parameters=rope,
        **fields,
    )  # fmt: skip
    return drawn(config, folder)


def drawn(config: Any, folder: Path) -> Any:
    """transformers' LLaMA of a config with random weights, biases too, written into a folder."""
    import torch
    import transformers

    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    theirs.save_pretrained(folder)
    return theirs


def row(name: str, ledger: Ledger) -> str:
    """A line of the table."""

    def found(start: str, number: str = "found") -> str:
        lines = [line for line in ledger.lines if line.name.startswith(start)]
        return f"{max(line.numbers[number] for line in lines):.1e}"

    cells = [
        name,
        ledger.line("rope").text,
        f"{ledger.line('norm eps').numbers['eps']:g}",
        "yes" if "tied" in ledger.line("output layer").text else "no",
        found("position 131,071", "difference"),
        found("prefill"),
        found("decode"),
        found("logits, positions from 0"),
        found("logits, second half"),
        "FAILED" if ledger.failed else "passed",
    ]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| generation | rope | eps | tied | cos, sin at 131,071 | prefill | decode | logits "
    "| logits, far apart | checks |\n" + "|---" * 10 + "|"
)


def main() -> None:
    """Prints the table."""
    print(HEAD)
    for name, fields in GENERATIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            tiny(Path(folder), **fields)
            print(row(name, verify(folder)), flush=True)


if __name__ == "__main__":
    main()
