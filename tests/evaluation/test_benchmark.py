"""Benchmarks over a scripted backend: prompts, choices, scores, parts."""

import dataclasses
import json
from pathlib import Path

import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.evaluation import benchmark
from mindspore_impl.evaluation.benchmark import (
    BenchmarkSettings,
    check_lengths,
    check_settings,
    metrics_of,
    read_benchmark,
    run,
)
from mindspore_impl.evaluation.loglikelihood import Likelihood
from mindspore_impl.evaluation.tasks import TASKS
from mindspore_impl.evaluation.tasks.base import Item, Task
from mindspore_impl.generation.options import SamplingOptions
from tests.evaluation.fake_backend import Counting

DATA = Path(__file__).parent / "tasks" / "data"


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def measure(backend, name, folder, **settings):
    return run(backend, read_benchmark(name, DATA / name, BenchmarkSettings(**settings)), folder)


def test_the_most_probable_option_is_the_answer(tokenizer, tmp_path):
    counting = Counting(tokenizer)
    result = measure(counting.backend, "mmlu", tmp_path, shots=1)
    lines = lines_of(tmp_path)
    assert [line["id"] for line in lines] == ["birds/0", "small_sums/0", "small_sums/1", "small_sums/2"]
    for line in lines:
        assert line["chosen"] == line["logp"].index(max(line["logp"]))
        assert line["acc"] == float(line["chosen"] == line["right"])
    share = sum(line["acc"] for line in lines) / 4
    assert result["metrics"]["acc"]["value"] == share and result["total"] == 4
    assert result["groups"]["birds"]["total"] == 1 and result["groups"]["small_sums"]["total"] == 3
    text = tokenizer.decode(counting.queries[0].context)
    assert text.startswith("The following are multiple choice") and text.endswith("Answer:")
    assert counting.queries[0].context[0] == tokenizer.bos_id
    assert [tokenizer.decode(c).strip() for c in counting.queries[0].continuations] == ["A", "B", "C", "D"]


def test_normalised_by_characters(tokenizer, tmp_path, monkeypatch):
    task = Task(lambda path, shots: [Item("0", "one", "", (" two", " three four"), 1)])
    monkeypatch.setitem(benchmark.TASKS, "made", task)
    counting = Counting(tokenizer)
    counting.likelihood = lambda query, text: Likelihood(-4.0 if "tw" in tokenizer.decode(text) else -6.0, False)
    result = run(counting.backend, read_benchmark("made", tmp_path, BenchmarkSettings()), tmp_path)
    assert result["metrics"]["acc"]["value"] == 0 and result["metrics"]["acc_norm"]["value"] == 1


def test_chat_form_answers_behind_an_empty_thinking_span(tokenizer, tmp_path):
    counting = Counting(tokenizer)
    measure(counting.backend, "cluewsc", tmp_path, form="chat")
    special = tokenizer.special
    context = counting.queries[0].context
    assert context[-2:] == (special["[unused16]"], special["[unused17]"]) and context.count(tokenizer.bos_id) == 1
    assert "/no_think" in tokenizer.decode(context)
    assert [tokenizer.decode(c) for c in counting.queries[0].continuations] == ["是", "否"]


def test_completions_are_scored_in_the_order_of_the_file(tokenizer, tmp_path):
    counting = Counting(tokenizer, ["#### 10"])
    result = measure(counting.backend, "gsm8k", tmp_path, shots=0, batch_size=2)
    lines = lines_of(tmp_path)
    assert [line["id"] for line in lines] == ["0", "1", "2"] and [line["exact_match"] for line in lines] == [1, 0, 0]
    metric = result["metrics"]["exact_match"]
    assert metric["value"] == pytest.approx(1 / 3) and metric["stderr"] == pytest.approx(1 / 3)
    assert metric["low"] < 1 / 3 < metric["high"]
    assert result["truncated"] == 0 and lines[0]["answer"] == "#### 10"
    assert len(counting.prompts) == 3 and all(tokenizer.bos_id == prompt[0] for prompt in counting.prompts)


def test_plain_form_ends_at_a_stop_string(tokenizer, tmp_path, monkeypatch):
    """A task names its own form, and settings override it."""
    counting = Counting(tokenizer, ["10\nQuestion: 5 + 5? 11"])
    monkeypatch.setitem(benchmark.TASKS, "gsm8k", dataclasses.replace(benchmark.TASKS["gsm8k"], form="plain"))
    measure(counting.backend, "gsm8k", tmp_path, shots=1)
    assert lines_of(tmp_path)[0]["answer"] == "10\n" and lines_of(tmp_path)[0]["ended"]
    assert counting.prompts[0][0] == tokenizer.bos_id and "[unused9]" not in tokenizer.pieces(counting.prompts[0])
    measure(counting.backend, "gsm8k", tmp_path, shots=0, form="chat")
    assert "[unused9]" in tokenizer.pieces(counting.prompts[-1])


def test_cut_completions_are_counted(tokenizer, tmp_path):
    result = measure(Counting(tokenizer, ["1 2 3 4 5 6"]).backend, "gsm8k", tmp_path, shots=0, max_new_tokens=4)
    assert result["truncated"] == 3 and not any(line["ended"] for line in lines_of(tmp_path))


