"""Top-k log-probabilities and drawn ids in graph mode, against float64 NumPy."""

import numpy as np
import pytest
from mindspore import Tensor

from mindspore_impl.ops.log_floor import LOG_FLOOR
from mindspore_impl.ops.topk_logprobs import LogprobsAt, SampledIds, topk_logprobs
from tests.losses.teacher_cases import log_softmax, rows_on

pytestmark = pytest.mark.usefixtures("ms_runtime")


@pytest.mark.parametrize(
    ("vocab", "top_k", "temperature", "backend"),  # None: the native operator, where it is built
    [(11, 1, 2.0, None), (423, 10, 1.0, None), (423, 10, 2.0, None), (1423, 64, 2.0, None),
     (423, 10, 1.0, "composed"), (423, 10, 2.0, "composed")],
)  # fmt: skip
def test_trap_15_top_k_and_directly_summed_tail(vocab, top_k, temperature, backend):
    """Ids, log-probabilities and the tail, whose mass goes down to 1e-20 at scale 30."""
    network = topk_logprobs(top_k, temperature, backend)
    for scale in (1.0, 8.0, 30.0):
        logits_NV = (np.random.default_rng(0).standard_normal((7, vocab)) * scale).astype(np.float32)
        ids_NK, logp_NK, tail_N = (out.asnumpy() for out in network(Tensor(logits_NV)))
        assert ids_NK.dtype == np.int32 and logp_NK.dtype == tail_N.dtype == np.float32
        np.testing.assert_array_equal(ids_NK, np.argsort(-logits_NV, axis=1)[:, :top_k])
        expected_NK, expected_tail_N = rows_on(ids_NK, log_softmax(logits_NV.astype(np.float64) / temperature))
        np.testing.assert_allclose(logp_NK, expected_NK, rtol=1e-6, atol=3e-6)
        np.testing.assert_allclose(tail_N, expected_tail_N, rtol=1e-6, atol=3e-6)


def test_whole_vocabulary_leaves_a_finite_tail():
    ids_NK, logp_NK, tail_N = (
        out.asnumpy() for out in topk_logprobs(11, 1.0)(Tensor(np.random.rand(3, 11).astype(np.float32)))
    )
    assert (tail_N == LOG_FLOOR).all() and np.isfinite(np.float16(tail_N)).all()
    np.testing.assert_allclose(np.exp(logp_NK.astype(np.float64)).sum(1), 1, atol=1e-6)


def test_log_probabilities_of_given_ids():
    logits_NV = np.random.default_rng(0).standard_normal((5, 423)).astype(np.float32) * 4
    log_p_NV = log_softmax(logits_NV / 2.0)
    ids_NK = np.argsort(-logits_NV, axis=1)[:, [0, 9, 10, 400]].astype(np.int32)
    logp_NK, agree_NK, mean_N, variance_N = (
        o.asnumpy() for o in LogprobsAt(10, 2.0)(Tensor(logits_NV), Tensor(ids_NK))
    )
    np.testing.assert_allclose(logp_NK, np.take_along_axis(log_p_NV, ids_NK, 1), rtol=1e-6, atol=3e-6)
    np.testing.assert_array_equal(agree_NK, np.tile([1, 1, 0, 0], (5, 1)))
    mean = (np.exp(log_p_NV) * log_p_NV).sum(1)
    np.testing.assert_allclose(mean_N, mean, rtol=1e-5)
    np.testing.assert_allclose(variance_N, (np.exp(log_p_NV) * (log_p_NV - mean[:, None]) ** 2).sum(1), rtol=1e-4)


def test_more_draws_than_ids_agree_everywhere():
    """K counts draws in a sampled store and may exceed V; each id is then among the K most probable."""
    logits_NV = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    ids_NK = np.tile(np.array([0, 4, 2, -1, -1, -1, -1, -1], np.int32), (3, 1))
    logp_NK, agree_NK, *_ = (out.asnumpy() for out in LogprobsAt(8, 1.0)(Tensor(logits_NV), Tensor(ids_NK)))
    assert (agree_NK == 1).all()
    np.testing.assert_allclose(logp_NK[:, :3], log_softmax(logits_NV)[:, [0, 4, 2]], rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("vocab", [2, 423])
def test_draws_follow_the_distribution(vocab):
    """An even grid of numbers draws each id within one grid step of its probability, at the given temperature."""
    logits_NV = (np.random.default_rng(1).standard_normal((3, vocab)) * 4).astype(np.float32)
    logits_NV[1, ::2] = -200  # ids of probability 0 are never drawn
    p_NV = np.exp(log_softmax(logits_NV / 2.0))
    draws = 4000
    uniform_NK = np.tile((np.arange(draws) + 0.5) / draws, (3, 1)).astype(np.float32)
    ids_NK, logp_NK = (out.asnumpy() for out in SampledIds(vocab, 2.0)(Tensor(logits_NV), Tensor(uniform_NK)))
    assert ids_NK.dtype == np.int32 and ids_NK.min() >= 0 and ids_NK.max() < vocab
    for row in range(3):
        counts_V = np.bincount(ids_NK[row], minlength=vocab)
        assert np.abs(counts_V / draws - p_NV[row]).max() <= 1.5 / draws
        assert (np.diff(ids_NK[row]) >= 0).all()
    assert not (ids_NK[1] % 2 == 0).any()
    np.testing.assert_allclose(logp_NK, np.take_along_axis(np.log(p_NV), ids_NK, 1), rtol=1e-5, atol=1e-5)


def test_draws_at_the_ends_and_rare_ids():
    """0 draws the first possible id, the largest float below 1 one of the last, whose mass is 4e-8 each."""
    logits_NV = np.zeros((1, 1000), np.float32)
    logits_NV[0, 0] = 17.0
    uniform_NK = np.array([[0.0, 0.5, np.nextafter(np.float32(1), np.float32(0))]], np.float32)
    ids_NK = SampledIds(1000, 1.0)(Tensor(logits_NV), Tensor(uniform_NK))[0].asnumpy()
    assert ids_NK[0, 0] == ids_NK[0, 1] == 0 and ids_NK[0, 2] > 950
