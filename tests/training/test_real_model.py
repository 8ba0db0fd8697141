"""The loop with the real model, objective and batches: it learns, and resumes bit for bit with a teacher."""

from types import SimpleNamespace

import numpy as np
import pytest

from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.training.options import OptimizerOptions, TrainOptions
from tests.training.small import VOCAB, batch, equal, lines, tiny_model, weights

OPTIONS = TrainOptions(logging_steps=2, save_steps=2, tensorboard=False)


class Interrupted:
    """A stream that is killed before step `at`."""

    def __init__(self, stream, at):
        self.stream, self.at = stream, at
        self.steps_for_epochs = stream.steps_for_epochs

    def steps(self, start, stop):
        for step, item in enumerate(self.stream.steps(start, stop), start):
            if step == self.at:
                raise KeyboardInterrupt
            yield item


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

    def steps_for_epochs(self, epochs):
        return 4


def samples(count):
    from mindspore_impl.text.chat import Sample

    draw = np.random.default_rng(0)
    for number in range(count):
        length = int(draw.integers(6, 20))
        ids = (np.arange(length) * 3 % (VOCAB - 1) + 1).astype(np.int32)  # a pattern that can be learnt
        yield Sample(ids, np.arange(length) >= 2, f"s{number}", "fast")


def trained(folder, stream, objective, with_teacher, steps=8):
    from mindspore_impl.training.trainer import TrainingJob, train

    model = tiny_model()
    options = OptimizerOptions(learning_rate=0.05)
    job = TrainingJob(
        model=model, stream=stream, objective=objective, optimizer=options, options=OPTIONS, folder=folder,
        steps=steps, with_teacher=with_teacher,
    )  # fmt: skip
    result = train(job)
    return weights(model), result, lines(folder)


@pytest.mark.slow
def test_real_batches_are_learnt_and_resumed(tmp_path, ms_runtime):
    from mindspore_impl.data.batches import BatchStream
    from mindspore_impl.data.options import BatchOptions

    options = BatchOptions(sequence_length=24, rows=4, gradient_accumulation_steps=2)
    stream = BatchStream({"a": list(samples(24))}, options, seed=3)
    expected, result, logged = trained(tmp_path / "whole", stream, ObjectiveOptions(), False)
    assert logged[-1]["loss"] < 0.7 * logged[0]["loss"]
    assert result["tokens"] > result["supervised_tokens"] > 0
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", Interrupted(stream, 5), ObjectiveOptions(), False)
    fresh = BatchStream({"a": list(samples(24))}, options, seed=3)
    found, _, again = trained(tmp_path / "cut", fresh, ObjectiveOptions(), False)
    assert again == logged
    equal(found, expected)


@pytest.mark.slow
def test_a_teacher_brings_its_own_metrics(tmp_path, ms_runtime):
    objective = ObjectiveOptions(kd_weight=0.5)
    _, result, logged = trained(tmp_path, Taught(), objective, True, steps=4)
    for line in logged:
        assert line["teacher_mass"] == pytest.approx(0.9, abs=1e-3)
        assert line["teacher_entropy"] == pytest.approx(-(0.9 * np.log(0.3) + 0.1 * np.log(0.1)), abs=2e-2)
        assert line["loss"] == pytest.approx(0.5 * line["ce"] + 0.5 * line["kd"], rel=1e-4)
        assert {"student_mass", "agreement"} <= set(line)
    assert result["kd"] == logged[-1]["kd"]
