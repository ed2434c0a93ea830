"""Do pictures drawn word by word show what their captions say?

Command:  python -m experiments.drawing
"""

from pathlib import Path

from experiments.harness import main
from llama_jax import edit, presets
from llama_jax.config import Run

WORDS = Path("runs/drawing/words/0")


def variants() -> dict[str, Run]:
    """Both stages; the second begins with the image tokenizer of the first."""
    return {
        "words": presets.get("seed_image_tokenizer"),
        "draw": edit(presets.get("seed_draw"), "init_from", str(WORDS)),
    }


if __name__ == "__main__":
    columns = ("reconstruct_psnr", "reconstruct_words_used", "reconstruct_shape_kept")
    columns += ("draw_color_accuracy", "draw_shape_accuracy", "draw_quadrant_accuracy")
    columns += ("draw_size_accuracy", "draw_all_accuracy")
    main("drawing", variants, columns)
