"""Steps that compare records: duplicates, evaluation sets, compression, mixture."""

import random

import numpy as np
import pytest

from mindspore_impl.data.selection import duplicates, mixture
from mindspore_impl.data.selection.words import IdBook, ngram_hashes, word_hashes, words
from mindspore_impl.errors import UserError
from mindspore_impl.speed.select_data import planted, similarity_of

VOCABULARY = [f"{a}{b}{c}" for a in "bdgklmnprst" for b in "aeiou" for c in "lmnrst"]


def sentence(draw, count):
    return " ".join(draw.choices(VOCABULARY, k=count))


def test_words_are_blind_to_case_and_punctuation():
    assert words("Don't STOP, x_1 at 3.5!") == ["don", "t", "stop", "x", "1", "at", "3", "5"]
    assert words("中文abc，Ｅ d'été") == ["中", "文", "abc", "ｅ", "d", "été"]


def test_runs_have_the_same_hash_wherever_they_stand():
    left, right = word_hashes("zero one two three four five"), word_hashes("two three four five six seven eight")
    assert set(ngram_hashes(left, 4)) & set(ngram_hashes(right, 4)) == {ngram_hashes(left, 4)[2]}
    assert ngram_hashes(left, 4)[2] == ngram_hashes(right, 4)[0]
    assert len(ngram_hashes(left, 7)) == 0 and len(ngram_hashes(left, 6)) == 1
    assert ngram_hashes(word_hashes("a b"), 2) != ngram_hashes(word_hashes("b a"), 2)


def test_hashes_are_the_same_in_every_run():
    """They decide which records of a mixture are kept, so a new process must find the same."""
    assert word_hashes("apple").tolist() == [16118089804393287318]


def test_ascii_words_are_those_of_the_general_path():
    every = "".join(f"Ab{chr(code)}9 {chr(code)}" for code in range(128))
    assert every.isascii() and [*words(every), "é"] == words(every + " é")


def test_book_of_ids(tmp_path):
    book = IdBook(tmp_path)
    first, second = book.add("one\n1"), book.add("zwei ü")
    assert book.find(second) == "zwei ü" and book.find(first) == "one\n1"
    third = book.add("three")
    assert [book.find(at) for at in (third, second)] == ["three", "zwei ü"]


def test_exact_duplicates(apply, item):
    answers = ["2 + 3", " 2 +\n3 ", "2 - 3", "Word", "wORD", "2 + 3"]
    result = apply("exact_duplicates", answers)
    assert result.kept == ["0", "2", "3"]
    assert {identity: drop.other for identity, drop in result.drops.items()} == {"1": "0", "4": "3", "5": "0"}
    modes = [item("4", identity="r", thinking="reasoning"), item("4", identity="f"), item("4", identity="g")]
    assert apply("exact_duplicates", modes, apart="thinking").kept == ["r", "f"]
    assert apply("exact_duplicates", modes).kept == ["r"]


def test_near_duplicates_recall_and_precision(apply):
    """4,000 texts; 100 repeats at 0.8 or just above must go, 100 just below and all others must stay."""
    texts, similar = planted(4000)
    right = {str(number) for number, similarity in similar.items() if similarity >= 0.8}
    assert len(right) == 100 and all(0.7 < similarity < 0.95 for similarity in similar.values())
    dropped = set(apply("near_duplicates", texts, of="answer").drops)
    recall, precision = len(dropped & right) / len(right), len(dropped & right) / len(dropped)
    assert recall >= 0.95 and precision >= 0.95, (recall, precision)


def test_near_duplicates_name_the_first(apply, item):
    draw = random.Random(1)
    text = sentence(draw, 80)
    texts = [sentence(draw, 80), text, text + " more", "short", "!?", "short", "!?"]
    result = apply("near_duplicates", texts, of="answer")
    assert {identity: drop.other for identity, drop in result.drops.items()} == {"2": "1", "5": "3"}
    assert result.drops["2"].detail == f"similarity {similarity_of(texts[1], texts[2]):.3f}"
    modes = [item(text, identity="r", thinking="reasoning"), item(text, identity="f")]
    assert apply("near_duplicates", modes, of="answer", apart="thinking").kept == ["r", "f"]


def test_bands_find_pairs_at_the_threshold():
    for threshold in (0.5, 0.7, 0.8, 0.9, 1.0):
        bands, rows = duplicates.band_shape(threshold, 96)
        assert bands * rows <= 96 and 1 - (1 - threshold**rows) ** bands >= duplicates.RECALL


def test_signatures_agree_as_often_as_sets_overlap():
    sign = duplicates.signer(4096, 3)
    shared, left, right = np.split(np.random.default_rng(0).integers(0, 1 << 32, 300, np.uint32), [200, 250])
    agreed = np.mean(sign(np.concatenate([shared, left])) == sign(np.concatenate([shared, right])))
    assert agreed == pytest.approx(200 / 300, abs=0.03)


