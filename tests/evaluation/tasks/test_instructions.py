"""Each instruction of IF-Eval: a response that follows it and one that does not."""

import sys

import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.tasks.instructions import CHECKS, check_arguments, follows, split_sentences

LESS, LEAST = "less than", "at least"
CASES = [
    ("keywords:existence", {"keywords": ["Oak", "a.b"]}, "an oak is a.b", "an oak is aXb"),
    ("keywords:frequency", {"keyword": "rain", "frequency": 2, "relation": LEAST}, "rain, Rainy", "rain"),
    ("keywords:frequency", {"keyword": "rain", "frequency": 2, "relation": LESS}, "rain", "rain, Rainy"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "category", "a CAT."),
    ("keywords:letter_frequency", {"letter": "A", "let_frequency": 3, "let_relation": LEAST}, "banana", "band a"),
    ("language:response_language", {"language": "hi"}, "यह एक वाक्य है", "This is a sentence of the kind"),
    ("language:response_language", {"language": "de"}, "Das ist nicht der Hund, und die Katze ist auch nicht da.",
     "This is not the dog and it was never in the house."),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": LESS}, "Dr. Who came. He left.",
     "One. Two! Three?"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo\n***\n", "one\n***\n***\ntwo"),
    ("length_constraints:number_words", {"num_words": 3, "relation": LEAST}, "one two-three", "one two"),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"}, 'first\n\n"Then, it', "first\n\nIt then"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] at [place]", "[name] at place"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\n\nP. S. more", "Bye.\nPS more"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "p.p.s. x", "p.s. x"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two", "* one\n**bold**"),
    ("detectable_format:constrained_response", {}, "Well. My answer is maybe.", "My answer is perhaps."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and *two*", "*one* and * *"),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2},
     "Section 1\na\nSection 2\nb", "Section 1\na\nSection b"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{'a': 1}"),
    ("detectable_format:title", {}, "<<Rain>>\ntext", "<< >>\ntext"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it. "}, " say it. It.", "It. Say it."),
    ("startend:end_checker", {"end_phrase": "The End."}, 'so "the end."', "The end. Really"),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": LEAST}, "GO NOW, ok",
     "GO Now"),
    ("change_case:english_capital", {}, "THIS IS THE HOUSE OF THE MAN.", "THIS IS the HOUSE"),
    ("change_case:english_lowercase", {}, "this is the house of the man.", "This is the house of the man."),
    ("punctuation:no_comma", {}, "no; never", "no, never"),
    ("startend:quotation", {}, ' "all of it" ', '"all" of it'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES)
def test_instruction(monkeypatch, name, arguments, good, bad):
    monkeypatch.setitem(sys.modules, "langdetect", None)  # the rule that needs no package
    check_arguments(name, arguments, "file:1")
    assert follows(name, arguments, good) and not follows(name, arguments, bad)


def test_every_published_instruction_has_a_case():
    assert {name for name, *_ in CASES} == set(CHECKS) and len(CHECKS) == 25


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ("今日は良い天気です", "ja", "zh"),
        ("今天天气很好", "zh", "ja"),
        ("Сегодня хорошо", "ru", "en"),
        ("12 34", "fr", "hi"),
    ],
)
def test_language_by_script(monkeypatch, text, good, bad):
    monkeypatch.setitem(sys.modules, "langdetect", None)
    assert follows("language:response_language", {"language": good}, text)
    assert follows("language:response_language", {"language": bad}, text) == (text == "12 34")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({}, "num_words"), ({"num_words": "3", "relation": LESS}, "must be int"),
     ({"num_words": 3, "relation": "about"}, "'less than' or 'at least'"),
     ({"num_words": 3, "relation": LESS, "more": 1}, "no argument 'more'")],
)  # fmt: skip
def test_arguments_are_checked(arguments, words):
    with pytest.raises(UserError, match=f"^file:7: .*{words}"):
        check_arguments("length_constraints:number_words", arguments, "file:7")


def test_sentences():
    assert split_sentences('He said "Go!" Then e.g. J. Smith left. Why? 3.5 is not two') == [
        'He said "Go!"', "Then e.g. J. Smith left.", "Why?", "3.5 is not two"
    ]  # fmt: skip
    assert split_sentences("天晴。出去吧！") == ["天晴。", "出去吧！"] and split_sentences(" ") == []
