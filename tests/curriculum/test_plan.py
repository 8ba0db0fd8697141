"""Impossible curricula fail before anything heavy starts; fingerprints change with what matters and only with that."""

import pytest

from mindspore_impl.curriculum.plan import make_plan
from mindspore_impl.errors import UserError
from tests.curriculum.conftest import changed, compose_quickly, paper_files, plan, refusal


def test_evaluations_follow_training_stages():
    names = list(plan())
    assert names[:4] == ["teacher", "eval_teacher", "sft_reasoning", "eval_sft_reasoning"]
    assert names[-1] == "eval_distill_fast"
    assert "eval_sft_fast" not in plan("stages.sft_fast.evaluate=false")


# Overrides, and what the message must name: keys, values, the nearest name.
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("stages.sft_fast.init=sft_reasonin", "stages.sft_fast.init 'sft_reasonin' 'sft_reasoning'"),
        ("order=[sft_fast] compare=[]", "stages.sft_fast.init 'sft_reasoning' order"),
        ("order=[sft_fast,sft_reasoning] compare=[]", "stages.sft_fast.init 'sft_reasoning' 'sft_fast' order"),
        ("order=[techer] compare=[]", "order 'techer' 'teacher'"),
        ("order=[teacher,teacher] compare=[]", "order: 'teacher' twice"),
        ("order=[] compare=[]", "order:"),
        ("stages.sft_reasoning.init=sft_fast", "cycle sft_reasoning -> sft_fast -> sft_reasoning"),
        ("stages.sft_reasoning.init=control", "cycle"),
        ("stages.distill_fast.store=rollout_fast", "stages.distill_fast.store 'rollout_fast'"),
        ("stages.distill_fast.store=''", "stages.distill_fast.store:"),
        ("stages.sft_reasoning.init=weights/none.safetensors", "stages.sft_reasoning.init weights/none.safetensors"),
        ("stages.sft_fast.data.mixture={fats:1}", "stages.sft_fast.data.mixture 'fats' 'fast'"),
        ("stages.sft_fast.data.mixture={rollouts:1}", "stages.sft_fast.rollouts"),
        ("stages.sft_fast.data.mixture={fast:0,reasoning:0}", "stages.sft_fast.data.mixture above 0"),
        ("models.student.num_key_value_heads=3", "models.student.num_key_value_heads"),
        ("models.student.hidden_size=97", "models.student"),
        ("stages.capture_fast.capture.top_k=161", "stages.capture_fast.capture.top_k 161 160"),
        ("stages.capture_fast.capture.temperature=2", "stages.distill_fast.objective.temperature 2.0"),
        ("stages.capture_fast.capture.mode=sampled", "stages.distill_fast.objective 'sampled'"),
        ("stages.distill_fast.objective.support=truncated stages.distill_fast.objective.divergence=jsd", "jsd"),
        ("stages.teacher.train.num_train_epochs=1", "stages.teacher.train max_steps num_train_epochs"),
        ("stages.teacher.train.max_steps=null", "stages.teacher.train max_steps num_train_epochs"),
        ("stages.teacher.train.max_steps=-5", "stages.teacher.train.max_steps: -5"),
        ("stages.teacher.data.gradient_accumulation_steps=5", "stages.teacher.data.rows: 12 10"),
        ("stages.teacher.data.gradient_accumulation_steps=0", "stages.teacher.data.gradient_accumulation_steps: 0"),
        ("stages.teacher.data.sequence_length=8192", "stages.teacher.data.sequence_length 8192 models.teacher 4096"),
        ("stages.distill_fast.model=teacher", "stages.distill_fast 'student'"),
        ("stages.teacher.model=techer", "stages.teacher.model 'techer' 'teacher'"),
        ("tokenizer.path=nothing.model", "tokenizer.path: nothing.model"),
        ("tokenizer.train_on=[]", "tokenizer.path tokenizer.train_on"),
        ("tokenizer.train_on=[fasst]", "tokenizer.train_on 'fasst' 'fast'"),
        ("evaluation.accuracy=[test_fats]", "evaluation.accuracy 'test_fats' 'test_fast'"),
        ("models.student.vocab_size=100", "models.student.vocab_size: 100 tokenizer.vocab_size 160"),
        (
            "evaluation.teacher_kl=[test_fast] evaluation.teacher=teacher models.teacher.max_position_embeddings=127",
            "evaluation.sequence_length: models.teacher 127",
        ),
        ("models.student.vocab_size=512", "models.student.vocab_size: 512 160 stages.distill_fast.store=capture_fast"),
        ("stages.distill_fast.data.mixture={fast:1}", "stages.distill_fast.data.mixture.fast stages.capture_fast.sets"),
        ("stages.distill_fast.rollouts=null", "stages.distill_fast.rollouts rollouts"),
        ("stages.teacher.train.select=best stages.teacher.data.validation=[]", "stages.teacher.train.select best"),
        ("stages.capture_fast.sequence_length=8192", "stages.capture_fast.sequence_length 4096"),
        (
            "stages.teacher.optimizer.learning_rate=-1 stages.teacher.optimizer.adam_beta2=1.5",
            "stages.teacher.optimizer.learning_rate: -1.0 stages.teacher.optimizer.adam_beta2: 1.5",
        ),
        ("runtime.workers=0 runtime.threads=-1", "runtime.workers: 0 runtime.threads: -1"),
        ("seed=-1 seeds=[1,-2]", "seed: -1 seeds[1]: -2"),
        ("evaluation.rows=0 evaluation.limit=-1", "evaluation.rows: 0 evaluation.limit: -1"),
        (
            "stages.rollout_fast.rollout.limit=0 stages.capture_fast.capture.rows_per_batch=0",
            "stages.rollout_fast.rollout.limit: stages.capture_fast.capture.rows_per_batch: 0",
        ),
        ("compare=[distill_fats,control]", "compare 'distill_fats' order"),
        ("compare=[control]", "compare ['control']"),
        ("order=[teacher,sft_reasoning]", "compare 'distill_fast' 'control' order"),
        ("order=[teacher,sft_reasoning] seeds=[1,2]", "compare 'distill_fast' 'control' order"),
        ("data.train=mine.jsonl", "data.train: mine.jsonl"),
        (
            "+stage@stages.eval_teacher=evaluate ++stages.eval_teacher.init=teacher order=[teacher,eval_teacher]",
            "order: 'eval_teacher' 'teacher'",
        ),
        *(
            (f"stages.rollout_fast.rollout.samples_per_prompt=4 stages.rollout_fast.sampling.{greedy}", words)
            for greedy in ("temperature=0.0", "top_k=1")
            for words in ["stages.rollout_fast.rollout.samples_per_prompt: 4 stages.rollout_fast.sampling.temperature"]
        ),
        ("stages.capture_fast.rollouts=none.jsonl", "stages.capture_fast.rollouts none.jsonl"),
        ("stages.teacher.train.max_steps=null stages.sft_fast.data.rows=-1", "max_steps stages.sft_fast.data.rows"),
        ("experiment=gsm8k data.train=none.jsonl data.test=none.jsonl", "data.sets.reasoning.path: none.jsonl"),
    ],
)
def test_impossible_curriculum(overrides, words):
    message = refusal(*overrides.split())
    assert [word for word in words.split() if word not in message] == [], message


