"""A conversation reads each turn once, forgets on request and survives an interruption."""

import pytest

from llama_jax.errors import UserError
from llama_jax.generate.conversation import Conversation
from tests.generate import small


@pytest.fixture
def talk():
    return Conversation(small.lm(), "be brief")


def say(talk, text, most=4):
    return "".join(talk.say(text, most))


def test_every_turn_answers_as_if_all_were_read_anew(talk):
    for text in ("the sky", "is", "blue"):
        answer = say(talk, text)
        messages = talk.messages[:-1]
        assert answer == talk.lm.chat(messages, max_new_tokens=4)
        assert talk.messages[-1].content == answer


def test_a_turn_reads_only_what_is_new(talk, monkeypatch):
    read = []
    say(talk, "the sky is blue and the sea is deep")
    feed = type(talk.rows).feed
    monkeypatch.setattr(
        type(talk.rows), "feed", lambda self, ids: read.append(len(ids[0])) or feed(self, ids)
    )
    say(talk, "king")
    assert read[0] < 20 < len(talk.lm.chat_ids(talk.messages[:-1]))


def test_reset_keeps_only_the_instructions(talk):
    first = say(talk, "the sky")
    say(talk, "is")
    talk.reset()
    assert [m.role for m in talk.messages] == ["system"]
    assert say(talk, "the sky") == first


def test_an_answer_that_is_stopped_stays_as_far_as_it_came(talk):
    answer = talk.say("the sky", 30)
    said = next(answer)
    answer.close()
    assert talk.messages[-1].content == said
    assert say(talk, "is") == talk.lm.chat(talk.messages[:-1], max_new_tokens=4)


def test_a_message_too_long_changes_nothing(talk):
    say(talk, "the sky")
    before = list(talk.messages)
    with pytest.raises(UserError, match="context"):
        say(talk, "sea " * 200)
    assert talk.messages == before
    say(talk, "is")
