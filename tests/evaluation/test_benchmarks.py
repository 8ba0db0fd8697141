"""Benchmarks named in the options: faults are found before anything runs, questions decide fingerprints, results have
their place in the metrics."""

import json
import shutil
from pathlib import Path

import pytest

from mindspore_impl.curriculum import configuration
from mindspore_impl.curriculum.plan import make_plan
from mindspore_impl.curriculum.sweep.metric import check_metric, metric_of
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation import benchmarks
from mindspore_impl.evaluation.backend import of_model
from mindspore_impl.evaluation.options import BenchmarkOptions, EvaluationOptions
from tests.evaluation.fake_backend import Counting

DATA = Path(__file__).parent / "tasks" / "data"


def options_of(name: str = "gsm8k", path: Path | str = DATA / "gsm8k", **fields) -> EvaluationOptions:
    entry = BenchmarkOptions(path=str(path), **{"shots": 0} | fields)
    return EvaluationOptions(benchmarks={name: entry}, batch_size=2)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (options_of("gms8k"), "evaluation.benchmarks.gms8k"),
        (options_of("a/b"), "evaluation.benchmarks.a/b"),
        (options_of(path="none"), "none"),
        (options_of(path=""), "evaluation.benchmarks.gsm8k.path"),
        (options_of(samples=2), "evaluation.benchmarks.gsm8k.samples"),
        (options_of(shots=99), "99 shots"),
    ],
)
def test_a_fault_names_its_key(options, key):
    (problem,) = benchmarks.problems("evaluation", options)
    assert key in problem


def test_questions_decide_the_content(tmp_path):
    for name in ("one", "two"):
        shutil.copytree(DATA / "gsm8k", tmp_path / name)
    one, two = (benchmarks.content(options_of(path=tmp_path / name, shots=1)) for name in ("one", "two"))
    assert one == two, "the same questions at another place"
    train = tmp_path / "two" / "train.jsonl"  # the worked examples count
    lines = [json.loads(line) for line in train.read_text().splitlines()]
    lines[0]["question"] += " Really?"
    train.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert benchmarks.content(options_of(path=train.parent, shots=1)) != one
    assert benchmarks.content(options_of(path=train.parent)) == benchmarks.content(options_of(path=tmp_path / "one"))


def test_a_benchmark_enters_a_curriculum():
    """Only evaluations depend on it; a sweep can be judged by it; a fault of it stops the plan."""
    place = f"evaluation.benchmarks.gsm8k.path={DATA / 'gsm8k'}"
    composed = configuration.compose([place, "evaluation.benchmarks.gsm8k.shots=1"])
    plan = make_plan(composed)
    plain = {planned.name: planned.fingerprint for planned in make_plan(configuration.compose([]))}
    changed = {planned.name for planned in plan if plain[planned.name] != planned.fingerprint}
    assert changed == {name for name in plain if name.startswith("eval_")} != set()
    check_metric("sft_fast.benchmarks.gsm8k.exact_match", composed, plan)
    with pytest.raises(UserError, match="sft_fast.benchmarks.gsm8k.exact_match"):
        check_metric("sft_fast.benchmarks.gms8k.exact_match", composed, plan)
    with pytest.raises(UserError, match="evaluation.benchmarks.gsm8k"):
        make_plan(configuration.compose([place, "evaluation.benchmarks.gsm8k.shots=99"]))


def test_results_have_their_place_in_the_metrics(tokenizer, tmp_path):
    backend, options = Counting(tokenizer, ["#### 10"]).backend, options_of("sums", task="gsm8k", limit=2)
    found = benchmarks.measure(backend, options, tmp_path / "benchmarks", 1)
    assert found["sums"]["total"] == 2 and found["sums"]["exact_match"] == 0.5
    low, high = found["sums"]["intervals"]["exact_match"]
    assert low < 0.5 < high and found["sums"]["stderr"]["exact_match"] == 0.5
    assert len((tmp_path / "benchmarks" / "sums" / "samples.jsonl").read_text().splitlines()) == 2
    stage = {"name": "eval_sft", "measured": "sft", "metrics": {"benchmarks": json.loads(json.dumps(found))}}
    assert metric_of({"stages": [stage]}, "sft.benchmarks.sums.exact_match") == 0.5
    assert "benchmarks.sums.exact_match" in benchmarks.metric_paths(options)


def test_questions_that_do_not_fit_the_model_name_the_entry(tokenizer):
    options = options_of(max_new_tokens=8)
    benchmarks.check_lengths("evaluation", options, tokenizer, 4096)
    with pytest.raises(UserError, match=r"evaluation.benchmarks.gsm8k: .* 30\b"):
        benchmarks.check_lengths("evaluation", options, tokenizer, 30)


@pytest.mark.slow
def test_a_model_is_measured_by_options_and_by_completions(ms_runtime, tokenizer, tmp_path):
    from tests.model.small_models import build, small_options

    model = build(small_options(vocab_size=tokenizer.vocab_size, max_position_embeddings=1024))
    options = options_of(limit=2, max_new_tokens=4)
    options.benchmarks["mmlu"] = BenchmarkOptions(path=str(DATA / "mmlu"), shots=0)
    backend = of_model(model, tokenizer, options.batch_size, "weights")
    found = benchmarks.measure(backend, options, tmp_path / "benchmarks", 1)
    assert 0 <= found["mmlu"]["acc"] <= 1 and found["mmlu"]["total"] == 4
    assert found["gsm8k"]["total"] == 2 and found["gsm8k"]["truncated"] <= 2
