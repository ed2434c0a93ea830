"""Which fusion answers questions about pictures best, at the same steps?

Every variant of `Fusion` in the demo's model, trained on questions from nothing, without
pre-training, which would favour what the demo was tuned for.

Command:  python -m experiments.fusion

Not run yet.
"""

from experiments.harness import main
from llama_jax import edit, presets
from llama_jax.config import Run
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block, Gated, Merged
from llama_jax.layers.stack import Stack
from llama_jax.models.coattention import CoAttention
from llama_jax.models.fusion import Concat, Late, Perceiver, Reading


def base() -> Run:
    """The demo's fine-tuning."""
    return presets.get("seed_vqa")


def variants() -> dict[str, Run]:
    """They differ in `model.fusion` alone; its heads and feed-forward are the demo's."""
    coattention = base().model.fusion
    cross: Attention = coattention.attention
    block: Block = coattention.block
    plain = Block(cross, block.ffn)  # without rotary positions: streams share no coordinates

    def reading(kind) -> Reading:
        return Reading(Stack((Block(block.attention, block.ffn, cross=kind),)))

    def co(**fields) -> CoAttention:
        return CoAttention(cross, block, layers=1, **fields)

    latents = Stack((Block(cross, block.ffn, cross=Merged()),))
    fusions = {
        "coattention_joint": coattention,
        "coattention_all_shared": co(share="all"),
        "coattention_per_pair": co(share="per_pair"),
        "concat": Concat(Stack((plain,))),
        "reading": reading(cross),
        "gated": reading(Gated(cross)),
        "merged": Reading(Stack((Block(cross, block.ffn, cross=Merged()),))),
        "perceiver": Perceiver(8, latents, coattention),
        "late": Late(),
    }
    return {name: edit(base(), "model.fusion", fusion) for name, fusion in fusions.items()}


if __name__ == "__main__":
    main("fusion", variants, ("vqa_accuracy", "vqa_accuracy_shape", "vqa_accuracy_shuffled_images"))
