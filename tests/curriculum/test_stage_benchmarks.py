"""Benchmarks after stages: faults are found at the start, files decide fingerprints, results have their place."""

import json
import shutil
from pathlib import Path

import pytest

from mindspore_impl import config
from mindspore_impl.curriculum import stage_benchmarks
from mindspore_impl.curriculum.plan import make_plan
from mindspore_impl.curriculum.sweep.metric import check_metric, metric_of
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.options import BenchmarkOptions, EvaluationOptions
from tests.evaluation.fake_backend import Counting, make_tokenizer

DATA = Path(__file__).parents[1] / "evaluation" / "tasks" / "data"
GSM8K = f"evaluation.benchmarks.gsm8k.path={DATA / 'gsm8k'}"


def fingerprints(*overrides: str) -> dict[str, str]:
    return {planned.name: planned.fingerprint for planned in make_plan(config.compose(list(overrides)))}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.benchmarks.gms8k.path=x"], "evaluation.benchmarks.gms8k: no task is named 'gms8k'"),
        (["evaluation.benchmarks.gsm8k.path=none"], "evaluation.benchmarks.gsm8k: task gsm8k: none: no such file"),
        (["evaluation.benchmarks.gsm8k.task=gsm8k"], "evaluation.benchmarks.gsm8k.path: no file is given"),
        ([GSM8K, "evaluation.benchmarks.gsm8k.samples=2"], "benchmarks.gsm8k.samples: 2 answers at temperature 0"),
        ([GSM8K, "evaluation.benchmarks.gsm8k.shots=99"], "99 shots need more"),
        ([GSM8K, "evaluation.benchmarks.gsm8k.shot=1"], "did you mean 'shots'"),
    ],
)
def test_faults_are_found_before_anything_runs(overrides, message):
    with pytest.raises(UserError) as caught:
        fingerprints(*overrides)
    assert message in str(caught.value)


def test_questions_decide_the_fingerprints_of_evaluations_alone(tmp_path):
    for name in ("one", "two"):
        shutil.copytree(DATA / "gsm8k", tmp_path / name)
    plain, (one, two) = fingerprints(), (
        fingerprints(f"evaluation.benchmarks.gsm8k.path={tmp_path / name}", "evaluation.benchmarks.gsm8k.shots=1")
        for name in ("one", "two")
    )  # fmt: skip
    assert one == two, "the same questions at another place"
    assert {name for name in plain if plain[name] != one[name]} == {n for n in plain if n.startswith("eval_")}
    train = tmp_path / "two" / "train.jsonl"  # the worked examples count
    train.write_text(train.read_text().replace("Question", "question").replace(" ", "  ", 1))
    lines = [json.loads(line) for line in train.read_text().splitlines()]
    lines[0]["question"] += " Really?"
    train.write_text("".join(json.dumps(line) + "\n" for line in lines))
    after = fingerprints(f"evaluation.benchmarks.gsm8k.path={train.parent}", "evaluation.benchmarks.gsm8k.shots=1")
    assert {name for name in one if one[name] != after[name]} == {n for n in one if n.startswith("eval_")}


def test_a_sweep_can_be_judged_by_a_benchmark():
    composed = config.compose([GSM8K, "evaluation.benchmarks.gsm8k.shots=1"])
    plan = make_plan(composed)
    check_metric("sft_fast.benchmarks.gsm8k.exact_match", composed, plan)
    with pytest.raises(UserError, match="did you mean 'sft_fast.benchmarks.gsm8k.exact_match'"):
        check_metric("sft_fast.benchmarks.gms8k.exact_match", composed, plan)


def entries(**fields) -> EvaluationOptions:
    entry = BenchmarkOptions(path=str(DATA / "gsm8k"), task="gsm8k", shots=0, **fields)
    return EvaluationOptions(benchmarks={"sums": entry}, batch_size=2)


def test_results_have_their_place_in_the_metrics(tmp_path, monkeypatch):
    from mindspore_impl.evaluation import backend

    tokenizer = make_tokenizer(tmp_path)
    monkeypatch.setattr(backend, "of_model", lambda *_: Counting(tokenizer, ["#### 10"]).backend)
    found = stage_benchmarks.measure(None, tokenizer, entries(limit=2), tmp_path / "benchmarks", 1, "weights")
    assert found["sums"]["total"] == 2 and found["sums"]["exact_match"] == 0.5
    low, high = found["sums"]["intervals"]["exact_match"]
    assert low < 0.5 < high and found["sums"]["stderr"]["exact_match"] == 0.5
    assert len((tmp_path / "benchmarks" / "sums" / "samples.jsonl").read_text().splitlines()) == 2
    stage = {"name": "eval_sft", "kind": "evaluate", "metrics": {"benchmarks": json.loads(json.dumps(found))}}
    assert metric_of({"stages": [stage]}, "sft.benchmarks.sums.exact_match") == 0.5


def test_questions_that_do_not_fit_the_model_name_the_entry(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    stage_benchmarks.check_lengths("evaluation", entries(max_new_tokens=8), tokenizer, 4096)
    with pytest.raises(UserError, match="evaluation.benchmarks.sums: task gsm8k: question .* the model's limit of 30"):
        stage_benchmarks.check_lengths("evaluation", entries(max_new_tokens=8), tokenizer, 30)


@pytest.mark.slow
def test_a_model_is_measured_by_options_and_by_completions(ms_runtime, tmp_path):
    from tests.model.small_models import build, small_options

    tokenizer = make_tokenizer(tmp_path)
    model = build(small_options(vocab_size=tokenizer.vocab_size, max_position_embeddings=1024))
    options = entries(limit=2, max_new_tokens=4)
    options.benchmarks["mmlu"] = BenchmarkOptions(path=str(DATA / "mmlu"), shots=0)
    found = stage_benchmarks.measure(model, tokenizer, options, tmp_path / "benchmarks", 1, "weights")
    assert 0 <= found["mmlu"]["acc"] <= 1 and found["mmlu"]["total"] == 4
    assert found["sums"]["total"] == 2 and found["sums"]["truncated"] <= 2
