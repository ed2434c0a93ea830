"""Questions about pictures for a language model with eyes: it reads the question and goes on."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from llama_jax.checked import checked
from llama_jax.data import fields as r
from llama_jax.data.checks import at_least
from llama_jax.data.images import Pictures, light, picture_fields
from llama_jax.data.rows import Rows, get, texts_of
from llama_jax.errors import UserError
from llama_jax.messages import cut
from llama_jax.text.roles import framing
from llama_jax.text.vocabulary import Vocabulary


@checked
class Replies:
    """A question with its answer, `<bos> question answer <eos>`, and pictures that it is true of.

    Only the answer and its end are learned. An example is a text; `per_text` pictures share it, so
    what the lower layers of a language model make of it is made once: R = B / per_text texts. A
    text comes as often as there are pictures for it. In evaluation every question of every picture
    comes exactly once, and places that are left over have `row_valid` False and weights of zero.

    Attributes:
      length: T of a text.
      answer_length: tokens of an answer and its end, A.
      per_text: pictures that share a text.
      between: text between question and answer, tokenised with the answer.
      size: Y = X.
      image: field of the picture.
      questions: field of the questions (a list, or one text).
      answers: field of their answers.
    """

    length: int = 16
    answer_length: int = 3
    per_text: int = 8
    between: str = " "
    size: int = 64
    image: str = "image"
    questions: str = "questions"
    answers: str = "answers"

    def __post_init__(self) -> None:
        """Checks the values."""
        at_least(1, self, "length", "answer_length", "per_text", "size")

    def fields(self, batch: int, tokenizer: Vocabulary) -> r.Fields:
        """Texts, and the places, tokens and weights of answers; pictures."""
        del tokenizer
        if batch % self.per_text:
            raise UserError(
                f"batch={batch} is not a multiple of per_text={self.per_text}; "
                f"try batch={-(-batch // self.per_text) * self.per_text}"
            )
        texts = batch // self.per_text
        return {
            "tokens": ((texts, self.length), "int32"),
            "places": ((texts, self.answer_length), "int32"),
            "targets": ((texts, self.answer_length), "int32"),
            "loss_weights": ((batch, self.answer_length), "float32"),
            **picture_fields(batch, self.size, 0),
            "id": ((batch,), "int32"),
        }

    def prepare(
        self, rows: Rows, tokenizer: Vocabulary, keep: np.ndarray, once: bool = False
    ) -> r.Examples:
        """One example for every `per_text` pictures of a text."""
        pictures = Pictures.of(rows, self.image, self.size, 0)
        of_text: dict[tuple[str, str], list[int]] = defaultdict(list)
        for i in keep.tolist():
            row = light(rows, i)
            asked = texts_of(get(row, self.questions, rows.name), rows.name)
            told = texts_of(get(row, self.answers, rows.name), rows.name)
            if len(asked) != len(told):
                raise UserError(
                    f"{rows.name} row {i} has {len(asked)} questions, {len(told)} answers"
                )
            for pair in zip(asked, told, strict=True):
                if all(map(str.strip, pair)):
                    of_text[pair].append(i)
        texts, each = list(of_text), self.per_text
        made = [self.ids(*text, tokenizer) for text in texts]
        groups = [
            (t, g) for t, pair in enumerate(texts) for g in range(-(-len(of_text[pair]) // each))
        ]

        def make(slots: Sequence[int], rngs: Sequence[np.random.Generator]) -> r.Batch:
            chosen, valid, index_B = [groups[s][0] for s in slots], [], []
            for slot, rng in zip(slots, rngs, strict=True):
                text, group = groups[slot]
                there = of_text[texts[text]]
                place = np.arange(each) + group * each
                order = np.arange(len(there)) if once else rng.permutation(len(there))
                index_B += [there[k] for k in order[place % len(there)].tolist()]
                valid.append(place < len(there) if once else np.ones(each, bool))
            valid_B, index_B = np.concatenate(valid), np.array(index_B)
            given = [made[t][1] for t in chosen]
            answers = [made[t][0][n:] for t, n in zip(chosen, given, strict=True)]
            weights_RA = np.array([np.arange(self.answer_length) < len(a) for a in answers])
            weights_BA = np.repeat(weights_RA, each, axis=0) * valid_B[:, None]
            batch = {
                "tokens": r.pad([made[t][0][:-1] for t in chosen], self.length),
                "places": np.array(given)[:, None] - 1 + np.arange(self.answer_length),
                "targets": r.pad(answers, self.answer_length),
                "loss_weights": weights_BA.astype(np.float32),
                "image": pictures(index_B),
                "id": index_B.astype(np.int32),
            }
            batch["places"] = np.minimum(batch["places"], self.length - 1).astype(np.int32)
            return batch | ({"row_valid": valid_B} if once else {})

        return r.Examples(np.arange(len(groups)), make, rows=each)

    def ids(self, question: str, answer: str, tokenizer: Vocabulary) -> tuple[np.ndarray, int]:
        """The ids of a question with its answer, and how many come before the answer's.

        Raises:
          UserError: they are too long.
        """
        words = framing(tokenizer, "the task Replies")
        given = words.encode(question)
        whole = r.bounded(words.encode(question + self.between + answer), words)
        same = next((i for i, token in enumerate(given) if token != whole[i + 1]), len(given))
        said = len(whole) - 1 - same
        if len(whole) - 1 > self.length or said > self.answer_length:
            raise UserError(
                f"{cut(question + self.between + answer, 60)!r} has {len(whole)} tokens, {said} of "
                f"them after the question; length={self.length} and answer_length="
                f"{self.answer_length} leave no room for it; try length={len(whole) - 1} and "
                f"answer_length={said}"
            )
        return whole, same + 1
