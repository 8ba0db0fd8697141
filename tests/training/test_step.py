"""The training step: sums stay sums, clipping, accumulation in float32, and steps that must change nothing."""

import numpy as np
import pytest

from mindspore_impl.training.options import OptimizerOptions
from tests.training.small import batch, equal, linear_gradient, linear_network, split, weights

OPTIONS = OptimizerOptions(learning_rate=0.05, lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0)
CLIP = 1.0


def applied_gradient(optimizer):
    """The gradient that reached the first update: the first moment is (1 - adam_beta1) of it."""
    return [moment.asnumpy() / (1 - OPTIONS.adam_beta1) for moment in optimizer.exp_avg]


def test_trap_03_loss_and_gradient_do_not_depend_on_the_split(graphs):
    whole = batch()
    # rows are supervised unevenly, so a mean of means would show
    assert len({int((part.loss_weight_BL != 0).sum()) for part in split(whole, 4)}) > 1
    network = linear_network()
    loss, *expected = linear_gradient(network.table.asnumpy(), network.bias.asnumpy(), whole)
    second = None
    for parts in (1, 4):
        _, optimizer, run = graphs.step(OPTIONS, parts)
        report = run(split(whole, parts))
        assert report.finite and report.loss == pytest.approx(loss, rel=1e-6), parts
        np.testing.assert_allclose(report.metrics, [loss * whole.supervised, whole.supervised], rtol=1e-6)
        norm = np.sqrt(sum((g**2).sum() for g in expected))
        assert report.gradient_norm == pytest.approx(norm, rel=1e-6), parts
        for found, want in zip(applied_gradient(optimizer), expected, strict=True):
            np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-7, err_msg=f"{parts} micro-batches")
        again = run(split(batch(1), parts))  # the totals start again from zero
        second = again if parts == 1 else second
        assert (again.loss, again.gradient_norm) == pytest.approx((second.loss, second.gradient_norm), rel=1e-4), parts
        assert again.metrics[1] == batch(1).supervised


def test_trap_04_a_fully_masked_batch_is_a_finite_step_of_nothing(graphs):
    network, _, run = graphs.step(OPTIONS, max_grad_norm=CLIP)
    before = weights(network)
    report = run([batch(masked=1.1)])
    assert (report.loss, report.gradient_norm, report.finite) == (0.0, 0.0, True)
    assert report.metrics.tolist() == [0.0, 0.0]
    for name, value in weights(network).items():
        np.testing.assert_array_equal(value, before[name])


def test_trap_09_gradients_accumulate_in_float32(graphs):
    from mindspore_impl.losses.objective import tensors_of
    from mindspore_impl.training.optimizer import make_optimizer
    from mindspore_impl.training.step import Accumulate, TrainStep

    network = linear_network(dtype=np.float16)
    step = TrainStep(network, make_optimizer(list(network.trainable_params()), OPTIONS, 10), 0.0)
    accumulate = Accumulate(step, metric_count=2)
    large, small = batch(weight=64.0), batch(weight=0.02)  # a float16 sum near 64 cannot see 0.02
    for part in [large, *[small] * 50]:
        accumulate(*tensors_of(part, False))
    values = [network.table.asnumpy(), network.bias.asnumpy()]
    first, each = linear_gradient(*values, large)[1:], linear_gradient(*values, small)[1:]
    expected = [first[i] + 50 * each[i] for i in range(2)]
    for total, want in zip(accumulate.totals, expected, strict=True):
        assert total.asnumpy().dtype == np.float32
        np.testing.assert_allclose(total.asnumpy(), want, rtol=4e-3, atol=0.06)


def test_clipping_is_by_the_global_norm(graphs):
    for weight, clipped in ((0.01, False), (10.0, True)):
        network, optimizer, run = graphs.step(OPTIONS, max_grad_norm=CLIP)
        _, *expected = linear_gradient(network.table.asnumpy(), network.bias.asnumpy(), batch(weight=weight))
        norm = np.sqrt(sum((g**2).sum() for g in expected))
        assert (norm > CLIP) == clipped
        report = run([batch(weight=weight)])
        assert report.gradient_norm == pytest.approx(norm, rel=1e-6)  # what is logged is the norm before clipping
        for found, want in zip(applied_gradient(optimizer), expected, strict=True):
            np.testing.assert_allclose(found, want * min(1.0, CLIP / norm), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(("accumulation", "value", "clip"), [(1, np.nan, CLIP), (4, np.inf, 0.0)])
def test_a_non_finite_step_changes_nothing(accumulation, value, clip, graphs):
    from mindspore_impl.training.optimizer import state_of

    bad = batch(2)
    bad.loss_weight_BL[0, :] = value
    ends = []
    for spoilt in (True, False):  # with the bad step, and as if it had never been
        network, optimizer, run = graphs.step(OPTIONS, accumulation, max_grad_norm=clip)
        run(split(batch(1), accumulation))
        before = weights(network) | state_of(optimizer)
        if spoilt:
            assert not run(split(bad, accumulation)).finite
            equal(weights(network) | state_of(optimizer), before)
        run(split(batch(3), accumulation))
        ends.append(weights(network) | state_of(optimizer))
    equal(*ends)
