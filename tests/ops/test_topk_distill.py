"""The operator in graph mode against the float64 oracle: values, gradients and diagnostics."""

import numpy as np
import pytest
from mindspore import Tensor

from mindspore_impl import runtime
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.losses.oracle import objective
from mindspore_impl.ops import native
from mindspore_impl.ops import topk_distill as topk_distill_module
from mindspore_impl.ops.topk_distill import cross_entropy, topk_distill
from tests.losses.teacher_cases import (
    MASKS,
    PAIRS,
    SUPPORTS,
    falling_tails,
    make_case,
    row_error,
    run_operator,
)

pytestmark = pytest.mark.usefixtures("ms_runtime")
TOLERANCE = 1e-5


@pytest.fixture(params=["composed", "cpu"])
def backend(request):
    if request.param == "cpu":
        request.getfixturevalue("native_operators")
    return request.param


def compare(case, divergence, support, temperature, where, backend):
    """Every term's value, every term's gradient alone, and the gradient of a weighted sum.

    A row's error is max|difference| / max|reference|. A cross-entropy and its gradient keep their digits however small.
    A divergence is a difference of two distributions, whose digits go where they meet: its reference is not taken below
    0.02 T^2 (times the row's weight in gradients), and that of a sum of both terms not below the sum of their sizes.
    """
    weight_N = case.loss_weight_N
    kd_floor = 0.02 * temperature**2
    size_N = 0
    for ce, kd in ((1.0, 0.0), (0.0, 1.0), (0.3, 0.7)):
        reference = objective(*case, ObjectiveOptions(kd, ce, divergence, support, temperature))
        loss, ce_N, kd_N, diagnostics_4N, grad_NV = run_operator(
            case, divergence, support, temperature, ce, kd, backend
        )
        assert np.isfinite(grad_NV).all() and np.isfinite(loss), where
        assert not grad_NV[weight_N == 0].any(), where
        floor_N = (kd * kd_floor + 1e-8) * weight_N
        if ce * kd:
            floor_N = size_N
        else:
            size_N = size_N + (0.3 * ce + 0.7 * kd) * np.maximum(np.abs(reference.grad_NV).max(1), floor_N)
        on_N = weight_N != 0
        values_N6 = np.stack([reference.ce_N, reference.kd_N, *reference.diagnostics.values()], 1) * on_N[:, None]
        assert not (ce_N[~on_N].any() or kd_N[~on_N].any() or diagnostics_4N[:, ~on_N].any()), where
        errors = {
            "gradient": row_error(grad_NV, reference.grad_NV, floor_N),
            "loss": abs(loss - reference.loss) / max(abs(reference.loss), 1.0),
            "ce": row_error(ce_N, values_N6[:, 0], 1e-6),
            "kd": row_error(kd_N, values_N6[:, 1], kd_floor),
            "diagnostics": row_error(diagnostics_4N.T, values_N6[:, 2:], 0.1),
        }
        assert max(errors.values()) <= TOLERANCE, (where, ce, kd, errors)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("divergence", "support"), PAIRS)
def test_trap_08_operator_equals_oracle(divergence, support, temperature, backend):
    """One graph for each pair and temperature; scales, masks and supports vary inside it."""
    mode = "sampled" if support == "sampled" else "top_k"
    for number, scale in enumerate((1.0, 8.0, 30.0)):
        for support_at in SUPPORTS:
            for pad in (0, 3):
                mask = MASKS[(number + pad) % 5]
                case = make_case(10 * number + pad, 7, 423, 10, scale, temperature, support_at, mask, mode, pad)
                compare(
                    case,
                    divergence,
                    support,
                    temperature,
                    (divergence, support, temperature, scale, support_at, mask, pad),
                    backend,
                )


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("divergence", "support"), PAIRS)
def test_trap_08_operator_equals_oracle_on_the_grid(divergence, support, temperature, backend):
    mode = "sampled" if support == "sampled" else "top_k"
    grid = [(50, v, k) for v in (11, 423, 1423) for k in (1, 2, 10, 64) if k <= v]
    others = [(1, 423, 10), (3, 423, 10), (3, 11, 11), (3, 8192, 64)]
    for seed, (count, vocab, top_k) in enumerate(grid + others):
        for number, scale in enumerate((1.0, 8.0, 30.0)):
            for support_at in SUPPORTS:
                mask = MASKS[(seed + number) % 5]
                case = make_case(seed, count, vocab, top_k, scale, temperature, support_at, mask, mode)
                where = (count, vocab, top_k, scale, support_at, mask)
                compare(case, divergence, support, temperature, where, backend)


@pytest.mark.parametrize("mode", ["top_k", "sampled"])
def test_rows_without_any_teacher_id(mode, backend):
    """A batch position that is not supervised (ids -1, all mass in the tail): finite, and 0 where it must be."""
    case = make_case(0, 7, 423, 10, 8.0, mask="none")
    case.teacher_ids_NK[:], case.teacher_logp_NK[:], case.teacher_tail_logp_N[:] = -1, -1e4, 0
    for support in ("sampled",) if mode == "sampled" else ("tail_bucket", "renormalised", "truncated"):
        _, _, kd_N, diagnostics_4N, grad_NV = run_operator(case, "forward_kl", support, 1.0, 0.0, 1.0, backend)
        assert not grad_NV.any() and np.abs(kd_N).max() < 1e-6 and np.isfinite(diagnostics_4N).all()


