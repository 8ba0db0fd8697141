"""The operator in graph mode against the float64 oracle: values, gradients and diagnostics."""

import numpy as np
import pytest
from mindspore import Tensor

from mindspore_impl import runtime
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.losses.oracle import objective
from mindspore_impl.ops import native
from mindspore_impl.ops import topk_distill as topk_distill_module
from mindspore_impl.ops.topk_distill import cross_entropy, no_teacher, topk_distill
from tests.losses.teacher_cases import (
    BOTH,
    MASKS,
    PAIRS,
    SUPPORTS,
    TERMS,
    TOLERANCE,
    check_operator,
    confident_labels,
    falling_tails,
    make_case,
    mode_of,
    row_error,
    run_operator,
)

pytestmark = pytest.mark.usefixtures("ms_runtime")


@pytest.fixture(params=["composed", "cpu"])
def backend(request):
    if request.param == "cpu":
        request.getfixturevalue("native_operators")
    return request.param


def check(case, divergence, support, temperature, backend, terms=BOTH, where=()):
    """`check_operator` of a backend. A graph for each pair of weights: `BOTH` compiles one."""

    def run(ce, kd):
        return run_operator(case, divergence, support, temperature, ce, kd, backend)

    check_operator(run, case, divergence, support, temperature, terms, where=where)


@pytest.mark.parametrize(
    ("divergence", "support", "temperature"),
    [*((*pair, 2.0) for pair in PAIRS), ("forward_kl", "tail_bucket", 1.0), ("jsd", "renormalised", 1.0)],
)
def test_trap_08_operator_equals_oracle(divergence, support, temperature, backend):
    """One graph for each pair, with T and without; scales, masks and supports vary inside it, and rows without ids."""
    for number, scale in enumerate((1.0, 8.0, 30.0)):
        for turn, support_at in enumerate(SUPPORTS):
            mask, pad = MASKS[(number + turn) % 5], 3 * (turn % 2)
            case = make_case(10 * number + pad, 7, 423, 10, scale, temperature, support_at, mask, mode_of(support), pad)
            check(case, divergence, support, temperature, backend, where=(scale, support_at, mask, pad))
    case.teacher_ids_NK[:], case.teacher_logp_NK[:], case.teacher_tail_logp_N[:] = -1, -1e4, 0  # not supervised
    check(case, divergence, support, temperature, backend, where="no ids")


@pytest.mark.parametrize("terms", TERMS[:2])
def test_trap_08_each_term_alone(terms, backend):
    case = make_case(0, 7, 423, 10, 8.0, 2.0, "student", "some", pad=3)
    check(case, "forward_kl", "tail_bucket", 2.0, backend, [terms])


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("divergence", "support"), PAIRS)
def test_trap_08_operator_equals_oracle_on_the_grid(divergence, support, temperature, backend):
    grid = [(50, v, k) for v in (11, 423, 1423) for k in (1, 2, 10, 64) if k <= v]
    others = [(1, 423, 10), (3, 423, 10), (3, 11, 11), (3, 8192, 64)]
    for seed, (count, vocab, top_k) in enumerate(grid + others):
        for number, scale in enumerate((1.0, 8.0, 30.0)):
            for support_at in SUPPORTS:
                mask = MASKS[(seed + number) % 5]
                case = make_case(seed, count, vocab, top_k, scale, temperature, support_at, mask, mode_of(support))
                where = (count, vocab, top_k, scale, support_at, mask)
                check(case, divergence, support, temperature, backend, TERMS, where)


@pytest.mark.parametrize(
    ("divergence", "support", "temperature"),  # graphs of the test of trap 08
    [("forward_kl", "tail_bucket", 1.0), ("forward_kl", "tail_bucket", 2.0), ("jsd", "renormalised", 1.0),
     ("jsd", "renormalised", 2.0), ("forward_kl", "sampled", 2.0)],
)  # fmt: skip
def test_trap_05_extreme_rows_of_weight_zero_stay_out(divergence, support, temperature, backend):
    """Logits near the float32 limit and -1 teacher rows, masked: exactly 0 gradient, the same loss, nothing NaN."""
    case = make_case(1, 7, 423, 10, 8.0, mask="some", pad=3)  # padding in rows that count, too
    *_, before_NV = run_operator(case, divergence, support, temperature, backend=backend)
    off = case.loss_weight_N == 0
    limits = np.random.default_rng(0).choice([-3e38, 3e38, 0], case.logits_NV[off].shape)
    case.logits_NV[off], case.teacher_ids_NK[off], case.teacher_logp_NK[off] = limits, -1, -1e4
    case.logits_NV[off, case.target_ids_N[off]] = -3e38  # a cross-entropy that float32 cannot hold
    ce_N, kd_N, diagnostics_4N, grad_NV = run_operator(case, divergence, support, temperature, backend=backend)
    for outputs in (ce_N, kd_N, diagnostics_4N):
        assert np.isfinite(outputs).all()
    assert not grad_NV[off].any()
    np.testing.assert_array_equal(grad_NV[~off], before_NV[~off])


