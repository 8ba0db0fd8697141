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
COUNT, WIDTH, VOCAB, TOP_K = 11, 6, 43, 5


@pytest.fixture(params=["composed", "auto"])
def kernels(request, monkeypatch):
    if request.param == "auto":
        request.getfixturevalue("native_operators")
    monkeypatch.setitem(runtime._state, "kernels", request.param)
    return request.param


class Whole(nn.Cell):
    """FusedLinear over a table of hidden states and a head, times an upstream factor."""

    def __init__(self, hidden_ND, head_VD, fused, factor, tied):
        super().__init__()
        self.head = Parameter(Tensor(head_VD), name="head")
        self.table = self.head if tied else Parameter(Tensor(hidden_ND), name="table")
        self.fused, self.factor, self.count = fused, factor, len(hidden_ND)

    def construct(self, *inputs):
        outputs = self.fused(self.table[: self.count], self.head, *inputs)
        return outputs[0] * self.factor, outputs[1], outputs[2], outputs[3]


def small_case(seed=0):
    rng = np.random.default_rng(seed)
    hidden_ND, head_VD = (rng.standard_normal((n, WIDTH)).astype(np.float32) for n in (COUNT, VOCAB))
    case = make_case(seed, COUNT, VOCAB, TOP_K, 1.0, mask="some")
    return hidden_ND, head_VD, case._replace(logits_NV=hidden_ND @ head_VD.T)


def run(hidden_ND, head_VD, case, options, rows_at_once, monkeypatch, with_teacher=True, factor=1.0, tied=False):
    """(loss, ce_N, kd_N, diagnostics_4N, {parameter: gradient}) with chunks of `rows_at_once` rows."""
    monkeypatch.setattr(runtime, "logits_elements", lambda: rows_at_once * VOCAB)
    whole = Whole(hidden_ND, head_VD, FusedLinear(options, with_teacher), factor, tied)
    parameters = ms.ParameterTuple(whole.trainable_params())
    (loss, *rows), grads = ms.value_and_grad(whole, None, parameters, has_aux=True)(*(Tensor(a) for a in case[1:]))
    return (
        float(loss.asnumpy()),
        *(row.asnumpy() for row in rows),
        {parameter.name: grad.asnumpy() for parameter, grad in zip(parameters, grads, strict=True)},
    )


@pytest.mark.parametrize("rows_at_once", [1, 4, COUNT, 100])
def test_trap_09_chunks_add_up(rows_at_once, kernels, monkeypatch):
    """Losses, diagnostics and both gradients against float64, for chunks that divide the rows, do not, or hold all."""
    hidden_ND, head_VD, case = small_case()
    options = ObjectiveOptions(0.6, divergence="jsd")
    loss, ce_N, kd_N, diagnostics_4N, grads = run(hidden_ND, head_VD, case, options, rows_at_once, monkeypatch)
    reference = objective(*case, options)
    on = case.loss_weight_N != 0
    assert loss == pytest.approx(reference.loss, rel=1e-5)
    np.testing.assert_allclose(ce_N, reference.ce_N * on, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kd_N, reference.kd_N * on, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        diagnostics_4N, np.stack(list(reference.diagnostics.values())) * on, rtol=1e-5, atol=1e-6
    )
    assert row_error(grads["table"], reference.grad_NV @ head_VD, 0.02) <= 1e-5
    assert row_error(grads["head"], reference.grad_NV.T @ hidden_ND, 0.02) <= 1e-5


def test_without_a_teacher(kernels, monkeypatch):
    hidden_ND, head_VD, case = small_case(1)
    loss, ce_N, kd_N, _, grads = run(hidden_ND, head_VD, case, ObjectiveOptions(), 4, monkeypatch, with_teacher=False)
    reference = objective(*case[:3], None, None, None, ObjectiveOptions())
    assert loss == pytest.approx(reference.loss, rel=1e-5) and not kd_N.any()
    assert row_error(grads["table"], reference.grad_NV @ head_VD, 0.4) <= 1e-5
    assert row_error(grads["head"], reference.grad_NV.T @ hidden_ND, 0.4) <= 1e-5


def test_upstream_gradient_scales_both(kernels, monkeypatch):
    hidden_ND, head_VD, case = small_case(2)
    one, three = (
        run(hidden_ND, head_VD, case, ObjectiveOptions(0.5), 4, monkeypatch, factor=factor)[-1] for factor in (1.0, 3.0)
    )
    for name in ("table", "head"):
        np.testing.assert_allclose(three[name], 3 * one[name], rtol=1e-6)


def test_a_tied_head_gets_both_gradients(kernels, monkeypatch):
    """One matrix as lookup table and head: its gradient is the sum of the two."""
    _, head_VD, case = small_case(3)
    hidden_ND = head_VD[:COUNT]
    case = case._replace(logits_NV=hidden_ND @ head_VD.T)
    untied = run(hidden_ND, head_VD, case, ObjectiveOptions(0.5), 4, monkeypatch)[-1]
    tied = run(hidden_ND, head_VD, case, ObjectiveOptions(0.5), 4, monkeypatch, tied=True)[-1]
    total_VD = untied["head"].copy()
    total_VD[:COUNT] += untied["table"]
    np.testing.assert_allclose(tied["head"], total_VD, rtol=1e-5, atol=1e-6)


def test_a_frozen_head_costs_no_gradient(kernels, monkeypatch):
    hidden_ND, head_VD, case = small_case(4)
    reference = run(hidden_ND, head_VD, case, ObjectiveOptions(0.5), 4, monkeypatch)[-1]
    whole = Whole(hidden_ND, head_VD, FusedLinear(ObjectiveOptions(0.5), True, head_gradient=False), 1.0, False)
    inputs = [Tensor(a) for a in case[1:]]
    grads = ms.value_and_grad(whole, None, ms.ParameterTuple([whole.table]), has_aux=True)(*inputs)[1]
    np.testing.assert_allclose(grads[0].asnumpy(), reference["table"], rtol=1e-6)
    assert len(whole.fused(Tensor(hidden_ND), Tensor(head_VD), *inputs)) == 5


def test_evaluation_computes_no_gradient(kernels, monkeypatch):
    hidden_ND, head_VD, case = small_case(5)
    reference = run(hidden_ND, head_VD, case, ObjectiveOptions(0.5), 4, monkeypatch)
    outputs = FusedLinear(ObjectiveOptions(0.5), True, gradient=False)(
        Tensor(hidden_ND), Tensor(head_VD), *(Tensor(a) for a in case[1:])
    )
    assert len(outputs) == 4
    for got, expected in zip(outputs, reference, strict=False):
        np.testing.assert_allclose(got.asnumpy(), expected, rtol=1e-6)


def test_gradients_start_anew_at_every_step(kernels, monkeypatch):
    """Sums that are made in place must not carry over from one step to the next."""
    hidden_ND, head_VD, case = small_case(6)
    monkeypatch.setattr(runtime, "logits_elements", lambda: 4 * VOCAB)
    whole = Whole(hidden_ND, head_VD, FusedLinear(ObjectiveOptions(0.5), True), 2.0, False)
    step = ms.value_and_grad(whole, None, ms.ParameterTuple(whole.trainable_params()), has_aux=True)
    inputs = [Tensor(a) for a in case[1:]]
    first, second = ([grad.asnumpy() for grad in step(*inputs)[1]] for _ in range(2))
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, two)
