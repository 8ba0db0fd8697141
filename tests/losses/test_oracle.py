"""The NumPy oracle against finite differences and against facts about each support."""

import numpy as np
import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.losses.oracle import check_objective, objective
from mindspore_impl.ops.divergence_codes import DIVERGENCES
from tests.losses.teacher_cases import MASKS, PAIRS, Case, check_gradient, log_softmax, make_case, rows_on


def options_for(divergence, support, kd_weight=1.0, temperature=1.0, ce_weight=None):
    return ObjectiveOptions(kd_weight, ce_weight, divergence, support, temperature)


def full_kl(log_p_NV, log_q_NV):
    return (np.exp(log_p_NV) * (log_p_NV - log_q_NV)).sum(1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("divergence", "support"), PAIRS)
def test_trap_08_gradient_is_that_of_the_loss(divergence, support, temperature):
    check_gradient(options_for(divergence, support, 0.7, temperature))


def test_closed_gradients_of_the_literature():
    """q - p on the support and q (1 - p_tail / q_tail) elsewhere, and the like, written out for one row."""
    case = make_case(0, 1, 9, 3, 1.0, support="random", mask="none")._replace(loss_weight_N=np.ones(1))
    q_V, ids_K, p_K = (
        np.exp(log_softmax(case.logits_NV))[0],
        case.teacher_ids_NK[0],
        np.exp(case.teacher_logp_NK[0].astype(float)),
    )
    outside = np.delete(np.arange(9), ids_K)
    q_K, p_tail, q_tail = q_V[ids_K], np.exp(float(case.teacher_tail_logp_N[0])), q_V[outside].sum()

    def grad(divergence, support):
        return objective(*case, options_for(divergence, support)).grad_NV[0]

    got = grad("forward_kl", "tail_bucket")
    total = p_K.sum() + p_tail  # float32 rounding of the masses
    np.testing.assert_allclose(got[ids_K], q_K * total - p_K, atol=1e-12)
    np.testing.assert_allclose(got[outside], q_V[outside] * (total - p_tail / q_tail), atol=1e-12)
    got = grad("forward_kl", "truncated")
    np.testing.assert_allclose(got[ids_K], q_K * p_K.sum() - p_K, atol=1e-12)
    np.testing.assert_allclose(got[outside], q_V[outside] * p_K.sum(), atol=1e-12)
    got = grad("forward_kl", "renormalised")
    np.testing.assert_allclose(got[ids_K], q_K / q_K.sum() - p_K / p_K.sum(), atol=1e-12)
    assert not got[outside].any()
    loss = (q_K * np.log(q_K / p_K)).sum() + q_tail * np.log(q_tail / p_tail)
    got = grad("reverse_kl", "tail_bucket")
    np.testing.assert_allclose(got[ids_K], q_K * (np.log(q_K / p_K) - loss), atol=1e-12)
    np.testing.assert_allclose(got[outside], q_V[outside] * (np.log(q_tail / p_tail) - loss), atol=1e-12)


def test_tail_bucket_bounds_the_full_divergence_and_meets_it():
    """A lower bound of the full KL that grows with K, and equals it once one id or none is left over."""
    rng = np.random.default_rng(1)
    logits_NV, log_p_NV = rng.standard_normal((4, 20)) * 2, log_softmax(rng.standard_normal((4, 20)) * 2)
    full_N, previous_N = full_kl(log_p_NV, log_softmax(logits_NV)), np.zeros(4)
    for top_k in (1, 2, 5, 10, 19, 20):
        ids_NK = np.argsort(-log_p_NV, axis=1)[:, :top_k]
        logp_NK, tail_N = rows_on(ids_NK, log_p_NV)
        options = options_for("forward_kl", "tail_bucket")
        kd_N = objective(logits_NV, np.zeros(4, int), np.ones(4), ids_NK, logp_NK, tail_N, options).kd_N
        assert (kd_N >= previous_N - 1e-12).all() and (kd_N <= full_N + 1e-12).all()
        previous_N = kd_N
        if top_k >= 19:
            np.testing.assert_allclose(kd_N, full_N, rtol=1e-12)
        else:
            assert (kd_N < full_N).all()


