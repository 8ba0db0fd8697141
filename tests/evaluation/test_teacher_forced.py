"""Perplexity, calibration and KL to a teacher against plain float64 oracles, row by row and through models."""

import functools
import math

import numpy as np
import pytest

from mindspore_impl import runtime
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation import teacher_forced
from mindspore_impl.evaluation.options import EvaluationOptions
from mindspore_impl.evaluation.teacher_forced import (
    BINS,
    bin_sums,
    calibration,
    divergence,
    measure_perplexity,
    measure_teacher_kl,
)
from mindspore_impl.text.chat import Sample
from tests.evaluation.conftest import damaged, logits_of
from tests.model import small_models

LENGTHS = (9, 6, 14, 5, 11)
PADDED, REAL = 37, 33  # ids of the lm_head, and of the tokenizer
OPTIONS = EvaluationOptions(sequence_length=16, rows=2)
NOTHING = {"ece": None, "bins": [], "tokens": 0}


def log_softmax(row):
    total = math.log(math.fsum(math.exp(value - max(row)) for value in row))
    return [value - max(row) - total for value in row]


def plain_kl(teacher, student):
    """KL(teacher || student) of two lists of logits, one number after the other."""
    log_p, log_q = (log_softmax([float(value) for value in row]) for row in (teacher, student))
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))


def plain_ece(confidence, right):
    """ECE of a list of tokens, one after the other."""
    total = 0.0
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        inside = [i for i, sure in enumerate(confidence) if low < sure <= high or (number == 0 and sure == 0)]
        if inside:
            gap = sum(right[i] for i in inside) / len(inside) - sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(gap)
    return total


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_divergence_of_rows(scale):
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
    student[5, 1], student[6, 1] = math.nan, math.inf
    assert np.flatnonzero(np.isnan(divergence(teacher, student)[0])).tolist() == [5, 6]


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


@pytest.mark.parametrize("seed", range(3))
def test_ece_does_not_depend_on_the_split(seed):
    rng = np.random.default_rng(seed)
    confidence = rng.beta(2, 1, 400)
    confidence[:9] = [0, 1, 1 / 15, 7 / 15, 8 / 15, 0.2, 0.4, 0.6, 0.8]
    right = rng.random(400) < confidence**2
    parts = [bin_sums(confidence[a:b], right[a:b]) for a, b in ((0, 50), (50, 50), (50, 391), (391, 400))]
    found = calibration(parts)
    assert found["ece"] == pytest.approx(plain_ece(confidence, right), abs=1e-12) and found["ece"] > 0.05
    assert found["tokens"] == 400 == sum(each["tokens"] for each in found["bins"])


def test_ece_by_hand():
    found = calibration([bin_sums(np.array([0.9, 0.92, 0.1]), np.array([1, 0, 0]))])
    assert found["tokens"] == 3 and [each["tokens"] for each in found["bins"]] == [1, 2]
    assert found["bins"][1] == pytest.approx({"low": 13 / 15, "high": 14 / 15, "tokens": 2, "confidence": 0.91,
                                              "accuracy": 0.5})  # fmt: skip
    assert found["ece"] == pytest.approx((1 * 0.1 + 2 * 0.41) / 3)


def test_confidences_outside_of_0_to_1():
    for bad in (math.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match="confidence"):
            bin_sums(np.array([bad]), np.array([1]))
    assert bin_sums(np.array([1 + 1e-7]), np.array([1]))[-1] == [1, 1, 1], "float32 may round above 1"
    assert calibration([]) == calibration([bin_sums(np.array([0.5]), np.array([1])), None]) == NOTHING
    assert calibration([bin_sums(np.zeros(0), np.zeros(0))]) == NOTHING


