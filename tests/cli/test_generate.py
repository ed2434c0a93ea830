"""generate, chat and perplexity on the command line."""

import io
import json

import pytest

from llama_jax.__main__ import main
from llama_jax.cli.generate import shown
from tests.generate import small


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return str(small.folder(tmp_path_factory.mktemp("weights") / "small"))


def test_generate_prints_the_continuation_and_json_all_of_it(place, capsys):
    assert (
        main(["generate", "--weights", place, "--prompt", "the sky", "--max-new-tokens", "6"]) == 0
    )
    printed = capsys.readouterr().out
    args = ["generate", "--weights", place, "--prompt", "the sky", "--prompt", "once", "--json"]
    assert main([*args, "--max-new-tokens", "6"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert shown(first["text"]) + "\n" == printed
    assert set(first) == {"prompt", "text", "ids", "logprobs", "finish"}
    assert first["prompt"] == "the sky" and len(second["ids"]) == 6


def test_a_prompt_may_come_from_standard_input(place, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("the sky"))
    assert main(["generate", "--weights", place, "--max-new-tokens", "6"]) == 0
    assert capsys.readouterr().out == shown(small.lm().generate("the sky", 6)) + "\n"


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # in UTF-8, and in C's locale
def test_what_is_not_utf8_is_refused_as_a_prompt_and_ends_no_chat(
    place, capsys, monkeypatch, errors
):
    def piped(text):
        pipe = io.TextIOWrapper(io.BytesIO(text), "utf-8", errors)
        monkeypatch.setattr("sys.stdin", pipe)

    piped(b"the \xff")
    assert main(["generate", "--weights", place, "--max-new-tokens", "1"]) == 2
    assert "is not UTF-8" in capsys.readouterr().err
    piped(b"the \xff\nsea\n")
    assert main(["chat", "--weights", place, "--max-new-tokens", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_chat_talks_resets_and_goes_on_after_a_mistake(place, capsys, monkeypatch):
    lines = ["the sky", "/reset", "/nothing", "sea " * 200, "the sky", "/exit", "never read"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main(["chat", "--weights", place, "--max-new-tokens", "5"]) == 0
    captured = capsys.readouterr()
    answer = shown(small.lm().chat("the sky", 5))
    assert captured.out == f"{answer}\n{answer}\n"
    assert "/nothing is no command" in captured.err and "/reset begins anew" in captured.err


def test_the_format_of_a_chat_is_chosen_by_its_name(tmp_path, capsys):
    import llama_jax

    place = small.folder(tmp_path / "small")
    (place / "additional_chat_templates").mkdir()
    (place / "additional_chat_templates/loud.jinja").write_text("{{ messages[0].content | upper }}")
    args = ["generate", "--weights", str(place), "--prompt", "the sky", "--json"]
    assert main([*args, "--max-new-tokens", "3", "--chat-format", "loud"]) == 0
    lm = llama_jax.load(place)
    assert lm.chat_ids("the sky", "loud") == lm.tokenizer.encode("THE SKY")
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == lm.chat("the sky", 3, format="loud")
    for command in (args, ["chat", "--weights", str(place)]):
        assert main([*command, "--chat-format", "laud"]) == 2
        assert "'laud' is unknown; expected one of llama2" in capsys.readouterr().err


def test_ctrl_c_stops_the_answer_and_not_the_program(place, capsys, monkeypatch):
    from llama_jax.generate.conversation import Conversation

    say = Conversation.say

    def interrupted(self, text, most, images):
        for piece in say(self, text, most, images):
            yield piece
            if text == "once":
                raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "say", interrupted)
    monkeypatch.setattr("sys.stdin", io.StringIO("once\nthe sky\n"))
    assert main(["chat", "--weights", place, "--max-new-tokens", "5"]) == 0
    first, second = capsys.readouterr().out.split(" (stopped)\n")
    assert len(first) < len(small.lm().chat("once", 5)) and second.endswith("\n")


def test_perplexity_is_that_of_python(place, capsys, tmp_path):
    text = "the sky is blue and the sea is deep"
    (tmp_path / "text.txt").write_text(text)
    args = ["perplexity", "--weights", place, str(tmp_path / "text.txt")]
    assert main([*args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    lm = small.lm()
    assert found["perplexity"] == pytest.approx(lm.perplexity(text), rel=1e-6)
    assert found["tokens"] == len(lm.ids(text)) - 1
    assert main(args) == 0
    assert f"{found['perplexity']:.4f} over" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args, text",
    [
        (["generate", "--prompt", "x", "--top-p", "2"], "top_p=2.0"),
        (["generate", "--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens 0"),
        (["generate", "--prompt", "x", "--weights", "nowhere"], "nowhere does not exist"),
        (["generate", "--prompt", "x", "--dtype", "int4"], "invalid choice: 'int4'"),
        (["chat", "--temprature", "1"], "Did you mean '--temperature'"),
        (["perplexity", "nowhere.txt"], "nowhere.txt cannot be read"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(args, text, capsys):
    assert main(args) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert text in line


def test_text_for_a_terminal_holds_no_control_characters():
    assert shown("a\x1b[31m\n\tb\x07") == "a�[31m\n\tb�"
