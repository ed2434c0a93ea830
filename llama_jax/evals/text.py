"""Text: perplexity and accuracy from the objectives themselves, and texts that must match."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from llama_jax.checked import checked
from llama_jax.data.fields import identity
from llama_jax.evals.base import Eval, Row, held_out, training_sample
from llama_jax.evals.bootstrap import interval, mean
from llama_jax.evals.inputs import Inputs, encode, in_batches, take, texts_of
from llama_jax.evals.ngrams import READINGS, Trigrams, perplexity
from llama_jax.generate.beam import Beam, search
from llama_jax.generate.decode import greedy
from llama_jax.objectives import losses
from llama_jax.text.roles import framing
from llama_jax.text.vocabulary import Vocabulary
from llama_jax.train.load import Trained
from llama_jax.train.processes import on_device

BATCHES = 20  # of fewer an interval would be too narrow
GREEDY = Beam(1)
SAMPLE = 20_000  # training rows behind a baseline: some 200,000 masked tokens of the demo's text
TOKENS = 2_000_000  # of these rows, about the most that trigrams count


@checked
class Scores(Eval):
    """Perplexity of predicted tokens, accuracy of labels: the run's objectives on held-out data.

    The baseline of a perplexity is the unigram model of the training data, that of an accuracy its
    most frequent label. Beside a perplexity stands that of trigrams too: of a masked token's both
    sides, which read the same corrupted text.
    """

    batch: int = 64

    def rows(self, trained: Trained) -> list[Row]:
        """Perplexity and accuracy of tokens, accuracy of labels: of each objective here."""
        objectives = {
            name: objective
            for name, objective in trained.run.objectives.items()
            if objective.on == self.on and objective.predicts
        }
        stream, data = held_out(self.stream(trained))
        tokenizer = trained.tokenizer
        sums, test, asked = self._pass(trained, objectives, self.batches(stream, tokenizer))
        sample = training_sample(self.stream(trained), tokenizer, SAMPLE)
        texts: dict[str, list[np.ndarray]] = {name: [] for name in objectives}
        train = _counts(objectives, _kept(objectives, sample, texts))
        found = []
        for name, objective in objectives.items():
            counts, of_tokens = (test[name], train[name]), bool(objective.predicts[1])
            loss_R2, right_R2 = sums[name]["loss"], sums[name]["accuracy"]
            usual = "most frequent in training"
            if of_tokens:
                figure = over_batches(loss_R2, np.exp)
                row = Row.of(f"{name}_perplexity", figure, unigram(*counts), "unigram", 0, data)
                row = _beside(row, objective, texts[name], asked[name], tokenizer)
                found.append((row, loss_R2))
                usual = "most frequent token"
                figure = over_batches(right_R2)
            else:  # examples, one like the next
                right, count = right_R2.sum(axis=0).astype(int)
                figure = mean(np.arange(count) < right)
            row = Row.of(f"{name}_accuracy", figure, majority(*counts), usual, 0, data)
            found.append((row, right_R2))
        return [replace(row, count=int(sums_R2[:, 1].sum())) for row, sums_R2 in found]

    def _pass(self, trained: Trained, objectives: Mapping[str, Any], batches):
        """Sums and counts by batch, [R,2]; how often targets came; what trigrams are asked."""
        model, compute = trained.model, losses(objectives)

        @jax.jit
        def score(params, batch):
            args = {self.on: batch}, jax.random.key(0)
            found: Any = model.apply({"params": params}, *args, method=compute)[1]
            return {
                name: {"loss": (loss.sum, loss.count), "accuracy": loss.metrics["accuracy"]}
                for name, loss in found.items()
            }

        parts, seen, asked = [], [], {name: [] for name in objectives}
        for batch in batches:
            parts.append(jax.tree.map(float, jax.device_get(score(trained.params, batch))))
            seen.append({field: batch[field] for field in _fields(objectives)} | _valid(batch))
            for name, objective in objectives.items():
                if reading := READINGS.get(objective.predicts[0]):
                    asked[name] += reading.asked(batch)
        sums = {
            name: {
                key: np.array([part[name][key] for part in parts]).reshape(-1, 2)
                for key in ("loss", "accuracy")
            }
            for name in objectives
        }
        return sums, _counts(objectives, seen), asked


def over_batches(
    sums_R2: np.ndarray, scale: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> tuple[float, float | None, float | None]:
    """A mean over tokens with its interval; whole batches are drawn, for tokens of a text depend.

    Args:
      sums_R2: sum and count of each batch.
      scale: what a mean is turned into.
    """
    figure = interval(sums_R2, lambda sums: scale(sums[:, 0] / np.maximum(sums[:, 1], 1)))
    return figure if len(sums_R2) >= BATCHES else (figure[0], None, None)


def _kept(objectives: Mapping[str, Any], batches, texts: dict[str, list[np.ndarray]]):
    """Yields the batches, and keeps their texts for trigrams."""
    for batch in batches:
        for name, objective in objectives.items():
            reading = READINGS.get(objective.predicts[0])
            if reading and sum(map(len, texts[name])) < TOKENS:
                texts[name] += reading.whole(batch)
        yield batch


def _beside(row: Row, objective: Any, texts, asked, tokenizer: Vocabulary) -> Row:
    """The row with the perplexity of trigrams, where one knows how they read its objective."""
    reading = READINGS.get(objective.predicts[0])
    if reading is None or not texts or not sum(len(tokens) for _, _, tokens in asked):
        return row
    masks = objective.predicts[0] == "mlm_targets"  # which hides no special token
    least = getattr(tokenizer, "reserved", 0) if masks else 0
    model = Trigrams(texts, reading.contexts, tokenizer.vocab, least)
    return replace(row, strong=perplexity(model, asked), strong_name=reading.name)


def _fields(objectives: Mapping[str, Any]) -> set[str]:
    return {f for o in objectives.values() for f in o.predicts if f is not None}


def _valid(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {"row_valid": batch["row_valid"]} if "row_valid" in batch else {}


def _counts(objectives: Mapping[str, Any], batches) -> dict[str, np.ndarray]:
    """How often each objective's target has each value."""
    found = {name: np.zeros(0) for name in objectives}
    for batch in batches:
        for name, objective in objectives.items():
            field, weights = objective.predicts
            values = np.asarray(batch[field])
            weight = np.asarray(batch[weights]) if weights else np.asarray(values >= 0, float)
            if "row_valid" in batch:
                weight = (weight.T * batch["row_valid"]).T
            counts = np.bincount(np.maximum(values, 0).ravel(), weight.ravel())
            size = max(len(counts), len(found[name]))
            found[name] = _longer(found[name], size) + _longer(counts, size)
    return found


