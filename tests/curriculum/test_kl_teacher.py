"""An evaluation that compares with a teacher: what it needs, what decides its result, and that it runs."""

import pytest

from mindspore_impl.curriculum.stages.evaluate import EvaluateStage
from tests.curriculum.test_plan import changed, fingerprints, plan, refusal

COMPARED = ("evaluation.teacher_kl=[validation_fast]", "evaluation.teacher=teacher")


def test_every_evaluation_has_the_teacher_among_its_inputs():
    inputs = {planned.name: planned.inputs for planned in plan(*COMPARED) if planned.kind == "evaluate"}
    assert inputs["eval_teacher"] == {"init": "teacher", "kl teacher": "teacher"}
    assert inputs["eval_distill_fast"]["kl teacher"] == "teacher"
    assert all("kl teacher" not in planned.inputs for planned in plan())


def test_what_a_comparison_depends_on():
    evaluations = {name for name in fingerprints() if name.startswith("eval_")}
    assert changed(*COMPARED) == evaluations
    assert changed("evaluation.teacher=teacher", "evaluation.teacher_model=teacher") == set(), (
        "nothing compares with it"
    )
    before, after = fingerprints(*COMPARED), fingerprints(*COMPARED, "stages.teacher.train.max_steps=7")
    student = {"eval_sft_reasoning", "eval_sft_fast", "eval_control"}
    assert all(before[name] != after[name] for name in student), "the teacher's weights count"
    assert all(before[name] == after[name] for name in ("sft_reasoning", "sft_fast", "control"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.teacher_kl=[validation_fast]"], "evaluation.teacher: teacher_kl needs weights to compare with"),
        (["evaluation.teacher=techer"], "evaluation.teacher: no stage is named 'techer'"),
        (["evaluation.teacher=rollout_fast"], "evaluation.teacher: 'rollout_fast'"),
        (["evaluation.teacher=weights/none.safetensors"], "weights/none.safetensors: no such file or folder"),
        (["evaluation.teacher=./conf"], "evaluation.teacher_model: weights from './conf' need a model"),
        (["evaluation.teacher=teacher", "evaluation.teacher_model=teecher"], "no model is named 'teecher'"),
        (["evaluation.teacher=distill_fast"], "'distill_fast' runs after"),
        (["evaluation.teacher_kl=[validation_fats]", "evaluation.teacher=teacher"], "no data set is named"),
    ],
)
def test_what_cannot_be_compared_is_refused(overrides, message):
    assert message in refusal("evaluation.teacher_kl=[validation_fast]", *overrides)


def test_the_line_on_the_terminal():
    assert EvaluateStage().summary({"teacher_kl": {"a": {"kl": 0.25, "agreement": 1.0, "tokens": 2}}}) == (
        "a KL to the teacher 0.2500"
    )
    assert "not finite" in EvaluateStage().summary({"teacher_kl": {"a": {"kl": None, "agreement": 0.0, "tokens": 2}}})
