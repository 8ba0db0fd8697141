"""The native CPU operators against the float64 oracle and NumPy, through their C interface."""

import os
import subprocess
import threading

import numpy as np
import pytest

from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.losses.oracle import objective
from mindspore_impl.ops import native
from mindspore_impl.ops.divergence_codes import SUPPORTS as BUCKETS
from mindspore_impl.ops.log_floor import LOG_FLOOR
from tests.kernels.kernel_calls import DTYPES, ISAS, Twin, decode, encode
from tests.losses.teacher_cases import (
    BOTH,
    MASKS,
    PAIRS,
    SUPPORTS,
    TERMS,
    TOLERANCE,
    check_operator,
    confident_labels,
    log_softmax,
    make_case,
    mode_of,
    row_error,
    rows_on,
)

pytestmark = pytest.mark.skipif(native.builder().compiler() is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> dict[str, Twin]:
    """Every build that this processor can run, by name."""
    folder = tmp_path_factory.mktemp("twins")
    found = {isa: Twin(folder, isa) for isa in ISAS}
    return {isa: twin for isa, twin in found.items() if twin.isa == isa}


@pytest.fixture(scope="module")
def twin(tmp_path_factory) -> Twin:
    return Twin(tmp_path_factory.mktemp("twin"))


def check(twin, case, divergence, support, temperature, dtype="float32", terms=TERMS):
    """`check_operator` of one build, of what it saw of the logits."""
    given = case._replace(logits_NV=encode(case.logits_NV, dtype))

    def run(ce, kd):
        code, *outputs, grad_NV = twin.distill(given, divergence, support, temperature, ce, kd, dtype)
        assert code == 0 and grad_NV.dtype == given.logits_NV.dtype
        return *outputs, decode(grad_NV)

    seen = case._replace(logits_NV=decode(given.logits_NV))
    where = (twin.isa, dtype, case.logits_NV.shape, case.teacher_ids_NK.shape)
    check_operator(run, seen, divergence, support, temperature, terms, dtype, where)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("divergence", "support"), PAIRS)
def test_trap_08_twin_equals_oracle(twins, divergence, support, dtype):
    """Every pair and dtype on every build; scales, supports, masks, temperatures and padding vary inside."""
    for twin in twins.values():
        for number, scale in enumerate((1.0, 8.0, 30.0)):
            for turn, temperature in enumerate((1.0, 2.0, 1.5)):
                support_at, pad = SUPPORTS[(number + turn) % 3], 3 * (turn % 2)
                mask = MASKS[(3 * number + turn) % 5]
                case = make_case(number, 7, 423, 10, scale, temperature, support_at, mask, mode_of(support), pad)
                check(twin, case, divergence, support, temperature, dtype, BOTH if number else TERMS)


@pytest.mark.parametrize(
    ("count", "vocab", "top_k"), [(1, 11, 11), (3, 12, 11), (2, 5, 1), (3, 8192, 64), (1, 4097, 128)]
)
def test_edges_of_blocks_and_supports(twins, count, vocab, top_k):
    """No tail; a tail that is the label alone; rows shorter than a vector; a whole and a broken number of blocks."""
    for divergence, support in PAIRS:
        case = make_case(vocab, count, vocab, top_k, 8.0, 1.0, "student", "none", mode_of(support))
        for twin in twins.values():
            check(twin, case, divergence, support, 1.0, terms=BOTH)


@pytest.mark.slow
@pytest.mark.parametrize("vocab", [423, 1423, 8192, 32000])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("divergence", "support"), PAIRS)
def test_trap_08_twin_equals_oracle_on_the_grid(twin, divergence, support, temperature, vocab):
    for seed, top_k in enumerate((1, 2, 10, 64, 128)):
        for number, count in enumerate((1, 3, 50, 97) if vocab <= 1423 else (1, 3)):
            for turn, scale in enumerate((1.0, 8.0, 30.0)):
                mask, support_at = MASKS[(seed + number) % 5], SUPPORTS[(number + turn) % 3]
                dtype = DTYPES[(seed + turn) % 3]
                case = make_case(seed, count, vocab, top_k, scale, temperature, support_at, mask, mode_of(support))
                check(twin, case, divergence, support, temperature, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("divergence", "support"), PAIRS)
