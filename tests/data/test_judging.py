"""Rejection sampling: pass rates, and the shortest right answer as a record."""

import random
from dataclasses import replace

import pytest

from mindspore_impl.data import answers, judging
from mindspore_impl.data.judging import best_record, judge
from mindspore_impl.data.rollouts import Rollout
from mindspore_impl.errors import UserError
from mindspore_impl.text import chat
from mindspore_impl.text.records import Message, Record, prompt_messages


def answer_of(record, tokenizer, index, reasoning=None, answer=None, finished=True) -> Rollout:
    """An answer to the record's prompt: its own label, unless told otherwise."""
    label = record.messages[-1]
    message = Message("assistant", answer or label.content, reasoning or label.reasoning)
    said = Record(record.id, (*record.messages[:-1], message), record.thinking, record.meta)
    prompt = chat.render_prompt(prompt_messages(record), tokenizer, record.thinking)
    ids = chat.render(said, tokenizer).ids[len(prompt) :].tolist()
    ids = ids if finished else ids[:-1]
    return Rollout(
        f"{record.id}#{index}", prompt_messages(record), record.thinking, prompt, ids, tokenizer.decode(ids),
        "stop" if finished else "length", tokenizer_sha256=tokenizer.sha256,
        meta={**record.meta, "prompt_id": record.id, "sample": index},
    )  # fmt: skip


def test_the_shortest_right_answer_wins_whatever_the_order(records, tokenizer):
    record = records[0]
    right = record.messages[-1].content
    items = [
        answer_of(record, tokenizer, 0, reasoning="reverse a b c d sort a b c d reverse a"),
        answer_of(record, tokenizer, 1, reasoning="sort a b"),
        answer_of(record, tokenizer, 2, reasoning="a", answer=right[::-1]),  # shorter, and wrong
        answer_of(record, tokenizer, 3, reasoning="a", finished=False),  # shorter, and cut
        answer_of(record, tokenizer, 4, reasoning="sort a b"),  # as short as 1
    ]
    for turned in (items, items[::-1], random.Random(0).sample(items, len(items))):
        (verdict,) = judge(turned, tokenizer).values()
        assert (verdict.answers, verdict.right, verdict.pass_rate) == (5, 3, 0.6)
        best = best_record(verdict, "mine")
        assert best.meta["rollout"] == f"{record.id}#1"
    assert best.messages[-1] == Message("assistant", right, "sort a b") and best.messages[:-1] == record.messages[:-1]
    assert best.id == "mine" and best.meta["answer"] == right and "sample" not in best.meta
    assert (best.meta["answers"], best.meta["right"]) == (5, 3)
    chat.render(best, tokenizer)  # training takes it


def test_greedy_answers_of_one_model_are_no_samples(records, tokenizer):
    items = [
        replace(answer_of(records[0], tokenizer, index), sampling={"temperature": 0.0}, weights_sha256=made_by)
        for index, made_by in enumerate(("a", "b", "b"))
    ]
    assert len(judge(items[:2], tokenizer)) == 1
    with pytest.raises(UserError, match=f"{records[0].id}#2.*temperature"):
        judge(items, tokenizer)


def test_a_prompt_without_a_right_answer_has_no_record(records, tokenizer):
    items = [answer_of(records[0], tokenizer, 0), answer_of(records[1], tokenizer, 0, answer="a")]
    found = judge(items, tokenizer)
    assert list(found) == [(record.id, "reasoning") for record in records[:2]]
    assert [best_record(verdict, "x") is None for verdict in found.values()] == [False, True]


@pytest.mark.parametrize(("reasoning", "tag"), [("sort <think>", ""), ("sort", "</think>")])
def test_an_answer_that_no_record_may_hold_is_never_the_best(records, tokenizer, monkeypatch, reasoning, tag):
    monkeypatch.setattr(answers, "correct", lambda record, completion: True)
    said = chat.Completion(reasoning, "a" + tag, True, True)
    monkeypatch.setattr(judging, "parse_completion", lambda ids, tokenizer: said)
    (verdict,) = judge([answer_of(records[0], tokenizer, 0)], tokenizer).values()
    assert verdict.right == 1 and best_record(verdict, "x") is None


def test_the_file_is_not_believed(records, tokenizer):
    item = answer_of(records[0], tokenizer, 0, answer="a")
    (verdict,) = judge([replace(item, meta={**item.meta, "correct": True})], tokenizer).values()
    assert verdict.right == 0


def test_both_modes_of_a_problem_are_prompts_of_their_own(records, tokenizer):
    fast = replace(records[0], thinking="fast")
    found = judge([answer_of(records[0], tokenizer, 0), answer_of(fast, tokenizer, 1)], tokenizer)
    assert [verdict.answers for verdict in found.values()] == [1, 1]
    assert best_record(found[(fast.id, "fast")], "x").messages[-1].reasoning is None


@pytest.mark.parametrize("key", ["prompt_id", "task"])
def test_an_answer_without_its_prompt_or_task_is_refused(records, tokenizer, key):
    item = answer_of(records[0], tokenizer, 0)
    del item.meta[key]
    with pytest.raises(UserError, match=f"rollout.*meta.{key}"):
        judge([item], tokenizer)
