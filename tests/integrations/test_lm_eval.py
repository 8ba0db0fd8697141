"""The harness over our engine: requests, kept answers, and equal scores on equal texts."""

import dataclasses
import json
import sys

import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.benchmark import BenchmarkSettings, read_benchmark, run
from mindspore_impl.integrations.lm_eval import Requests, harness_model, run_harness, sampling_of
from tests.evaluation.fake_backend import Counting, make_tokenizer, request
from tests.integrations.harness_facts import DATA, RECORDED, facts, ours

SETTINGS = BenchmarkSettings(batch_size=4)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("task", ["gsm8k", "drop", "ifeval", "math", "mmlu"])
def test_scores_equal_what_the_harness_said(monkeypatch, task):
    monkeypatch.setitem(sys.modules, "langdetect", None)
    assert ours()[task] == json.loads(RECORDED.read_text(encoding="utf-8"))[task]


@pytest.mark.slow
def test_the_harness_still_says_so():
    pytest.importorskip("lm_eval")
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    assert {**facts(), "version": ""} == {**recorded, "version": ""}


def test_likelihoods_of_one_context_are_one_query(tokenizer):
    counting = Counting(tokenizer)
    requests = [request("Question: one\nAnswer:", " A"), request("Question: two\nAnswer:", " A"),
                request("Question: one\nAnswer:", " B")]  # fmt: skip
    found = Requests(counting.backend, SETTINGS).loglikelihood(requests, disable_tqdm=True)
    assert len(counting.queries) == 2
    for (context, continuation), answer in zip((r.args for r in requests), found, strict=True):
        query = next(q for q in counting.queries if tokenizer.decode(q.context) == context)
        text = next(c for c in query.continuations if tokenizer.decode(c).strip() == continuation.strip())
        assert answer == (counting.likelihood(query, text).logp, counting.likelihood(query, text).greedy)


def test_a_long_context_loses_its_beginning(tokenizer):
    counting = Counting(tokenizer, limit=10)
    Requests(counting.backend, SETTINGS).loglikelihood([request("1 2 3 4 5 6 7 8 9 1 2 3", " 4 5")], True)
    (query,) = counting.queries
    whole = tokenizer.encode("1 2 3 4 5 6 7 8 9 1 2 3 4 5")
    assert [*query.context, *query.continuations[0]] == whole[-11:], "the last token of all is predicted, not read"


