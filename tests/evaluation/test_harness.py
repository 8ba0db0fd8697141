"""Accuracy over a scripted engine; faults of sets and records."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.evaluation import harness
from mindspore_impl.evaluation.harness import EvaluationJob, check_records, evaluate
from mindspore_impl.evaluation.options import EvaluationOptions
from mindspore_impl.text.chat import render_prompt
from mindspore_impl.text.records import Message, Record, prompt_messages
from mindspore_impl.text.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = [f"list {a} {b} apply sort reverse answer {a}" for a in "abcdef" for b in "abcdef"]
    return train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", 96, 1.0)


def make_record(number, thinking="fast", answer="a b"):
    messages = (Message("user", f"list {answer} apply sort"), Message("assistant", answer, "sort a b"))
    return Record(f"r{number}", messages, thinking, {"task": "exact", "answer": answer})


class ScriptedEngine:
    """Gives the scripted completions one after the other."""

    def __init__(self, tokenizer, script):
        self.tokenizer, self.script, self.calls = tokenizer, iter(script), []

    def generate(self, prompts, sampling, seeds, progress=None):
        self.calls.append((list(prompts), sampling, list(seeds)))
        return [self._completion(*next(self.script)) for _ in prompts]

    def _completion(self, reasoning, answer, finished):
        special, encode = self.tokenizer.special, self.tokenizer.encode
        ids = [special["[unused16]"], *encode(reasoning), special["[unused17]"], *encode(answer)]
        return SimpleNamespace(ids=ids + [special["[unused10]"]] * finished, finished=finished)


def test_accuracy_counts_and_samples(tokenizer, tmp_path, monkeypatch):
    script = [("", "a b", True), ("", "b a", True), ("sort", "a b", True), ("", "a b", False),
              ("sort a b", "a b", True)]  # fmt: skip
    scripted = ScriptedEngine(tokenizer, script)
    monkeypatch.setattr(harness, "_engine", lambda *_: scripted)
    several = make_record(9, "reasoning")
    several = dataclasses.replace(several, messages=(Message("system", "sort"), *several.messages))
    sets = {"fast": [make_record(i) for i in range(9)], "slow": [several], "unused": []}
    options = EvaluationOptions(accuracy=["fast", "slow"], limit=4, samples_in_report=2, max_new_tokens=7, batch_size=3)
    result = evaluate(EvaluationJob(None, tokenizer, sets, options, tmp_path, seed=1))
    fast = result["accuracy"]["fast"]
    assert (fast["correct"], fast["total"], fast["accuracy"], fast["truncated"]) == (1, 4, 0.25, 1)
    assert (fast["low"], fast["high"]) == pytest.approx((0.0456, 0.6994), abs=1e-4)
    assert result["accuracy"]["slow"]["correct"] == 1 and result["perplexity"] == result["calibration"] == {}
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["correct"] for line in lines] == [True, False, False, False, True]
    assert [line["finished"] for line in lines] == [True, True, True, False, True]
    assert [line["shown"] for line in lines] == [True, True, False, False, True]
    assert result["tokens"] == sum(line["tokens"] for line in lines) > 20
    assert lines[0]["prompt"] == "list a b apply sort", "roles are named where there are several messages"
    last = {key: lines[-1][key] for key in ("id", "set", "thinking", "prompt", "reasoning", "answer", "expected")}
    assert last == {
        "id": "r9", "set": "slow", "thinking": "reasoning", "prompt": "system: sort\nuser: list a b apply sort",
        "reasoning": "sort a b", "answer": "a b", "expected": "a b",
    }  # fmt: skip
    assert [len(prompts) for prompts, _, _ in scripted.calls] == [2, 2, 1], "parts as even as can be"
    prompts, sampling, _ = scripted.calls[0]
    assert (sampling.temperature, sampling.max_new_tokens, sampling.batch_size) == (0.0, 7, 3)
    assert prompts[0] == render_prompt(prompt_messages(sets["fast"][0]), tokenizer, "fast")


def test_an_engine_that_says_cut_is_believed(tokenizer, tmp_path, monkeypatch):
    """Even when the ids happen to end with the closing piece."""
    engine = ScriptedEngine(tokenizer, [("", "a b", True)])
    cut = engine.generate([[1]], None, [0])[0]
    cut.finished = False
    engine.generate = lambda *_, **__: [cut]
    monkeypatch.setattr(harness, "_engine", lambda *_: engine)
    result = evaluate(
        EvaluationJob(None, tokenizer, {"s": [make_record(0)]}, EvaluationOptions(accuracy=["s"]), tmp_path, 0)
    )
    assert result["accuracy"]["s"]["correct"] == 0 and result["accuracy"]["s"]["truncated"] == 1
    assert json.loads((tmp_path / "samples.jsonl").read_text())["correct"] is False


def test_samples_come_in_the_order_of_records(tokenizer, tmp_path, monkeypatch):
    """Although prompts of similar length are generated together."""
    scripted = ScriptedEngine(tokenizer, [("", "a b", True)] * 6)
    monkeypatch.setattr(harness, "_engine", lambda *_: scripted)
    records = [make_record(i, answer=" ".join("abcdef"[: 6 - i])) for i in range(6)]
    evaluate(
        EvaluationJob(None, tokenizer, {"s": records}, EvaluationOptions(accuracy=["s"], batch_size=2), tmp_path, 0)
    )
    lengths = [len(prompt) for prompts, _, _ in scripted.calls for prompt in prompts]
    assert lengths == sorted(lengths) and len(set(lengths)) == 6 and len(scripted.calls) == 3
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == [f"r{i}" for i in range(6)]
    assert [line["correct"] for line in lines] == [i == 4 for i in range(6)]


@pytest.mark.parametrize(
    ("sets", "options", "words"),
    [
        ({"test": []}, {"accuracy": ["tset"]}, "'tset'.*test"),
        ({"test": []}, {"accuracy": ["test"]}, "'test' has no record"),
        ({"test": [Record("q3", (Message("user", "x"),), "fast", {})]}, {"accuracy": ["test"]}, "'test'.*'q3'"),
        ({"test": [Record("q3", (Message("user", "x"),), "fast", {})]}, {"perplexity": ["test"]}, "'test'.*'q3'"),
        ({"test": [Record("q3", (Message("system", "x"),), "fast", {"task": "exact", "answer": "y"})]},
         {"accuracy": ["test"]}, "'test'.*'q3'"),
    ],
)  # fmt: skip
def test_a_faulty_set_is_named_before_anything_is_generated(tokenizer, tmp_path, sets, options, words):
    with pytest.raises(UserError, match=words):
        evaluate(EvaluationJob(None, tokenizer, sets, EvaluationOptions(**options), tmp_path, 0))


def test_records_are_checked_without_a_model(tokenizer):
    sets = {"test": [make_record(i) for i in range(3)]}
    prompts = check_records(sets, EvaluationOptions(accuracy=["test"], perplexity=["elsewhere"], limit=2), tokenizer)
    assert prompts == {"test": [render_prompt(prompt_messages(r), tokenizer, "fast") for r in sets["test"][:2]]}
    for meta, key in (({}, "meta.task"), ({"task": "exact"}, "meta.answer")):
        sets["bare"] = [Record("q3", (Message("user", "x"),), "fast", meta)]
        with pytest.raises(UserError, match=f"'bare', record 'q3'.*{key}"):
            check_records(sets, EvaluationOptions(accuracy=["test", "bare"]), tokenizer)