def test_trap_15_tail_mass_keeps_its_digits(backend):
    """Student tails of 1e-4 down to 1e-30, where 1 - sum has no correct digit in float32."""
    case = falling_tails()
    reference = objective(*case, ObjectiveOptions(1.0))
    _, kd_N, _, _ = run_operator(case, "forward_kl", "tail_bucket", 1.0, backend=backend)
    assert reference.kd_N[-1] > 20  # the tail decides
    np.testing.assert_allclose(kd_N, reference.kd_N, rtol=1e-6)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_whole_vocabulary_as_support(divergence, backend):
    """K = V leaves no tail: the divergence is the full one, and a stored tail mass of float16's floor does no harm."""
    case = make_case(2, 3, 11, 11, 1.0, mask="none")
    case.teacher_tail_logp_N[:] = [-1e4, -16.0, -1e4]
    check(case, divergence, "tail_bucket", 1.0, backend)


def test_truncated_is_not_clamped(backend):
    case = make_case(3, 7, 423, 10, 8.0, 2.0, support="student", mask="none")
    case.teacher_logp_NK[:] = np.log(0.01)
    check(case, "forward_kl", "truncated", 2.0, backend)
    assert run_operator(case, "forward_kl", "truncated", 2.0, backend=backend)[1].min() < -0.05


def test_renormalised_is_zero_at_one_id(backend):
    case = make_case(4, 7, 423, 1, 8.0, mask="none")
    _, kd_N, _, grad_NV = run_operator(case, "forward_kl", "renormalised", 1.0, 0.0, 1.0, backend)
    assert not kd_N.any() and np.abs(grad_NV).max() < 1e-7


def test_cross_entropy_without_a_teacher(backend):
    """Composed it is quick, and off by at most 4e-6 in absolute terms; fused it is the operator with no teacher id."""
    floor, operator = 0.4 if backend == "composed" else 1e-6, cross_entropy(1.0, True, backend)
    for scale in (1.0, 8.0, 30.0):
        case = make_case(5, 7, 423, 1, scale, mask="none")
        inputs = [Tensor(array.copy()) for array in case[:3]]
        ce_N, kd_N, diagnostics_4N, grad_NV = (o.asnumpy() for o in operator(*inputs, *no_teacher(*inputs[1:])))
        assert not kd_N.any() and not diagnostics_4N.any()
        reference = objective(*case[:3], None, None, None, ObjectiveOptions())
        assert row_error(grad_NV, reference.grad_NV, floor) <= TOLERANCE
        assert row_error(ce_N, reference.ce_N, floor) <= TOLERANCE


def test_trap_08_a_confident_label_keeps_its_gradient(backend):
    """The gradient is not q - 1."""
    case, reference = confident_labels(2.0)
    ce_N, _, _, grad_NV = run_operator(case, "forward_kl", "tail_bucket", 2.0, 1.0, 0.0, backend)
    assert row_error(grad_NV, reference.grad_NV, 0) <= TOLERANCE
    np.testing.assert_allclose(ce_N, reference.ce_N, rtol=0, atol=1e-15)


def test_pairs_without_meaning_are_refused():
    for pair in (("kl", "tail_bucket"), ("jsd", "truncated"), ("forward_kl", "some")):
        with pytest.raises(ValueError, match=pair[0]):
            topk_distill(*pair, 1.0, 0.5, 0.5)


def test_the_loss_alone_is_the_same_and_leaves_the_logits(backend):
    case = make_case(7, 7, 423, 10, 8.0, 2.0)
    *with_gradient, _ = run_operator(case, "jsd", "tail_bucket", 2.0, backend=backend)
    logits_NV = Tensor(case.logits_NV.copy())
    operator = topk_distill("jsd", "tail_bucket", 2.0, 0.3, 0.7, False, backend)
    alone = operator(logits_NV, *(Tensor(array) for array in (case.target_ids_N, case.loss_weight_N, *case[3:])))
    for one, two in zip(alone, with_gradient, strict=True):
        np.testing.assert_array_equal(one.asnumpy(), two)
    np.testing.assert_array_equal(logits_NV.asnumpy(), case.logits_NV)


def test_the_fused_gradient_takes_the_logits_memory(native_operators):
    case = make_case(8, 7, 423, 10, 1.0)
    logits_NV = Tensor(case.logits_NV.copy())
    operator = topk_distill("forward_kl", "tail_bucket", 1.0, 0.5, 0.5, True, "cpu")
    inputs = (Tensor(array) for array in (case.target_ids_N, case.loss_weight_N, *case[3:]))
    grad_NV = operator(logits_NV, *inputs)[3]
    np.testing.assert_array_equal(logits_NV.asnumpy(), grad_NV.asnumpy())


def test_the_backend_follows_the_setting(monkeypatch):
    monkeypatch.setitem(runtime._state, "kernels", "composed")
    assert topk_distill_module.backend() == "composed"
    monkeypatch.setitem(runtime._state, "kernels", "auto")
    assert topk_distill_module.backend() == ("cpu" if native.library() else "composed")
    monkeypatch.setattr(native, "library", lambda: None)
    assert topk_distill_module.backend() == "composed"
