"""A divergence from outside the package: its oracle's loss and gradient, and a training step; names and refusals."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindspore_impl.errors import UserError
from mindspore_impl.losses import divergences
from mindspore_impl.losses.divergences import divergence_names, register_divergence, runs_composed
from mindspore_impl.losses.fused_linear import FusedLinear
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.losses.oracle import check_objective, objective
from mindspore_impl.ops.divergence_codes import DIVERGENCES
from tests.losses.teacher_cases import BOTH, check_gradient, check_operator, make_case, run_operator

ALPHA = 0.3


def alpha_oracle(log_p, log_q):
    """Renyi's divergence of order ALPHA: no sum over buckets, so that all must arrive together."""
    return np.log(np.exp(ALPHA * log_p + (1 - ALPHA) * log_q).sum()) / (ALPHA - 1)


class Alpha(nn.Cell):
    def construct(self, log_p_NI, log_q_NI):
        return ops.log(ops.exp(ALPHA * log_p_NI + (1 - ALPHA) * log_q_NI).sum(axis=1)) / (ALPHA - 1)


@pytest.fixture
def alpha(monkeypatch, ms_runtime):
    monkeypatch.setattr(divergences, "_registry", dict(divergences._registry))
    register_divergence("alpha", oracle=alpha_oracle, cell=Alpha)


@pytest.mark.parametrize(("support", "temperature"), [("tail_bucket", 1.0), ("renormalised", 2.0)])
def test_an_outside_divergence_equals_its_oracle(support, temperature, alpha):
    check_gradient(ObjectiveOptions(0.7, None, "alpha", support, temperature))
    for scale, pad, mask in ((1.0, 0, "none"), (8.0, 3, "some"), (30.0, 3, "first")):
        case = make_case(pad, 7, 423, 10, scale, temperature, "teacher", mask, pad=pad)
        run = lambda ce, kd, case=case: run_operator(case, "alpha", support, temperature, ce, kd)  # noqa: E731
        check_operator(run, case, "alpha", support, temperature, BOTH, where=(scale, pad))


def test_an_outside_divergence_trains(alpha):
    """One step down the gradient of the whole loss, which must be the oracle's, lowers it."""
    rng = np.random.default_rng(0)
    hidden_ND, head_VD = (rng.standard_normal((count, 6)).astype(np.float32) for count in (5, 43))
    case = make_case(0, 5, 43, 5, 1.0)
    options = ObjectiveOptions(0.8, divergence="alpha")
    step = ms.value_and_grad(FusedLinear(options, True), (0, 1), has_aux=True)
    inputs = [Tensor(array) for array in case[1:]]
    (loss, *_), (hidden_grad, head_grad) = step(Tensor(hidden_ND), Tensor(head_VD), *inputs)
    reference = objective(hidden_ND @ head_VD.T, *case[1:], options)
    assert float(loss) == pytest.approx(reference.loss, rel=1e-5)
    np.testing.assert_allclose(hidden_grad.asnumpy(), reference.grad_NV @ head_VD, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(head_grad.asnumpy(), reference.grad_NV.T @ hidden_ND, rtol=1e-4, atol=1e-6)
    after, _ = step(Tensor(hidden_ND), Tensor(head_VD) - 0.05 * head_grad, *inputs)
    assert float(after[0]) < 0.99 * float(loss)


def test_the_registry_says_who_runs_composed(alpha):
    assert divergence_names() == (*DIVERGENCES, "alpha")
    assert [runs_composed(name) for name in divergence_names()] == [False, False, False, True]
    check_objective(ObjectiveOptions(0.5, divergence="alpha", support="renormalised"))
    with pytest.raises(UserError, match="objective.support=truncated"):
        check_objective(ObjectiveOptions(0.5, divergence="alpha", support="truncated"))


def test_names_are_not_taken_twice(alpha):
    register_divergence("alpha", oracle=alpha_oracle, cell=Alpha)  # the same module, imported again
    for name in ("alpha", "jsd"):
        with pytest.raises(UserError, match=name):
            register_divergence(name, oracle=alpha_oracle, cell=nn.Identity)