@pytest.fixture(scope="module", params=[260, pytest.param(2**26, marks=pytest.mark.slow)], ids=["chunks", "one chunk"])
def logits(request, ms_runtime):
    """How many logits are held at a time; each network is compiled once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "logits_elements", lambda: request.param)
        for name in ("_predictions", "_side"):
            patch.setattr(teacher_forced, name, functools.cache(getattr(teacher_forced, name)))
        yield request.param


@pytest.fixture(scope="module")
def samples(model):
    """Samples whose every other supervised target is the model's most probable id."""
    generator, made = np.random.default_rng(5), []
    for number, length in enumerate(LENGTHS):
        ids = generator.integers(1, REAL, length).astype(np.int32)
        for position in range(length // 2, length, 2):
            ids[position] = logits_of(model, ids[:position])[-1].argmax()
        made.append(Sample(ids, np.arange(length) >= length // 2, str(number), "fast"))
    return made


def test_perplexity_and_calibration_of_a_model(logits, model, samples, tmp_path):
    """Every supervised token counts once, at the position before it; padding and prompts do not count."""
    confidence, right, ce = [], [], 0.0
    for sample in samples:
        p_LV = np.exp([log_softmax(row) for row in logits_of(model, sample.ids).tolist()])
        for position in np.flatnonzero(sample.supervised):
            confidence.append(p_LV[position - 1].max())
            right.append(p_LV[position - 1].argmax() == sample.ids[position])
            ce -= np.log(p_LV[position - 1, sample.ids[position]])
    found, calibrated = measure_perplexity(model, {"held": samples}, OPTIONS, tmp_path / "whole")
    tokens = len(confidence)
    assert found["held"]["tokens"] == tokens and 0 < sum(right) < tokens, "both kinds occur"
    assert found["held"]["loss"] == pytest.approx(ce / tokens, rel=1e-5)
    assert found["held"]["perplexity"] == pytest.approx(math.exp(ce / tokens), rel=1e-5)
    assert calibrated["held"]["ece"] == pytest.approx(plain_ece(confidence, right), rel=1e-4)
    for bin_, expected in zip(
        calibrated["held"]["bins"], calibration([bin_sums(confidence, right)])["bins"], strict=True
    ):
        assert bin_ == pytest.approx(expected, rel=1e-4)
    with damaged(model.model.norm.weight):
        found, calibrated = measure_perplexity(model, {"held": samples}, OPTIONS, tmp_path / "damaged")
    assert found["held"] == {"loss": None, "perplexity": None, "tokens": tokens} and calibrated["held"] == NOTHING


def test_kl_between_models(logits, model, samples, tmp_path):
    """Each supervised token counts once, at the position before it; ids beyond the tokenizer's do not count."""
    student = small_models.build(small_models.small_options(num_hidden_layers=1), seed=4)
    sets = {"one": samples, "two": samples[:2]}
    found = measure_teacher_kl(student, model, sets, REAL, OPTIONS, tmp_path / "kl")
    for name, chosen in sets.items():
        values, same = [], 0
        for sample in chosen:
            both = [logits_of(which, sample.ids)[:, :REAL] for which in (model, student)]
            for position in np.flatnonzero(sample.supervised) - 1:
                values.append(plain_kl(*(rows[position] for rows in both)))
                same += both[0][position].argmax() == both[1][position].argmax()
        assert found[name]["tokens"] == len(values)
        assert found[name]["kl"] == pytest.approx(math.fsum(values) / len(values), rel=1e-5)
        assert found[name]["agreement"] == pytest.approx(same / len(values))
    itself = measure_teacher_kl(model, model, {"one": samples}, REAL, OPTIONS, tmp_path / "same")
    assert itself["one"] == {"kl": 0.0, "agreement": 1.0, "tokens": found["one"]["tokens"]}
    with damaged(student.model.norm.weight):
        broken = measure_teacher_kl(student, model, {"one": samples}, REAL, OPTIONS, tmp_path / "broken")
    assert broken["one"]["kl"] is None and broken["one"]["tokens"] == found["one"]["tokens"]
    with pytest.raises(UserError, match=f"teacher_kl: .*{PADDED}.*{PADDED + 1}"):
        measure_teacher_kl(student, model, sets, PADDED + 1, OPTIONS, tmp_path / "refused")
