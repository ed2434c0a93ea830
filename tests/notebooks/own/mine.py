"""A stranger's second file: an objective, a source and an evaluation, and a block of the first."""

from dataclasses import dataclass, replace

from my_run import SquaredReLU  # the file of the README

from llama_jax import Attention, Block, Decoder, Run, Stack, edit, presets
from llama_jax.data.sources import Rows
from llama_jax.evals import Eval, Row
from llama_jax.objectives import CausalLM


@dataclass(frozen=True)
class Halved(CausalLM):
    def __call__(self, acts):
        loss = super().__call__(acts)
        return replace(loss, sum=loss.sum / 2)


@dataclass(frozen=True)
class Counting:
    documents: int = 40

    def open(self):
        def read(index):
            return {"document": str(index), "text": " ".join(str(index + i) for i in range(12))}

        return Rows("counting", self.documents, read)


@dataclass(frozen=True)
class Ones(Eval):
    def rows(self, trained):
        return [Row(self.name, 1.0, 0.5, "a half", trained.step)]


def run() -> Run:
    block = Block(Attention(2, 1, 8, causal=True), SquaredReLU(32))
    small = edit(presets.get("tiny_decoder"), "data.text.task.length", 16)
    return replace(
        small,
        name="mine",
        model=Decoder(vocab=300, width=16, stack=Stack((block,))),
        data={"text": replace(small.data["text"], source=Counting())},
        objectives={"lm": Halved(on="text")},
        tokenizer=replace(small.tokenizer, vocab=300),
        evaluations={"ones": Ones("ones", "text")},
        steps=2,
        log_every=1,
    )


if __name__ == "__main__":
    import llama_jax

    llama_jax.train(run(), "runs/script", progress=False)
    print(type(llama_jax.load("runs/script")).__name__)
