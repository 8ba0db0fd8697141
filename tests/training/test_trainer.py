"""The loop: resume bit for bit, validation and selection, skipped steps, what is written."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mindspore_impl import checkpoint
from mindspore_impl.errors import UserError
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.training.options import OptimizerOptions, TrainOptions
from tests.training.small import Stream, batch, linear_network, weights

OPTIMIZER = OptimizerOptions(learning_rate=0.02, warmup_steps=2)
OPTIONS = TrainOptions(logging_steps=2, save_steps=3, eval_steps=4, tensorboard=False)
VALIDATION = {"held": [batch(90, weight=1.0), batch(91, weight=1.0)]}


@pytest.fixture(scope="module", autouse=True)
def linear_objective(ms_runtime):
    """The trainer over a model that is its own objective, since a real one takes seconds to compile."""
    from mindspore_impl.training import trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "LossNetwork", lambda model, *_, **__: model)
        yield


def linear(seed):
    return linear_network(seed, metrics=7)


def run(folder, stream, *, steps=8, options=OPTIONS, validation=VALIDATION, optimizer=OPTIMIZER, model=None, **more):
    from mindspore_impl.training.trainer import TrainingJob, train

    model = linear(0) if model is None else model
    job = TrainingJob(model, stream, validation, ObjectiveOptions(), optimizer, options, folder, steps, **more)
    return model, train(job)


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, ms_runtime):
    """An uninterrupted run with two micro-batches a step."""
    folder = tmp_path_factory.mktemp("whole")
    model, result = run(folder, Stream(accumulation=2))
    return folder, weights(model), result


def test_result_and_log_have_their_fields(whole):
    folder, _, result = whole
    assert (result["steps"], result["skipped_steps"], result["selected_step"]) == (8, 0, 8)
    assert result["tokens"] == 8 * 2 * 7
    assert result["supervised_tokens"] == sum(batch(seed).supervised for seed in range(8))
    assert result["compile_seconds"] > result["seconds"] > 0
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
    model, resumed = run(tmp_path, stream, model=linear(5))  # other initial weights must not matter
    assert stream.asked == [3, 4, 5, 6, 7]
    for name, array in weights(model).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert lines(tmp_path) == lines(folder)
    timed = {"seconds", "tokens_per_second", "compile_seconds", "checkpoint_copy_seconds", "checkpoint_wait_seconds"}
    assert {k: v for k, v in resumed.items() if k not in timed} == {k: v for k, v in result.items() if k not in timed}


def test_a_finished_stage_returns_at_once_with_its_weights(whole, capsys):
    folder, expected, result = whole
    stream = Stream()
    model, again = run(folder, stream, model=linear(5))
    assert again == result and stream.asked == []
    for name, array in weights(model).items():
        np.testing.assert_array_equal(array, expected[name])


def test_a_checkpoint_beyond_the_last_step_is_refused(whole):
    with pytest.raises(UserError, match="it is of step 8, but this stage has 5 steps"):
        run(whole[0], Stream(), steps=5)


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(whole, tmp_path, capsys):
    _, expected, _ = whole
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Stream(raise_at=7, accumulation=2))
    path = tmp_path / "checkpoints" / "step_00000006" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    stream = Stream(accumulation=2)
    model, _ = run(tmp_path, stream)
    assert stream.asked[0] == 3 and "step_00000003 is used instead" in capsys.readouterr().err
    for name, array in weights(model).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_the_best_weights_are_handed_on(tmp_path, ms_runtime, monkeypatch):
    from mindspore_impl.training import trainer

    losses = {0: 9.0, 2: 3.0, 4: 1.0, 6: 2.0, 8: 1.5}
    at_step = {}

    def validate(self):
        step = self.progress.step
        at_step[step] = weights(self.job.model)
        return {"held": {"loss": losses[step], "perplexity": 1.0, "tokens": 5}}

    monkeypatch.setattr(trainer._Session, "validate", validate)
    options = replace(OPTIONS, select="best", eval_steps=2, save_steps=0, save_total_limit=1)
    model, result = run(tmp_path, Stream(), options=options)
    assert result["selected_step"] == 4 and result["validation_after"]["held"]["loss"] == 1.0
    for name, array in weights(model).items():
        np.testing.assert_array_equal(array, at_step[4][name])
        assert not np.array_equal(array, at_step[8][name])
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step_*")) == ["step_00000004", "step_00000008"]
    assert checkpoint.selected(tmp_path / "checkpoints", "best").step == 4
    again, repeated = run(tmp_path, Stream(), options=options, model=linear(5))
    assert repeated == result
    for name, array in weights(again).items():
        np.testing.assert_array_equal(array, at_step[4][name])


def measured_losses(monkeypatch, losses):
    """The losses that the validations find, one after the other; None: not finite."""
    from mindspore_impl.training import trainer

    left = iter(losses)
    monkeypatch.setattr(
        trainer, "held_out_loss", lambda *_: {"loss": (loss := next(left)), "perplexity": loss, "tokens": 5}
    )
    return replace(OPTIONS, select="best", eval_steps=2, save_steps=0)


def test_a_validation_that_is_not_finite_is_never_the_best(tmp_path, ms_runtime, monkeypatch):
    options = measured_losses(monkeypatch, [None, None, 3.0, None, None])
    _, result = run(tmp_path, Stream(), options=options)
    assert result["selected_step"] == 4 and result["validation_after"]["held"]["loss"] == 3.0
    logged = [line["validation"]["held"]["loss"] for line in lines(tmp_path) if "validation" in line]
    assert logged == [None, None, 3.0, None, None] and result["validation_before"]["held"]["loss"] is None


def test_no_finite_validation_at_all_is_told(tmp_path, ms_runtime, monkeypatch):
    options = measured_losses(monkeypatch, [None] * 5)
    with pytest.raises(UserError, match="no validation with a finite loss"):
        run(tmp_path, Stream(), options=options)


def test_best_needs_a_validation_set(tmp_path, ms_runtime):
    with pytest.raises(UserError, match="train.select=best needs a validation set"):
        run(tmp_path, Stream(), options=replace(OPTIONS, select="best"), validation={})


def test_skipped_steps_are_counted_and_too_many_in_a_row_end_the_stage(tmp_path, ms_runtime):
    options = replace(OPTIONS, max_skipped_steps=2)
    with pytest.raises(UserError, match=r"step 6: .*2 steps in a row; the last finite step was 4\. Lower optimizer"):
        run(tmp_path, Stream(bad=(2, 4, 5)), options=options, validation={})
    logged = lines(tmp_path)
    assert [(line["step"], line["skipped"]) for line in logged] == [(2, 0), (4, 1)]
    from mindspore_impl.training.schedule import learning_rate

    assert logged[1]["learning_rate"] == learning_rate(OPTIMIZER, 8, 3)  # the rate of the third update


def test_profile_and_tensorboard_are_written(tmp_path, ms_runtime):
    options = replace(OPTIONS, tensorboard=True)
    run(tmp_path, Stream(), steps=4, options=options, validation={}, profile_steps=2)
    assert len(json.loads((tmp_path / "profile" / "step_times.json").read_text())["milliseconds"]) == 2
    assert list((tmp_path / "profile").glob("*/ASCEND_PROFILER_OUTPUT/trace_view.json"))
    assert list((tmp_path / "tensorboard").iterdir())
