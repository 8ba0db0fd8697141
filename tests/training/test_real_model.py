"""The loop with the real model, objective and a teacher."""

from types import SimpleNamespace

import numpy as np
import pytest

from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.training.options import OptimizerOptions, TrainOptions
from tests.training.small import batch, lines, tiny_model


class Taught:
    """A stream with a teacher that knows nothing: equal masses on three ids."""

    def steps(self, start, stop):
        for step in range(start, stop):
            part = vars(batch(step))
            shape = part["input_ids_BL"].shape
            teacher = {
                "teacher_ids_BLK": np.tile(np.array([1, 2, 3], np.int32), (*shape, 1)),
                "teacher_logp_BLK": np.full((*shape, 3), np.log(0.3), np.float32),
                "teacher_tail_logp_BL": np.full(shape, np.log(0.1), np.float32),
            }
            yield [SimpleNamespace(**part, **teacher)]

    def tokens(self, step):
        return 7

    def epochs_at(self, step):
        return step / 4


@pytest.mark.slow
def test_a_teacher_brings_its_own_metrics(tmp_path, ms_runtime):
    from mindspore_impl.training.trainer import TrainingJob, train

    options = TrainOptions(logging_steps=2, save_steps=2, tensorboard=False)
    optimizer, objective = OptimizerOptions(learning_rate=0.05), ObjectiveOptions(kd_weight=0.5)
    job = TrainingJob(
        model=tiny_model(), stream=Taught(), objective=objective, optimizer=optimizer, options=options,
        folder=tmp_path, steps=4, with_teacher=True,
    )  # fmt: skip
    result, logged = train(job), lines(tmp_path)
    for line in logged:
        assert line["teacher_mass"] == pytest.approx(0.9, abs=1e-3)
        assert line["teacher_entropy"] == pytest.approx(-(0.9 * np.log(0.3) + 0.1 * np.log(0.1)), abs=2e-2)
        assert line["loss"] == pytest.approx(0.5 * line["ce"] + 0.5 * line["kd"], rel=1e-4)
        assert {"student_mass", "agreement"} <= set(line)
    assert result["kd"] == logged[-1]["kd"]
