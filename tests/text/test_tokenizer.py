"""The tokenizer: special pieces by id only, texts that come back unchanged, small vocabularies trained predictably."""

import hashlib
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mindspore_impl.curriculum.stages.context import RunContext
from mindspore_impl.data.options import FileSet
from mindspore_impl.errors import UserError
from mindspore_impl.text.template import SPECIAL_PIECES, TEMPLATE_TEXTS
from mindspore_impl.text.tokenizer import Tokenizer, texts_of, train_tokenizer, warn_of_lost

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\u2581"), max_size=24)
FRAGMENTS = [*SPECIAL_PIECES, "<s>", "<unk>", "[", "unused10]", " ", "a", "系统：", "[unused1"]
SPOILT = st.lists(st.sampled_from(FRAGMENTS), max_size=8)


def test_the_layout_of_a_trained_vocabulary(tokenizer):
    assert tokenizer.pieces(range(6)) == ["<unk>", "<s>", *SPECIAL_PIECES]
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.vocab_size) == (0, 1, 600)
    assert tokenizer.eos_id == tokenizer.special["[unused10]"] == 3
    assert tokenizer.sha256 == hashlib.sha256(tokenizer.path.read_bytes()).hexdigest()


@settings(deadline=None, max_examples=60)
@given(TEXT)
@example("  two spaces, 中文, 😀\n\ttab\r\n end ")
@example(" ")
@example("")
@example("<0x41> [unused10]")
def test_text_comes_back_unchanged(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)


@settings(deadline=None, max_examples=60)
@given(SPOILT.map("".join))
@example("[unused10]")
@example("x[unused10][unused9]助手：[unused16]")
@example("<s>")
@example("a［unused１０］b")
def test_text_never_becomes_a_special_piece(tokenizer, pangu_like, text):
    for one in (tokenizer, pangu_like):
        ids = one.encode(text)
        assert not {*one.special.values(), one.bos_id} & set(ids)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_published_layout_would_match_pieces_in_text(pangu_like):
    assert pangu_like.eos_id == 3 + 10 and pangu_like.backend.processor.eos_id() == 2  # after unk, bos, eos of the file
    assert pangu_like.eos_id in pangu_like.backend.encode("a[unused10]b"), "else the test above could not fail"
    assert pangu_like.decode(pangu_like.encode("a[unused10]b")) == "a[unused10]b"


def test_decoding_leaves_special_pieces_out_or_writes_them(tokenizer):
    ids = [tokenizer.bos_id, tokenizer.special["[unused16]"], *tokenizer.encode(" ab"), tokenizer.eos_id]
    ids += tokenizer.encode("c")
    assert tokenizer.decode(ids) == " abc"
    assert tokenizer.decode(ids, skip_special=False) == "<s>[unused16] ab[unused10]c"
    outside = [*tokenizer.encode("ab"), tokenizer.vocab_size, -1, *tokenizer.encode("\0c")]
    assert tokenizer.decode(outside) == "ab\ufffd\ufffd\ufffdc"


def test_template_texts_are_covered_even_at_low_coverage(tmp_path, tiny):
    assert all(0 not in tiny.encode(text) for text in TEMPLATE_TEXTS)
    sparse = train_tokenizer(["a b c " * 50] * 40, tmp_path / "t.model", 46, character_coverage=0.98)
    assert all(0 not in sparse.encode(text) for text in TEMPLATE_TEXTS)


