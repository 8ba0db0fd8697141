"""The loop: resume bit for bit, validation and selection, skipped steps, what is written."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mindspore_impl import checkpoint
from mindspore_impl.errors import UserError
from mindspore_impl.training.schedule import learning_rate
from tests.training.small import OPTIMIZER, OPTIONS, VALIDATION, Stream, batch, equal, lines, run, weights

pytestmark = pytest.mark.usefixtures("linear_objective")
TIMED = ("seconds", "tokens_per_second", "compile_seconds", "checkpoint_copy_seconds", "checkpoint_wait_seconds")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, graphs):
    """An uninterrupted run with two micro-batches a step."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        graphs.use(patch, linear=True)
        return folder, *run(folder, Stream(accumulation=2))


def test_result_and_log_have_their_fields(whole):
    folder, _, result = whole
    assert (result["steps"], result["skipped_steps"], result["selected_step"]) == (8, 0, 8)
    assert result["tokens"] == 8 * 2 * 7
    assert result["supervised_tokens"] == sum(batch(seed).supervised for seed in range(8))
    assert result["compile_seconds"] > 0 and result["seconds"] > 0
    assert result["tokens_per_second"] == pytest.approx(7 * 2 * 7 / result["seconds"])  # the first step is not in it
    assert result["validation_after"]["held"]["loss"] < result["validation_before"]["held"]["loss"]
    before = result["validation_before"]["held"]
    assert before["perplexity"] == pytest.approx(np.exp(before["loss"]))
    assert before["tokens"] == sum(part.supervised for part in VALIDATION["held"])
    logged = lines(folder)
    assert [line["step"] for line in logged if "loss" in line] == [2, 4, 6, 8]
    assert [line["step"] for line in logged if "validation" in line] == [0, 4, 8]
    assert set(logged[1]) == {
        "step", "epoch", "loss", "ce", "grad_norm", "supervised_tokens", "tokens", "learning_rate", "skipped"
    }  # fmt: skip
    assert logged[1]["loss"] == pytest.approx(logged[1]["ce"], rel=1e-6)
    assert logged[1]["epoch"] == 0.5
    assert logged[-2]["loss"] == result["loss"]


def test_trap_14_a_killed_run_resumes_bit_for_bit(whole, tmp_path):
    folder, expected, result = whole
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Stream(raise_at=5, accumulation=2))
    assert checkpoint.latest(tmp_path / "checkpoints").step == 3
    assert [line["step"] for line in lines(tmp_path)] == [0, 2, 4, 4]
    stream = Stream(accumulation=2)
    found, resumed = run(tmp_path, stream, seed=5)  # other initial weights must not matter
    assert stream.asked == [3, 4, 5, 6, 7]
    equal(found, expected)
    assert lines(tmp_path) == lines(folder)
    assert {k: v for k, v in resumed.items() if k not in TIMED} == {k: v for k, v in result.items() if k not in TIMED}


def test_a_finished_stage_returns_at_once_with_its_weights(whole, capsys):
    folder, expected, result = whole
    stream = Stream()
    found, again = run(folder, stream, seed=5)
    assert again == result and stream.asked == []
    equal(found, expected)
    with pytest.raises(UserError, match="step_00000008.*train.max_steps"):
        run(folder, Stream(), steps=5)


def test_the_best_weights_are_handed_on(tmp_path, monkeypatch):
    losses = {0: 9.0, 2: 3.0, 4: 1.0, 6: 2.0, 8: 1.5}
    at_step = {}

    def validate(self):
        step = self.progress.step
        at_step[step] = weights(self.job.model)
        return {"held": {"loss": losses[step], "perplexity": 1.0, "tokens": 5}}

    monkeypatch.setattr("mindspore_impl.training.trainer._Session.validate", validate)
    options = replace(OPTIONS, select="best", eval_steps=2, save_steps=0, save_total_limit=1)
    best, result = run(tmp_path, Stream(), options=options)
    assert result["selected_step"] == 4 and result["validation_after"]["held"]["loss"] == 1.0
    equal(best, at_step[4])
    assert not np.array_equal(best["table"], at_step[8]["table"])
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step_*")) == ["step_00000004", "step_00000008"]
    assert checkpoint.selected(tmp_path / "checkpoints", "best").step == 4
    again, repeated = run(tmp_path, Stream(), options=options, seed=5)
    assert repeated == result
    equal(again, best)


def test_a_validation_that_is_not_finite_is_never_the_best(tmp_path, monkeypatch):
    left = iter([None, None, 3.0, None, None, *[None] * 5])
    held = "mindspore_impl.training.trainer.held_out_loss"
    monkeypatch.setattr(held, lambda *_: {"loss": (loss := next(left)), "perplexity": loss, "tokens": 5})
    options = replace(OPTIONS, select="best", eval_steps=2, save_steps=0)
    _, result = run(tmp_path / "one", Stream(), options=options)
    assert result["selected_step"] == 4 and result["validation_after"]["held"]["loss"] == 3.0
    logged = [line["validation"]["held"]["loss"] for line in lines(tmp_path / "one") if "validation" in line]
    assert logged == [None, None, 3.0, None, None] and result["validation_before"]["held"]["loss"] is None
    with pytest.raises(UserError, match="none/checkpoints.*train.select"):
        run(tmp_path / "none", Stream(), options=options)
    with pytest.raises(UserError, match="data.validation"):
        run(tmp_path / "no set", Stream(), options=options, validation={})


def test_skipped_steps_are_counted_and_too_many_in_a_row_end_the_stage(tmp_path):
    with pytest.raises(UserError, match="step 6: .* 2 steps .* 4; .*optimizer.learning_rate"):
        run(tmp_path, Stream(bad=(2, 4, 5)), options=replace(OPTIONS, max_skipped_steps=2), validation={})
    logged = lines(tmp_path)
    assert [(line["step"], line["skipped"]) for line in logged] == [(2, 0), (4, 1)]
    assert logged[1]["learning_rate"] == learning_rate(OPTIMIZER, 8, 3)  # the rate of the third update


def test_profile_and_tensorboard_are_written(tmp_path):
    options = replace(OPTIONS, tensorboard=True)
    run(tmp_path, Stream(), options=options, validation={}, profile_steps=2)
    assert len(json.loads((tmp_path / "profile" / "step_times.json").read_text())["milliseconds"]) == 2
    assert list((tmp_path / "profile").glob("*/ASCEND_PROFILER_OUTPUT/trace_view.json"))
    assert list((tmp_path / "tensorboard").iterdir())