def test_rolling_windows_cover_a_text_once(tokenizer):
    counting = Counting(tokenizer, limit=4)
    ids = tokenizer.encode("1 2 3 4 5")
    found = Requests(counting.backend, SETTINGS).loglikelihood_rolling([request("1 2 3 4 5")], True)
    windows = [(list(q.context), [list(c) for c in q.continuations]) for q in counting.queries]
    assert sum(len(texts) for _, texts in windows) == -(-len(ids) // 4)
    assert [i for _, texts in windows for text in texts for i in text] == ids
    assert windows[0][0] == [tokenizer.bos_id]
    last, (end,) = windows[-1]
    assert last + end == ids[-5:], "the last window is filled up with what stands before"
    assert found == [sum(counting.likelihood(q, c).logp for q in counting.queries for c in q.continuations)]


def test_completions_end_before_a_stop_string(tokenizer):
    counting = Counting(tokenizer, ["7 8\nQuestion: 9"])
    model = Requests(counting.backend, SETTINGS)
    found = model.generate_until([request("one", {"until": ["Question:"], "max_gen_toks": 30}),
                                  request("two", {"until": "8", "max_gen_toks": 30}),
                                  request("three", {"until": [], "max_gen_toks": 1})], True)  # fmt: skip
    assert found[:2] == ["7 8\n", "7 "] and len(found[2]) <= 2
    assert [p[0] for p in counting.prompts] == [tokenizer.bos_id] * 3


def test_generation_settings():
    greedy, stop = sampling_of({"until": ["\n"], "do_sample": False, "temperature": 0.7, "max_gen_toks": 5}, 3)
    assert (greedy.temperature, greedy.max_new_tokens, greedy.batch_size, stop) == (0.0, 5, 3, ["\n"])
    drawn, _ = sampling_of({"temperature": 0.7, "top_p": 0.9}, 3)
    assert (drawn.temperature, drawn.top_p, drawn.max_new_tokens) == (0.7, 0.9, 256)
    assert sampling_of({}, 1)[0].temperature == 0.0
    with pytest.raises(UserError, match="'beams'"):
        sampling_of({"beams": 2}, 1)


def test_chat_contexts_are_rendered_not_spelled(tokenizer):
    counting = Counting(tokenizer, ["7"])
    model = Requests(counting.backend, SETTINGS)
    turns = [{"role": "system", "content": "one"}, {"role": "user", "content": "two [unused10]"}]
    context = model.apply_chat_template(turns)
    model.generate_until([request(context, {"max_gen_toks": 9})], True)
    model.loglikelihood([request(context, " A")], True)
    pieces = tokenizer.pieces(counting.prompts[0])
    assert pieces.count("[unused9]") == 3 and pieces.count("[unused10]") == 2 and pieces.count("<s>") == 1
    (query,) = counting.queries
    assert list(query.context[:-2]) == counting.prompts[0] and tokenizer.decode(query.continuations[0]) == "A"
    assert tokenizer.pieces(query.context[-2:]) == ["[unused16]", "[unused17]"]


def test_answers_are_kept(tokenizer, tmp_path):
    path, asked = tmp_path / "requests.jsonl", [request(f"{n} one", " A") for n in range(300)]
    counting = Counting(tokenizer)
    first = Requests(counting.backend, SETTINGS, path).loglikelihood(asked, True)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:257]) + lines[257][:9])  # killed while it wrote
    again = Counting(tokenizer)
    assert Requests(again.backend, SETTINGS, path).loglikelihood(asked, True) == first
    assert len(again.queries) == 300 - 257
    assert len(path.read_text().splitlines()) == 300


def test_without_the_harness(monkeypatch, tokenizer, tmp_path):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(UserError, match=r"pip install 'openpangu-posttrain\[eval\]'"):
        harness_model(Counting(tokenizer).backend, SETTINGS)


@pytest.mark.slow
def test_a_harness_task_gives_our_number(tokenizer, tmp_path):
    """The same questions as a task of the harness and as ours, over one backend: the same choices."""
    pytest.importorskip("lm_eval")
    asked = read_benchmark("mmlu", DATA / "mmlu", BenchmarkSettings(shots=0))
    small = [item for item in asked.items if item.group == "small_sums"]
    rows = [{"text": item.header + item.prompt, "right": item.answer} for item in small]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"data_files": {"test": str(tmp_path / "data.jsonl")}}
    choice = {
        "task": "sums", "dataset_path": "json", "dataset_kwargs": files,
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_target": "right",
        "doc_to_choice": ["A", "B", "C", "D"], "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }  # fmt: skip
    written = {
        "task": "written", "dataset_path": "json", "dataset_kwargs": files, "test_split": "test",
        "output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "{{right}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8}, "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    counting = Counting(tokenizer, ["1\n2"])
    found = run_harness(counting.backend, [choice, written], SETTINGS, tmp_path / "out")
    mine = run(counting.backend, dataclasses.replace(asked, items=small), tmp_path / "mine")
    assert found["sums"]["acc,none"] == pytest.approx(mine["metrics"]["acc"]["value"])
    assert found["sums"]["acc_norm,none"] == pytest.approx(mine["metrics"]["acc_norm"]["value"])
    assert found["written"]["exact_match,none"] == pytest.approx(sum(row["right"] == 1 for row in rows) / len(rows))
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert {line["task"] for line in lines} == {"sums", "written"} and len(lines) == 2 * len(rows)
    with pytest.raises(UserError, match="'arc_eazy'"):
        run_harness(counting.backend, ["arc_eazy"], SETTINGS, tmp_path / "out")