@pytest.mark.parametrize(
    "keys",
    [
        ["models.student.num_hidden_layers", "models.student.hidden_size"],
        ["stages.sft_fast.lora.r", "stages.sft_fast.lora.lora_alpha"],
    ],
)
def test_a_number_out_of_range_is_named_once(keys):
    message = refusal(*(f"{key}=0" for key in keys))
    assert [message.count(f"{key}: 0") for key in keys] == [1, 1], message


def test_stage_names_cannot_leave_the_run_directory():
    composed = compose_quickly()
    composed.stages["../out"], composed.order = composed.stages["teacher"], ["../out"]
    with pytest.raises(UserError, match=r"order: '../out'"):
        make_plan(composed)


@pytest.mark.parametrize(
    "override",
    [
        "runtime.threads=1",
        "stages.teacher.train.logging_steps=1",
        "stages.teacher.train.save_steps=7",
        "run_dir=elsewhere",
        "evaluation.samples_in_report=1",
        "stages.teacher.train.max_skipped_steps=99",
        "stages.teacher.train.eval_steps=9",
        "models.teacher.recompute=true",
    ],
)
def test_logging_and_runtime_leave_fingerprints(override):
    assert changed(override) == set()


def test_a_change_reaches_what_depends_on_it():
    assert "teacher" in changed("stages.teacher.train.eval_steps=9", base=("stages.teacher.train.select=best",))
    assert changed("stages.sft_fast.train.max_steps=3") == {
        "sft_fast", "eval_sft_fast", "control", "eval_control", "rollout_fast", "capture_fast", "distill_fast",
        "eval_distill_fast",
    }  # fmt: skip
    assert changed("stages.capture_fast.capture.top_k=3") == {"capture_fast", "distill_fast", "eval_distill_fast"}
    assert changed("evaluation.limit=7") == {name for name in plan() if name.startswith("eval_")}
    for everything in ("seed=9", "tokenizer.vocab_size=170", "data.sets.reasoning.noise=0.1"):
        assert "distill_fast" in changed(everything)


