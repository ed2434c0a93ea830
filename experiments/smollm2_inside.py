"""What does SmolLM2-135M bring to the seed's system, as encoder and decoder, or frozen with eyes?

    eyes        frozen, its last four layers look at easy-VQA's pictures (`seed_smollm2_eyes`)
    headlines   an encoder-decoder that begins with its weights writes headlines of BBC articles
    nothing     the same from random weights, at equal steps
    both        headlines and French interface texts (`seed_smollm2`)
    prompted    SmolLM2 itself, shown three articles with their headlines; trains nothing

Command:  python -m experiments.smollm2_inside [--variant eyes] [--prompted 100]
          The same command goes on where a run was stopped.
Machine:  see LOG.md: no run has been finished yet
Seed:     0
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import llama_jax
from experiments.harness import measure
from llama_jax import presets
from llama_jax.config import Run
from llama_jax.data import Tfds, one_pass
from llama_jax.evals.base import held_out
from llama_jax.evals.inputs import encode
from llama_jax.evals.text import answer_length, answers
from llama_jax.train.load import load

PLACE = Path("runs/smollm2_inside")
NEWS = Tfds("bbc_news")
SHOTS, WORDS = 3, 60  # articles that are shown, and the words of each article
LEAD = 8  # words that the baseline takes


def variants() -> dict[str, Run]:
    """The runs; "nothing" reads its tokenizer in the run "headlines"."""
    both, eyes = presets.get("seed_smollm2"), presets.get("seed_smollm2_eyes")
    alone = {name: getattr(both, name) for name in ("data", "objectives")}
    alone = {name: {"headlines": every["headlines"]} for name, every in alone.items()}
    headlines = dataclasses.replace(both, name="headlines", accumulate=2, **alone)
    known = dataclasses.replace(both.tokenizer, path=str(PLACE / "headlines" / "0"))
    return {
        "eyes": dataclasses.replace(eyes, init_from="smollm2"),
        "headlines": dataclasses.replace(headlines, init_from="smollm2"),
        "nothing": dataclasses.replace(headlines, tokenizer=known),
        "both": dataclasses.replace(both, init_from="smollm2"),
    }


def main() -> None:
    """Trains what is not done yet, and prints what there is to say of it."""
    parser = argparse.ArgumentParser(prog="python -m experiments.smollm2_inside")
    parser.add_argument("--variant", action="append", choices=[*variants()], default=None)
    parser.add_argument("--steps", type=int, default=None, help="in place of each variant's own")
    parser.add_argument("--prompted", type=int, default=0, help="articles to prompt SmolLM2 with")
    parser.add_argument("--limit", type=int, default=None, help="articles to judge; all without it")
    args = parser.parse_args()
    for name in args.variant or ([] if args.prompted else variants()):
        place = PLACE / name / "0"
        found = measure(variants()[name], place, 0, args.steps)
        found |= untouched(place) if name == "eyes" else written(place, args.limit)
        print(name, {key: round(value, 4) for key, value in found.items()}, flush=True)
    if args.prompted:
        print("prompted", prompted(args.prompted), flush=True)


def untouched(place: Path) -> dict[str, float]:
    """The perplexity of a text without pictures: the run's, and that of its first weights."""
    trained, lm = load(place), llama_jax.load("smollm2")
    ids = np.array([lm.ids(NEWS.open()[0]["source"])[:256]], np.int32)

    def perplexity(logits: jax.Array) -> float:
        logp = jax.nn.log_softmax(logits[:, :-1])
        return float(jnp.exp(-jnp.mean(jnp.take_along_axis(logp, ids[:, 1:, None], axis=-1))))

    ours: Any = trained.model.apply({"params": trained.params}, ids, method="decode")
    return {"perplexity": perplexity(ours[0]), "smollm2_perplexity": perplexity(lm.logits(ids))}


def written(place: Path, limit: int | None = None) -> dict[str, float]:
    """ROUGE-L of the headlines that a run writes greedily, on test articles, and of lead words."""
    trained = load(place)
    stream, _ = held_out(trained.run.data["headlines"])
    stream = dataclasses.replace(stream, batch=16)
    batches = one_pass(stream, trained.tokenizer, 16)
    some = (batch for i, batch in enumerate(batches) if limit is None or i * 16 < limit)
    inputs = encode(trained, some, 16)
    said = answers(trained, inputs, inputs.index, answer_length(stream, trained), 16)
    return {"rouge_l": rouge_l(said, inputs.target)}


def prompted(count: int) -> dict[str, float]:
    """ROUGE-L of what SmolLM2 writes after examples, and of the lead words, on test articles."""
    rows, shown = dataclasses.replace(NEWS, split="test").open(), NEWS.open()
    lm = llama_jax.load("smollm2")
    picks = np.random.default_rng(0).permutation(len(shown))[:SHOTS].tolist()
    front = "".join(f"{asked(shown[i]['source'])} {shown[i]['target']}\n\n" for i in picks)
    chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, count).astype(int).tolist()]
    prompts = [front + asked(row["source"]) for row in chosen]
    said = [lm.generate(prompt, 20, stop=["\n"]).strip() for prompt in prompts]
    wanted = [row["target"] for row in chosen]
    lead = [" ".join(row["source"].split()[:LEAD]) for row in chosen]
    return {"rouge_l": rouge_l(said, wanted), "lead": rouge_l(lead, wanted), "articles": count}


def asked(article: str) -> str:
    """The beginning of an article, and what a headline is to follow."""
    return f"Article: {' '.join(article.split()[:WORDS])}\nHeadline:"


def rouge_l(said: Sequence[str], wanted: Sequence[str]) -> float:
    """The mean F of the longest common subsequence, words stemmed."""
    from rouge_score.rouge_scorer import RougeScorer

    judge = RougeScorer(["rougeL"], use_stemmer=True)
    return float(
        np.mean([judge.score(w, s)["rougeL"].fmeasure for w, s in zip(wanted, said, strict=True)])
    )


if __name__ == "__main__":
    main()