def test_trap_08_the_whole_vocabulary_of_pangu(twin, divergence, support, dtype):
    for number, top_k in enumerate((1, 2, 10, 64, 128)):
        for scale in (1.0, 8.0, 30.0):
            temperature = (1.0, 2.0)[number % 2]
            case = make_case(
                number, 3, 153376, top_k, scale, temperature, SUPPORTS[number % 3], MASKS[number], mode_of(support)
            )
            check(twin, case, divergence, support, temperature, dtype)


@pytest.mark.parametrize(("divergence", "support"), PAIRS)
def test_trap_08_gradient_by_finite_differences(twin, divergence, support):
    """Independent of the oracle: central differences of the operator's own loss."""
    for temperature in (1.0, 2.0):
        case = make_case(5, 3, 23, 4, 2.0, temperature, "teacher", "none", mode_of(support))
        *_, grad_NV = twin.distill(case, divergence, support, temperature, 0.3, 0.7)
        step = 0.02

        def loss_N(shift_V, temperature=temperature, case=case):
            moved = case._replace(logits_NV=(case.logits_NV + shift_V).astype(np.float32))
            _, ce_N, kd_N, _, _ = twin.distill(moved, divergence, support, temperature, 0.3, 0.7, gradient=False)
            return case.loss_weight_N * (0.3 * ce_N.astype(np.float64) + 0.7 * kd_N)

        numeric_NV = np.stack(
            [(loss_N(step * one_V) - loss_N(-step * one_V)) / (2 * step) for one_V in np.eye(23)], axis=1
        )
        assert np.abs(grad_NV - numeric_NV).max() <= 2e-3 * np.abs(grad_NV).max()


