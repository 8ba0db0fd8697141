"""An evaluation that compares with a teacher: what it needs, what decides its result, and how it is printed."""

import pytest

from mindspore_impl.curriculum.stages.evaluate import EvaluateStage
from tests.curriculum.conftest import changed, plan, refusal

COMPARED = ("evaluation.teacher_kl=[validation_fast]", "evaluation.teacher=teacher")


def test_every_evaluation_has_the_teacher_among_its_inputs():
    inputs = {name: planned.inputs for name, planned in plan(*COMPARED).items() if planned.kind == "evaluate"}
    assert inputs["eval_teacher"] == {"init": "teacher", "kl teacher": "teacher"}
    assert inputs["eval_distill_fast"]["kl teacher"] == "teacher"
    assert all("kl teacher" not in planned.inputs for planned in plan().values())


def test_what_a_comparison_depends_on():
    assert changed(*COMPARED) == {name for name in plan() if name.startswith("eval_")}
    assert changed("evaluation.teacher=teacher", "evaluation.teacher_model=teacher") == set()  # nothing is compared
    found = changed("stages.teacher.train.max_steps=7", base=COMPARED)
    assert {"eval_sft_reasoning", "eval_sft_fast", "eval_control"} <= found, "the teacher's weights count"
    assert not {"sft_reasoning", "sft_fast", "control"} & found


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("", "evaluation.teacher:"),
        ("evaluation.teacher=techer", "evaluation.teacher: 'techer' 'teacher'"),
        ("evaluation.teacher=rollout_fast", "evaluation.teacher: 'rollout_fast'"),
        ("evaluation.teacher=weights/none.safetensors", "evaluation.teacher: weights/none.safetensors"),
        ("evaluation.teacher=./conf", "evaluation.teacher_model: './conf' student teacher"),
        ("evaluation.teacher=teacher evaluation.teacher_model=teecher", "evaluation.teacher_model: 'teecher'"),
        ("evaluation.teacher=distill_fast", "evaluation.teacher: 'distill_fast' 'eval_teacher' order"),
        ("evaluation.teacher=teacher evaluation.teacher_kl=[validation_fats]", "evaluation.teacher_kl:"),
    ],
)
def test_what_cannot_be_compared_is_refused(overrides, words):
    message = refusal("evaluation.teacher_kl=[validation_fast]", *overrides.split())
    assert [word for word in words.split() if word not in message] == [], message


def test_the_line_on_the_terminal():
    def line(kl):
        return EvaluateStage().summary({"teacher_kl": {"a": {"kl": kl, "agreement": 1.0, "tokens": 2}}})

    assert "0.2500" in line(0.25) and "not finite" in line(None)