def _longer(counts: np.ndarray, size: int) -> np.ndarray:
    return np.pad(counts, (0, size - len(counts)))


def unigram(test_V: np.ndarray, train_V: np.ndarray) -> float:
    """Perplexity of the test counts under the training frequencies, each count plus one."""
    size = max(len(test_V), len(train_V))
    test_V, train_V = _longer(test_V, size), _longer(train_V, size) + 1
    return float(np.exp(-np.sum(test_V * np.log(train_V / train_V.sum())) / max(test_V.sum(), 1)))


def majority(test_V: np.ndarray, train_V: np.ndarray) -> float:
    """Share of the test counts that the value most frequent in training has."""
    best = int(np.argmax(train_V))
    return float(test_V[best] / test_V.sum()) if best < len(test_V) else 0.0


@checked
class ExactMatch(Eval):
    """Share of examples whose decoded text is the target: captions, translations, summaries.

    Of a picture with several captions any of them is right.

    Attributes:
      only: the one modality that the decoder reads ("image" for captions), or None for all.
    """

    only: str | None = None

    def rows(self, trained: Trained) -> list[Row]:
        """One row; the baseline always says what the training data says most often."""
        stream, data = held_out(self.stream(trained))
        inputs = encode(
            trained, self.batches(stream, trained.tokenizer), self.batch, only=self.only
        )
        said = answers(trained, inputs, inputs.index, answer_length(stream, trained), self.batch)
        counts = Counter(
            text
            for made in training_sample(self.stream(trained), trained.tokenizer, 5_000)
            for text in texts_of(made["targets"], trained.tokenizer)
        )
        usual = counts.most_common(1)[0][0]
        return [
            Row.of(
                f"{self.name}_exact_match",
                mean(exact(said, inputs)),
                float(np.mean(exact([usual] * len(inputs), inputs))),
                "most frequent text",
                len(inputs),
                data,
            )
        ]


def exact(said: Sequence[str], inputs: Inputs) -> np.ndarray:
    """Whether each text is its example's target, or one of them, [B]."""
    same_B = np.array(said) == np.array(inputs.target)  # the target may be cut
    if not len(inputs.kinds):
        return same_B
    said_B = np.array([identity(text) for text in said])
    return same_B | np.any(said_B[:, None] == inputs.kinds, axis=1)


def answers(
    trained: Trained,
    inputs: Inputs,
    index: Mapping[str, np.ndarray],
    length: int,
    batch: int,
    beam: Beam = GREEDY,
) -> list[str]:
    """The decoder's text for each example.

    Args:
      trained: the model.
      inputs: what can be read.
      index: by modality, which input each example reads; -1 marks it as absent.
      length: at most so many tokens.
      batch: rows at a time.
      beam: how to search; greedily by default.
    """
    model, tokenizer, names = trained.model, framing(trained.tokenizer, "writing"), [*index]

    @jax.jit
    def write(params, towers, *index):
        def read(model):
            streams = {name: take(towers[name], i) for name, i in zip(names, index, strict=True)}
            return model.join(model.fuse(streams))

        variables = {"params": params}
        memory: Any = model.apply(variables, method=read)
        ends = {"bos": tokenizer.bos, "eos": tokenizer.eos, "max_new": length}
        if beam == GREEDY:
            return greedy(model, variables, memory, **ends).ids
        return search(model, variables, memory, beam, **ends).ids[:, 0]

    # The same inputs give the same text: ask once.
    distinct, place = np.unique(np.stack([*index.values()], 1), axis=0, return_inverse=True)
    towers = on_device({name: inputs.towers[name] for name in names})
    ids = in_batches(lambda *i: write(trained.params, towers, *i), batch, *distinct.T)
    texts = texts_of(ids, tokenizer)
    return [texts[i] for i in place.reshape(-1)]


def answer_length(stream: Any, trained: Trained) -> int:
    """T of the stream's targets."""
    return int(stream.fields(trained.tokenizer)["targets"][0][1])