def test_truncated_can_be_negative_and_renormalised_is_blind_at_one():
    """Where the student gives the K ids more mass than the teacher does, truncated is below 0 and pulls it down."""
    logits_NV = np.array([[4.0, 0.0, 0.0, 0.0]])
    row = (np.array([1]), np.ones(1), np.array([[0]]), np.log([[0.5]]), np.log([0.5]))
    truncated = objective(logits_NV, *row, options_for("forward_kl", "truncated"))
    assert truncated.kd_N[0] < -0.3
    assert truncated.grad_NV[0, 0] < 0  # it even asks for more, which is why it is not the default
    assert objective(logits_NV, *row, options_for("forward_kl", "tail_bucket")).grad_NV[0, 0] > 0
    for divergence in DIVERGENCES:
        blind = objective(logits_NV, *row, options_for(divergence, "renormalised"))
        assert blind.kd_N[0] == 0 and not blind.grad_NV.any()


def test_sampled_gradient_is_unbiased():
    """Averaged over all draws of two ids, with their probabilities, the gradient is q - p of the full forward KL."""
    rng = np.random.default_rng(2)
    logits_NV, log_p_V = rng.standard_normal((1, 4)), log_softmax(rng.standard_normal((1, 4)))[0]
    expected_V = np.zeros(4)
    for a in range(4):
        for b in range(4):
            ids, counts = np.unique([a, b], return_counts=True)
            ids_NK, logp_NK = np.full((1, 2), -1), np.full((1, 2), -1e4)
            ids_NK[0, : len(ids)], logp_NK[0, : len(ids)] = ids, np.log(counts / 2)
            one = objective(logits_NV, [0], np.ones(1), ids_NK, logp_NK, [-1e4], options_for("forward_kl", "sampled"))
            expected_V += np.exp(log_p_V[a] + log_p_V[b]) * one.grad_NV[0]
    np.testing.assert_allclose(expected_V, np.exp(log_softmax(logits_NV)[0]) - np.exp(log_p_V), atol=1e-12)


def test_trap_10_jsd_is_symmetric_and_no_named_loss_is_another():
    """JSD of p and q is that of q and p, at most log 2; the three names give three values and three gradients."""
    rng = np.random.default_rng(3)
    x_NV, y_NV = rng.standard_normal((2, 3, 5)) * 2
    ids_NK = np.tile(np.arange(5), (3, 1))

    def run(student_NV, teacher_NV, divergence):
        options = options_for(divergence, "tail_bucket")
        return objective(student_NV, [0] * 3, np.ones(3), ids_NK, log_softmax(teacher_NV), [-1e4] * 3, options)

    np.testing.assert_allclose(run(x_NV, y_NV, "jsd").kd_N, run(y_NV, x_NV, "jsd").kd_N, rtol=1e-12)
    assert run(x_NV * 50, -x_NV * 50, "jsd").kd_N.max() <= np.log(2) + 1e-12
    np.testing.assert_allclose(run(x_NV, y_NV, "forward_kl").kd_N, run(y_NV, x_NV, "reverse_kl").kd_N, rtol=1e-12)
    results = [run(x_NV, y_NV, name) for name in DIVERGENCES]
    for i, one in enumerate(results):
        assert (one.kd_N > 1e-3).all() and np.abs(one.grad_NV).max() > 1e-3
        for other in results[:i]:
            assert np.abs(one.kd_N - other.kd_N).min() > 1e-3 and np.abs(one.grad_NV - other.grad_NV).max() > 1e-3


@pytest.mark.parametrize("mask", MASKS)
def test_rows_of_weight_zero_count_for_nothing(mask):
    case = make_case(4, 3, 11, 3, 8.0, mask=mask)
    result = objective(*case, options_for("forward_kl", "tail_bucket", 0.5))
    off = case.loss_weight_N == 0
    assert not result.grad_NV[off].any() and np.isfinite(result.loss)
    assert result.loss == pytest.approx((case.loss_weight_N * 0.5 * (result.ce_N + result.kd_N)).sum())
    if mask == "all":
        assert result.loss == 0


