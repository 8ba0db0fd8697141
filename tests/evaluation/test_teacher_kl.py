"""The divergence from a teacher against a plain float64 oracle, row by row and through two models."""

import math

import numpy as np
import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.teacher_kl import divergence, measure_teacher_kl
from tests.model import small_models


def plain_kl(teacher, student):
    """KL(teacher || student) of two lists of logits, one number after the other."""
    log_p, log_q = (
        [value - max(row) - math.log(math.fsum(math.exp(other - max(row)) for other in row)) for value in row]
        for row in ([float(value) for value in teacher], [float(value) for value in student])
    )
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_rows_equal_a_plain_oracle(scale):
    """More rows than are compared at a time; equal rows give 0; the direction matters."""
    generator = np.random.default_rng(int(scale))
    teacher, student = (scale * generator.standard_normal((37, 50), np.float32) for _ in range(2))
    student[3] = teacher[3]
    student[4] = teacher[4] + 7
    kl, same = divergence(teacher, student)
    expected = [plain_kl(*rows) for rows in zip(teacher, student, strict=True)]
    np.testing.assert_allclose(kl, expected, rtol=1e-10, atol=1e-12)
    assert kl.min() >= -1e-12 and kl[3] == 0 and abs(kl[4]) < 1e-5
    assert same.tolist() == [t.argmax() == s.argmax() for t, s in zip(teacher, student, strict=True)] and same[3]
    assert abs(divergence(student, teacher)[0].sum() - kl.sum()) > 1e-3


def test_small_differences_keep_their_digits():
    """A float32 sum over 50,000 ids would lose a KL of 1e-7 nats."""
    generator = np.random.default_rng(0)
    teacher = generator.standard_normal((2, 50_000), np.float32)
    student = teacher.copy()
    student[:, :1000] += np.float32(1e-3)
    shift = student.astype(np.float64) - teacher
    p = np.exp(teacher.astype(np.float64)) / np.exp(teacher.astype(np.float64)).sum(1, keepdims=True)
    expected = np.log((p * np.exp(shift)).sum(1)) - (p * shift).sum(1)
    np.testing.assert_allclose(divergence(teacher, student)[0], expected, rtol=1e-6)


def samples_of(lengths):
    from mindspore_impl.text.chat import Sample

    generator = np.random.default_rng(5)
    made = []
    for number, length in enumerate(lengths):
        supervised = np.zeros(length, bool)
        supervised[length // 2 :] = True
        made.append(Sample(generator.integers(1, 37, length).astype(np.int32), supervised, str(number), "fast"))
    return made


@pytest.mark.parametrize("logits_mb", [256, 1e-3], ids=["one chunk", "chunks of some rows"])
def test_models_equal_a_sum_over_single_samples(ms_runtime, monkeypatch, tmp_path, logits_mb):
    """Each supervised token counts once, at the position before it; prompts, padding and ids beyond the tokenizer's 33
    do not count."""
    from mindspore_impl import runtime

    monkeypatch.setattr(runtime, "logits_elements", lambda: int(logits_mb * 2**20) // 4)
    teacher = small_models.build(small_models.small_options(num_hidden_layers=2), seed=3)
    model = small_models.build(small_models.small_options(num_hidden_layers=1), seed=4)
    samples = samples_of([9, 6, 14, 5, 11])
    found = measure_teacher_kl(model, teacher, {"one": samples, "two": samples[:2]}, 33, 16, 2, tmp_path)
    for name, chosen in (("one", samples), ("two", samples[:2])):
        values, same = [], 0
        for sample in chosen:
            inputs = small_models.pack([[sample.ids.tolist()]], len(sample.ids))
            rows = [small_models.run(which, *inputs).reshape(-1, 37)[:, :33] for which in (teacher, model)]
            for position in np.flatnonzero(sample.supervised) - 1:
                values.append(plain_kl(*(logits[position] for logits in rows)))
                same += rows[0][position].argmax() == rows[1][position].argmax()
        assert found[name]["tokens"] == len(values)
        assert found[name]["kl"] == pytest.approx(math.fsum(values) / len(values), rel=1e-5)
        assert found[name]["agreement"] == pytest.approx(same / len(values))


def test_a_model_is_no_distance_from_itself_and_no_number_is_none(ms_runtime, tmp_path):
    from mindspore import Tensor

    model = small_models.build(small_models.small_options(num_hidden_layers=1))
    found = measure_teacher_kl(model, model, {"a": samples_of([6, 7])}, 37, 16, 1, tmp_path / "same")
    assert found["a"] == {"kl": 0.0, "agreement": 1.0, "tokens": 7}
    broken = small_models.build(small_models.small_options(num_hidden_layers=1))
    weight = broken.parameters_dict()["model.norm.weight"]
    weight.set_data(Tensor(np.full(weight.shape, np.nan, np.float32)))
    found = measure_teacher_kl(broken, model, {"a": samples_of([6, 7])}, 37, 16, 1, tmp_path / "broken")
    assert found["a"]["kl"] is None and found["a"]["tokens"] == 7
    with pytest.raises(UserError, match="the model's vocabulary of 37 is smaller than the tokenizer's 38"):
        measure_teacher_kl(model, model, {"a": samples_of([6])}, 38, 16, 1, tmp_path / "refused")
