"""How far does the seed's system get on easy-VQA with the full preset?

Pre-trains seed_full and fine-tunes seed_full_vqa from it.

Command:  python -m experiments.full_seed
Goal:     VQA >= 99.0 %, class-aware R@1 >= 99 %, ITM >= 97 % on hard negatives

Not run yet.
"""

from pathlib import Path

from experiments.harness import main
from llama_jax import edit, presets
from llama_jax.config import Run

PRETRAINED = Path("runs/full_seed/pretrained/0")


def variants() -> dict[str, Run]:
    """Both stages; the second begins with the weights of the first."""
    return {
        "pretrained": presets.get("seed_full"),
        "vqa": edit(presets.get("seed_full_vqa"), "init_from", str(PRETRAINED)),
    }


if __name__ == "__main__":
    columns = ("vqa_accuracy", "vqa_accuracy_shuffled_images", "retrieval_r1")
    columns += ("itm_accuracy_hard", "caption_exact_match", "mlm_perplexity", "nsp_accuracy")
    main("full_seed", variants, columns)
