"""How fast is text tokenised and packed, and how long does a train step wait for its batch?

Command:  python -m experiments.input_pipeline
Machine:  2 CPU cores, 100 seconds

| what | tokens/s | a CPU second | remark |
|---|---|---|---|
| tokenise, 1 process | 1,567,599 | 880,964 | 4 shards |
| tokenise, 2 processes | 1,363,611 |  | starting them takes longer than they save |
| pack=split, 8 x 512 | 3,182,272 | 3,071,143 | 100.0% filled |
| pack=split, 8 x 2048 | 4,756,799 | 4,685,578 | 100.0% filled |
| pack=fit, 8 x 512 | 2,599,052 | 2,542,741 | 93.1% filled |
| pack=fit, 8 x 2048 | 4,399,574 | 4,353,621 | 91.0% filled |
| step, one batch over and over | 880 |  | 2.328 s a step |
| step, from the loader | 769 |  | 2.662 s a step; waited 0.15 ms, put 1.66 ms: 0.07% |

Of a step 1.8 ms were spent waiting for the batch and copying it to the devices: 0.07 %. So no
further copying ahead was added to the loop: the host makes and copies a batch while the step before
computes. The 14 % between the two steps are the spread of this machine from minute to minute.

Text: the King James Bible by chapter, eight times over; its own BPE of 16,384 ids. Packing reads
the prepared shards in the order of training and makes whole batches, on one thread, with nothing
else to do. The step is that of a LLaMA of 24M parameters, batch 4 x 512, AdamW, float32. "waited"
is what `next(loader)` took in it, "put" the copy to the devices, both while the step before still
computes.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

WORDS, COPIES = 16_384, 8
LENGTHS, BATCH = (512, 2048), 8
STEP_BATCH, STEP_LENGTH = 4, 512


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.input_pipeline")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each packing")
    parser.add_argument("--steps", type=int, default=8, help="of training; 0 for none")
    parser.add_argument("--preset", default="decoder_25m", help="whose step it is")
    parser.add_argument("--vocab", type=int, default=WORDS)
    parser.add_argument("--limit", type=int, help="chapters to read; all by default")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = tokenising(Path(folder), args.vocab, args.limit)
        rows += packing(Path(folder) / "1", args.seconds)
        if args.steps:
            rows += stepping(Path(folder) / "1", args)
    print("| what | tokens/s | a CPU second | remark |\n|---|---|---|---|")
    for what, rate, cpu, remark in rows:
        print(f"| {what} | {rate:,.0f} | {'' if cpu is None else f'{cpu:,.0f}'} | {remark} |")


Row = tuple[str, float, float | None, str]  # tokens a second, and a second of this process's CPUs


def tokenising(folder: Path, vocab: int, limit: int | None) -> list[Row]:
    """By one process (whose tokenizer has a thread a core) and by two; leaves shards in "1"."""
    from llama_jax.data import JsonLines, Tfds
    from llama_jax.data.prepare import prepare, trained

    chapters = Tfds("kjv", limit=limit).open()
    text = [json.dumps({"text": " ".join(row["sentences"])}) for row in chapters]
    (folder / "kjv.jsonl").write_text("\n".join(text * COPIES))
    source = JsonLines(str(folder / "kjv.jsonl"))
    words = trained(source, vocab, None, folder)
    rows = []
    for workers in (1, 2):
        begin, cpu = time.perf_counter(), time.process_time()
        files = {"tokenizer.json": words.content()}
        made = prepare(source, folder / str(workers), words, files, workers=workers)
        rate = made.tokens / (time.perf_counter() - begin)
        here = made.tokens / (time.process_time() - cpu) if workers == 1 else None
        rows.append((f"tokenise, {workers} processes", rate, here, f"{len(made.shards)} shards"))
    return rows


def packing(prepared: Path, seconds: float) -> list[Row]:
    """Batches of packed rows, as a run reads them."""
    from llama_jax.data import LanguageModel, Loader, Prepared, Stream
    from llama_jax.text.files import open_for_training

    rows = []
    for pack in ("split", "fit"):
        for length in LENGTHS:
            stream = Stream(Prepared(str(prepared)), LanguageModel(length, pack=pack), BATCH)
            loader = Loader({"text": stream}, open_for_training(prepared))
            next(loader)
            begin, cpu, tokens, places = time.perf_counter(), time.process_time(), 0, 0
            while time.perf_counter() - begin < seconds:
                weights = next(loader)["text"]["loss_weights"]
                tokens, places = tokens + int(weights.sum()), places + weights.size
            rate = tokens / (time.perf_counter() - begin)
            here = tokens / (time.process_time() - cpu)
            loader.close()
            filled = f"{tokens / places:.1%} filled"
            rows.append((f"pack={pack}, {BATCH} x {length}", rate, here, filled))
    return rows


def stepping(prepared: Path, args: argparse.Namespace) -> list[Row]:
    """Steps over one batch that is on the devices, and steps with the loader."""
    import jax

    from experiments.steps import steps_of
    from llama_jax import edit, presets
    from llama_jax.config import File
    from llama_jax.data import LanguageModel, Loader, Prepared, Stream
    from llama_jax.text.files import open_for_training
    from llama_jax.train.rows import put

    stream = Stream(Prepared(str(prepared)), LanguageModel(STEP_LENGTH), STEP_BATCH)
    run = edit(presets.get(args.preset), "model.vocab", args.vocab)
    run = dataclasses.replace(run, data={"text": stream}, tokenizer=File(str(prepared)))
    words = open_for_training(prepared)
    loader = Loader(run.data, words)
    with steps_of(run, words) as made:
        state = made.layout.init(0)

        def steps(count: int, batch_of) -> float:
            """Seconds a step; the host is one step ahead, as in the loop."""
            nonlocal state
            begin, late = time.perf_counter(), None
            for _ in range(count):
                state, metrics = made.step(state, batch_of())
                jax.block_until_ready(late)
                late = metrics
            jax.block_until_ready(late)
            return (time.perf_counter() - begin) / count

        held = put(next(loader), made.mesh, run.rules)
        steps(1, lambda: held)  # compiles
        fixed = steps(args.steps, lambda: held)
        waited = copying = 0.0

        def fresh():
            nonlocal waited, copying
            begin = time.perf_counter()
            batch = next(loader)
            waited += time.perf_counter() - begin
            begin = time.perf_counter()
            batch = put(batch, made.mesh, run.rules)
            copying += time.perf_counter() - begin
            return batch

        fed = steps(args.steps, fresh)
    loader.close()
    tokens = STEP_BATCH * STEP_LENGTH
    share = (waited + copying) / args.steps / fed
    each = [1e3 * seconds / args.steps for seconds in (waited, copying)]
    said = f"{fed:.3f} s a step; waited {each[0]:.2f} ms, put {each[1]:.2f} ms: {share:.2%}"
    size = f"step, {made.layout.parameters / 1e6:.1f}M parameters"
    return [
        (f"{size}, one batch over and over", tokens / fixed, None, f"{fixed:.3f} s a step"),
        (f"{size}, from the loader", tokens / fed, None, said),
    ]


if __name__ == "__main__":
    main()
