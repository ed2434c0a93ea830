"""Pictures: answers with two controls, retrieval in the shared space, image-text matching."""

from collections import Counter, defaultdict
from typing import Any, cast

import jax
import numpy as np

from llama_jax.checked import checked
from llama_jax.data import Questions, Stream
from llama_jax.data.builders.shapes import answer_type
from llama_jax.data.images import light
from llama_jax.data.rows import get
from llama_jax.evals.base import Eval, Row, held_out, unmasked
from llama_jax.evals.bootstrap import balanced, mean
from llama_jax.evals.inputs import VISUAL, Inputs, encode, in_batches, take
from llama_jax.evals.text import answer_length, answers
from llama_jax.models.tokens import pool
from llama_jax.train.load import Trained
from llama_jax.train.processes import on_device

SEED = 0  # of shuffled pictures and drawn negatives, so that two evaluations agree


@checked
class Vqa(Eval):
    """Accuracy of answers about pictures, by kind of answer, and two controls.

    Shuffled images: every question is asked of another picture. Question only: the picture is
    marked absent. What a model still gets right there, it does not owe to the picture.
    """

    def rows(self, trained: Trained) -> list[Row]:
        """All questions, each kind of answer, shuffled images, question only."""
        stream, data = held_out(self.stream(trained))
        inputs = encode(trained, self.batches(stream, trained.tokenizer), self.batch)
        length = answer_length(stream, trained)
        visual = next(name for name in VISUAL if name in inputs.index)
        own_B = inputs.index[visual]
        target_B = np.array(inputs.target)
        moved_B = another(len(inputs.towers[visual].x))[own_B]
        # The three conditions one after another in one call: one compilation.
        seen = np.concatenate([own_B, moved_B, np.full_like(own_B, -1)])
        index = {name: np.tile(index_B, 3) for name, index_B in inputs.index.items()}
        said = answers(trained, inputs, index | {visual: seen}, length, self.batch)
        right_B, right_moved_B, right_blind_B = np.array(said).reshape(3, -1) == target_B

        usual, by_question = usual_answers(self.stream(trained), trained.tokenizer)
        always_B = target_B == usual
        wording_B = target_B == np.array([by_question.get(q, usual) for q in inputs.asked])
        kind_B = np.array([answer_type(answer) for answer in inputs.target])
        kinds = sorted(set(kind_B.tolist()))

        def row(name: str, model_B: np.ndarray, baseline_B: np.ndarray, what: str) -> Row:
            name = f"{self.name}_accuracy{name}"
            baseline = float(np.mean(baseline_B))
            return Row.of(name, mean(model_B), baseline, what, len(model_B), data)

        usually, same = "usual answer to the question", f"always {usual!r}"
        found = [row("", right_B, wording_B, usually)]
        for kind in kinds if len(kinds) > 1 else ():
            of_B = kind_B == kind
            found.append(row(f"_{kind.replace('/', '_')}", right_B[of_B], wording_B[of_B], usually))
        found.append(row("_shuffled_images", right_moved_B, always_B, same))
        found.append(row("_question_only", right_blind_B, always_B, same))
        return found


def usual_answers(stream: Stream, tokenizer: Any) -> tuple[str, dict[str, str]]:
    """The training data's most frequent answer in all, and to each question."""
    rows, task = stream.source.open(), cast(Questions, stream.task)
    every: Counter[str] = Counter()
    each: dict[str, Counter[str]] = defaultdict(Counter)
    for i in range(len(rows)):
        row = light(rows, i)
        questions, told = get(row, task.questions), get(row, task.answers)
        if isinstance(questions, str):
            questions, told = [questions], [told]
        every.update(told)
        for question, answer in zip(questions, told, strict=True):
            each[question][answer] += 1

    def cut(question: str) -> str:  # as the model sees it
        return tokenizer.decode(tokenizer.encode(question)[: task.length - 2]).strip()

    by_question = {cut(q): counts.most_common(1)[0][0].strip() for q, counts in each.items()}
    return every.most_common(1)[0][0].strip(), by_question


def another(count: int) -> np.ndarray:
    """A permutation in one cycle, so that none of two or more stays where it is."""
    order = np.random.default_rng(SEED).permutation(count)
    moved = np.empty(count, np.int32)
    moved[order] = np.roll(order, 1)
    return moved