def test_a_killed_run_goes_on_and_a_finished_one_is_taken_over(tokenizer, tmp_path):
    counting, calls = Counting(tokenizer, ["#### 10"]), []
    asked = read_benchmark("gsm8k", DATA / "gsm8k", BenchmarkSettings(shots=0, batch_size=1))
    generate = counting.backend.generate

    def dies(prompts, *rest):
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(prompts, *rest)

    object.__setattr__(counting.backend, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        run(counting.backend, asked, tmp_path)
    result = run(counting.backend, asked, tmp_path)
    assert len(calls) == 4, "two parts were kept"
    assert run(counting.backend, asked, tmp_path) == result and len(calls) == 4
    other = dataclasses.replace(asked.settings, thinking="reasoning")
    run(counting.backend, dataclasses.replace(asked, settings=other), tmp_path)
    assert len(calls) == 7, "answers to other prompts are not taken over"


def test_too_long_a_prompt_names_the_task(tokenizer, tmp_path):
    with pytest.raises(UserError, match="task gsm8k: question 0: .* 300;"):
        measure(Counting(tokenizer, ["1"], limit=300).backend, "gsm8k", tmp_path, shots=0)


def test_several_samples_are_averaged_and_drawn_apart(tokenizer, tmp_path):
    counting, seen = Counting(tokenizer, ["#### 10", "#### 11"]), []
    generate = counting.backend.generate

    def noted(prompts, sampling, seeds, *rest):
        seen.extend(zip(map(tuple, prompts), seeds, [sampling.temperature] * len(seeds), strict=True))
        return generate(prompts, dataclasses.replace(sampling, temperature=0.0), seeds, *rest)

    object.__setattr__(counting.backend, "generate", noted)
    result = measure(counting.backend, "gsm8k", tmp_path, shots=0, batch_size=2, samples=2, temperature=0.5)
    lines = lines_of(tmp_path)
    assert [line["exact_match"] for line in lines] == [0.5, 0, 0] and "low" not in result["metrics"]["exact_match"]
    assert [sample["exact_match"] for sample in lines[0]["samples"]] == [1, 0]
    assert len(seen) == len(set(seen)) == 6 and {entry[2] for entry in seen} == {0.5}
    assert result["metrics"]["exact_match"]["value"] == pytest.approx(1 / 6)


def test_programs_are_run_and_give_pass_at_k(isolated, tokenizer, tmp_path):
    rows = [json.loads(line) for line in (DATA / "humaneval" / "HumanEval.jsonl").read_text().splitlines()]
    fenced = [f"```python\n{row['prompt']}{row['canonical_solution']}```" for row in rows]
    wrong = "```python\nprint(1)\n```"
    counting = Counting(tokenizer, [fenced[0], wrong, wrong, wrong])
    asked = dataclasses.replace(counting.backend, generate=lambda p, s, *rest: counting.generate(p, GREEDY, *rest))
    settings = BenchmarkSettings(samples=4, temperature=0.8, batch_size=4, limit=1, max_new_tokens=600)
    result = run(asked, read_benchmark("humaneval_chat", DATA / "humaneval", settings), tmp_path)
    assert result["metrics"]["pass@1"]["value"] == 0.25 and result["metrics"]["pass@4"]["value"] == 1.0
    (line,) = lines_of(tmp_path)
    assert [sample["status"] for sample in line["samples"]] == ["passed", "failed", "failed", "failed"]
    assert metrics_of(TASKS["mbpp"], 20) == ("pass@1", "pass@10", "pass@20")
    assert metrics_of(TASKS["mbpp"], 1) == ("pass@1",) and metrics_of(TASKS["gsm8k"], 20) == TASKS["gsm8k"].metrics


GREEDY = SamplingOptions(temperature=0.0, max_new_tokens=600)


def test_invalid_settings_name_their_key():
    for key, settings in (("samples", {"samples": 4}), ("temperature", {"temperature": float("inf")})):
        with pytest.raises(UserError, match=f"^{key}: "):
            check_settings(BenchmarkSettings(**settings))
    with pytest.raises(UserError, match="^--shots: -1"):
        check_settings(BenchmarkSettings(shots=-1), lambda name: f"--{name}")


def test_items_are_checked_first(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"question": "half a \\ud83d", "answer": "#### 1"}\n')
    for name, path, settings, words in (
        ("mmul", tmp_path, {}, "'mmul'"),
        ("gsm8k", tmp_path / "bad.jsonl", {"shots": 0}, "bad.jsonl: question 0: "),
        ("gsm8k", DATA / "nowhere", {}, "gsm8k: .*nowhere"),
        ("mmlu", DATA / "mmlu", {"samples": 2, "temperature": 1.0}, "mmlu: .*samples"),
    ):
        with pytest.raises(UserError, match=words):
            read_benchmark(name, path, BenchmarkSettings(**settings))
    assert len(read_benchmark("mmlu", DATA / "mmlu", BenchmarkSettings(shots=0, limit=2)).items) == 2


@pytest.mark.parametrize("name", ["mmlu", "gsm8k"])
def test_the_longest_question_is_measured_before_anything_else(tokenizer, name):
    asked = read_benchmark(name, DATA / name, BenchmarkSettings(shots=1, max_new_tokens=20))
    check_lengths(asked, tokenizer, 2000)
    with pytest.raises(UserError, match=rf"task {name}: question .* 100\b"):
        check_lengths(asked, tokenizer, 100)
