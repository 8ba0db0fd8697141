"""Verifiers: what counts as a right answer, and verifiers from outside the package."""

from fractions import Fraction

import pytest

from mindspore_impl.data import answers
from mindspore_impl.data.answers import final_number
from mindspore_impl.data.list_programs import generate
from mindspore_impl.data.options import ListProgramsSet
from mindspore_impl.errors import UserError
from mindspore_impl.text.chat import Completion
from mindspore_impl.text.records import Message, Record


def record(thinking="fast", **meta):
    return Record("r7", (Message("user", "question"),), thinking, meta)


def completion(answer, reasoning="", finished=True, well_formed=True):
    return Completion(reasoning, answer, finished, well_formed)


def test_the_thinking_mode_of_the_record_decides():
    fast, reasoning = record("fast", task="exact", answer="a b"), record("reasoning", task="exact", answer="a b")
    thought = {"reasoning": "first a, then b"}
    assert answers.correct(fast, completion("a b")) and answers.correct(fast, completion("a b", reasoning=" \n"))
    assert answers.correct(fast, completion("a b", well_formed=False))
    assert not answers.correct(fast, completion("a b", **thought))
    assert answers.correct(reasoning, completion("a b", **thought))
    assert not answers.correct(reasoning, completion("a b", well_formed=False))


def test_a_cut_answer_is_wrong():
    for thinking in ("fast", "reasoning"):
        assert not answers.correct(record(thinking, task="exact", answer="a b"), completion("a b", finished=False))


def test_list_programs_are_executed_not_looked_up():
    (item,) = generate(ListProgramsSet(split="test", count=1))
    right = answers.expected(item)
    assert right == item.meta["answer"] and answers.correct(item, completion(f" {right}\n"))
    mislabelled = Record(item.id, item.messages, "fast", {**item.meta, "answer": "z z"})
    assert answers.expected(mislabelled) == right
    for wrong in ("z z", right[::-1], right.replace(" ", "")):
        assert not answers.correct(mislabelled, completion(wrong))


def test_final_number():
    for text, number in [
        ("72", 72), ("The answer is 72.", 72), ("$1,234", 1234), ("costs $ 1,234.50.", Fraction(2469, 2)),
        ("\\boxed{72}", 72), ("x = -7", -7), ("it is −7 °C", -7), ("-$5", -5), ("$-5", -5), ("10-3 = 7", 7),
        ("5-3", 3), ("1,000,000", 1000000), ("12,34", 34), ("1234,567", 567), ("3/4 of it", Fraction(3, 4)),
        (".5", Fraction(1, 2)), ("...72", 72), ("72 m2", 72), ("72 m^2", 72), ("7 + 8 = 15 apples", 15),
        ("#### 42\n", 42), ("5 so #### 42 (of 100)", 100), ("none", None), ("", None), ("72.0", 72), ("50%", 50),
        ("007", 7), ("12.34.", Fraction(617, 50)), ("it is 3/4.", Fraction(3, 4)), ("H2O", None), ("é2", None),
        ("答案是 １８。", 18), ("答案是18", 18), ("共18个", 18), ("정답은18", 18), ("先有5个，答案是-18度", -18),
        ("－１，０００．５", Fraction(-2001, 2)), ("５０％", 50), ("－＄５", -5), ("￥１８", 18), ("-¥18", -18),
        ("３／４", Fraction(3, 4)), ("＃＃＃＃ １８", 18), ("5元-3元", 3), ("3公里-5公里", 5),
        ("١٨٫٥", Fraction(37, 2)), ("١٬٢٣٤", 1234), ("१८", 18), ("𝟏𝟖", 18),
        ("10²", 10), ("10^2", 10), ("72 m²", 72), ("①", None), ("½", None), ("①18个", 18),
    ]:  # fmt: skip
        assert final_number(text) == number, text


def test_gsm8k_compares_numbers():
    item = record(task="gsm8k", answer="1234")
    for right in ("1,234", "$1234.", "so he pays 1234.00 dollars", "#### 1234", "共１，２３４元。"):
        assert answers.correct(item, completion(right)), right
    for wrong in ("12345", "123.4", "1234, or rather 1235", "", "-1234"):
        assert not answers.correct(item, completion(wrong)), wrong


def test_exact_ignores_space_composition_and_the_script_of_digits_but_not_case():
    item = record(task="exact", answer="Café au lait")
    assert answers.correct(item, completion("  Cafe\u0301  au\nlait "))
    assert not answers.correct(item, completion("café au lait"))
    item = record(task="exact", answer="第18页")
    assert answers.correct(item, completion("第１８页")) and not answers.correct(item, completion("第1⑧页"))


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({}, "task"),
        ({"task": "gsm8K", "answer": "1"}, "gsm8K.*list_programs, gsm8k, exact"),
        ({"task": ["exact"], "answer": "1"}, r"meta.task is \['exact'\]"),
        ({"task": "exact"}, "meta.answer"),
        ({"task": "exact", "answer": 4}, "meta.answer"),
        ({"task": "exact", "answer": " "}, "meta.answer"),
        ({"task": "gsm8k", "answer": "many"}, "many"),
        ({"task": "list_programs", "letters": ["a"]}, "meta.operations"),
        ({"task": "list_programs", "letters": "ab", "operations": ["sort"]}, "meta.letters is 'ab'"),
        ({"task": "list_programs", "letters": ["a", 1], "operations": ["sort"]}, "meta.letters"),
        ({"task": "list_programs", "letters": ["a"], "operations": [["sort"]]}, "meta.operations"),
        ({"task": "list_programs", "letters": ["a"], "operations": ["revers"]}, "meta.operations.*revers"),
    ],
)
def test_a_record_without_a_known_answer_is_named(meta, words):
    with pytest.raises(UserError, match=f"r7.*{words}"):
        answers.expected(record(**meta))


def test_a_module_outside_the_package_registers_a_verifier(tmp_path, monkeypatch):
    (tmp_path / "my_verifier.py").write_text(
        "from mindspore_impl.data.answers import register_verifier\n"
        "def capital(record):\n    return record.meta['capital']\n"
        "register_verifier('capital', capital, lambda record, answer: capital(record) in answer)\n"
        "register_verifier('same_capital', capital)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(answers, "VERIFIERS", dict(answers.VERIFIERS))
    __import__("my_verifier")
    item, same = (record(task=task, capital="Bern") for task in ("capital", "same_capital"))
    assert answers.expected(item) == "Bern" and answers.correct(item, completion("It is Bern."))
    assert answers.correct(same, completion(" Bern\n")) and not answers.correct(same, completion("It is Bern."))
    with pytest.raises(UserError, match="'capital'.*my_verifier"):
        answers.register_verifier("capital", lambda record: "")
