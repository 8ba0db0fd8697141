"""Rules: each drops what it names, for the reason it names, and lets the rest through."""

import pytest

from mindspore_impl.data.selection import recipe, rules
from mindspore_impl.data.selection.rules import letter_shares
from mindspore_impl.errors import UserError
from mindspore_impl.text.tokenizer import train_tokenizer


def reasons(result):
    return {identity: drop.reason for identity, drop in result.drops.items()}


def test_length(apply, tmp_path):
    result = apply("length", ["a", "abc", "abcdef"], of="answer", min_characters=2, max_characters=5)
    assert result.kept == ["1"] and "2 char" in reasons(result)["0"] and "5 char" in reasons(result)["2"]
    text = "one two three four five six seven eight nine ten"
    tokenizer = train_tokenizer([text] * 4, tmp_path / "tokenizer.model", 64, 1.0)
    count, options = len(tokenizer.encode(text)), {"of": "answer", "tokenizer": str(tmp_path / "tokenizer.model")}
    assert apply("length", [text], max_tokens=count, min_tokens=count, **options).kept == ["0"]
    assert apply("length", [text], max_tokens=count - 1, **options).kept == []
    assert apply("length", [text], min_tokens=count + 1, **options).kept == []
    with pytest.raises(UserError, match="`tokenizer`"):
        apply("length", [text], max_tokens=3)


def test_parts_of_a_record(item):
    record = item("The answer", "The prompt", "The reasoning")
    assert [record.text(part) for part in ("prompt", "reasoning", "answer", "response", "conversation")] == [
        "The prompt", "The reasoning", "The answer", "The reasoning\nThe answer",
        "The prompt\nThe reasoning\nThe answer",
    ]  # fmt: skip
    unanswered = item(None, "Only this")
    assert [unanswered.text(part) for part in ("prompt", "response", "answer")] == ["Only this", "", ""]


def test_letter_shares():
    for text, shares in [
        ("abc", (0.0, 1.0)), ("1 + 1 = 2", None), ("中文ab", (0.5, 0.5)), ("中文字a é", (0.6, 0.4)),
        ("при", (0.0, 0.0)), ("×÷ １２", None), ("한국 ひら", (1.0, 0.0)), ("\U00020000", (1.0, 0.0)),
    ]:  # fmt: skip
        assert letter_shares(text) == (None if shares is None else pytest.approx(shares))


def test_language(apply):
    texts = ["plain English", "中文的回答", "Привет, мир", "2 + 2 = 4"]
    assert apply("language", texts, of="answer", min_latin=0.5).kept == ["0", "3"]
    assert apply("language", texts, of="answer", min_cjk=0.5).kept == ["1", "3"]
    assert apply("language", texts, of="answer", min_either=0.5).kept == ["0", "1", "3"]
    assert apply("language", texts, of="answer", max_latin=0.2).kept == ["1", "2", "3"]


def test_repetition(apply):
    varied = " ".join(f"word{n}" for n in range(60))
    lines = "the same line\n" * 5 + "another line"
    chinese = "我们一起去学校。" * 12
    result = apply("repetition", [varied, lines, "say it again " * 20, chinese, "ha ha ha"], of="answer")
    assert result.kept == ["0", "4"]  # a short text is not judged by its runs
    assert len(set(reasons(result).values())) == 2 and reasons(result)["2"] == reasons(result)["3"]


def test_repetition_sees_the_same_words_in_ascii_and_beyond_it(apply):
    """Case and punctuation make no other words, whether or not one letter of the text is beyond ASCII."""
    text = "Yes! yes, no no; YES yes no. No " * 5
    result = apply("repetition", [text, text + "é"], of="answer")
    assert [drop.detail.split(" of ")[0] for drop in result.drops.values()] == ["0.89", "0.87"]
    assert apply("repetition", ["- " * 60], of="answer").kept == ["0"]  # a table's rule has no words


def test_repetition_is_exact_at_any_limit(apply):
    """The shortcut over distinct words may spare the count of n-grams, never change what is dropped."""
    texts = [[f"w{n * n % spread}" for n in range(40)] for spread in range(2, 40)]
    runs = [[tuple(text[n : n + 3]) for n in range(38)] for text in texts]
    shares = [1 - len(set(found)) / len(found) for found in runs]
    for most in (0.0, 0.1, 0.35, 0.7):
        options = {"of": "answer", "ngram": 3, "max_repeated_ngrams": most}
        result = apply("repetition", list(map(" ".join, texts)), **options)
        assert result.kept == [str(number) for number, share in enumerate(shares) if share <= most]


FRENCH = "Là où l’été « naïf » s’achève : œuvre, Ångström, São Paulo NÃO, 5 °C, ½, em—dash, café\xa0»."


SOUND = [FRENCH, "中文，“引号”——还有…", "tab\tand\r\nline", "emoji 👍🏽", "日本語の「括弧」"]
LOST, CONTROL = ["lost \ufffd here", "half \ud83d pair"], ["nul \0", "é \x9f"]
MOJIBAKE = [text.encode().decode("cp1252", "replace").replace("\ufffd", "\x9d")
            for text in ("don’t", "“quoted”", "déjà vu", "中文字符")]  # fmt: skip
MOJIBAKE += ["中文字符".encode().decode("latin-1"), "锟斤拷"]


def test_broken_unicode(apply):
    assert apply("broken_unicode", SOUND).drops == {}
    found = [apply("broken_unicode", texts) for texts in (LOST, CONTROL, MOJIBAKE)]
    assert [result.kept for result in found] == [[], [], []]
    assert len({reason for result in found for reason in reasons(result).values()}) == 3, "a reason for each kind"
    assert apply("broken_unicode", MOJIBAKE[:1], mojibake=False).kept == ["0"]


def test_missing_answer(apply, item):
    items = [
        item(None, identity="none"), item(" \n", identity="blank"), item("4", identity="good", meta={"answer": "4"}),
        item("4", identity="unknown"), item("4", identity="no thought", thinking="reasoning", meta={"answer": "4"}),
        item("four", identity="unlike", meta={"answer": "4"}),
    ]  # fmt: skip
    result = apply("missing_answer", items, pattern=r"\d", reference=True)
    assert result.kept == ["good"]
    assert len(set(reasons(result).values())) == 4
    with pytest.raises(UserError, match="pattern"):
        apply("missing_answer", items, pattern="(")


HONEST = [
    "We cannot divide by zero, so x = 2.", "I cannot stress enough that it is 4.", "I'm sorry for her: she has 3 left.",
    "i can't believe it is 7", "我不能确定地说，但答案是 4。",
]  # fmt: skip


def test_the_recipe_has_the_one_list_of_refusals_and_it_spares_honest_answers(apply):
    (planned,) = [step for step in recipe.load("filters_only", ["data.train=x"]).steps if step.name == "refusal"]
    phrases = planned.options.phrases
    assert phrases == rules.REFUSALS == rules.RefusalOptions().phrases
    assert rules.RefusalOptions(phrases=["no"]).phrases == ["no"]
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
    with pytest.raises(UserError, match="phrases"):
        apply("refusal", texts, phrases=[" "])


def test_code_fences(apply):
    sound = [
        "```python\nx\n```",
        "a ```b``` c",
        "```` \n```\n````",
        "~~~\n```\n~~~",
        "- ```\n  x\n  ```",
        "```x``` is code",
    ]
    assert apply("code_fences", sound).drops == {}
    assert apply("code_fences", ["```python\nx", "```\na\n```\n```\nb"]).kept == []
