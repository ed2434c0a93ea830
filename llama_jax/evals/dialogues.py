"""Dialogues about pictures: all turns, the last one by kind, and the last with its history cut."""

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np

from llama_jax.checked import checked
from llama_jax.data import Questions, Stream
from llama_jax.data.images import light
from llama_jax.data.rows import Rows
from llama_jax.evals.base import Eval, Row, held_out
from llama_jax.evals.bootstrap import mean
from llama_jax.evals.inputs import encode
from llama_jax.evals.text import answer_length, answers
from llama_jax.evals.vision import another, usual_answers
from llama_jax.train.load import Trained

# Fields of a row, as `easy_vqa_dialogues` has them: the last question with what was said before,
# its answer, the last question alone, and what kind of dialogue it is.
WHOLE, ANSWER, LAST, KIND = "source", "target", "last", "kind"


def are_dialogues(rows: Rows) -> bool:
    """Whether rows say what their last question is without its history."""
    return {WHOLE, ANSWER, LAST} <= light(rows, 0).keys()


@checked
class Dialogues(Eval):
    """Accuracy of all turns and of last ones, and two controls.

    History cut: the last question alone, with the picture. Shuffled images: the whole dialogue,
    with the picture of another.
    """

    def rows(self, trained: Trained) -> list[Row]:
        """All turns; the last turn and each kind of it, whole and cut; with another's picture."""
        stream, data = held_out(self.stream(trained))
        right, row_B = self._right(trained, stream)
        turns = len(right) - 3 * len(row_B)
        shown = [light(stream.source.open(), i) for i in row_B.tolist()]
        usual = usual_last(self.stream(trained).source.open())
        prior_B = np.array([usual.get(row[LAST]) == row[ANSWER].strip() for row in shown])
        kind_B = np.array([row.get(KIND, "") for row in shown])
        kinds = sorted({*kind_B.tolist()} - {""})
        last_B, cut_B, moved_B = right[turns:].reshape(3, -1)
        told = [answer for row in shown for answer in row[cast(Questions, stream.task).answers]]
        always, _ = usual_answers(self.stream(trained), trained.tokenizer)
        found = [
            Row.of(
                f"{self.name}_accuracy",
                mean(right[:turns]),
                float(np.mean([answer.strip() == always for answer in told])),
                f"always {always!r}",
                turns,
                data,
            )
        ]
        for right_B, name in (
            (last_B, ""),
            (cut_B, "_history_cut"),
            (moved_B, "_shuffled_images"),
        ):
            for kind in ("", *kinds) if name != "_shuffled_images" else ("",):
                of_B = (kind_B == kind) | (not kind)
                found.append(
                    Row.of(
                        f"{self.name}_last_turn{f'_{kind}' * bool(kind)}{name}",
                        mean(right_B[of_B]),
                        float(np.mean(prior_B[of_B])),
                        "usual answer to the last question",
                        int(np.sum(of_B)),
                        data,
                    )
                )
        return found

    def _right(self, trained: Trained, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
        """Which answers are right, and the number of each dialogue's row.

        All turns come first; then of every dialogue the last turn, the same with its history cut,
        and the same with the picture of another. In one call: one compilation.
        """
        ids: list[np.ndarray] = []
        tokenizer = trained.tokenizer
        whole = _noted(self.batches(_asking(stream, WHOLE), tokenizer), ids)
        cut = self.batches(_asking(stream, LAST), tokenizer)
        every = itertools.chain(self.batches(stream, tokenizer), whole, cut)
        inputs = encode(trained, every, self.batch)
        row_B = np.concatenate(ids)
        again = slice(len(inputs) - 2 * len(row_B), len(inputs) - len(row_B))
        index = {name: np.concatenate([i, i[again]]) for name, i in inputs.index.items()}
        moved = another(len(inputs.towers["image"].x))
        index["image"][len(inputs) :] = moved[inputs.index["image"][again]]
        said = answers(trained, inputs, index, answer_length(stream, trained), self.batch)
        return np.array(said) == np.array(inputs.target + inputs.target[again]), row_B


def usual_last(rows: Rows) -> dict[str, str]:
    """The most frequent answer to each last question."""
    each: dict[str, Counter[str]] = defaultdict(Counter)
    for i in range(len(rows)):
        row = light(rows, i)
        each[row[LAST]][row[ANSWER].strip()] += 1
    return {question: counts.most_common(1)[0][0] for question, counts in each.items()}


def _asking(stream: Stream, question: str) -> Stream:
    """The stream with one question a row, from this field."""
    task = cast(Questions, stream.task)
    task = dataclasses.replace(task, questions=question, answers=ANSWER, per_image=1)
    return dataclasses.replace(stream, task=task)


def _noted(batches: Iterable[dict[str, Any]], ids: list[np.ndarray]) -> Iterator[dict[str, Any]]:
    """The batches; the numbers of their rows are added to `ids` as they pass."""
    for made in batches:
        ids.append(made["id"][made["row_valid"]])
        yield made
