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

That was with numbers of 8, 5, 5 and 5 levels. The same in small (`seed_demo_words`: half the width,
8 pictures of 64 x 64 a step, rate 4e-3; 700 steps, 26 to 32 s of CPU, first 512 test pictures):

| levels of a word              | words     | PSNR    | colour kept | shape kept |
|-------------------------------|-----------|---------|-------------|------------|
| 8, 5, 5, 5                    | 1,000     | 22.0 dB | 52 %        | 73 %       |
| 4, 4, 4, 4, 4                 | 1,024     | 24.2 dB | 81 %        | 81 %       |
| ten of 2                      | 1,024     | 20.8 dB | 29 %        | 72 %       |
| four of 32 (nearly unrounded) | 1,048,576 | 24.6 dB | 90 %        | 77 %       |

Longer, with 4, 4, 4, 4, 4 (a second of CPU is of a core that several processes wanted; A, B: the
first 256 test pictures or captions, C, D: all 1,000):

|                       | CPU   | PSNR    | colour | shape  | quadrant | size   | all    |
|-----------------------|-------|---------|--------|--------|----------|--------|--------|
| A words, 1,500 steps  | 49 s  | 26.3 dB | 96.1 % | 87.9 % | 100.0 %  | 96.9 % | 82.0 % |
|   drawn with A        | 120 s |         | 85.5 % | 63.7 % | 89.1 %   | 84.4 % | 44.9 % |
| B words, 2,500 steps  | 68 s  | 28.2 dB | 96.1 % | 93.8 % | 100.0 %  | 99.6 % | 91.0 % |
| C drawn with B        | 132 s |         | 87.4 % | 65.8 % | 85.3 %   | 81.9 % | 49.9 % |
| D drawn with B        | 139 s |         | 89.9 % | 77.5 % | 85.8 %   | 90.9 % | 59.3 % |
| any training picture  |       |         | 12.3 % | 34.1 % | 28.0 %   | 60.0 % | 1.0 %  |

One layer of width 128 wrote below A (1,800 steps) and in C (2,000); in D two of width 96 (1,700),
with a decay of 0.02 in place of 0.05. B and D are `seed_demo_words` and `seed_demo_draw`.

Colours, at chance after 160 steps of 32 captions before, needed steps: 80.9 % of 256 after 1,200 of
16, with words of 25.8 dB and one layer; the objective was not changed. Small steps help the
tokenizer: 400 of 32 pictures of 32 x 32 had 21.6 dB after 18 s of CPU, 1,500 of 8 had 23.6 after
20 s. At a rate of 8e-3 three numbers of five levels came to 21.6 dB and a perplexity of 2 words.

Of the first 256 drawings with A five had no shape that can be judged, and of the wrong colours most
were teal for gray and brown for red. A temperature of 0.9, of 1,000 drawings of C: colours 85.8,
quadrants 83.8, all 50.1 %. Of 512 with A 0.7 has quadrants at 78.9 %, where 1.0 has 87.9: greedy
writing puts shapes late.

The presets seed_image_tokenizer and seed_draw have this code book now; neither was run to its end
yet.

Verdict: the system draws; how well is a matter of the tokenizer and of steps. The goals are open.
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