def test_missing_library_names_the_command(apply, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasketch", None)
    with pytest.raises(UserError, match=r"datasketch.*openpangu-posttrain\[select\]"):
        apply("near_duplicates", ["a"])


QUESTION = (
    "Lena packs 12 boxes with 8 lemons each, gives a quarter of all lemons to her aunt, and sells the rest for 30 "
    "cents apiece. How many dollars does she earn?"
)


def test_decontamination(apply, item):
    draw = random.Random(2)
    sets = {"test": [item("x", QUESTION, identity="t1"), item("x", "What is seven times eight?", identity="t2"),
                     item("x", "Hello there", identity="t3")]}  # fmt: skip
    edited = QUESTION.upper().replace(",", " ;").replace(".", "")
    prompts = {
        "copy": QUESTION, "case": edited, "prefix": "Please solve this problem step by step: " + QUESTION + " Thanks!",
        "part": " ".join(QUESTION.split()[4:20]), "short": "Tell me: what is SEVEN times eight",
        "other": sentence(draw, 60), "twelve": " ".join(QUESTION.split()[:12]), "tiny": "Hello there",
        "alike": "What is seven times nine?",
    }  # fmt: skip
    result = apply(
        "decontaminate", [item("4", text, identity=key) for key, text in prompts.items()], sets, against=["test"]
    )
    assert result.kept == ["other", "twelve", "tiny", "alike"]
    assert {key: drop.other for key, drop in result.drops.items()} == {
        "copy": "t1", "case": "t1", "prefix": "t1", "part": "t1", "short": "t2"
    }  # fmt: skip
    assert "13 words" in result.drops["copy"].reason and "test" in result.drops["copy"].reason
    assert result.drops["short"].detail == "what is seven times eight"
    assert result.notes["evaluation records"] == 2


def test_decontamination_of_answers(apply, item):
    sets = {"test": [item("x", QUESTION, identity="t1")]}
    assert apply("decontaminate", [item(QUESTION)], sets, against=["test"]).kept == []
    assert apply("decontaminate", [item(QUESTION)], sets, against=["test"], of="prompt").kept == ["1"]
    with pytest.raises(UserError, match="test has 5 words"):
        apply("decontaminate", [item("x")], {"test": [item("x", "Hi")]}, against=["test"])


def test_compression_of_a_record(apply):
    draw = random.Random(3)
    texts = [
        sentence(draw, 80),
        "again and " * 100,
        "no " * 10,
        "".join(map(chr, draw.sample(range(0x4E00, 0x9000), 300))),
    ]
    result = apply("compression", texts, of="answer", max_ratio=0.7)
    assert result.kept == ["0", "2"] and "0.2" in result.drops["1"].reason and "0.7" in result.drops["3"].reason


def test_compression_over_a_group(apply, item):
    draw = random.Random(4)
    first, second = sentence(draw, 80), sentence(draw, 80)
    items = [item(first, identity="a"), item(second, identity="b"), item(first + " once more", identity="c"),
             item(first, identity="d", set_name="other")]  # fmt: skip
    assert apply("compression", items, of="answer", over="set").kept == ["a", "b", "d"]
    assert apply("compression", items, of="answer", over="record").kept == ["a", "b", "c", "d"]


def grouped(item, reasoning, fast):
    return [item("x", "?", "why", identity=f"r{n}") for n in range(reasoning)] + [
        item("x", "?", identity=f"f{n}") for n in range(fast)
    ]


def count(result):
    return sum(one[0] == "r" for one in result.kept), sum(one[0] == "f" for one in result.kept)


def test_mixture_drops_from_the_larger_group(apply, item):
    items, weights = grouped(item, 60, 100), {"reasoning": 3, "fast": 1}
    result = apply("mixture", items, weights=weights)
    assert count(result) == (60, 20) and len(result.drops) == 80
    assert result.notes["given"] == {"reasoning": 60, "fast": 20}
    backwards = apply("mixture", items[::-1], weights=weights)
    assert set(backwards.kept) == set(result.kept)  # chosen by id, whatever the order
    assert set(apply("mixture", items, weights=weights, seed=1).kept) != set(result.kept)
    fewer = apply("mixture", items, weights=weights, total=40)
    assert count(fewer) == (30, 10) and set(fewer.kept) < set(result.kept)


def test_mixture_gives_exactly_what_it_is_asked_for():
    """Also where several records share the bin at which the choice ends."""
    bins = np.array([3, 5, 2])
    records = [1, 0, 2, 1, 1, 0, 1, 0, 2, 1]
    for asked in range(25):
        copies = list(map(mixture._copies(bins, asked), records))
        assert sum(copies) == asked and max(copies) - min(copies) <= 1
        assert all(copies[left] >= copies[right] for left in (1, 5, 7) for right in (0, 3, 2))


def test_mixture_repeats_the_smaller_group(apply, item):
    result = apply("mixture", grouped(item, 40, 100), weights={"reasoning": 1, "fast": 1}, how="repeat")
    assert count(result) == (100, 100) and len(set(result.kept)) == 200
    assert sum(one.endswith("#2") for one in result.kept) == 40 and sum(one.endswith("#3") for one in result.kept) == 20


def test_mixture_refuses_what_it_cannot_give(apply, item):
    items = grouped(item, 4, 8)
    with pytest.raises(UserError, match="'fast'.*weights"):
        apply("mixture", items, weights={"reasoning": 1})
    with pytest.raises(UserError, match="weights .*'slow'"):
        apply("mixture", items, weights={"reasoning": 1, "fast": 1, "slow": 1})
    with pytest.raises(UserError, match="50 records of 'reasoning'.* 4"):
        apply("mixture", items, weights={"reasoning": 1, "fast": 1}, total=100)