def test_a_set_with_a_seed_of_its_own_is_the_same_for_every_seed():
    words = [f"data.sets.{part}_{mode}.seed=0" for part in ("teacher", "validation") for mode in ("reasoning", "fast")]
    base = (*words, "stages.teacher.seed=0", "tokenizer.train_on=[teacher_reasoning]")
    assert {"teacher", "sft_reasoning"} & changed("seed=2", base=base) == {"sft_reasoning"}


def test_name_and_content_of_a_data_file_count(tmp_path):
    """The name too: it is part of record ids."""
    for name in ("a", "b", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"question": "?", "answer": "#### 2"}\n')

    def fingerprint(name: str) -> str:
        given = [f"data.train={tmp_path}/{name}.jsonl", f"data.test={tmp_path}/test.jsonl"]
        return plan("experiment=gsm8k", *given)["teacher"].fingerprint

    before = fingerprint("a")
    assert before != fingerprint("b")
    (tmp_path / "a.jsonl").write_text('{"question": "?", "answer": "#### 33"}\n')
    assert before != fingerprint("a")


def test_a_test_file_that_is_trained_on_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    message = refusal("experiment=gsm8k", f"data.train={tmp_path}/a.jsonl", f"data.test={tmp_path}/a.jsonl")
    assert all(word in message for word in ("evaluation.accuracy: 'test_", "teacher_", "a.jsonl"))
    assert "'validation_fast'" not in message  # the held-out part of the training file


def test_rollouts_of_another_engine_are_an_input(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / "b.jsonl").write_text("{} \n")
    a, b = ([f"stages.{s}.rollouts={tmp_path}/{n}.jsonl" for s in ("capture_fast", "distill_fast")] for n in "ab")
    assert changed(*b, base=tuple(a)) == {"capture_fast", "distill_fast", "eval_distill_fast"}


def test_published_orders(tmp_path, monkeypatch):
    given = paper_files(tmp_path, monkeypatch)

    def kinds(*overrides):
        return [planned.kind for planned in plan(*overrides, *given).values() if planned.kind != "evaluate"]

    assert kinds("experiment=paper_1b") == ["sft", "sft", "rollout", "capture", "distill"]
    own = f"stages.capture_reasoning.teacher={tmp_path}/teacher.safetensors"
    assert kinds("experiment=paper_1b_balanced", own) == ["sft", "rollout", "capture", "distill"] * 2
