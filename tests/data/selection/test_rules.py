"""Rules: each drops what it names, for the reason it names, and lets the rest through."""

import pytest

from mindspore_impl.data.selection import options, recipe
from mindspore_impl.data.selection.rules import letter_shares
from mindspore_impl.errors import UserError
from mindspore_impl.text.tokenizer import train_tokenizer


def reasons(result):
    return {identity: drop.reason for identity, drop in result.drops.items()}


def test_length_in_characters(apply):
    result = apply("length", ["a", "abc", "abcdef"], of="answer", min_characters=2, max_characters=5)
    assert reasons(result) == {"0": "answer shorter than 2 characters", "2": "answer longer than 5 characters"}


def test_length_in_tokens(apply, tmp_path):
    text = "one two three four five six seven eight nine ten"
    tokenizer = train_tokenizer([text] * 4, tmp_path / "tokenizer.model", 64, 1.0)
    count = len(tokenizer.encode(text))
    options = {"of": "answer", "tokenizer": str(tmp_path / "tokenizer.model")}
    assert apply("length", [text], max_tokens=count, min_tokens=count, **options).kept == ["0"]
    assert "longer" in reasons(apply("length", [text], max_tokens=count - 1, **options))["0"]
    assert "shorter" in reasons(apply("length", [text], min_tokens=count + 1, **options))["0"]
    with pytest.raises(UserError, match="need `tokenizer`"):
        apply("length", [text], max_tokens=3)


def test_parts_of_a_record(item):
    record = item("The answer", "The prompt", "The reasoning")
    assert [record.text(part) for part in ("prompt", "reasoning", "answer", "response", "conversation")] == [
        "The prompt", "The reasoning", "The answer", "The reasoning\nThe answer",
        "The prompt\nThe reasoning\nThe answer",
    ]  # fmt: skip
    unanswered = item(None, "Only this")
    assert [unanswered.text(part) for part in ("prompt", "response", "answer")] == ["Only this", "", ""]


@pytest.mark.parametrize(
    ("text", "shares"),
    [("abc", (0.0, 1.0)), ("1 + 1 = 2", None), ("中文ab", (0.5, 0.5)), ("中文字a é", (0.6, 0.4)), ("при", (0.0, 0.0)),
     ("×÷ １２", None), ("한국 ひら", (1.0, 0.0)), ("\U00020000", (1.0, 0.0))],
)  # fmt: skip
def test_letter_shares(text, shares):
    assert letter_shares(text) == (None if shares is None else pytest.approx(shares))


def test_language(apply):
    texts = ["plain English", "中文的回答", "Привет, мир", "2 + 2 = 4"]
    assert apply("language", texts, of="answer", min_latin=0.5).kept == ["0", "3"]
    assert apply("language", texts, of="answer", min_cjk=0.5).kept == ["1", "3"]
    result = apply("language", texts, of="answer", min_either=0.5)
    assert reasons(result) == {"2": "too few CJK or Latin letters"}
    assert reasons(apply("language", texts, of="answer", max_latin=0.2)) == {"0": "too many Latin letters"}


def test_repetition(apply):
    varied = " ".join(f"word{n}" for n in range(60))
    lines = "the same line\n" * 5 + "another line"
    chinese = "我们一起去学校。" * 12
    result = apply("repetition", [varied, lines, "say it again " * 20, chinese, "ha ha ha"], of="answer")
    assert result.kept == ["0", "4"]  # a short text is not judged by its runs
    assert reasons(result) == {
        "1": "repeated lines", "2": "repeated runs of 4 words", "3": "repeated runs of 4 words"
    }  # fmt: skip


def test_repetition_sees_the_same_words_in_ascii_and_beyond_it(apply):
    """Case and punctuation make no other words, whether or not one letter of the text is beyond ASCII."""
    text = "Yes! yes, no no; YES yes no. No " * 5
    result = apply("repetition", [text, text + "é"], of="answer")
    assert [drop.detail.split(" of ")[0] for drop in result.drops.values()] == ["0.89", "0.87"]
    assert apply("repetition", ["- " * 60], of="answer").kept == ["0"]  # a table's rule has no words


