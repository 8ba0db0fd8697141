"""Impossible curricula fail before anything heavy starts; fingerprints change with what matters and only with that."""

import pytest

from mindspore_impl.curriculum import configuration
from mindspore_impl.curriculum.plan import make_plan
from mindspore_impl.errors import UserError


def plan(*overrides: str):
    return make_plan(configuration.compose(list(overrides)))


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        plan(*overrides)
    return str(caught.value)


def fingerprints(*overrides: str) -> dict[str, str]:
    return {planned.name: planned.fingerprint for planned in plan(*overrides)}


def changed(*overrides: str) -> set[str]:
    before, after = fingerprints(), fingerprints(*overrides)
    return {name for name in before if before[name] != after[name]}


def test_evaluations_follow_training_stages():
    names = [planned.name for planned in plan()]
    assert names[:4] == ["teacher", "eval_teacher", "sft_reasoning", "eval_sft_reasoning"]
    assert names[-1] == "eval_distill_fast"
    assert "eval_sft_fast" not in [planned.name for planned in plan("stages.sft_fast.evaluate=false")]


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["stages.sft_fast.init=sft_reasonin"], ["stages.sft_fast.init", "did you mean 'sft_reasoning'?"]),
        (
            ["order=[sft_fast]", "compare=[]"],
            ["stages.sft_fast.init: 'sft_reasoning' is defined but not listed in order"],
        ),
        (
            ["order=[sft_fast,sft_reasoning]", "compare=[]"],
            ["'sft_reasoning' runs after 'sft_fast'", "move it forward"],
        ),
        (["order=[techer]", "compare=[]"], ["no stage is named 'techer'", "did you mean 'teacher'?"]),
        (["order=[teacher,teacher]", "compare=[]"], ["'teacher' is listed twice"]),
        (["order=[]", "compare=[]"], ["no stage is listed"]),
        (["stages.sft_reasoning.init=sft_fast"], ["cycle", "sft_reasoning -> sft_fast -> sft_reasoning"]),
        (["stages.sft_reasoning.init=control"], ["cycle"]),
        (["stages.distill_fast.store=rollout_fast"], ["stages.distill_fast.store: 'rollout_fast'"]),
        (["stages.distill_fast.store="], ["stages.distill_fast.store"]),
        (["stages.sft_reasoning.init=weights/none.safetensors"], ["weights/none.safetensors", "no such file"]),
        (["stages.sft_fast.data.mixture={fats:1}"], ["no data set is named 'fats'", "did you mean 'fast'?"]),
        (["stages.sft_fast.data.mixture={rollouts:1}"], ["stages.sft_fast.rollouts"]),
        (["stages.sft_fast.data.mixture={fast:0,reasoning:0}"], ["no data set has a weight above 0"]),
        (["models.student.num_key_value_heads=3"], ["models.student.num_key_value_heads"]),
        (["models.student.hidden_size=97"], ["models.student"]),
        (["stages.capture_fast.capture.top_k=161"], ["stages.capture_fast.capture.top_k: 161", "160"]),
        (["stages.capture_fast.capture.temperature=2"], ["cannot be re-tempered"]),
        (["stages.capture_fast.capture.mode=sampled"], ["sampled goes with sampled only"]),
        (["stages.distill_fast.objective.support=truncated", "stages.distill_fast.objective.divergence=jsd"], ["jsd"]),
        (["stages.teacher.train.num_train_epochs=1"], ["exactly one of max_steps and num_train_epochs"]),
        (["stages.teacher.train.max_steps=null"], ["exactly one of max_steps and num_train_epochs"]),
        (["stages.teacher.train.max_steps=-5"], ["stages.teacher.train.max_steps: -5 is below 1"]),
        (
            ["stages.teacher.data.gradient_accumulation_steps=5"],
            ["stages.teacher.data.rows: 12 rows do not divide", "nearest: 10"],
        ),
        (["stages.teacher.data.sequence_length=8192"], ["exceeds", "max_position_embeddings"]),
        (["stages.distill_fast.model=teacher"], ["trains model 'student'"]),
        (["stages.teacher.model=techer"], ["no model is named 'techer'", "did you mean 'teacher'?"]),
        (["tokenizer.path=nothing.model"], ["tokenizer.path: nothing.model: no such file"]),
        (["tokenizer.train_on=[]"], ["tokenizer.path: give a SentencePiece model"]),
        (["evaluation.accuracy=[test_fats]"], ["evaluation.accuracy: no data set is named 'test_fats'"]),
        (
            ["models.student.vocab_size=100"],
            ["models.student.vocab_size: 100 is smaller than tokenizer.vocab_size 160"],
        ),
        (["models.teacher.vocab_size=512"], ["differs from the teacher's 512"]),
        (["stages.distill_fast.data.mixture={fast:1}"], ["mixture.fast: not captured", "stages.capture_fast.sets"]),
        (["stages.distill_fast.rollouts=null"], ["the mixture uses rollouts"]),
        (["stages.teacher.train.select=best", "stages.teacher.data.validation=[]"], ["best needs a validation set"]),
        (["stages.capture_fast.sequence_length=8192"], ["max_position_embeddings 4096"]),
        (["stages.teacher.optimizer.learning_rate=-1"], ["learning_rate: -1.0"]),
        (["stages.teacher.optimizer.adam_beta2=1.5"], ["beta2: 1.5"]),
        (["runtime.workers=0"], ["runtime.workers: 0 is below 1"]),
        (["runtime.threads=-1"], ["runtime.threads: -1 is below 0"]),
        (["seed=-1"], ["seed: -1 is below 0"]),
        (["seeds=[1,-2]"], ["seeds[1]: -2"]),
        (["evaluation.rows=0"], ["evaluation.rows: 0 is below 1"]),
        (["evaluation.limit=-1"], ["evaluation.limit: -1 is below 1"]),
        (["stages.rollout_fast.rollout.limit=0"], ["stages.rollout_fast.rollout.limit: 0 is below 1"]),
        (["stages.capture_fast.capture.rows_per_batch=0"], ["rows_per_batch: 0 is below 1"]),
        (
            ["stages.teacher.data.gradient_accumulation_steps=0"],
            ["stages.teacher.data.gradient_accumulation_steps: 0 is below 1"],
        ),
        (["seeds=[1,2]", "compare=[distill_fats,control]"], ["compare: ['distill_fats', 'control']"]),
        (["seeds=[1,2]", "compare=[control]"], ["compare: ['control']"]),
        (["data.train=mine.jsonl"], ["data.train: mine.jsonl is given, but no data set reads it"]),
        (
            [
                "+stage@stages.eval_teacher=evaluate",
                "stages.eval_teacher.init=teacher",
                "order=[teacher,eval_teacher]",
                "compare=[]",
            ],
            ["'eval_teacher' is made by stage 'teacher'"],
        ),
        (["stages.capture_fast.rollouts=none.jsonl"], ["none.jsonl: no such file"]),
        (["tokenizer.train_on=[fasst]"], ["tokenizer.train_on: no data set is named 'fasst'"]),
    ],
)
def test_impossible_curriculum(overrides, messages):
    text = refusal(*overrides)
    for message in messages:
        assert message in text


