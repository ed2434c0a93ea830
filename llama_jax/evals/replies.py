"""Answers of a language model with eyes, by kind of answer, and two controls."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.checked import checked
from llama_jax.data.builders.shapes import answer_type
from llama_jax.evals.base import Eval, Row, held_out
from llama_jax.evals.inputs import texts_of
from llama_jax.evals.vision import another, usual_answers
from llama_jax.objectives.replies import said
from llama_jax.train.load import Trained


@checked
class Answers(Eval):
    """Accuracy of answers about pictures over a stream of the task `Replies`.

    An answer is right if each of its tokens, and its end, is the most probable after the question
    and those before it: then greedy decoding writes it. Shuffled images: each question is asked of
    another picture of the same batch. Question only: of none, which is the language model alone.
    """

    def rows(self, trained: Trained) -> list[Row]:
        """All questions, each kind of answer, shuffled images, question only."""
        stream, data = held_out(self.stream(trained))
        judge, found = _judge(trained.model), []
        asked, told = [], []
        for batch in self.batches(stream, trained.tokenizer):
            right_3B = judge(trained.params, {k: v for k, v in batch.items() if k != "row_valid"})
            valid_B = batch["row_valid"]
            found.append(np.asarray(right_3B)[:, valid_B])
            each = len(valid_B) // len(batch["tokens"])
            ids = [
                row[: at + 1]
                for row, (at, *_) in zip(batch["tokens"], batch["places"], strict=True)
            ]
            questions = [trained.tokenizer.decode(row.tolist()).strip() for row in ids]
            texts = texts_of(batch["targets"], trained.tokenizer)
            asked += np.repeat(questions, each)[valid_B].tolist()
            told += np.repeat(texts, each)[valid_B].tolist()
        right_B, moved_B, blind_B = np.concatenate(found, axis=1)

        usual, by_question = usual_answers(self.stream(trained), trained.tokenizer)
        target_B = np.array(told)
        always_B = target_B == usual
        wording_B = target_B == np.array([by_question.get(q, usual) for q in asked])
        kind_B = np.array([answer_type(answer) for answer in told])

        def row(name: str, model_B: np.ndarray, baseline_B: np.ndarray, what: str) -> Row:
            mean = float(np.mean(model_B)), float(np.mean(baseline_B))
            return Row(f"{self.name}_accuracy{name}", *mean, what, len(model_B), data)

        usually, same = "usual answer to the question", f"always {usual!r}"
        rows = [row("", right_B, wording_B, usually)]
        for kind in sorted({*kind_B.tolist()}):
            of_B = kind_B == kind
            rows.append(row(f"_{kind.replace('/', '_')}", right_B[of_B], wording_B[of_B], usually))
        rows.append(row("_shuffled_images", moved_B, always_B, same))
        rows.append(row("_question_only", blind_B, always_B, same))
        return rows


def _judge(model: Any):
    """The jitted function (params, batch) -> which answers are right, [3,B]: see `Answers`."""

    def exact(module, batch, memory) -> jax.Array:
        readout = said(module, batch["tokens"], batch["places"], memory)
        each = len(batch["loss_weights"]) // len(batch["tokens"])
        ids_BA = jnp.repeat(jnp.argmax(readout.logits, axis=-1), each if memory is None else 1, 0)
        target_BA = jnp.repeat(batch["targets"], each, axis=0)
        return jnp.all((ids_BA == target_BA) | (batch["loss_weights"] == 0), axis=-1)

    def three(module, batch):
        tokens = module.encode_image(batch["image"])
        order = jnp.asarray(another(len(batch["image"])))
        moved = jax.tree.map(lambda x: x[order], tokens)
        seen = [module.join({"image": one}) for one in (tokens, moved)]
        return jnp.stack([exact(module, batch, memory) for memory in (*seen, None)])

    return jax.jit(lambda params, batch: model.apply({"params": params}, batch, method=three))