@pytest.mark.parametrize(("divergence", "support"), PAIRS)
def test_trap_05_extreme_rows_of_weight_zero_stay_out(divergence, support, backend):
    """Logits near the float32 limit and -1 teacher rows, masked: exactly 0 gradient, the same loss, nothing NaN."""
    case = make_case(1, 7, 423, 10, 8.0, mask="some")
    _, _, _, _, before_NV = run_operator(case, divergence, support, 1.0, 0.5, 0.5, backend)
    off = case.loss_weight_N == 0
    case.logits_NV[off] = (
        np.random.default_rng(0).choice([-3e38, 3e38, 0], case.logits_NV[off].shape).astype(np.float32)
    )
    case.teacher_ids_NK[off], case.teacher_logp_NK[off] = -1, -1e4
    loss, _, _, _, grad_NV = run_operator(case, divergence, support, 1.0, 0.5, 0.5, backend)
    assert np.isfinite(loss) and not grad_NV[off].any()
    np.testing.assert_array_equal(grad_NV[~off], before_NV[~off])


def test_trap_15_tail_mass_keeps_its_digits(backend):
    """Student tails of 1e-4 down to 1e-30, where 1 - sum has no correct digit in float32."""
    case = falling_tails()
    reference = objective(*case, ObjectiveOptions(1.0))
    _, _, kd_N, _, _ = run_operator(case, "forward_kl", "tail_bucket", 1.0, 0.0, 1.0, backend)
    assert reference.kd_N[-1] > 20  # the tail decides
    np.testing.assert_allclose(kd_N, reference.kd_N, rtol=1e-6)


def test_whole_vocabulary_as_support(backend):
    """K = V leaves no tail: the divergence is the full one, and a stored tail mass of float16's floor does no harm."""
    for divergence in ("forward_kl", "reverse_kl", "jsd"):
        case = make_case(2, 3, 11, 11, 1.0, mask="none")
        case.teacher_tail_logp_N[:] = [-1e4, -16.0, -1e4]
        reference = objective(*case, ObjectiveOptions(1.0, divergence=divergence))
        _, _, kd_N, _, grad_NV = run_operator(case, divergence, "tail_bucket", 1.0, 0.0, 1.0, backend)
        np.testing.assert_allclose(kd_N, reference.kd_N, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(grad_NV, reference.grad_NV, atol=1e-6)


def test_truncated_is_not_clamped(backend):
    case = make_case(3, 7, 423, 10, 8.0, support="student", mask="none")
    case.teacher_logp_NK[:] = np.log(0.01)
    _, _, kd_N, _, grad_NV = run_operator(case, "forward_kl", "truncated", 1.0, 0.0, 1.0, backend)
    assert kd_N.min() < -0.05
    assert np.abs(grad_NV).max(1).min() > 1e-3  # a clamp at 0 would give 0


def test_renormalised_is_zero_at_one_id(backend):
    case = make_case(4, 7, 423, 1, 8.0, mask="none")
    _, _, kd_N, _, grad_NV = run_operator(case, "forward_kl", "renormalised", 1.0, 0.0, 1.0, backend)
    assert not kd_N.any() and np.abs(grad_NV).max() < 1e-7


@pytest.mark.parametrize("scale", [1.0, 8.0, 30.0])
def test_cross_entropy_without_a_teacher(scale, backend):
    """Composed it is quick, and off by at most 4e-6 in absolute terms; fused it is the operator with no teacher id."""
    case = make_case(5, 7, 423, 1, scale, mask="none")
    floor = 0.4 if backend == "composed" else 1e-6
    ce_N, grad_NV = (
        out.asnumpy() for out in cross_entropy(1.0, True, backend)(*(Tensor(array.copy()) for array in case[:3]))
    )
    reference = objective(*case[:3], None, None, None, ObjectiveOptions())
    assert row_error(grad_NV, reference.grad_NV, floor) <= TOLERANCE
    assert row_error(ce_N, reference.ce_N, floor) <= TOLERANCE


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_trap_08_a_confident_label_keeps_its_gradient(temperature, backend):
    """The label has all the mass but 1e-9 of it, in the support and outside: the gradient is not q - 1."""
    case = make_case(6, 7, 423, 10, 1.0, temperature, "random", "none")
    case.logits_NV[np.arange(7), case.target_ids_N] = case.logits_NV.max(1) + 24
    reference = objective(*case, ObjectiveOptions(0.0, temperature=temperature))
    _, ce_N, _, _, grad_NV = run_operator(case, "forward_kl", "tail_bucket", temperature, 1.0, 0.0, backend)
    assert 0 < np.abs(reference.grad_NV).max() < 1e-6
    assert row_error(grad_NV, reference.grad_NV, 0) <= TOLERANCE and row_error(ce_N, reference.ce_N, 0) <= TOLERANCE


def test_pairs_without_meaning_are_refused():
    with pytest.raises(ValueError, match="no divergence 'kl'"):
        topk_distill("kl", "tail_bucket", 1.0, 0.5, 0.5)
    with pytest.raises(ValueError, match="jsd is not defined on truncated"):
        topk_distill("jsd", "truncated", 1.0, 0.5, 0.5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_alone_is_the_same_and_leaves_the_logits(temperature, backend):
    case = make_case(7, 7, 423, 10, 8.0, temperature)
    _, *with_gradient, _ = run_operator(case, "jsd", "tail_bucket", temperature, 0.3, 0.7, backend)
    logits_NV = Tensor(case.logits_NV.copy())
    operator = topk_distill("jsd", "tail_bucket", temperature, 0.3, 0.7, False, backend)
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