def test_temperature_scales_the_kd_gradient_once():
    """With T^2 once, the gradient tends to a limit as T grows: the difference of the centred logits over V."""
    rng = np.random.default_rng(5)
    z_NV, t_NV = rng.standard_normal((2, 1, 6))
    ids_NK, sizes = np.arange(6)[None], []
    for temperature in (50.0, 500.0):
        options = options_for("forward_kl", "tail_bucket", 1.0, temperature)
        result = objective(z_NV, [0], np.ones(1), ids_NK, log_softmax(t_NV / temperature), [-1e4], options)
        sizes.append(result.grad_NV)
    difference_NV = (z_NV - z_NV.mean()) - (t_NV - t_NV.mean())
    np.testing.assert_allclose(sizes[1], difference_NV / 6, rtol=2e-2, atol=1e-4)
    np.testing.assert_allclose(sizes[0], sizes[1], rtol=0.2, atol=1e-3)


def test_padding_of_k_changes_nothing():
    case = make_case(6, 2, 11, 3, 1.0, mask="none")
    padded = Case(
        *case[:3], np.pad(case.teacher_ids_NK, ((0, 0), (0, 2)), constant_values=-1),
        np.pad(case.teacher_logp_NK, ((0, 0), (0, 2)), constant_values=-1e4), case.teacher_tail_logp_N,
    )  # fmt: skip
    for divergence, support in PAIRS:
        one, two = (objective(*c, options_for(divergence, support, 0.5)) for c in (case, padded))
        assert one.loss == two.loss
        np.testing.assert_array_equal(one.grad_NV, two.grad_NV)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ObjectiveOptions(0.5, divergence="jsd", support="truncated"),
            ["objective.divergence=jsd", "objective.support=truncated", "forward_kl"],
        ),
        (
            ObjectiveOptions(0.5, divergence="reverse_kl", support="sampled"),
            ["objective.divergence=reverse_kl", "objective.support=sampled"],
        ),
        (ObjectiveOptions(0.5, support="tail"), ["objective.support=tail", "tail_bucket"]),
        (ObjectiveOptions(0.5, divergence="revers_kl"), ["objective.divergence=revers_kl", "reverse_kl"]),
        (ObjectiveOptions(0.5, temperature=0.0), ["objective.temperature=0.0"]),
        (ObjectiveOptions(0.5, temperature=float("nan")), ["objective.temperature"]),
        (ObjectiveOptions(-0.1), ["objective.kd_weight=-0.1"]),
        (ObjectiveOptions(1.5), ["objective.ce_weight", "kd_weight=1.5"]),
        (ObjectiveOptions(0.0, 0.0), ["objective.ce_weight", "objective.kd_weight"]),
    ],
)  # fmt: skip
def test_options_without_meaning_are_refused(options, words):
    with pytest.raises(UserError) as caught:
        check_objective(options, "stages.kd.objective")
    for word in ["stages.kd", *words]:
        assert word in str(caught.value)


def test_trap_11_ids_outside_the_vocabulary_are_refused():
    case = make_case(7, 2, 11, 3, 1.0)
    options = options_for("forward_kl", "tail_bucket")
    wide = case.teacher_ids_NK.copy()
    wide[1, 2] = 11
    with pytest.raises(UserError, match="teacher id 11 is outside the vocabulary of 11"):
        objective(*case._replace(teacher_ids_NK=wide), options)
    with pytest.raises(UserError, match="target id 11"):
        objective(*case._replace(target_ids_N=np.array([0, 11])), options)
    twice = case.teacher_ids_NK.copy()
    twice[0, 1] = twice[0, 0]
    with pytest.raises(UserError, match="given twice"):
        objective(*case._replace(teacher_ids_NK=twice), options)