@pytest.mark.parametrize("most", [0.0, 0.1, 0.35, 0.7])
def test_repetition_is_exact_at_any_limit(apply, most):
    """The quick look at distinct words may spare the count of runs, never change what is dropped."""
    for spread in range(2, 40):
        text = [f"w{n * n % spread}" for n in range(40)]
        runs = [tuple(text[n : n + 3]) for n in range(38)]
        share = 1 - len(set(runs)) / len(runs)
        result = apply("repetition", [" ".join(text)], of="answer", ngram=3, max_repeated_ngrams=most)
        assert bool(result.drops) == (share > most)


FRENCH = "Là où l’été « naïf » s’achève : œuvre, Ångström, São Paulo NÃO, 5 °C, ½, em—dash, café\xa0»."


@pytest.mark.parametrize("text", [FRENCH, "中文，“引号”——还有…", "tab\tand\r\nline", "emoji 👍🏽", "日本語の「括弧」"])
def test_sound_text_is_not_broken(apply, text):
    assert apply("broken_unicode", [text]).kept == ["0"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("lost \ufffd here", "replacement"), ("half \ud83d pair", "replacement"), ("nul \0", "control"),
     ("é \x9f", "control"),
     *((text.encode().decode("cp1252", "replace").replace("\ufffd", "\x9d"), "wrong table")
       for text in ("don’t", "“quoted”", "déjà vu", "中文字符")),
     ("中文字符".encode().decode("latin-1"), "wrong table"), ("锟斤拷", "wrong table")],
)  # fmt: skip
def test_broken_unicode(apply, text, reason):
    assert reason in reasons(apply("broken_unicode", [text]))["0"]


def test_mojibake_can_be_left_alone(apply):
    assert apply("broken_unicode", ["donâ€™t"], mojibake=False).kept == ["0"]


def test_missing_answer(apply, item):
    items = [
        item(None, identity="none"), item(" \n", identity="blank"), item("4", identity="good", meta={"answer": "4"}),
        item("4", identity="unknown"), item("4", identity="no thought", thinking="reasoning", meta={"answer": "4"}),
        item("four", identity="unlike", meta={"answer": "4"}),
    ]  # fmt: skip
    result = apply("missing_answer", items, pattern=r"\d", reference=True)
    assert result.kept == ["good"]
    assert len(set(reasons(result).values())) == 4
    with pytest.raises(UserError, match="no regular expression"):
        apply("missing_answer", items, pattern="(")


HONEST = [
    "We cannot divide by zero, so x = 2.", "I cannot stress enough that it is 4.", "I'm sorry for her: she has 3 left.",
    "i can't believe it is 7", "我不能确定地说，但答案是 4。",
]  # fmt: skip


def test_the_recipe_has_the_one_list_of_refusals_and_it_spares_honest_answers(apply):
    (planned,) = [step for step in recipe.load("filters_only", ["data.train=x"]).steps if step.name == "refusal"]
    phrases = planned.options.phrases
    assert phrases == options.REFUSALS == options.RefusalOptions().phrases
    assert options.RefusalOptions(phrases=["no"]).phrases == ["no"]
    upper = [phrase.upper().replace("'", "\u2019") + " X" for phrase in phrases]
    assert len(apply("refusal", upper, phrases=phrases).drops) == len(phrases)
    assert apply("refusal", HONEST, phrases=phrases).drops == {}


def test_refusal(apply):
    late = "x" * 300 + " I cannot assist"
    texts = ["I’m sorry, but no.", "As an AI, I", "抱歉，我不能", "The answer is 4.", late]
    result = apply("refusal", texts)
    assert result.kept == ["3", "4"]
    assert result.drops["0"].detail == "i'm sorry, but"
    assert apply("refusal", texts, phrases=["THE ANSWER"]).kept == ["0", "1", "2", "4"]
    with pytest.raises(UserError, match="no empty one"):
        apply("refusal", texts, phrases=[" "])


@pytest.mark.parametrize(
    ("text", "sound"),
    [("```python\nx\n```", True), ("```python\nx", False), ("a ```b``` c", True), ("```` \n```\n````", True),
     ("~~~\n```\n~~~", True), ("```\na\n```\n```\nb", False), ("- ```\n  x\n  ```", True), ("```x``` is code", True)],
)  # fmt: skip
def test_code_fences(apply, text, sound):
    assert apply("code_fences", [text]).kept == (["0"] if sound else [])