def test_stage_names_cannot_leave_the_run_directory():
    composed = configuration.compose([])
    composed.stages["../out"], composed.order = composed.stages["teacher"], ["../out"]
    with pytest.raises(UserError, match="'../out' cannot be a stage name"):
        make_plan(composed)


def test_several_problems_come_together():
    text = refusal("stages.teacher.train.max_steps=null", "stages.sft_fast.data.rows=-1")
    assert "exactly one of" in text and "stages.sft_fast.data.rows" in text


def test_missing_data_file(tmp_path):
    text = refusal("experiment=gsm8k", f"data.train={tmp_path}/none.jsonl", f"data.test={tmp_path}/none.jsonl")
    assert "data.sets.reasoning.path" in text and "none.jsonl: no such file" in text


@pytest.mark.parametrize(
    "override",
    [
        "runtime.threads=1",
        "stages.teacher.train.logging_steps=1",
        "stages.teacher.train.save_steps=7",
        "run_dir=elsewhere",
        "evaluation.samples_in_report=1",
        "stages.teacher.train.max_skipped_steps=99",
        "models.teacher.recompute=true",
    ],
)
def test_logging_and_runtime_leave_fingerprints(override):
    assert changed(override) == set()


def test_a_change_reaches_what_depends_on_it():
    assert changed("stages.sft_fast.train.max_steps=3") == {
        "sft_fast", "eval_sft_fast", "control", "eval_control", "rollout_fast", "capture_fast", "distill_fast",
        "eval_distill_fast",
    }  # fmt: skip
    assert changed("stages.capture_fast.capture.top_k=3") == {"capture_fast", "distill_fast", "eval_distill_fast"}
    assert changed("evaluation.limit=7") == {name for name in fingerprints() if name.startswith("eval_")}


