"""A conversation: history, thinking, room, commands, an answer that is stopped."""

import io
import signal

import pytest

from mindspore_impl.cli.chat import main
from mindspore_impl.errors import UserError
from mindspore_impl.generation.conversation import DIM, PLAIN, Conversation, answer, converse
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.text.chat import render_prompt
from mindspore_impl.text.records import Message
from mindspore_impl.text.tokenizer import train_tokenizer
from tests.generation.test_decoder import Scripted


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(["ka lo mi ren tu shi"] * 9, tmp_path_factory.mktemp("t") / "tokenizer.model", 60)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def talk(tokenizer, answers, slots=400, **settings):
    special, ids = tokenizer.special, []
    for why, text in answers:
        ids += [special["[unused16]"], *tokenizer.encode(why), special["[unused17]"], *tokenizer.encode(text)]
        ids.append(tokenizer.eos_id)
    decoder = Scripted(ids)
    decoder.slots, decoder.vocab_size = slots, tokenizer.vocab_size
    decoder.padded = lambda length: slots
    return Conversation(decoder, tokenizer, SamplingOptions(temperature=0.0), 0, "reasoning", **settings)


def prompts_of(conversation):
    return [call[1] for call in conversation.decoder.calls if isinstance(call[0], tuple)]


def test_turns_see_the_history(tokenizer):
    conversation = talk(tokenizer, [("tu", "mi ren"), ("shi", "lo")], system="ka")
    assert list(conversation.ask("ka lo"))[-1][0] == "answer"
    list(conversation.ask("mi"))
    history = [Message("system", "ka"), Message("user", "ka lo"), Message("assistant", "mi ren", "tu")]
    turns = [history[:2], [*history, Message("user", "mi")]]
    assert prompts_of(conversation) == [render_prompt(turn, tokenizer, "reasoning") for turn in turns]
    assert conversation.messages[3:] == [Message("user", "mi"), Message("assistant", "lo", "shi")]
    conversation.reset()
    assert conversation.messages == history[:1]


def test_reasoning_is_dimmed_on_a_terminal_alone(tokenizer):
    for out, dim, plain in ((Terminal(), DIM, PLAIN), (io.StringIO(), "", "")):
        answer(talk(tokenizer, [("tu", "mi ren")]), "ka", out)
        assert out.getvalue() == f"{dim}tu\n{plain}mi ren{plain}\n"


def test_commands(tokenizer):
    conversation, lines = talk(tokenizer, [("tu", "mi"), ("", "ren"), ("", "lo")]), []
    turns = iter(["ka", "/think", "ka", "", "/help", "/reset", "lo", "/exit", "never"])
    out = io.StringIO()
    converse(conversation, lambda prompt: next(turns), out)
    lines = out.getvalue().splitlines()
    assert [line for line in lines if line.startswith("/think switches")] == [lines[0]] * 2
    assert lines[1:5] == ["tu", "mi", "fast", "ren"] and lines[-1] == "lo"
    assert [len(prompt) for prompt in prompts_of(conversation)] == [
        len(render_prompt(turns, tokenizer, thinking))
        for turns, thinking in [
            ([Message("user", "ka")], "reasoning"),
            ([Message("user", "ka"), Message("assistant", "mi", "tu"), Message("user", "ka")], "fast"),
            ([Message("user", "lo")], "fast"),
        ]
    ]


def test_a_turn_that_is_not_text_is_refused_and_the_next_one_answered(tokenizer, monkeypatch, capsys, tmp_path):
    bad = [b"byte \xff", b"half \xed\xa0\xbd", b"nul \0"]
    conversation = talk(tokenizer, [("tu", "mi ren")])
    for name, made in {"open_tokenizer": tokenizer, "resolve_model_path": None}.items():
        monkeypatch.setattr(f"mindspore_impl.curriculum.resolve.{name}", lambda *_, made=made: made)
    monkeypatch.setattr("mindspore_impl.api.load_model", lambda *_: None)
    monkeypatch.setattr("mindspore_impl.api.chat", lambda *_: conversation)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n".join([*bad, b"ka lo"])), encoding="utf-8"))
    assert main(["--model", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert conversation.messages[0] == Message("user", "ka lo") and "mi ren" in out
    assert out.count("\n") == 1 + len(bad) + 3, "a line for each"


@pytest.mark.parametrize("option", ["--prompt", "--system"])
@pytest.mark.parametrize("text", ["\udcff", "a\0b"])
def test_an_option_that_is_not_text_is_refused_before_the_model_is_looked_for(capsys, option, text):
    assert main(["--model", "nowhere", option, text]) == 2
    assert capsys.readouterr().err.startswith(f"error: {option}: ")


def test_the_end_of_input_leaves(tokenizer):
    def read(prompt):
        raise EOFError

    converse(talk(tokenizer, []), read, io.StringIO())


def test_an_answer_fills_what_is_left_of_the_cache_and_a_longer_talk_is_refused(tokenizer):
    conversation = talk(tokenizer, [("tu", "mi ren ka lo mi ren")] * 2)
    prompt = render_prompt([Message("user", "ka")], tokenizer, "reasoning")
    conversation.decoder.slots = len(prompt) + 4
    list(conversation.ask("ka"))
    assert conversation.messages[1].reasoning == "tu" and conversation.messages[1].content.startswith("mi")
    kept = list(conversation.messages)
    with pytest.raises(UserError, match="the prompt: .* exceed the cache length"):
        list(conversation.ask("ka"))
    assert conversation.messages == kept
    out, turns = io.StringIO(), iter(["ka", "/exit"])
    converse(conversation, lambda prompt: next(turns), out)
    assert "exceed the cache length" in out.getvalue() and "/reset" in out.getvalue()


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(tokenizer):
    conversation = talk(tokenizer, [("tu", "mi ren ka lo")])
    decode, calls = conversation.decoder.decode, []

    def interrupted(token_B, position_B):
        calls.append(token_B)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGTERM)  # what MindSpore makes of Ctrl-C while a graph runs
        return decode(token_B, position_B)

    conversation.decoder.decode, out = interrupted, io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    answer(conversation, "ka", out)
    assert signal.getsignal(signal.SIGTERM) is before and out.getvalue().endswith("\n")
    assert len(calls) == 5 and conversation.messages[-1].reasoning == "tu"
