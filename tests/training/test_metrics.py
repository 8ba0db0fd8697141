"""Windows, lines, and the log that is cut back."""

import json
import math

import numpy as np
import pytest

from mindspore_impl import files
from mindspore_impl.training.metrics import MetricsLog, Progress
from mindspore_impl.training.step import StepReport

NAMES = ("ce", "agreement", "tokens")


def add(progress, loss, tokens, finite=True, norm=1.0, seconds=0.5, compiled=False):
    """A step of 100 tokens, `tokens` of them supervised."""
    report = StepReport(loss, norm, finite, np.array([loss * tokens, 0.5 * tokens, tokens]))
    progress.add(report, NAMES, 100, seconds, compiled)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_means_are_over_supervised_tokens_not_over_steps():
    progress = Progress()
    add(progress, 1.0, 30, norm=2.0, seconds=9.0, compiled=True)
    add(progress, 4.0, 10, norm=4.0)
    line = progress.take_line(("ce",), 0.01, 0.123456)
    assert line == {
        "step": 2, "epoch": 0.1235, "loss": 1.75, "ce": 1.75, "grad_norm": 3.0, "supervised_tokens": 40,
        "tokens": 200, "learning_rate": 0.01, "tokens_per_second": 200.0, "skipped": 0,
    }  # fmt: skip
    assert (progress.compile_seconds, progress.seconds, progress.timed_tokens) == (9.0, 0.5, 100)
    add(progress, 2.0, 10)
    assert progress.take_line(("ce", "agreement"), 0.01, None)["loss"] == 2.0  # a new window


def test_a_skipped_step_is_counted_and_kept_out_of_the_means():
    progress = Progress()
    add(progress, 1.0, 10)
    add(progress, math.nan, 10, finite=False, norm=math.nan)
    assert (progress.skipped_steps, progress.skipped_in_a_row, progress.last_finite_step) == (1, 1, 1)
    line = progress.take_line(("ce",), 0.01, None)
    assert (line["loss"], line["supervised_tokens"], line["skipped"]) == (1.0, 10, 1)
    add(progress, math.inf, 10, finite=False)
    assert "loss" not in progress.take_line(("ce",), 0.01, None)
    add(progress, 1.0, 10)
    assert (progress.skipped_steps, progress.skipped_in_a_row) == (2, 0)


def test_progress_survives_json():
    progress = Progress()
    add(progress, 1 / 3, 7)
    progress.note_validation({"a": {"loss": 1 / 7, "perplexity": 1.1, "tokens": 3}})
    back = Progress.from_position(json.loads(json.dumps(progress.position())), "here")
    assert back == progress
    assert back.best_step == 1


def test_best_validation_weighs_tokens_and_ignores_what_is_not_finite():
    progress = Progress(step=1)
    progress.note_validation({"a": {"loss": 1.0, "tokens": 1}, "b": {"loss": 4.0, "tokens": 3}})
    assert progress.last_metric == pytest.approx(3.25)
    progress.step = 2
    progress.note_validation({"a": {"loss": None, "tokens": 1}, "b": {"loss": 0.0, "tokens": 3}})
    assert progress.last_metric is None and progress.best_step == 1


def test_log_is_cut_back_to_the_resumed_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(tmp_path, 0, tensorboard=False, active=True)
    for step in range(5):
        log.write({"step": step, "loss": float(step)})
    log.close()
    with open(path, "a") as file:
        file.write('{"step": 5, "lo')  # cut by a kill
    MetricsLog(tmp_path, 3, tensorboard=False, active=True).close()
    assert [line["step"] for line in lines(path)] == [0, 1, 2, 3]
    MetricsLog(tmp_path, 0, tensorboard=False, active=True).close()  # starts over: nothing of it is left
    assert lines(path) == []


def test_tensorboard_events_hold_the_numbers_and_other_ranks_write_nothing(tmp_path):
    for folder, active in ((tmp_path, True), (tmp_path / "other", False)):
        log = MetricsLog(folder, 0, tensorboard=True, active=active)
        log.write({"step": 1, "loss": 2.0, "tokens_per_second": None})
        log.write({"step": 1, "validation": {"held": {"loss": 3.0, "tokens": 4}}})
        log.sync()
        log.close()
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"train/loss" in events and b"validation/held/loss" in events and not (tmp_path / "other").exists()


def test_json_has_no_nan():
    values = {"a": math.nan, "b": {"c": np.float32(0.5), "d": np.int64(3)}}
    assert files.jsonable(values) == {"a": None, "b": {"c": 0.5, "d": 3}}