@pytest.mark.parametrize(("divergence", "support"), PAIRS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_of_ten_thousand(twins, divergence, support, dtype):
    """Logits of +-1e4, alone and mixed, give what the oracle gives, and nothing that is not finite."""
    for twin in twins.values():
        for scale in (1.0, 0.0):
            case = make_case(1, 6, 423, 10, scale, 1.0, "random", "none")
            signs = np.random.default_rng(0).choice([-1e4, 1e4], case.logits_NV.shape)
            case.logits_NV[:3] += signs[:3]
            case.logits_NV[3] -= 1e4
            np.put_along_axis(case.logits_NV[4:5], case.teacher_ids_NK[4:5].astype(np.int64), 1e4, 1)
            case.logits_NV[5, case.target_ids_N[5]] = 1e4
            for ce, kd in TERMS:
                code, *outputs, grad = twin.distill(
                    case._replace(logits_NV=encode(case.logits_NV, dtype)), divergence, support, 1.0, ce, kd, dtype
                )
                assert code == 0 and all(np.isfinite(x).all() for x in (*outputs, decode(grad)))
            check(twin, case, divergence, support, 1.0, "float32", TERMS[:2])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_trap_15_tail_mass_keeps_its_digits(twins, temperature):
    """Student tails down to e^-300, where 1 - sum has no correct digit and the shared maximum leaves nothing."""
    for twin in twins.values():
        case = make_case(0, 7, 423, 10, 1.0, temperature, "teacher", "none")
        lift_N1 = np.linspace(10, 300, 7, dtype=np.float32)[:, None]
        inside_NK = np.take_along_axis(case.logits_NV, case.teacher_ids_NK.astype(np.int64), 1)
        np.put_along_axis(case.logits_NV, case.teacher_ids_NK.astype(np.int64), inside_NK + lift_N1, 1)
        reference = objective(*case, ObjectiveOptions(1.0, temperature=temperature))
        _, _, kd_N, _, _ = twin.distill(case, "forward_kl", "tail_bucket", temperature, 0.0, 1.0)
        assert reference.kd_N[-1] > 100
        np.testing.assert_allclose(kd_N, reference.kd_N, rtol=1e-6)


def test_trap_08_a_confident_label_keeps_its_gradient(twins):
    """The label has all the mass but 1e-9 of it, in the support and outside: loss and gradient are not 1 - q."""
    for twin in twins.values():
        case, reference = confident_labels()
        _, ce_N, _, _, grad_NV = twin.distill(case, "forward_kl", "tail_bucket", 1.0, 1.0, 0.0)
        assert row_error(grad_NV, reference.grad_NV, 0) <= TOLERANCE and row_error(ce_N, reference.ce_N, 0) <= TOLERANCE


@pytest.mark.parametrize("support", BUCKETS)
def test_rows_without_any_teacher_id(twins, support):
    """How cross-entropy alone is computed: K = 1, id -1. Its divergence and that gradient are exactly 0."""
    for twin in twins.values():
        case = make_case(0, 7, 423, 1, 8.0, mask="none")
        case.teacher_ids_NK[:], case.teacher_logp_NK[:], case.teacher_tail_logp_N[:] = -1, -1e4, 0
        code, ce_N, kd_N, diagnostics_4N, grad_NV = twin.distill(case, "forward_kl", support, 1.0, 0.0, 1.0)
        assert code == 0 and not (kd_N.any() or diagnostics_4N.any() or grad_NV.any())
        check(twin, case, "forward_kl", support, 1.0, terms=TERMS[:1])


@pytest.mark.parametrize("gradient", [True, False])
def test_rows_of_weight_zero_are_not_read(twin, gradient):
    """Not a number, ids without meaning: a row that does not count gives zeros and no fault."""
    case = make_case(1, 6, 423, 10, 8.0, mask="none")
    expected = [x.copy() for x in twin.distill(case, "jsd", "tail_bucket", 2.0, 0.3, 0.7, gradient=gradient)[1:]]
    off = [0, 3]
    case.loss_weight_N[off] = 0
    case.logits_NV[off], case.target_ids_N[off], case.teacher_ids_NK[off] = np.nan, -7, 10**6
    code, *got = twin.distill(case, "jsd", "tail_bucket", 2.0, 0.3, 0.7, gradient=gradient)
    assert code == 0 and not got[2][:, off].any()
    for i in (0, 1, 3) if gradient else (0, 1):  # ce, kd, gradient
        expected[i][off] = 0
        np.testing.assert_array_equal(got[i], expected[i])


def test_loss_only_form_gives_the_same_and_leaves_the_logits(twins):
    for twin in twins.values():
        for dtype in DTYPES:
            for temperature in (1.0, 2.0):
                case = make_case(2, 5, 5001, 10, 8.0, temperature)
                case = case._replace(logits_NV=encode(case.logits_NV, dtype))
                whole = twin.distill(case, "jsd", "tail_bucket", temperature, 0.3, 0.7, dtype)
                loss = twin.distill(case, "jsd", "tail_bucket", temperature, 0.3, 0.7, dtype, gradient=False)
                for a, b in zip(whole[:4], loss[:4], strict=True):
                    np.testing.assert_array_equal(a, b)
                np.testing.assert_array_equal(loss[4], case.logits_NV)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"target_ids_N": 423}, "row 1: target id 423 is outside the vocabulary"),
        ({"target_ids_N": -1}, "row 1: target id -1 is outside the vocabulary"),
        ({"teacher_ids_NK": 5000}, "row 1: teacher id 5000 is outside the vocabulary"),
    ],
)
def test_trap_11_ids_outside_the_vocabulary_are_refused(twin, capfd, change, text):
    case = make_case(1, 3, 423, 10, 8.0, mask="none")
    ((name, value),) = change.items()
    getattr(case, name)[1:2] = value
    assert twin.distill(case, "forward_kl", "tail_bucket", 1.0, 0.5, 0.5)[0] != 0
    said = capfd.readouterr().err
    assert text in said and said.startswith("TopkDistillLoss:") and said.count("\n") == 1


def test_other_faults_are_refused(twin, capfd):
    case = make_case(1, 3, 423, 10, 8.0, mask="none")
    twice = case._replace(teacher_ids_NK=case.teacher_ids_NK.copy())
    twice.teacher_ids_NK[2, 9] = twice.teacher_ids_NK[2, 4]
    short = case._replace(teacher_tail_logp_N=case.teacher_tail_logp_N[:2].copy())
    for wrong, divergence, support, temperature, dtype, text in (
        (twice, "forward_kl", "tail_bucket", 1.0, "float32", "row 2: teacher id"),
        (short, "forward_kl", "tail_bucket", 1.0, "float32", "a shape or dtype differs"),
        (case, "jsd", "truncated", 1.0, "float32", "not defined on this support"),
        (case, "jsd", "tail_bucket", 0.0, "float32", "temperature must be positive"),
        (case, "jsd", "tail_bucket", 1.0, "float64", "logits are float32, float16 or bfloat16"),
    ):
        assert twin.distill(wrong, divergence, support, temperature, 0.5, 0.5, dtype)[0] != 0
        assert text in capfd.readouterr().err


