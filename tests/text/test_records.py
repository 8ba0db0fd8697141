"""The record form: what is accepted, and what a refusal says."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindspore_impl.errors import UserError
from mindspore_impl.text.records import Message, Record, parse_record, prompt_messages, record_to_json

ABSENT = object()


def answering(content, question="hi", **more) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": content} | more]}


def good(**changes) -> dict:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes", "reasoning": "why"}]
    found = {"id": "r1", "messages": messages, "thinking": "reasoning", "meta": {"task": "exact"}} | changes
    return {key: value for key, value in found.items() if value is not ABSENT}


@pytest.mark.parametrize(("changes", "needles"), [
    ("text", ["expected an object, found a string"]),
    ({"thinking": ABSENT}, ["'thinking' is missing"]),
    ({"mesages": 1}, ["unknown field 'mesages'", "did you mean 'messages'"]),
    ({"id": 7}, ["id must be a string", "a number"]),
    ({"id": ""}, ["id is empty"]),
    ({"thinking": "slow"}, ["unknown thinking 'slow'", "fast, reasoning"]),
    ({"meta": [1]}, ["meta must be an object", "an array"]),
    ({"meta": {"score": float("nan")}}, ["meta holds NaN, infinity or invalid Unicode"]),
    ({"meta": {"deep": [{"score": float("-inf")}]}}, ["meta holds NaN, infinity or invalid Unicode"]),
    ({"meta": {"\udc00": 1}}, ["meta holds NaN, infinity or invalid Unicode"]),
    ({"messages": {}}, ["messages must be an array"]),
    ({"messages": []}, ["'r1'", "messages is empty"]),
    ({"messages": ["x"]}, ["messages[0]", "expected an object"]),
    ({"messages": [{"role": "asistant", "content": "x"}]}, ["messages[0]", "'asistant'", "did you mean 'assistant'"]),
    ({"messages": [{"role": "user"}]}, ["messages[0]", "'content' is missing"]),
    ({"messages": [{"role": "user", "contents": "x"}]}, ["messages[0]", "did you mean 'content'"]),
    ({"messages": [{"role": "user", "content": None}]}, ["content must be a string", "null"]),
    ({"messages": [{"role": "user", "content": "\ud83d"}]}, ["messages[0]", "lone surrogate"]),
    ({"messages": [{"role": "user", "content": "a\0"}]}, ["messages[0]", "content", "NUL"]),
    ({"messages": [{"role": "user", "content": "a\udcff"}]}, ["messages[0]", "content", "0xFF"]),
    ({"messages": [{"role": "user", "content": ""}]}, ["messages[0]", "blank"]),
    ({"messages": [{"role": "user", "content": "x", "reasoning": "y"}]}, ["messages[0]", "has 'reasoning'"]),
    ({"messages": [{"role": "tool", "content": "x"}, {"role": "system", "content": "y"}]}, ["messages[1]", "only the"]),
    ({"messages": [{"role": "system", "content": "y"}]}, ["add a user message"]),
    *(({"messages": [{"role": role, "content": blank}]}, ["messages[0]", role])
      for role in ("user", "assistant") for blank in (" ", "\n\t", "\u3000", "\u200b \ufeff")),
    *((answering(text), ["messages[1]", tag]) for tag, text in (
        ("<think>", "<think>never closed"), ("<think>", "5 <think>why</think>"), ("</think>", "a</think>b</think>c"),
        ("<think>", "<think>a</think>b<think>c</think>d"), ("<think>", "<think>a<think>b</think>c</think>d"),
        ("</think>", "</think>a<think>"), ("<THINK>", "So <THINK>a</THINK>b"), ("assistant", "<think>why</think>\n"),
        ("[unused16]", "so [unused16]a[unused17]b"), ("<think/>", "<think/>5"), ("<thought>", "5<thought>a"))),
    (answering("<think>a</think>b", reasoning="c"), ["messages[1]", "<think>"]),
    (answering("b", reasoning="<think>c</think>"), ["messages[1]", "<think>"]),
    (answering("b", weight=0), ["'r1'", "weight 0"]),
    *((answering("b", **flags), ["messages[1]", *flags])
      for flags in ({"weight": 0.5}, {"loss": "false"}, {"train": [0]}, {"weight": 1, "train": False})),
    ({"messages": [{"role": "user", "content": "x", "weight": 1}]}, ["messages[0]", "weight"]),
    *((answering("b", "hi" + text) | {"thinking": thinking}, ["messages[0]", text.strip(), thinking])
      for text, thinking in ((" /no_think", "reasoning"), ("/NO_THINK\n", "reasoning"), (" /no-think", "reasoning"),
                             (" /think ", "fast"), ("\n/auto_think", "fast"), (" /auto_think", "reasoning"))),
])  # fmt: skip
def test_a_malformed_record_is_refused_with_its_place(changes, needles):
    with pytest.raises(UserError) as caught:
        parse_record(good(**changes) if isinstance(changes, dict) else changes, "a.jsonl:12")
    for needle in ["a.jsonl:12", *needles]:
        assert needle in str(caught.value)


def test_a_record_is_read_and_a_prompt_record_may_end_with_the_user():
    record = parse_record(good(messages=[{"role": "user", "content": "hi"}]), "a.jsonl:1")
    assert prompt_messages(record) == record.messages
    whole = Record("r1", (Message("user", "hi"), Message("assistant", "yes", "why")), "reasoning", {"task": "exact"})
    assert parse_record(good(), "a.jsonl:1") == whole and prompt_messages(whole) == (Message("user", "hi"),)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
TEXT = TEXT.map("x{}".format)  # never blank
TURNS = st.lists(st.tuples(TEXT, TEXT, st.none() | TEXT), min_size=1, max_size=3)


@given(TEXT, TURNS, st.sampled_from(["reasoning", "fast"]))
def test_json_gives_the_same_record_back(identity, turns, thinking):
    pairs = [(Message("user", user), Message("assistant", answer, why)) for user, answer, why in turns]
    messages = tuple(message for pair in pairs for message in pair)
    record = Record(identity, messages, thinking, {"n": 1})
    assert parse_record(json.loads(json.dumps(record_to_json(record))), "x") == record


@pytest.mark.parametrize(("text", "reasoning", "answer"), [
    ("5", None, "5"),
    (" 5 \n", None, " 5 \n"),
    ("<think>\n2+3=5\n</think>\n\n5", "2+3=5", "5"),
    ("\n <THINK> a </Think> b ", "a", "b"),
    ("<thinking>a</thinking>b", "a", "b"),
    ("2+3=5\n</think>\n\n5", "2+3=5", "5"),
    ("[unused16]a[unused17]b", "a", "b"),
    *((start + "a" + end + "b", "a", "b") for start, end in (
        ("<thought>", "</thought>"), ("<reasoning>", "</reasoning>"), ("＜think＞", "＜/think＞"),
        ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"), ("<think a='1'>", "</think>"),
        ("◁think▷", "◁/think▷"), ("<|begin_of_thought|>", "<|end_of_thought|>"))),
    ("<thinker>a", None, "<thinker>a"),
    ("<think>\n\n</think>\n\n5", None, "5"),
    ("</think>5", None, "5"),
])  # fmt: skip
def test_reasoning_is_split_off_an_answer_and_nothing_else(text, reasoning, answer):
    found = parse_record(good(messages=[
        {"role": "user", "content": text}, {"role": "assistant", "content": text, "reasoning": None},
        {"role": "tool", "content": text}, {"role": "assistant", "content": "x", "reasoning": "y"},
    ]), "f")  # fmt: skip
    assert [message.content for message in found.messages] == [text, answer, text, "x"]
    assert found.messages[1].reasoning == reasoning
    assert parse_record(record_to_json(found), "f") == found


@pytest.mark.parametrize(("flags", "learned"), [
    ({"weight": 0}, False), ({"weight": 0.0}, False), ({"weight": False}, False), ({"loss": False}, False),
    ({"train": False, "weight": 0}, False), ({"weight": 1.0, "loss": True, "train": 1}, True), ({"weight": None}, True),
])  # fmt: skip
def test_a_turn_says_whether_it_is_learned(flags, learned):
    first, last = answering("bad", **flags)["messages"], answering("good", "hi", weight=1)["messages"]
    found = parse_record(good(messages=[first[0] | {"weight": 0, "loss": None}, first[1], *last]), "f")
    assert [message.supervised for message in found.messages] == [True, learned, True, True]
    assert parse_record(record_to_json(found), "f") == found


@pytest.mark.parametrize(("text", "thinking"), [
    ("a /no_think", "fast"), ("a /think", "reasoning"), ("open /usr/bin/think", "fast"), ("rethink", "fast"),
    ("/no_think is what?", "reasoning"),
])  # fmt: skip
def test_a_switch_that_agrees_or_is_none_stays(text, thinking):
    assert parse_record(good(**answering("b", text), thinking=thinking), "f").messages[0].content == text
