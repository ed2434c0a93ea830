"""Do pictures drawn word by word show what their captions say?

Trains the image tokenizer, then the model that writes its words, on easy-VQA's 4,000 training
pictures.

Command:  python -m experiments.drawing
Goals:    PSNR >= 30 dB; drawn colours >= 98 %, shapes >= 95 %, quadrants >= 95 %
Machine:  one of 2 CPU cores, shared with some twenty other processes
Seed:     0

| test data, 1,000 pictures  | tokenizer, 1,000 steps | the pictures themselves        |
|----------------------------|------------------------|--------------------------------|
| PSNR                       | 26.9 dB                | 15.8 dB (one colour a picture) |
| words used, of 1,000       | 594 (perplexity 20.5)  |                                |
| the judge reads the colour | 97.7 %                 | 100 %                          |
| the shape                  | 90.8 %                 | 100 %                          |
| the quadrant               | 100 %                  | 100 %                          |
| the size                   | 98.1 %                 | 100 %                          |

The ground of a picture is one colour, so that no noise bounds the PSNR; edges do. A step of 16
pictures takes 115 ms of CPU. This run was cut short: 822 steps of a schedule of 2,000, and on to
step 1,000 with the rates of a schedule of 1,000. The preset has 5,000 steps, about ten minutes of a
core that does nothing else. Neither it nor the second stage was run to its end yet.

On pictures of 32 x 32 (240 steps of the tokenizer, 20.2 dB; 160 of drawing, 32 captions each) 47 %
of words were right in training, its loss still fell, and colours were at chance, 12.5 % of 128.

Verdict: open. No more can be drawn than the tokenizer keeps, and it has not learned enough yet.
"""

from pathlib import Path

from experiments.harness import main
from llama_jax import edit, presets
from llama_jax.config import Run

WORDS = Path("runs/drawing/words/0")


def variants() -> dict[str, Run]:
    """Both stages; the second begins with the image tokenizer of the first. Then code books."""
    made = {
        "words": presets.get("seed_image_tokenizer"),
        "draw": edit(presets.get("seed_draw"), "init_from", str(WORDS)),
    }
    short = edit(presets.get("seed_demo_words"), "steps", 700)
    for levels in ((8, 5, 5, 5), (4, 4, 4, 4, 4), (2,) * 10, (32,) * 4):
        name = "levels_" + "_".join(map(str, levels))
        made[name] = edit(short, "model.pictures.quantise.levels", levels)
    return made


if __name__ == "__main__":
    columns = ("reconstruct_psnr", "reconstruct_words_used", "reconstruct_shape_kept")
    columns += ("draw_color_accuracy", "draw_shape_accuracy", "draw_quadrant_accuracy")
    columns += ("draw_size_accuracy", "draw_all_accuracy")
    main("drawing", variants, columns)