def test_numbers_that_are_not_finite_show(twins):
    """A NaN or infinite logit makes its own row's loss NaN, wherever it stands, and no other row's."""
    for twin in twins.values():
        for bad in (np.nan, np.inf):
            for column in (0, 5, 17, 422):
                case = make_case(1, 3, 423, 4, 8.0, support="teacher", mask="none")
                case.logits_NV[1, column] = bad
                code, ce_N, *_ = twin.distill(case, "forward_kl", "tail_bucket", 1.0, 0.5, 0.5)
                assert code == 0
                np.testing.assert_array_equal(np.isfinite(ce_N), [True, False, True])


def test_results_do_not_depend_on_threads(twin):
    case = make_case(1, 70, 8192, 10, 8.0)
    a_NV, b_ND = case.logits_NV, np.random.default_rng(0).standard_normal((70, 50)).astype(np.float32)
    seen = []
    for threads in (1, 2, 5, 0):
        twin.set_threads(threads)
        c_VD = np.full((8192, 50), 7, np.float32)
        assert twin.call("OuterProduct", a_NV, b_ND, c_VD) == 0
        seen.append([*twin.distill(case, "jsd", "tail_bucket", 2.0, 0.3, 0.7), *twin.top_k(case.logits_NV, 9), c_VD])
    for other in seen[1:]:
        for a, b in zip(seen[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_forked_process_computes_on(twin):
    """The helpers do not exist in a child: it must neither wait for them nor lose work."""
    case = make_case(1, 70, 8192, 10, 8.0)
    twin.set_threads(2)
    expected = twin.distill(case, "jsd", "tail_bucket", 1.0, 0.3, 0.7)[4]
    child = os.fork()
    if child == 0:
        same = np.array_equal(twin.distill(case, "jsd", "tail_bucket", 1.0, 0.3, 0.7)[4], expected)
        os._exit(0 if same else 1)
    killer = threading.Timer(20, os.kill, (child, 9))
    killer.start()
    _, status = os.waitpid(child, 0)
    killer.cancel()
    twin.set_threads(0)
    assert status == 0


def test_exponential_over_the_whole_range(twins):
    """About one unit in the last place from e^0 to e^-87 (the baseline has no FMA), 0 from -88 down, NaN for NaN."""
    bits = np.arange(0x80000000, 0xC2B00000, 211, dtype=np.uint32).view(np.float32)  # -0 to -88
    line = np.linspace(-87.3, 0, 400_001).astype(np.float32)
    for twin in twins.values():
        for x in (bits[bits >= -87.3], line):
            exact = np.exp(x.astype(np.float64))
            error = np.abs(twin.exponentials(x) - exact) / np.ldexp(1.0, np.frexp(exact)[1] - 24)
            assert error.max() <= (1.2 if twin.isa == "baseline" else 1.0), (twin.isa, error.max())
        low = np.concatenate([-np.geomspace(88, 3e38, 1000), [-np.inf]]).astype(np.float32)
        assert not twin.exponentials(low).any()
        special = twin.exponentials(np.array([0, -0.0, np.nan, -1e-30], np.float32))
        np.testing.assert_array_equal(special, [1, 1, np.nan, 1])


@pytest.mark.parametrize("temperature", [1.0, 2.0, 1.5])
@pytest.mark.parametrize(("vocab", "top_k"), [(11, 1), (11, 11), (12, 11), (423, 10), (1423, 64), (9001, 128)])
def test_trap_15_top_k_and_directly_summed_tail(twins, vocab, top_k, temperature):
    for twin in twins.values():
        for scale in (1.0, 8.0, 30.0):
            logits_NV = (np.random.default_rng(0).standard_normal((5, vocab)) * scale).astype(np.float32)
            logits_NV[1], logits_NV[2] = np.sort(logits_NV[1]), -np.sort(-logits_NV[2])
            logits_NV[3, : vocab // 2] -= 500  # a tail far below
            code, ids_NK, logp_NK, tail_N = twin.top_k(logits_NV, top_k, temperature)
            assert code == 0
            np.testing.assert_array_equal(ids_NK, np.argsort(-logits_NV, axis=1, kind="stable")[:, :top_k])
            expected_NK, expected_N = rows_on(ids_NK, log_softmax(logits_NV.astype(np.float64) / temperature))
            np.testing.assert_allclose(logp_NK, expected_NK, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(tail_N, np.maximum(expected_N, LOG_FLOOR), rtol=1e-6, atol=1e-6)


def test_equal_logits_come_by_rising_id_and_all_count(twins):
    for twin in twins.values():
        logits_NV = np.random.default_rng(1).integers(-2, 3, (6, 700)).astype(np.float32)
        logits_NV[0] = 0
        logits_NV[0, ::2] = -0.0  # equal to 0
        _, ids_NK, logp_NK, tail_N = twin.top_k(logits_NV, 40)
        np.testing.assert_array_equal(ids_NK, np.argsort(-logits_NV, axis=1, kind="stable")[:, :40])
        expected_NK, expected_N = rows_on(ids_NK, log_softmax(logits_NV))
        np.testing.assert_allclose(logp_NK, expected_NK, rtol=1e-6)
        np.testing.assert_allclose(tail_N, expected_N, rtol=1e-6)


def test_top_k_of_numbers_that_are_not_finite(twin):
    """Too few numbers to choose from, or a NaN among them: that row's log-probabilities are NaN, and no other's."""
    logits_NV = np.full((2, 50), -np.inf, np.float32)
    logits_NV[0], logits_NV[1, :3] = 0, 1
    for spoiled in (logits_NV[1].copy(), np.where(np.arange(50) == 30, np.nan, 1), np.full(50, np.nan)):
        logits_NV[1] = spoiled
        code, ids_NK, logp_NK, tail_N = twin.top_k(logits_NV, 4)
        assert code == 0 and ids_NK.min() >= 0 and ids_NK.max() < 50
        assert np.isnan(logp_NK[1]).all() and np.isnan(tail_N[1]) and np.isfinite(logp_NK[0]).all()


@pytest.mark.parametrize(
    ("count", "vocab", "width"), [(1, 1, 1), (7, 25, 33), (13, 192, 16), (100, 77, 513), (1100, 200, 96)]
)
def test_products_around_the_logits(twins, count, vocab, width):
    """hidden weight^T, a weight and a^T hidden, against float64; sizes that fill tiles and panels, and that do not."""
    rng = np.random.default_rng(0)
    hidden_ND, weight_VD, a_NV = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((count, width), (vocab, width), (count, vocab))
    )
    for twin in twins.values():
        for name, left, right, transposed in (
            ("Project", hidden_ND, weight_VD, (hidden_ND, weight_VD.T)),
            ("BackProject", a_NV, weight_VD, (a_NV, weight_VD)),
            ("OuterProduct", a_NV, hidden_ND, (a_NV.T, hidden_ND)),
        ):
            wanted = transposed[0].astype(np.float64) @ transposed[1]
            got = np.full(wanted.shape, np.nan, np.float32)
            assert twin.call(name, left, right, got) == 0
            room = 1e-6 * (np.abs(transposed[0]) @ np.abs(transposed[1]) + 1)
            assert (np.abs(got - wanted) <= room).all(), name


@pytest.mark.parametrize("rows_at_once", [1, 4, 5, 11, 100])
def test_fused_linear(twin, rows_at_once):
    """Chunks that divide the rows, do not, or hold all: losses and both gradients as of the whole in float64."""
    rng = np.random.default_rng(0)
    hidden_ND, weight_VD = (rng.standard_normal((rows, 6)).astype(np.float32) for rows in (11, 143))
    case = make_case(0, 11, 143, 5, 1.0, mask="some")._replace(logits_NV=hidden_ND @ weight_VD.T)
    reference = objective(*case, ObjectiveOptions(0.7, 0.3, "jsd"))
    on_N = case.loss_weight_N != 0
    settings_6 = np.array([0.3, 0.7, 1.0, 2, 0, rows_at_once * 143 + 100], np.float32)
    inputs = (case.target_ids_N, *case[3:], case.loss_weight_N, settings_6)
    for gradients in (2, 1, 0):
        ce_N, kd_N = (np.full(11, np.nan, np.float32) for _ in range(2))
        diagnostics_4N = np.full((4, 11), np.nan, np.float32)
        grads = [np.full_like(array, np.nan) for array in (hidden_ND, weight_VD)][:gradients]
        outputs = (ce_N, kd_N, diagnostics_4N, *grads)
        assert twin.call("FusedLinear", hidden_ND, weight_VD, *inputs, *outputs) == 0
        assert row_error(ce_N, reference.ce_N * on_N, 1e-6) < 1e-5
        assert row_error(kd_N, reference.kd_N * on_N, 0.02) < 1e-5
        np.testing.assert_allclose(diagnostics_4N, np.stack(list(reference.diagnostics.values())) * on_N, atol=1e-5)
        expected = (reference.grad_NV @ weight_VD, reference.grad_NV.T @ hidden_ND)
        for grad, wanted in zip(grads, expected, strict=False):
            assert row_error(grad, wanted, 0.02) < 1e-5


def test_fused_linear_names_the_row_of_a_fault(twin, capfd):
    """A bad id in a later chunk is told by its row in the whole."""
    case = make_case(0, 11, 43, 5, 1.0, mask="none")
    case.target_ids_N[9] = 43
    hidden_ND, weight_VD = np.ones((11, 6), np.float32), np.ones((43, 6), np.float32)
    settings_6 = np.array([1, 0, 1, 0, 0, 4 * 43], np.float32)
    outputs = [np.zeros(11, np.float32), np.zeros(11, np.float32), np.zeros((4, 11), np.float32)]
    inputs = (case.target_ids_N, *case[3:], case.loss_weight_N, settings_6)
    assert twin.call("FusedLinear", hidden_ND, weight_VD, *inputs, *outputs) != 0
    assert "FusedLinear: row 9: target id 43 is outside the vocabulary (V = 43)" in capfd.readouterr().err
    assert twin.call("FusedLinear", hidden_ND, weight_VD[:, :5].copy(), *inputs, *outputs) != 0
    assert "of equal shapes" in capfd.readouterr().err


def test_scale_in_place(twin):
    x = np.random.default_rng(0).standard_normal((3, 70_001)).astype(np.float32)
    for factor in (0.5, 3.0, 0.0):
        got, token = x.copy(), np.full(1, 7, np.float32)
        assert twin.call("ScaleInPlace", got, np.array([factor], np.float32), token) == 0 and token == 0
        np.testing.assert_array_equal(got, x * np.float32(factor))
    x.flags.writeable = False
    assert twin.call("ScaleInPlace", x, np.ones(1, np.float32), np.ones(1, np.float32)) == 0


def test_no_second_copy_of_the_logits(twin):
    """At the width of Pangu the operator needs one block of memory a thread at most, not another [N, V]."""
    twin.set_threads(2)
    case = make_case(0, 24, 153376, 4, 1.0, mask="none")
    memory = {}
    for gradient in (True, False):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak starts anew
        before = _status("VmHWM")
        twin.distill(case, "forward_kl", "tail_bucket", 1.0, 0.3, 0.7, gradient=gradient)
        memory[gradient] = _status("VmHWM") - before - case.logits_NV.nbytes  # the copy that `distill` itself makes
    twin.set_threads(0)
    assert max(memory.values()) < 3 * 153376 * 4, memory


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def test_builds_share_no_code(tmp_path):
    """A build exports its table alone: a function merged over builds would bring wide instructions to any processor."""
    builder = native.builder()
    for name, flags in builder.INSTRUCTION_SETS.get(os.uname().machine, {"baseline": []}).items():
        target = tmp_path / f"{name}.o"
        command = [builder.compiler(), *builder.FLAGS, *flags, "-O0", f"-DPANGU_ISA={name}", "-c"]
        subprocess.run([*command, str(builder.HERE / "isa_unit.cpp"), "-o", str(target)], check=True)
        symbols = subprocess.run(["nm", str(target)], check=True, capture_output=True, text=True).stdout.split("\n")
        shared = [line.split()[-1] for line in symbols if line and line.split()[-2] in "TWVBDRui"]
        assert len(shared) == 1 and f"kernels_{name}" in shared[0]