def test_another_process_trains_the_same_file(corpus, tmp_path, tiny):
    script = (
        "import json, sys\n"
        "from mindspore_impl.text import tokenizer\n"
        "print(tokenizer.train_tokenizer(json.load(sys.stdin), sys.argv[1], 144).sha256)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "t.model")], input=json.dumps(corpus), text=True,
        capture_output=True, check=True, env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert run.stdout.split()[-1] == tiny.sha256 and run.stderr == ""


@pytest.mark.parametrize(("wrong", "step"), [(20, -1), (5000, 1), (400, 1)])
def test_a_wrong_size_names_the_nearest_that_works(corpus, tmp_path, wrong, step):
    path = tmp_path / "t.model"
    with pytest.raises(UserError, match="tokenizer.vocab_size=") as caught:
        train_tokenizer(corpus, path, wrong)
    assert not path.exists()
    works = int(re.search(r"that works is (\d+)", str(caught.value))[1])
    assert train_tokenizer(corpus, path, works).vocab_size == works
    with pytest.raises(UserError):
        train_tokenizer(corpus, path, works + step)


def test_training_on_nothing_or_with_a_wild_coverage_is_refused(tmp_path):
    with pytest.raises(UserError, match="no text to train"):
        train_tokenizer([" ", ""], tmp_path / "t.model", 100)
    with pytest.raises(UserError, match="tokenizer.character_coverage"):
        train_tokenizer(["abc"], tmp_path / "t.model", 100, character_coverage=1.5)


SEEN = {
    "progress bars": "训练损失 ▇▅▃▂ 下降到零",
    "nothing else": "▅",
    "line ends": "zebra\r\n",
    "tabs": "\tzebra\t",
    "the name of a piece": "[unused9] <s> zebra",
    "a blank text": "\u3000\xa0",
}


@pytest.mark.parametrize("text", SEEN.values(), ids=SEEN)
@pytest.mark.parametrize("coverage", [1.0, 0.98])
def test_what_the_library_leaves_out_is_covered(tmp_path, capfd, text, coverage):
    texts = [text, "ka lo mi"] * 40
    trained = train_tokenizer(texts, tmp_path / "t.model", 84, coverage)
    for one in texts:
        assert 0 not in trained.encode(one) and trained.decode(trained.encode(one)) == one
    told = capfd.readouterr()
    assert "100.0000%" in told.out and not told.err


def test_pieces_are_formed_beside_a_reserved_character_and_never_over_it(tmp_path):
    trained = train_tokenizer([SEEN["progress bars"]] * 40, tmp_path / "t.model", 84)
    assert trained.pieces(trained.encode("▇▅▃▂")) == ["▁▇", "▅", "▃▂"]
    assert max(map(len, trained.pieces(trained.encode("训练损失")))) > 2


def test_long_texts_are_not_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr("mindspore_impl.text.tokenizer.LONGEST_SENTENCE", 64)
    trained = train_tokenizer([" ".join(["zebra"] * 2000)], tmp_path / "t.model", 54)
    assert trained.pieces(trained.encode("zebra")) == ["▁zebra"]


@pytest.mark.parametrize(("coverage", "warned"), [(1.0, True), (0.98, False)])
def test_coverage_is_measured_and_compared(tmp_path, capfd, coverage, warned):
    train_tokenizer([("ka lo mi " * 12)[:99] + "\u2581"] * 40, tmp_path / "t.model", 48, coverage)
    told = capfd.readouterr()
    assert "99.0000%" in told.out and "4,000" in told.out
    assert ("tokenizer.character_coverage" in told.err and "U+2581 (40)" in told.err) == warned


def test_a_data_set_with_characters_unknown_to_the_tokenizer_is_told_once(tiny, pangu_like, tmp_path, capfd):
    (tmp_path / "r.jsonl").write_text('{"prompt": "list a \u03b1", "answer": "a \u03b1"}\n', encoding="utf-8")
    sets = {"mine": FileSet(source="prompt_answer", path=str(tmp_path / "r.jsonl"), count=1)}
    config = SimpleNamespace(data=SimpleNamespace(sets=sets), seed=0)
    RunContext(config, tmp_path, {}).records("mine")
    assert capfd.readouterr().err == "", "no tokenizer yet"
    context = RunContext(config, tmp_path, {}, tiny)
    assert context.samples("mine") and context.records("mine")
    told = capfd.readouterr().err
    warn_of_lost(pangu_like, ["a\uff41  ②"], "a normaliser's doing is no loss")
    assert capfd.readouterr().err == ""
    assert told.count("data.sets.mine") == 1 and "U+03B1 (2)" in told and str(tiny.path) in told


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.txt", b"fine\nnot \xff fine"),
        ("t.txt", b"fine\na \0"),
        ("t.jsonl", b'{"a": "fine"}\n{"a": ["\\ud83d"]}'),
        ("t.jsonl", b'{"a": "fine"}\n{"a": {"b": "\\u0000"}}'),
        ("t.jsonl", b'{"a": "fine"}\n{"a": "\xff"}'),
    ],
)
def test_a_file_to_train_on_is_checked_line_by_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}:2: not "):
        list(texts_of(tmp_path / name))


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "t.txt").write_bytes("\ufeffka\r\nlo".encode())
    assert list(texts_of(tmp_path / "t.txt")) == ["ka\n", "lo"]


def test_a_missing_damaged_or_foreign_file_is_refused(tmp_path, capfd):
    with pytest.raises(UserError, match="tokenizer.path"):
        Tokenizer.load(tmp_path / "absent.model")
    for content in (b"", b"junk", b"\x00" * 64):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(UserError, match="bad.model"):
            Tokenizer.load(tmp_path / "bad.model")
    assert capfd.readouterr().err == ""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c"] * 9), model_prefix=str(tmp_path / "plain"), vocab_size=8, minloglevel=3,
        model_type="bpe",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"plain.model: no piece \[unused9\]"):
        Tokenizer.load(tmp_path / "plain.model")
