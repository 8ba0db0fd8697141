"""Adapters: each published form becomes the record, and each malformed line is named."""

import gzip
import json
from dataclasses import dataclass, replace

import pytest

from mindspore_impl.data import sources
from mindspore_impl.data.options import DatasetOptions, FileSet, ListProgramsSet
from mindspore_impl.data.sources import load_set
from mindspore_impl.data.validators import check_all
from mindspore_impl.errors import UserError
from mindspore_impl.schema import build
from mindspore_impl.text.records import Message, Record

GSM8K = {"question": "How many?", "answer": "She sold 48/2 = <<48/2=24>>24.\nIn all <<48+24=1072>>1,072.\n#### 1,072"}
ALPACA = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
SHAREGPT = {"conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi"},
                              {"from": "gpt", "value": "<think>\nA greeting.\n</think>\n\nHello"}]}  # fmt: skip
PROMPT_ANSWER = {"prompt": "1+1?", "answer": "2", "reasoning": "count", "system": "Be brief."}
TOOLS = [{"name": "get_weather"}]
RECORD = {"id": "x", "messages": [{"role": "user", "content": "hi"}], "thinking": "reasoning", "meta": {"k": 1}}


def conversation(question, answer, **flags):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer} | flags]}


def asked(source, question, answer):
    """An entry of `source` with one question and its answer."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {
        "alpaca": {"instruction": question, "output": answer},
        "prompt_answer": {"prompt": question, "answer": answer},
        "sharegpt": conversation(question, answer),
        "records": {"messages": messages},
    }[source]


@pytest.fixture
def load(tmp_path):
    def load(source, rows, array=False, **options):
        path = tmp_path / "set.json"
        text = json.dumps(rows) if array else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
        return load_set("toy", FileSet(source=source, path=str(path), **options), seed=0)

    return load


def test_gsm8k(load):
    fast, slow = load("gsm8k", [GSM8K])[0], load("gsm8k", [GSM8K], thinking="reasoning")[0]
    assert fast.messages == (Message("user", "How many?"), Message("assistant", "1,072"))
    assert slow.messages[1] == Message("assistant", "1,072", "She sold 48/2 = 24.\nIn all 1,072.")
    assert fast.meta == slow.meta == {"task": "gsm8k", "answer": "1072"}
    assert (fast.thinking, slow.thinking, fast.id) == ("fast", "reasoning", "toy:1")
    for given, kept in (("１，０７２", "1072"), ("12,34", "12,34"), ("共18个", "共18个")):
        assert load("gsm8k", [GSM8K | {"answer": f"#### {given}"}])[0].meta["answer"] == kept


def test_alpaca(load):
    with_input, without = load("alpaca", [ALPACA, {"instruction": "Speak.", "input": "", "output": "Hm"}], array=True)
    assert with_input.messages == (Message("user", "Add.\n\n1 and 2"), Message("assistant", "3"))
    assert without.messages[0].content == "Speak."
    assert with_input.meta == {"task": "exact", "answer": "3"} and with_input.id == "toy:[0]"


def test_sharegpt(load):
    fast, slow = load("sharegpt", [SHAREGPT])[0], load("sharegpt", [SHAREGPT], thinking="reasoning")[0]
    assert fast.messages == (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hello"))
    assert slow.messages[2] == Message("assistant", "Hello", "A greeting.")
    assert slow.meta == {"task": "exact", "answer": "Hello"}


def test_prompt_answer(load):
    system, user, assistant = load("prompt_answer", [PROMPT_ANSWER], thinking="reasoning")[0].messages
    assert (system, user) == (Message("system", "Be brief."), Message("user", "1+1?"))
    assert assistant == Message("assistant", "2", "count")
    assert load("prompt_answer", [PROMPT_ANSWER])[0].messages[2].reasoning is None


def test_records_speak_for_themselves_and_the_set_fills_in(load):
    bare = {"messages": RECORD["messages"]}
    first, second = load("records", [RECORD, bare])
    assert (first.id, first.thinking, first.meta) == ("x", "reasoning", {"k": 1})
    assert (second.id, second.thinking, second.meta) == ("toy:2", "fast", {})


def test_list_programs_come_from_the_generator():
    options = ListProgramsSet(split="test", skip=5, count=3, thinking="reasoning")
    expected = [f"list_programs/test/4/{index}" for index in (5, 6, 7)]
    assert [record.id for record in load_set("toy", options, seed=4)] == expected
    assert load_set("toy", replace(options, seed=4), seed=9) == load_set("toy", options, seed=4)
    with pytest.raises(UserError, match="data.sets.toy.noise: 3"):
        load_set("toy", ListProgramsSet(count=1, noise=3), seed=0)


def test_first_and_count_choose_lines_and_malformed_ones_outside_do_not_matter(load):
    rows = [{"bad": 1}, *({"prompt": f"q{index}", "answer": "a"} for index in range(4)), {"bad": 1}]
    taken = load("prompt_answer", rows, skip=1, count=4)
    assert [record.messages[0].content for record in taken] == ["q0", "q1", "q2", "q3"]
    assert taken[0].id == "toy:2"
    with pytest.raises(UserError, match="toy.*holds 6 records"):
        load("prompt_answer", [rows[1]] * 6, skip=3, count=4)
    with pytest.raises(UserError, match="toy.*holds 2 records"):
        load("prompt_answer", [rows[1]] * 2, skip=2)


def test_held_out_records_are_those_that_training_leaves_out(load):
    rows = [{"prompt": f"q{index}", "answer": "a"} for index in range(10)]

    def questions(**options):
        return [record.messages[0].content for record in load("prompt_answer", rows, **options)]

    whole = questions()
    train, held = questions(holdout=3), questions(holdout=3, split="validation")
    assert train + held == whole and len(held) == 3
    assert questions(holdout=3, skip=2, count=4) == whole[2:6]
    assert questions(holdout=3, split="validation", skip=1, count=1) == whole[8:9]
    for options, named in (
        ({"holdout": 10}, "holds 0 records"), ({"holdout": 3, "count": 8}, "train part.*holds 7"),
        ({"split": "validation"}, "holdout"), ({"holdout": -1}, "data.sets.toy.holdout"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=named):
            questions(**options)


def test_a_registered_source_is_loaded_with_its_own_options(monkeypatch):
    @dataclass(kw_only=True)
    class Letters(DatasetOptions):
        letters: str

    monkeypatch.setattr(sources, "SOURCES", dict(sources.SOURCES))

    @sources.register_source("letters", Letters)
    def load_letters(options, seed):
        messages = (Message("user", "?"), Message("assistant", options.letters))
        return [Record(f"{seed}", messages, options.thinking, {})]

    built = build(DatasetOptions, {"source": "letters", "letters": "ab"}, "", sources.set_kinds())
    (record,) = load_set("mine", built, seed=3)
    assert (record.id, record.messages[1].content) == ("3", "ab")
    with pytest.raises(UserError, match="letters.noise"):
        build(DatasetOptions, {"source": "letters", "letters": "ab", "noise": 0.5}, "letters", sources.set_kinds())


@pytest.mark.parametrize(("source", "plain", "key"), [
    ("gsm8k", {"path": "x", "noise": 0.1}, "noise"),
    ("list_programs", {"count": 1, "path": "x"}, "path"),
    ("stage", {"stage": "score", "holdout": 1}, "holdout"),
    ("gsm8k", {}, "path"),
    ("list_programs", {}, "count"),
    ("stage", {}, "stage"),
    ("gsm9k", {"path": "x"}, "'gsm8k'"),
])  # fmt: skip
def test_a_set_has_the_keys_of_its_source(source, plain, key):
    with pytest.raises(UserError, match=key):
        build(DatasetOptions, {"source": source} | plain, "data.sets.toy", sources.set_kinds())


@pytest.mark.parametrize("text", [json.dumps([ALPACA]), json.dumps(ALPACA)], ids=["array", "lines"])
def test_a_byte_order_mark_does_not_matter(tmp_path, text):
    path = tmp_path / "set.json"
    path.write_text(text, encoding="utf-8-sig")
    (record,) = load_set("toy", FileSet(source="alpaca", path=str(path)), seed=0)
    assert record.messages[1] == Message("assistant", "3")


@pytest.mark.parametrize(("source", "row", "needles"), [
    ("gsm8k", {"question": "q"}, ["'answer' is missing"]),
    ("gsm8k", {"question": "q", "answer": "no mark"}, ["'answer'", "####"]),
    ("gsm8k", {"question": "q", "answer": "x #### "}, ["'answer'", "####"]),
    ("gsm8k", {"question": "q", "answer": "#### ①"}, ["'answer'", "####"]),
    ("gsm8k", {"question": 3, "answer": "x #### 1"}, ["question must be a string", "a number"]),
    ("alpaca", {"instruction": "i", "ouput": "o"}, ["'output' is missing", "'ouput' a typo"]),
    ("alpaca", {"instruction": "i", "input": 4, "output": "o"}, ["input must be a string"]),
    ("alpaca", {"instruction": "i", "output": " "}, ["answer", "blank"]),
    ("prompt_answer", {"prompt": " ", "answer": "o"}, ["question", "blank"]),
    ("sharegpt", {"conversations": []}, ["'conversations' must be an array"]),
    ("sharegpt", {"conversations": ["x"]}, ["conversations[0]", "expected an object"]),
    ("sharegpt", {"conversations": [{"from": "human"}]}, ["conversations[0]", "'value' is missing"]),
    ("sharegpt", {"conversations": [{"from": "bing", "value": "x"}]}, ["conversations[0]", "unknown 'from' 'bing'"]),
    ("sharegpt", {"conversations": [{"from": "human", "value": "x"}]}, ["the last turn", "from: gpt"]),
    ("sharegpt", {"conversations": [{"from": "gpt", "value": "<think>x"}]}, ["conversations[0]", "<think>"]),
    ("records", {"messages": [{"role": "bot", "content": "x"}]}, ["messages[0]", "unknown role 'bot'"]),
    ("records", {"messages": RECORD["messages"], "thinkin": "fast"}, ["unknown field 'thinkin'", "'thinking'"]),
    ("sharegpt", conversation("hi", "a", tool_calls=[{}]), ["conversations[1]", "tool_calls"]),
    ("sharegpt", conversation("hi", "a", weight="no"), ["conversations[1]", "weight"]),
    ("alpaca", ALPACA | {"inputs": "x", "input": None, "histroy": []}, ["histroy"]),
    ("alpaca", ALPACA | {"history": {"q": "a"}}, ["'history'"]),
    ("alpaca", ALPACA | {"history": [["q", "a"], ["q"]]}, ["'history'"]),
    ("alpaca", ALPACA | {"history": [["q", None]]}, ["history[0]", "answer", "null"]),
    ("alpaca", ALPACA | {"history": [["q", "<think>"]]}, ["history[0]", "answer", "<think>"]),
])  # fmt: skip
def test_a_malformed_line_is_named_with_its_field(load, source, row, needles):
    good = {"gsm8k": GSM8K, "alpaca": ALPACA, "sharegpt": SHAREGPT, "prompt_answer": PROMPT_ANSWER, "records": RECORD}
    for array, place in ((False, "set.json:2"), (True, "set.json:[1]")):
        with pytest.raises(UserError) as caught:
            load(source, [good[source], row], array=array)
        for needle in [place, *needles]:
            assert needle in str(caught.value)


@pytest.mark.parametrize(("source", "row"), [
    ("alpaca", ALPACA),
    ("prompt_answer", {"prompt": "q", "answer": "a"}),
    ("gsm8k", {"question": "q", "answer": "#### 4"}),
    ("sharegpt", {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}),
])  # fmt: skip
def test_reasoning_that_is_not_there_is_an_error(load, source, row):
    with pytest.raises(UserError, match="set.json:1.*thinking: reasoning needs.*thinking: fast"):
        load(source, [row], thinking="reasoning")


def test_a_repeated_id_names_both_lines(load):
    with pytest.raises(UserError, match=r"set.json:2: the id 'x' was already used at .*set.json:1"):
        load("records", [RECORD, RECORD])


def test_files_that_cannot_be_used(load, tmp_path):
    def fails(needle, content=None, path=tmp_path / "f.json", **options):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=needle):
            load_set("toy", FileSet(**{"source": "alpaca", "path": str(path)} | options), seed=0)

    fails("absent.json: no such file", path=tmp_path / "absent.json")
    fails("f.json: the file holds no record", b"")
    fails("f.json: the file holds no record", b" [] ")
    fails(r"f.json:2: not valid JSON", b'[\n{"a": }]')
    fails(r"f.json:\[0\]: expected an object", b"[1]")
    fails(r"f.json:1: not valid JSON", b'{"a": \n')
    fails("f.json:1: not UTF-8", b"\xff\xfe\x00")
    fails("f.json: not UTF-8", b"[\n" + b"1,\n" * 20_000 + b"\xff]")  # beyond the first block
    fails("f.json: .*nested too deeply", b"[" * 100_000)
    fails("f.json: .*an integer has too many digits", b"[" + b"1" * 5000 + b"]")
    fails("f.json:1: .*an integer has too many digits", b'{"a": ' + b"1" * 5000 + b"}")
    fails("data.sets.toy.skip: -1", b"{}", skip=-1)
    fails("data.sets.toy.source", b"{}", source="parquet")


FORMS = pytest.mark.parametrize("source", ["alpaca", "prompt_answer", "sharegpt", "records"])


@FORMS
@pytest.mark.parametrize("answer", ["<think>\n2+3=5\n</think>\n\n5", "2+3=5</think>5"])
def test_reasoning_inside_an_answer_is_never_learned_as_text(load, source, answer):
    fast, slow = (load(source, [asked(source, "<think>?", answer)], thinking=mode)[0] for mode in ("fast", "reasoning"))
    assert slow.messages == (Message("user", "<think>?"), Message("assistant", "5", "2+3=5"))
    assert fast.messages[1].content == "5" and fast.meta.get("answer", "5") == "5"


@FORMS
@pytest.mark.parametrize(("question", "answer", "thinking"), [
    ("q", "so <think>a</think> 5", "fast"), ("q", "<think>a", "fast"), ("q", "<think>a</think>", "fast"),
    ("q", "<think>a</think>b<think>c</think>d", "reasoning"), (" \u3000", "a", "fast"), ("q", "\n", "fast"),
    ("q /no_think", "<think>a</think>b", "reasoning"), ("q /think", "a", "fast"),
])  # fmt: skip
def test_every_source_refuses_alike(load, tmp_path, source, question, answer, thinking):
    rows = [asked(source, "q", "<think>a</think>b"), asked(source, question, answer)]
    with pytest.raises(UserError, match="set.json:2"):
        load(source, rows, thinking=thinking)
    told = []
    form = FileSet(source=source, path="", thinking=thinking)
    assert check_all([tmp_path / "set.json"], tell=told.append, form=form) == 1 and "set.json:2" in told[0]


@FORMS
def test_columns_that_no_source_reads(load, source):
    row = asked(source, "q", "a")
    extra = {"source": "hf", "score": 3, "metadata": {}, "label": None, "tools": "[]", "weight": 1.0, "loss": 2.3}
    assert load(source, [row | extra]) == load(source, [row])
    for column in ({"tools": json.dumps(TOOLS)}, {"tools": TOOLS}, {"weight": 0}, {"images": ["x.png"]},
                   {"loss": False}, {"reasoning_content": "why"}, {"system_prompt": "Be kind."}):  # fmt: skip
        with pytest.raises(UserError, match=f"set.json:2.*{next(iter(column))}"):
            load(source, [row, row | column])


@pytest.mark.parametrize(("source", "row"), [("alpaca", ALPACA), ("prompt_answer", {"prompt": "p", "answer": "3"})])
def test_history_is_kept_as_earlier_turns(load, source, row):
    (record,) = load(source, [row | {"system": "Be kind.", "history": [["q", "a"], ["r", "<think>s</think>b"]]}])
    assert [message.role for message in record.messages] == ["system", *["user", "assistant"] * 3]
    assert [message.content for message in record.messages[1:5]] == ["q", "a", "r", "b"]
    assert record.messages[-1].content == record.meta["answer"] == "3"
    with pytest.raises(UserError, match="set.json:1.*'context'"):
        load(source, [row | {"context": "Bern is in Switzerland."}])
    for nothing in ([], None, ""):
        assert load(source, [row | {"history": nothing}]) == load(source, [row])


@pytest.mark.parametrize("flag", [{"weight": 0}, {"loss": False}, {"train": False}])
def test_a_turn_of_weight_0_is_not_learned(load, flag):
    row = conversation("a", "bad", **flag)
    row["conversations"] += conversation("b", "<think>why</think>good", weight=1)["conversations"]
    for thinking in ("fast", "reasoning"):
        (record,) = load("sharegpt", [row], thinking=thinking)
        assert [message.supervised for message in record.messages] == [True, False, True, True]


@FORMS
@pytest.mark.parametrize("array", [False, True])
def test_a_key_given_twice_is_refused_by_name(tmp_path, source, array):
    text = json.dumps(asked(source, "q", "a"))
    twice = text[:-1] + ', "extra": {"x": 1, "x": 1}}'
    path = tmp_path / "set.json"
    path.write_text(f"[{text}, {twice}]" if array else f"{text}\n{twice}\n")
    with pytest.raises(UserError, match="set.json: .*'x'" if array else "set.json:2: .*'x'"):
        load_set("toy", FileSet(source=source, path=str(path)), seed=0)


@pytest.mark.parametrize("content", [gzip.compress(b"{}", mtime=0), b"PAR1\x15\x04", b"\x28\xb5\x2f\xfd"])
def test_a_file_that_is_no_text_is_refused_whole(tmp_path, content):
    path = tmp_path / "set.jsonl"
    path.write_bytes(content + b"\n" * 7)
    for read in (lambda: load_set("toy", FileSet(source="records", path=str(path)), 0), lambda: check_all([path])):
        with pytest.raises(UserError, match="set.jsonl: is "):
            read()
