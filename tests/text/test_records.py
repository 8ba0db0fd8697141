"""The record form: what is accepted, and what a refusal says."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindspore_impl.errors import UserError
from mindspore_impl.text.records import Message, Record, parse_record, prompt_messages, record_to_json

ABSENT = object()


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
    ({"messages": [{"role": "user", "content": ""}]}, ["messages[0]", "is empty"]),
    ({"messages": [{"role": "user", "content": "x", "reasoning": "y"}]}, ["messages[0]", "has 'reasoning'"]),
    ({"messages": [{"role": "tool", "content": "x"}, {"role": "system", "content": "y"}]}, ["messages[1]", "only the"]),
    ({"messages": [{"role": "system", "content": "y"}]}, ["add a user message"]),
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


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)
TURNS = st.lists(st.tuples(TEXT, TEXT, st.none() | TEXT), min_size=1, max_size=3)


@given(TEXT, TURNS, st.sampled_from(["reasoning", "fast"]))
def test_json_gives_the_same_record_back(identity, turns, thinking):
    pairs = [(Message("user", user), Message("assistant", answer, why)) for user, answer, why in turns]
    messages = tuple(message for pair in pairs for message in pair)
    record = Record(identity, messages, thinking, {"n": 1})
    assert parse_record(json.loads(json.dumps(record_to_json(record))), "x") == record
