"""What counts as a right answer."""

from fractions import Fraction

import pytest

from mindspore_impl.data import answers
from mindspore_impl.data.answers import final_number
from mindspore_impl.data.list_programs import generate
from mindspore_impl.errors import UserError
from mindspore_impl.text.chat import Completion
from mindspore_impl.text.records import Message, Record


def record(thinking="fast", **meta):
    return Record("r7", (Message("user", "question"),), thinking, meta)


def completion(answer, reasoning="", finished=True, well_formed=True):
    return Completion(reasoning, answer, finished, well_formed)


def test_a_fast_answer_that_thinks_is_wrong():
    fast, reasoning = record("fast", task="exact", answer="a b"), record("reasoning", task="exact", answer="a b")
    assert answers.correct(fast, completion("a b"))
    assert not answers.correct(fast, completion("a b", reasoning="first a, then b"))
    assert answers.correct(fast, completion("a b", reasoning=" \n"))
    assert answers.correct(reasoning, completion("a b", reasoning="first a, then b"))


def test_a_cut_answer_is_wrong():
    for thinking in ("fast", "reasoning"):
        assert not answers.correct(record(thinking, task="exact", answer="a b"), completion("a b", finished=False))


def test_reasoning_mode_needs_a_thinking_span_and_fast_mode_does_not():
    assert not answers.correct(record("reasoning", task="exact", answer="a b"), completion("a b", well_formed=False))
    assert answers.correct(record("fast", task="exact", answer="a b"), completion("a b", well_formed=False))


def test_list_programs_are_executed_not_looked_up():
    (item,) = generate("test", 0, 1, "fast", 0.0, 3, 5, 0)
    right = answers.expected(item)
    assert right == item.meta["answer"] and answers.correct(item, completion(f" {right}\n"))
    mislabelled = Record(item.id, item.messages, "fast", {**item.meta, "answer": "z z"})
    assert answers.expected(mislabelled) == right and not answers.correct(mislabelled, completion("z z"))
    assert not answers.correct(item, completion(right[::-1]))
    assert not answers.correct(item, completion(right.replace(" ", "")))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("72", 72), ("The answer is 72.", 72), ("$1,234", 1234), ("costs $ 1,234.50.", Fraction(2469, 2)),
        ("\\boxed{72}", 72), ("x = -7", -7), ("it is −7 °C", -7), ("-$5", -5), ("$-5", -5), ("10-3 = 7", 7),
        ("5-3", 3), ("1,000,000", 1000000), ("12,34", 34), ("1234,567", 567), ("3/4 of it", Fraction(3, 4)),
        (".5", Fraction(1, 2)), ("...72", 72), ("72 m2", 72), ("72 m^2", 72), ("7 + 8 = 15 apples", 15),
        ("#### 42\n", 42), ("5 so #### 42 (of 100)", 100), ("none", None), ("", None), ("72.0", 72), ("50%", 50),
        ("007", 7), ("12.34.", Fraction(617, 50)),
    ],
)  # fmt: skip
def test_final_number(text, number):
    assert final_number(text) == number


def test_gsm8k_compares_numbers():
    item = record(task="gsm8k", answer="1234")
    for right in ("1,234", "$1234.", "so he pays 1234.00 dollars", "#### 1234"):
        assert answers.correct(item, completion(right)), right
    for wrong in ("12345", "123.4", "1234, or rather 1235", "", "-1234"):
        assert not answers.correct(item, completion(wrong)), wrong


def test_exact_ignores_space_and_composition_but_not_case():
    item = record(task="exact", answer="Café au lait")
    assert answers.correct(item, completion("  Cafe\u0301  au\nlait "))
    assert not answers.correct(item, completion("café au lait"))


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({}, "r7.*task"),
        ({"task": "gsm8K", "answer": "1"}, "gsm8K.*list_programs, gsm8k, exact"),
        ({"task": ["exact"], "answer": "1"}, r"r7.*meta.task is \['exact'\]"),
        ({"task": {}, "answer": "1"}, "r7.*meta.task is {}"),
        ({"task": "exact", "answer": 4}, "r7.*answer"),
        ({"task": "list_programs", "letters": 3, "operations": []}, "r7.*meta.letters is 3; it must be an array"),
        ({"task": "list_programs", "letters": ["a"], "operations": [["sort"]]}, "r7.*meta.operations is"),
        ({"task": "list_programs", "letters": ["a", 1], "operations": ["sort"]}, "r7.*meta.letters is"),
        ({"task": "list_programs", "letters": "ab", "operations": ["sort"]}, "r7.*meta.letters is 'ab'"),
        ({"task": "exact"}, "r7.*answer"),
        ({"task": "exact", "answer": " "}, "r7.*answer"),
        ({"task": "gsm8k", "answer": "many"}, "r7.*many"),
        ({"task": "list_programs", "letters": ["a"]}, "r7.*operations"),
        ({"task": "list_programs", "letters": ["a"], "operations": ["revers"]}, "r7.*revers"),
    ],
)
def test_a_record_without_a_known_answer_is_named(meta, words):
    with pytest.raises(UserError, match=words):
        answers.expected(record(**meta))
