"""Projection and objective in chunks: as all at once, whatever the chunk, the backend and the upstream gradient."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from mindspore_impl import runtime
from mindspore_impl.losses.fused_linear import FusedLinear
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.losses.oracle import objective
from tests.losses.teacher_cases import make_case, row_error

pytestmark = pytest.mark.usefixtures("ms_runtime")
COUNT, WIDTH, VOCAB, TOP_K, FACTOR = 5, 6, 43, 5, 3.0
OPTIONS = ObjectiveOptions(0.6, divergence="jsd")


@pytest.fixture(params=["composed", "auto"])
def kernels(request, monkeypatch):
    if request.param == "auto":
        request.getfixturevalue("native_operators")
    monkeypatch.setitem(runtime._state, "kernels", request.param)
    monkeypatch.setattr(runtime, "logits_elements", lambda: COUNT * VOCAB)
    return request.param


class Whole(nn.Cell):
    """FusedLinear over a table of hidden states and a head, times an upstream factor; `tied`: one matrix is both."""

    def __init__(self, hidden_ND, head_VD, fused, tied=False):
        super().__init__()
        self.head = Parameter(Tensor(head_VD), name="head")
        self.table = self.head if tied else Parameter(Tensor(hidden_ND), name="table")
        self.fused = fused

    def construct(self, *inputs):
        outputs = self.fused(self.table[:COUNT], self.head, *inputs)
        return outputs[0] * FACTOR, outputs[1], outputs[2], outputs[3]


def small_case():
    """-> hidden_ND, head_VD, the case of their logits, and its oracle's gradients of both."""
    rng = np.random.default_rng(0)
    hidden_ND, head_VD = (rng.standard_normal((n, WIDTH)).astype(np.float32) for n in (COUNT, VOCAB))
    case = make_case(0, COUNT, VOCAB, TOP_K, 1.0, mask="some")._replace(logits_NV=hidden_ND @ head_VD.T)
    return hidden_ND, head_VD, case


def both_grads(reference, hidden_ND, head_VD):
    return FACTOR * (reference.grad_NV @ head_VD), FACTOR * (reference.grad_NV.T @ hidden_ND)


def differentiated(whole, parameters):
    step = ms.value_and_grad(whole, None, ms.ParameterTuple(parameters), has_aux=True)

    def run(case):
        outputs, grads = step(*(Tensor(array) for array in case[1:]))
        return [out.asnumpy() for out in outputs], [grad.asnumpy() for grad in grads]

    return run


@pytest.mark.parametrize(
    ("kernels", "rows_at_once"),
    [("composed", 2), ("composed", 100), ("auto", 1), ("auto", 2), ("auto", COUNT), ("auto", 100)],
    indirect=["kernels"],
)
def test_trap_09_chunks_add_up(rows_at_once, kernels, monkeypatch):
    """Losses, diagnostics and both gradients against float64, for chunks that divide the rows, do not, or hold all.

    The upstream factor scales the gradients alone, and sums made in place do not carry over to the next step.
    """
    monkeypatch.setattr(runtime, "logits_elements", lambda: rows_at_once * VOCAB)
    hidden_ND, head_VD, case = small_case()
    whole = Whole(hidden_ND, head_VD, FusedLinear(OPTIONS, True))
    run, reference, on = differentiated(whole, [whole.table, whole.head]), objective(*case, OPTIONS), case[2] != 0
    (loss, ce_N, kd_N, diagnostics_4N), grads = run(case)
    assert loss == pytest.approx(FACTOR * reference.loss, rel=1e-5)
    for got, wanted in ((ce_N, reference.ce_N), (kd_N, reference.kd_N)):
        np.testing.assert_allclose(got, wanted * on, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(diagnostics_4N, [row * on for row in reference.diagnostics.values()], 1e-5, 1e-6)
    for got, wanted, again in zip(grads, both_grads(reference, hidden_ND, head_VD), run(case)[1], strict=True):
        assert row_error(got, wanted, 0.02) <= 1e-5
        np.testing.assert_array_equal(again, got)


def test_without_a_teacher(kernels):
    hidden_ND, head_VD, case = small_case()
    whole = Whole(hidden_ND, head_VD, FusedLinear(ObjectiveOptions(), False))
    (loss, _, kd_N, _), grads = differentiated(whole, [whole.table, whole.head])(case)
    reference = objective(*case[:3], None, None, None, ObjectiveOptions())
    assert loss == pytest.approx(FACTOR * reference.loss, rel=1e-5) and not kd_N.any()
    for got, wanted in zip(grads, both_grads(reference, hidden_ND, head_VD), strict=True):
        assert row_error(got, wanted, 0.4) <= 1e-5


def test_a_tied_head_gets_both_gradients(kernels):
    """One matrix as lookup table and head: its gradient is the sum of the two."""
    _, head_VD, case = small_case()
    hidden_ND = head_VD[:COUNT]
    case = case._replace(logits_NV=hidden_ND @ head_VD.T)
    whole = Whole(None, head_VD, FusedLinear(OPTIONS, True), tied=True)
    _, (got_VD,) = differentiated(whole, [whole.head])(case)
    hidden_grad_ND, total_VD = both_grads(objective(*case, OPTIONS), hidden_ND, head_VD)
    total_VD[:COUNT] += hidden_grad_ND
    assert row_error(got_VD, total_VD, 0.02) <= 1e-5


def test_a_frozen_head_and_evaluation_cost_no_gradient(kernels):
    hidden_ND, head_VD, case = small_case()
    inputs = [Tensor(array) for array in (hidden_ND, head_VD, *case[1:])]
    frozen = FusedLinear(OPTIONS, True, head_gradient=False)
    outputs, grad_ND = ms.value_and_grad(frozen, 0, has_aux=True)(*inputs)
    reference = objective(*case, OPTIONS)
    assert row_error(grad_ND.asnumpy(), reference.grad_NV @ head_VD, 0.02) <= 1e-5
    assert len(outputs) == 5  # no gradient of the head
    losses = FusedLinear(OPTIONS, True, gradient=False)(*inputs)
    assert len(losses) == 4
    for got, wanted in zip(losses, outputs, strict=False):
        np.testing.assert_allclose(got.asnumpy(), wanted.asnumpy(), rtol=1e-6)
