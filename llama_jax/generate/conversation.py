"""A conversation that keeps what was read: each turn costs only its own tokens."""

from collections.abc import Iterator, Sequence
from typing import Any

from llama_jax.checked import checked_call
from llama_jax.errors import UserError
from llama_jax.generate.lm import LM, MOST_ANSWERED, Batch
from llama_jax.text.messages import Message, pictures

SLOTS = 1024  # the cache begins with so many tokens and grows by doubling


class Conversation:
    """Messages so far, and the cache of their tokens.

    talk = Conversation(lm, system="Answer in one sentence.")
    print("".join(talk.say("Why is the sky blue?")))
    """

    @checked_call
    def __init__(self, lm: LM, system: str | None = None, **settings):
        """Begins with the instructions of `system`; for settings see `LM.generate`."""
        self.lm, self.system, self.settings = lm, system, settings
        self.reset()

    def reset(self) -> None:
        """Forgets everything but the instructions."""
        self.messages = [] if self.system is None else [Message("system", self.system)]
        self.rows = None

    @checked_call
    def say(
        self,
        text: str,
        max_new_tokens: int | None = MOST_ANSWERED,
        images: Sequence[Any] = (),
    ) -> Iterator[str]:
        """Says something, after showing pictures, if there are any; yields the answer in pieces.

        If the caller stops early, what was said until then is the answer. After an error the
        conversation is as it was before.

        Raises:
          UserError: the conversation is longer than the model's context, or pictures for a model
            that sees none.
        """
        max_new_tokens = MOST_ANSWERED if max_new_tokens is None else max_new_tokens
        before = list(self.messages)
        parts = [{"type": "image", "image": image} for image in images]
        parts.append({"type": "text", "text": text})
        self.messages.append(Message("user", parts if images else text))
        answer = ""
        try:
            shown = self.lm.shown([self.lm.chat_ids(self.messages)], [pictures(self.messages)])
            [ids] = shown.prompts
            context = self.lm.engine.context
            if self.rows is None or images:  # what is seen goes into the cache with the first token
                self.rows = self.lm.engine.rows(1, min(SLOTS, context or SLOTS))
                if shown.seen:
                    self.rows.look(shown.seen)
            same = self.rows.rewind(ids[:-1])  # one token at least must give logits
            batch = Batch(
                self.lm, [ids[same:]], max_new_tokens, rows=self.rows, held=[ids], **self.settings
            )
            for (piece,) in batch:
                answer += piece
                yield piece
        except UserError:
            self.messages, self.rows = before, None
            raise
        finally:
            if len(self.messages) > len(before):
                self.messages.append(Message("assistant", answer))