@checked
class Aligned(Eval):
    """An evaluation over pairs of text and picture.

    Attributes:
      pair: the two modalities.
    """

    pair: tuple[str, str] = ("text", "image")

    def inputs(self, trained: Trained) -> tuple[Inputs, str]:
        """The held-out pairs, with whole texts."""
        stream, data = held_out(unmasked(self.stream(trained)))
        return encode(trained, self.batches(stream, trained.tokenizer), self.batch), data

    def right(self, inputs: Inputs) -> np.ndarray:
        """Which example's first modality is right for which one's second, [B,B]."""
        return inputs.right() if self.pair[0] == "text" else inputs.right().T

    def similarity(self, trained: Trained, inputs: Inputs) -> np.ndarray:
        """Scaled similarity of every example's first modality with every one's second, [B,B]."""
        model = trained.model

        def embed(name: str) -> np.ndarray:
            def run(module, tokens):
                x_BD = tokens.x[:, 0] if name == "text" else pool(tokens)
                return module.align(name, x_BD)

            @jax.jit
            def z(params, tower, index_B):
                return model.apply({"params": params}, take(tower, index_B), method=run)

            tower = on_device(inputs.towers[name])
            numbers = np.arange(len(tower.x), dtype=np.int32)
            return in_batches(lambda i: z(trained.params, tower, i), self.batch, numbers)

        a, b = self.pair
        scale: Any = model.apply({"params": trained.params}, method="align_scale")
        sim = float(scale) * embed(a) @ embed(b).T
        return sim[inputs.index[a]][:, inputs.index[b]]


@checked
class Retrieval(Aligned):
    """Recall at 1, both ways, among all held-out pairs.

    Class-aware: captions repeat and a picture may have several, so any text that is true of the
    picture counts as found, and any picture of which the text is true.
    """

    def rows(self, trained: Trained) -> list[Row]:
        """The mean of both ways, and each."""
        inputs, data = self.inputs(trained)
        sim_BB = self.similarity(trained, inputs)
        same_BB = self.right(inputs)
        rows = np.arange(len(inputs))
        there_B = same_BB[rows, sim_BB.argmax(axis=1)]
        back_B = same_BB[sim_BB.argmax(axis=0), rows]
        a, b = self.pair
        both_B = (there_B.astype(float) + back_B) / 2
        found = {"": both_B, f"_{a}_to_{b}": there_B, f"_{b}_to_{a}": back_B}
        chance = float(np.mean(same_BB))
        return [
            Row.of(f"{self.name}_r1{name}", mean(found_B), chance, "chance", len(inputs), data)
            for name, found_B in found.items()
        ]


@checked
class Matching(Aligned):
    """Accuracy of "does this text belong to this picture?", as many yes as no.

    Random negatives are any pairs that do not belong together. Hard ones are drawn as in training:
    a text for every picture and a picture for every text, with probability softmax(similarity)
    within random batches as large as the training stream's. The hardest are drawn among all
    held-out pairs, so that a few pictures on a border between two captions come again and again.
    """

    def rows(self, trained: Trained) -> list[Row]:
        """On random negatives, hard ones and the hardest."""
        inputs, data = self.inputs(trained)
        sim_BB = self.similarity(trained, inputs)
        same_BB = self.right(inputs)
        rng, own = np.random.default_rng(SEED), np.arange(len(inputs))
        batch_B = rng.permutation(len(inputs)) // self.stream(trained).batch
        apart_BB = batch_B[:, None] != batch_B[None, :]
        positive_B = self.matches(trained, inputs, own, own) == 1
        found = {
            "": self._pairs(np.zeros_like(sim_BB), same_BB, rng),
            "_hard": self._both_ways(sim_BB, same_BB | apart_BB, rng),
            "_hardest": self._both_ways(sim_BB, same_BB, rng),
        }
        result = []
        for name, (a, b) in found.items():
            refused = self.matches(trained, inputs, a, b) == 0 if len(a) else []
            figure, count = balanced(positive_B, refused), len(own) + len(a)
            result.append(Row.of(f"{self.name}_accuracy{name}", figure, 0.5, "chance", count, data))
        return result

    def _both_ways(self, sim_BB, refused_BB, rng) -> tuple[np.ndarray, np.ndarray]:
        """A second for every first and a first for every second."""
        there = self._pairs(sim_BB, refused_BB, rng)
        back = self._pairs(sim_BB.T, refused_BB.T, rng)[::-1]
        return np.concatenate([there[0], back[0]]), np.concatenate([there[1], back[1]])

    @staticmethod
    def _pairs(logits_BB, refused_BB, rng) -> tuple[np.ndarray, np.ndarray]:
        """Every row with a wrong column, drawn by softmax(logits) (Gumbel's trick)."""
        noisy = np.where(refused_BB, -np.inf, logits_BB + rng.gumbel(size=logits_BB.shape))
        rows = np.flatnonzero(~refused_BB.all(axis=1))
        return rows, noisy.argmax(axis=1)[rows]

    def matches(self, trained: Trained, inputs: Inputs, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Whether the model takes example a's first modality and b's second for a pair."""

        @jax.jit
        def judge(params, towers, *index):
            def run(model):
                chosen = zip(self.pair, index, strict=True)
                fused = model.fuse({name: take(towers[name], i) for name, i in chosen})
                first = fused[self.pair[0]]
                x_BD = first.x[:, 0] if self.pair[0] == "text" else pool(first)
                return model.match(x_BD).argmax(axis=-1)

            return trained.model.apply({"params": params}, method=run)

        towers = on_device({name: inputs.towers[name] for name in self.pair})
        pairs = [inputs.index[name][i] for name, i in zip(self.pair, (a, b), strict=True)]
        return in_batches(lambda *i: judge(trained.params, towers, *i), self.batch, *pairs)