@pytest.mark.parametrize("override", ["seed=9", "tokenizer.vocab_size=170", "data.sets.reasoning.noise=0.1"])
def test_seed_tokenizer_and_data_change_everything(override):
    assert "distill_fast" in changed(override)


def test_a_set_with_a_seed_of_its_own_is_the_same_for_every_seed():
    own = [f"data.sets.teacher_{mode}.seed=0" for mode in ("reasoning", "fast")]
    own += [f"data.sets.validation_{mode}.seed=0" for mode in ("reasoning", "fast")]
    words = [*own, "stages.teacher.seed=0", "tokenizer.train_on=[teacher_reasoning]"]
    one, two = (fingerprints(f"seed={seed}", *words) for seed in (1, 2))
    assert one["teacher"] == two["teacher"] and one["sft_reasoning"] != two["sft_reasoning"]


def test_data_file_content_counts(tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    (tmp_path / "test.jsonl").write_text("")
    given = ["experiment=gsm8k", f"data.train={path}", f"data.test={tmp_path}/test.jsonl"]
    path.write_text('{"question": "1+1?", "answer": "1+1=2\\n#### 2"}\n')
    before = fingerprints(*given)
    path.write_text('{"question": "1+2?", "answer": "1+2=3\\n#### 3"}\n')
    assert before["teacher"] != fingerprints(*given)["teacher"]


def test_a_test_file_that_is_trained_on_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    given = ["experiment=gsm8k", f"data.train={tmp_path}/a.jsonl", f"data.test={tmp_path}/a.jsonl"]
    text = refusal(*given)
    assert "evaluation.accuracy: 'test_fast'" in text and "teacher_fast" in text and "a.jsonl" in text
    assert "'validation_fast'" not in text  # the held-out part of the training file


def test_file_name_counts_since_it_names_records(tmp_path):
    line = '{"question": "1+1?", "answer": "1+1=2\\n#### 2"}\n'
    (tmp_path / "a.jsonl").write_text(line)
    (tmp_path / "b.jsonl").write_text(line)
    (tmp_path / "test.jsonl").write_text(line)
    one, two = (
        fingerprints("experiment=gsm8k", f"data.train={tmp_path}/{n}.jsonl", f"data.test={tmp_path}/test.jsonl")
        for n in "ab"
    )
    assert one["teacher"] != two["teacher"]


def test_rollouts_of_another_engine_are_an_input(tmp_path):
    path = tmp_path / "outside.jsonl"
    path.write_text("{}\n")
    given = [f"stages.capture_fast.rollouts={path}", f"stages.distill_fast.rollouts={path}"]
    before = fingerprints(*given)
    path.write_text("{} \n")
    after = fingerprints(*given)
    assert {name for name in before if before[name] != after[name]} == {
        "capture_fast",
        "distill_fast",
        "eval_distill_fast",
    }


def test_published_orders(tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"x")
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    for part in ("train", "test"):
        for thinking in ("reasoning", "fast"):
            (tmp_path / f"{part}_{thinking}.jsonl").write_text("{}\n")
    given = [f"data.train={tmp_path}/train", f"data.test={tmp_path}/test", f"tokenizer.path={tmp_path}/tokenizer.model"]
    given += [f"stages.sft_reasoning.init={weights}", f"stages.capture_fast.teacher={weights}"]
    kinds = [p.kind for p in plan("experiment=paper_1b", *given) if p.kind != "evaluate"]
    assert kinds == ["sft", "sft", "rollout", "capture", "distill"]
    given += [f"stages.capture_reasoning.teacher={weights}"]
    balanced = [p.kind for p in plan("experiment=paper_1b_balanced", *given) if p.kind != "evaluate"]
    assert balanced == ["sft", "rollout", "capture", "distill"] * 2
