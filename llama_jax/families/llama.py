"""Llama 1, 2, Code, 3, 3.1, 3.2 and 3.3, and others of the same architecture (SmolLM2).

Sizes and constants of the presets are those of the models' own configurations (`params.json`,
`config.json`); parameter counts are tested to the unit. The tokenizer of a preset is that of the
weights to begin with (`init_from`), the data C4: put your own in its place,
`edit(run, "data.text.source", "my.txt")`.
"""

from typing import TYPE_CHECKING, Any

from llama_jax.families.base import Family, run
from llama_jax.families.gguf import Gguf
from llama_jax.families.gguf_names import PAIRS
from llama_jax.families.huggingface import HuggingFace
from llama_jax.families.llama_meta import LlamaMeta
from llama_jax.families.sizes import Sizes, build
from llama_jax.layers.rope import Llama3Rope, Rope

if TYPE_CHECKING:
    from llama_jax.config import Run

FAMILY = Family(
    name="llama",
    about="causal decoder, RMSNorm, grouped-query attention, SwiGLU",
    huggingface=HuggingFace("llama", "LlamaForCausalLM", biases=("attention_bias", "mlp_bias")),
    gguf=Gguf("llama", PAIRS, biases=True),
    meta=LlamaMeta(),
)

# vocabulary, context
LLAMA1: dict[str, Any] = {"vocab": 32_000, "context": 2048, "rope": Rope()}
LLAMA2: dict[str, Any] = {"vocab": 32_000, "context": 4096, "rope": Rope()}
CODE: dict[str, Any] = {"vocab": 32_016, "context": 16_384, "rope": Rope(1e6)}
CODE_34B: dict[str, Any] = CODE | {"vocab": 32_000}
LLAMA3: dict[str, Any] = {"vocab": 128_256, "context": 8192, "rope": Rope(5e5)}
LLAMA3_1: dict[str, Any] = {"vocab": 128_256, "context": 131_072, "rope": Llama3Rope()}
LLAMA3_2: dict[str, Any] = {"vocab": 128_256, "context": 131_072, "rope": Llama3Rope(factor=32.0)}

# width, layers, heads, kv_heads, hidden
B7 = (4096, 32, 32, 32, 11_008)
B13 = (5120, 40, 40, 40, 13_824)
B70 = (8192, 80, 64, 8, 28_672)
L3_8B = (4096, 32, 32, 8, 14_336)


def llama1_7b() -> "Run":
    """Llama 1 7B (arXiv:2302.13971)."""
    return _run("llama1_7b", *B7, **LLAMA1, eps=1e-6)


def llama1_13b() -> "Run":
    """Llama 1 13B."""
    return _run("llama1_13b", *B13, **LLAMA1, eps=1e-6)


def llama1_33b() -> "Run":
    """Llama 1 33B (30B in the names of the files)."""
    return _run("llama1_33b", 6656, 60, 52, 52, 17_920, **LLAMA1, eps=1e-6)


def llama1_65b() -> "Run":
    """Llama 1 65B."""
    return _run("llama1_65b", 8192, 80, 64, 64, 22_016, **LLAMA1)


def llama2_7b() -> "Run":
    """Llama 2 7B (arXiv:2307.09288)."""
    return _run("llama2_7b", *B7, **LLAMA2)


def llama2_13b() -> "Run":
    """Llama 2 13B."""
    return _run("llama2_13b", *B13, **LLAMA2)


def llama2_70b() -> "Run":
    """Llama 2 70B, the first with grouped keys."""
    return _run("llama2_70b", *B70, **LLAMA2)


def code_llama_7b() -> "Run":
    """Code Llama 7B (arXiv:2308.12950)."""
    return _run("code_llama_7b", *B7, **CODE)


def code_llama_13b() -> "Run":
    """Code Llama 13B."""
    return _run("code_llama_13b", *B13, **CODE)


def code_llama_34b() -> "Run":
    """Code Llama 34B."""
    return _run("code_llama_34b", 8192, 48, 64, 8, 22_016, **CODE_34B)


def llama3_8b() -> "Run":
    """Llama 3 8B (arXiv:2407.21783)."""
    return _run("llama3_8b", *L3_8B, **LLAMA3)


def llama3_70b() -> "Run":
    """Llama 3 70B."""
    return _run("llama3_70b", *B70, **LLAMA3)


def llama3_1_8b() -> "Run":
    """Llama 3.1 8B, to 131,072 positions."""
    return _run("llama3_1_8b", *L3_8B, **LLAMA3_1)


def llama3_1_70b() -> "Run":
    """Llama 3.1 70B."""
    return _run("llama3_1_70b", *B70, **LLAMA3_1)


def llama3_1_405b() -> "Run":
    """Llama 3.1 405B."""
    return _run("llama3_1_405b", 16_384, 126, 128, 8, 53_248, **LLAMA3_1)


def llama3_2_1b() -> "Run":
    """Llama 3.2 1B, tied; its rope factor is 32."""
    return _run("llama3_2_1b", 2048, 16, 32, 8, 8192, **LLAMA3_2, tied=True)


def llama3_2_3b() -> "Run":
    """Llama 3.2 3B, tied; its rope factor is 32."""
    return _run("llama3_2_3b", 3072, 28, 24, 8, 8192, **LLAMA3_2, tied=True)


def llama3_3_70b() -> "Run":
    """Llama 3.3 70B: the architecture of 3.1 70B."""
    return _run("llama3_3_70b", *B70, **LLAMA3_1)


def smollm2_135m() -> "Run":
    """SmolLM2 135M, a small model of the same architecture (arXiv:2502.02737)."""
    rope = Rope(1e5)
    return _run(
        "smollm2_135m", 576, 30, 9, 3, 1536, vocab=49_152, context=8192, rope=rope, tied=True
    )


def _run(
    name: str,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    hidden: int,
    eps: float = 1e-5,
    tied: bool = False,
    **own: Any,
) -> "Run":
    given = Sizes(
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width // heads,
        hidden=hidden,
        eps=eps,
        tied=tied,
        **own,
    )
    return run(name, build(given))
