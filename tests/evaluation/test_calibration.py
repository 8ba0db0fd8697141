"""Calibration against a plain oracle, by hand, and through the model."""

import math

import numpy as np
import pytest

from mindspore_impl.evaluation.calibration import BINS, batch_sums, bin_sums, calibration
from tests.model import small_models


def plain(confidence, right):
    """ECE of a list of tokens, one after the other."""
    total = 0.0
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        inside = [i for i, sure in enumerate(confidence) if low < sure <= high or (number == 0 and sure == 0)]
        if inside:
            gap = sum(right[i] for i in inside) / len(inside) - sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(gap)
    return total


@pytest.mark.parametrize("seed", range(5))
def test_ece_equals_a_plain_oracle_however_the_tokens_are_split(seed):
    rng = np.random.default_rng(seed)
    confidence = rng.beta(2, 1, 400)
    confidence[:9] = [0, 1, 1 / 15, 7 / 15, 8 / 15, 0.2, 0.4, 0.6, 0.8]
    right = rng.random(400) < confidence**2
    parts = [bin_sums(confidence[a:b], right[a:b]) for a, b in ((0, 50), (50, 50), (50, 391), (391, 400))]
    found = calibration(parts)
    assert found["ece"] == pytest.approx(plain(confidence, right), abs=1e-12) and found["ece"] > 0.05
    assert found["tokens"] == 400 == sum(each["tokens"] for each in found["bins"])


def test_by_hand():
    found = calibration([bin_sums(np.array([0.9, 0.92, 0.1]), np.array([1, 0, 0]))])
    assert found["tokens"] == 3 and [each["tokens"] for each in found["bins"]] == [1, 2]
    assert found["bins"][1] == pytest.approx({"low": 13 / 15, "high": 14 / 15, "tokens": 2, "confidence": 0.91,
                                              "accuracy": 0.5})  # fmt: skip
    assert found["ece"] == pytest.approx((1 * 0.1 + 2 * 0.41) / 3)


def test_what_is_no_probability_is_refused_and_no_number_gives_no_ece():
    for bad in (math.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match="confidence"):
            bin_sums(np.array([bad]), np.array([1]))
    assert bin_sums(np.array([1 + 1e-7]), np.array([1]))[-1] == [1, 1, 1], "float32 may round above 1"
    nothing = {"ece": None, "bins": [], "tokens": 0}
    assert calibration([]) == calibration([bin_sums(np.array([0.5]), np.array([1])), None]) == nothing
    assert calibration([bin_sums(np.zeros(0), np.zeros(0))]) == nothing


@pytest.mark.parametrize("logits_mb", [256, 1e-3], ids=["one chunk", "chunks of some rows"])
def test_the_model_s_confidence_is_that_of_its_logits(ms_runtime, monkeypatch, logits_mb):
    """Every supervised token counts once, and padding and prompts do not count."""
    from mindspore_impl import runtime
    from mindspore_impl.data.batches import SequentialBatches
    from mindspore_impl.losses.token_losses import TokenPredictions
    from mindspore_impl.text.chat import Sample

    monkeypatch.setattr(runtime, "logits_elements", lambda: int(logits_mb * 2**20 / 4))
    model = small_models.build(small_models.small_options())
    rng = np.random.default_rng(0)
    samples = []
    for length in (5, 9, 11, 7, 10):
        supervised = np.arange(length) > 2
        ids = rng.integers(1, 37, length).astype(np.int32)
        for position in range(4, length, 2):  # the model is right at every other token
            ids[position] = small_models.run(model, *small_models.pack([[ids]], 16))[0][position - 1].argmax()
        samples.append(Sample(ids, supervised, "r", "fast"))
    packed = SequentialBatches(samples, 16, 2)
    network = TokenPredictions(model).set_train(False)
    sums = [batch_sums(network, packed[number][0]) for number in range(len(packed))]
    confidence, right, ce = [], [], 0.0
    for sample in samples:
        logits_LV = small_models.run(model, *small_models.pack([[sample.ids]], 16))[0].astype(np.float64)
        p_LV = np.exp(logits_LV) / np.exp(logits_LV).sum(-1, keepdims=True)
        for position in np.flatnonzero(sample.supervised) - 1:
            confidence.append(p_LV[position].max())
            right.append(p_LV[position].argmax() == sample.ids[position + 1])
            ce -= np.log(p_LV[position, sample.ids[position + 1]])
    assert sum(one["ce"] for one in sums) == pytest.approx(ce, rel=1e-5)
    assert sum(one["tokens"] for one in sums) == len(confidence)
    total = np.sum([one["bins"] for one in sums], axis=0)
    np.testing.assert_allclose(total, bin_sums(np.array(confidence), np.array(right)), rtol=1e-5)
    assert 0 < sum(right) < len(right), "the case shows both kinds"
