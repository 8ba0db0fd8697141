"""The Ascend C kernel, run by the host emulator, against the float64 oracle. Legend: N rows, V columns, K teacher ids.

The emulator stops a kernel that breaks a rule of the hardware, so that every test here is one of synchronisation too.
"""

import numpy as np
import pytest

from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.losses.oracle import objective
from mindspore_impl.ops.divergence_codes import DIVERGENCES
from mindspore_impl.ops.divergence_codes import SUPPORTS as BUCKETS
from tests.kernels.kernel_calls import DTYPES, decode, emulated, encode
from tests.losses.teacher_cases import (
    BOTH,
    MASKS,
    PAIRS,
    SUPPORTS,
    TERMS,
    TOLERANCE,
    Case,
    check_operator,
    confident_labels,
    falling_tails,
    make_case,
    mode_of,
    row_error,
)

VOCAB = 153_376  # of openPangu-Embedded-1B


def launch(case: Case, dtype: str = "float32", **settings):
    """The kernel's result, and the case with the logits that it saw."""
    stored_NV = encode(case.logits_NV, dtype)
    result = emulated.launch(
        stored_NV, case.target_ids_N, case.teacher_ids_NK, case.teacher_logp_NK, case.teacher_tail_logp_N,
        case.loss_weight_N, **settings,
    )  # fmt: skip
    return result, case._replace(logits_NV=decode(stored_NV))


def check(case, divergence, support, temperature, dtype, where=(), terms=TERMS, **settings):
    """`check_operator` of one kind of launch."""

    def run(ce, kd):
        result, _ = launch(
            case, dtype, ce_weight=ce, kd_weight=kd, temperature=temperature, divergence=divergence, support=support,
            **settings,
        )  # fmt: skip
        return result.ce_N, result.kd_N, result.diagnostics_4N, decode(result.logits_NV)

    seen = case._replace(logits_NV=decode(encode(case.logits_NV, dtype)))
    check_operator(run, seen, divergence, support, temperature, terms, dtype, (dtype, where, settings))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("divergence", "support"), PAIRS)
def test_trap_08_kernel_equals_oracle(divergence, support, dtype):
    """Both temperatures, all scales and places of the support, -1 ids, masks; tiles of 256: a row has several.

    Two cores a row where they are possible, at T = 1 and with 16 bits.
    """
    for number, (scale, temperature) in enumerate(((1.0, 1.0), (8.0, 1.0), (30.0, 1.0), (1.0, 2.0), (30.0, 2.0))):
        place, mask, pad = SUPPORTS[number % 3], MASKS[number], 3 * (number % 2)
        case = make_case(number, 5, 647, 10, scale, temperature, place, mask, mode_of(support), pad)
        where = (scale, place, mask, pad)
        check(case, divergence, support, temperature, dtype, where, BOTH if pad else TERMS, max_tile=256)
        if temperature == 1.0 and dtype != "float32":
            check(case, divergence, support, 1.0, dtype, where, BOTH, max_tile=256, split=2, cores=4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("divergence", "support"), PAIRS)
def test_trap_08_kernel_equals_oracle_on_the_grid(divergence, support, dtype):
    grid = [(50, 423, 1), (97, 423, 2), (3, 1423, 64), (50, 1423, 128), (3, 8192, 10), (3, 32_000, 128)]
    grid += [(1, VOCAB, 64), (3, VOCAB, 128), (3, VOCAB, 2)]
    for seed, (count, vocab, top_k) in enumerate(grid):
        for number, scale in enumerate((1.0, 8.0, 30.0)):
            for place in SUPPORTS:
                temperature = 2.0 if (seed + number) % 3 == 0 else 1.0
                mask = MASKS[(seed + number) % 5] if vocab < 8192 else "first"
                case = make_case(seed, count, vocab, top_k, scale, temperature, place, mask, mode_of(support))
                terms = TERMS if vocab < 8192 else BOTH
                where = (divergence, support, dtype, count, vocab, top_k, scale, place, temperature)
                check(case, divergence, support, temperature, dtype, where, terms, cores=3)
                if vocab == VOCAB and dtype != "float32" and temperature == 1.0:
                    check(case, divergence, support, 1.0, dtype, where, terms, cores=4, split=2)


@pytest.mark.parametrize("vocab", [11, 255, 256, 257, 511, 513, 1024])
def test_tails_of_any_length(vocab):
    """Rows shorter than a tile, ends before, at and after a tile's end, rows that start between two 512-byte lines."""
    for dtype in DTYPES:
        case = make_case(vocab, 5, vocab, 5, 3.0, mask="first")
        case.teacher_ids_NK[:, 0] = np.where(
            (case.teacher_ids_NK == vocab - 1).any(1), case.teacher_ids_NK[:, 0], vocab - 1
        )
        case.target_ids_N[1:3] = [0, vocab - 1]
        for settings in ({"max_tile": 256}, {}):
            check(case, "reverse_kl", "tail_bucket", 1.0, dtype, (vocab, dtype), BOTH, **settings)


def test_labels_and_ids_at_the_edges_of_tiles():
    """The first and the last element of every tile, where one too many would lie in the next tile or row."""
    vocab, edges = 1024, [0, 255, 256, 511, 512, 767, 768, 1023]
    case = make_case(0, 8, vocab, 8, 3.0, mask="none")
    case.teacher_ids_NK[:] = edges
    case.target_ids_N[:] = edges
    for dtype in DTYPES:
        check(case, "forward_kl", "tail_bucket", 1.0, dtype, dtype, max_tile=256)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("divergence", "support"), PAIRS)
def test_trap_05_no_nan(divergence, support, dtype):
    """+-1e4, the type's own limits, all logits equal, and constants; counted rows."""
    case = make_case(1, 6, 423, 10, 1.0, mask="none")
    rng = np.random.default_rng(0)
    largest = {"float32": 3e38, "float16": 6e4, "bfloat16": 3e38}[dtype]
    for row, values in enumerate(([-1e4, 1e4], [-1e4, 0, 1e4], [largest, -largest, 0], [-1e4], [0.0], [1e4])):
        case.logits_NV[row] = rng.choice(values, 423)
    settings = {"divergence": divergence, "support": support, "ce_weight": 0.3, "kd_weight": 0.7, "max_tile": 256}
    for further in [{"temperature": 2.0}, {}] + ([{"split": 2}] if dtype != "float32" else []):
        result, _ = launch(case, dtype, **settings, **further)
        for array in (decode(result.logits_NV), result.ce_N, result.kd_N, result.diagnostics_4N):
            assert not np.isnan(array).any(), (further, array)
        assert np.isfinite(result.ce_N[[0, 1, 3, 4, 5]]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_shifts_that_the_first_tile_does_not_announce(dtype):
    """Rows that must be summed again: far above or below the first tile, or all below what exp can hold."""
    case = make_case(2, 6, 1423, 10, 1.0, support="random", mask="none")
    case.logits_NV[0, 700:] += 300
    case.logits_NV[1, :700] -= 300
    case.logits_NV[2] -= 95
    case.logits_NV[3] += 95
    case.logits_NV[4, 1400:] += 60
    case.logits_NV[5, :1400] -= 60
    if dtype != "float32":
        check(case, "forward_kl", "tail_bucket", 1.0, dtype, "two cores", max_tile=256, split=2)
    for temperature in (1.0, 2.0, 0.5):
        check(case, "forward_kl", "tail_bucket", temperature, dtype, (dtype, temperature), max_tile=256)


def test_trap_15_tail_mass_keeps_its_digits():
    """Student tails of 1e-4 down to 1e-30, where 1 - sum has no correct digit in float32."""
    case = falling_tails()
    result, _ = launch(case, kd_weight=1.0, max_tile=256)
    reference = objective(*case, ObjectiveOptions(1.0))
    assert reference.kd_N[-1] > 20  # the tail decides
    np.testing.assert_allclose(result.kd_N, reference.kd_N, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_trap_08_a_confident_label_keeps_its_gradient(temperature):
    """The label has all the mass but 1e-9 of it, in the support and outside: the gradient is not q - 1."""
    case, reference = confident_labels(temperature)
    result, _ = launch(case, ce_weight=1.0, kd_weight=0.0, temperature=temperature, max_tile=256)
    assert row_error(result.logits_NV, reference.grad_NV, 0) <= TOLERANCE
    assert row_error(result.ce_N, reference.ce_N, 0) <= TOLERANCE


@pytest.mark.parametrize("support", BUCKETS)
def test_cross_entropy_alone(support):
    """K = 1 with id -1, as steps without a teacher call the kernel: no divergence, whatever the support."""
    case = make_case(0, 7, 423, 1, 8.0, mask="some")
    case.teacher_ids_NK[:], case.teacher_logp_NK[:], case.teacher_tail_logp_N[:] = -1, -1e4, 0
    for dtype in DTYPES:
        check(case, "forward_kl", support, 1.0, dtype, dtype, TERMS[:2], max_tile=256)


def test_whole_vocabulary_as_support():
    """K = V leaves no tail, whatever tail mass is stored; K = V - 1 leaves one column."""
    for top_k in (11, 10):
        case = make_case(2, 3, 11, top_k, 1.0, mask="none")
        if top_k == 11:
            case.teacher_tail_logp_N[:] = [-1e4, -16.0, -1e4]
        for divergence in DIVERGENCES:
            for dtype in DTYPES:
                check(case, divergence, "tail_bucket", 1.0, dtype, (divergence, dtype, top_k))


def test_the_largest_support():
    for dtype in DTYPES:
        check(make_case(3, 3, 423, 128, 3.0, mask="none"), "jsd", "tail_bucket", 1.0, dtype, dtype, max_tile=256)
    with pytest.raises(ValueError, match="K must be 1 to 128"):
        launch(make_case(3, 3, 423, 129, 3.0, mask="none"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_agreement_where_only_the_maximum_can_tell(dtype):
    """The teacher's first id is neither below the tail's mean nor above its sum; ties agree."""
    case = make_case(4, 8, 1423, 1, 1.0, mask="none")
    rows = np.arange(8)
    case.logits_NV[rows, case.teacher_ids_NK[:, 0]] = -50
    case.logits_NV[rows, case.target_ids_N] = -50
    np.minimum(case.logits_NV, 3, out=case.logits_NV)
    case.logits_NV[rows, np.where(rows % 4 < 2, 5, 1400)] = 5  # of two cores a row, the first has it or the second
    case.logits_NV[rows, case.teacher_ids_NK[:, 0]] = 5 + np.array([1, -1, 0.5, -0.5, 0, -1, 0, -1])
    for settings in ({"split": 2, "cores": 4}, {"cores": 3}, {"write_gradient": False}):
        if settings.get("split") == 2 and dtype == "float32":
            continue
        result, seen = launch(case, dtype, max_tile=256, **settings)
        reference = objective(*seen, ObjectiveOptions(1.0))
        np.testing.assert_array_equal(result.diagnostics_4N[3], reference.diagnostics["agreement"])
        assert 0 < result.diagnostics_4N[3].sum() < 8


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loss_only_form_reads_once_and_leaves_the_logits(dtype):
    case = make_case(5, 5, 8192, 10, 8.0, mask="some")
    full, _ = launch(case, dtype, ce_weight=0.5, kd_weight=0.5, max_tile=1024, split=1)
    loss, seen = launch(case, dtype, ce_weight=0.5, kd_weight=0.5, max_tile=1024, write_gradient=False)
    np.testing.assert_array_equal(decode(loss.logits_NV), seen.logits_NV)
    for name in ("ce_N", "kd_N", "diagnostics_4N"):
        np.testing.assert_array_equal(getattr(loss, name), getattr(full, name))
    traffic = loss.counters["total"]["gm"]["logits"]
    assert traffic["written_bytes"] == 0
    assert traffic["read_bytes"] == (case.loss_weight_N != 0).sum() * 8192 * loss.logits_NV.itemsize


@pytest.mark.parametrize("settings", [{"split": 1}, {"split": 2}])
def test_rows_of_weight_zero_cost_zeros_only(settings):
    """Nothing of them is read but the weight, so that they may hold anything."""
    case = make_case(6, 9, 1423, 10, 8.0, mask="some")
    off = case.loss_weight_N == 0
    settings = {**settings, "cores": 4, "max_tile": 256}
    before, _ = launch(case, "bfloat16", **settings)
    case.logits_NV[off] = np.nan
    case.teacher_ids_NK[off], case.teacher_logp_NK[off], case.target_ids_N[off] = 10**6, np.nan, 10**6
    case.teacher_tail_logp_N[off] = np.nan
    after, _ = launch(case, "bfloat16", **settings)
    np.testing.assert_array_equal(after.logits_NV, before.logits_NV)
    assert not after.logits_NV[off].any() and not after.diagnostics_4N[:, off].any()
    assert not after.ce_N[off].any() and not after.kd_N[off].any()
    case.loss_weight_N[:] = 0
    none, _ = launch(case, "bfloat16", **settings)
    total = none.counters["total"]
    assert not none.logits_NV.any()
    assert total["gm"]["logits"]["read_bytes"] == 0 and total["gm"]["logits"]["written_bytes"] == 9 * 1423 * 2
    assert "teacher_ids" not in total["gm"] or total["gm"]["teacher_ids"]["read_bytes"] == 0
    assert set(total["repeats"]) == {"Duplicate"}


def test_results_do_not_depend_on_the_cores():
    case = make_case(7, 9, 1423, 10, 30.0, mask="some")
    launches = [launch(case, "bfloat16", cores=cores, split=1, max_tile=256)[0] for cores in (1, 2, 5, 16)]
    for other in launches[1:]:
        for name in ("logits_NV", "ce_N", "kd_N", "diagnostics_4N"):
            np.testing.assert_array_equal(getattr(other, name), getattr(launches[0], name))


def test_more_rows_than_weights_are_read_at_once():
    """A core reads its rows' weights 64 at a time."""
    case = make_case(8, 150, 423, 2, 1.0, mask="some")
    check(case, "forward_kl", "tail_bucket", 1.0, "bfloat16", "one core", BOTH, cores=1, max_tile=256)
    check(case, "forward_kl", "tail_bucket", 1.0, "bfloat16", "a team", BOTH, cores=2, split=2, max_tile=256)


# ---- what a launch moves and computes ----


def repeats_per_64(result, count: int, vocab: int) -> float:
    return sum(result.counters["total"]["repeats"].values()) / (count * vocab / 64)


@pytest.mark.parametrize(("scale", "streaming", "on_chip"), [(8.0, 6.75, 7.0), (30.0, 8.15, 8.5)])
def test_work_at_the_vocabulary_of_the_model(scale, streaming, on_chip):
    """bf16, K = 64, loss and gradient. The shift of larger logits costs one instruction more in each sweep."""
    case = make_case(9, 4, VOCAB, 64, scale, mask="none")
    size = case.logits_NV.size * 2
    for split, reads, most in ((1, 1.85, streaming), (2, 1.0, on_chip)):
        result, seen = launch(case, "bfloat16", ce_weight=0.3, kd_weight=0.7, split=split, cores=2 * split)
        traffic = result.counters["total"]["gm"]["logits"]
        assert traffic["read_bytes"] <= reads * size and traffic["written_bytes"] == size
        assert repeats_per_64(result, 4, VOCAB) <= most
        assert result.counters["total"]["ub_high_water"] <= 184 * 1024
        reference = objective(*seen, ObjectiveOptions(0.7, 0.3))
        assert row_error(result.ce_N, reference.ce_N, 1e-6) <= TOLERANCE


def test_scalar_accesses_grow_with_k_not_with_v():
    def accesses(vocab, top_k):
        result, _ = launch(make_case(10, 2, vocab, top_k, 8.0, mask="none"), "bfloat16", cores=2, split=1)
        return sum(result.counters["total"]["scalar"].values()) / 2

    few, many = accesses(8192, 64), accesses(VOCAB, 64)
    assert many - few < 40  # the 65 entries lie in more lists
    assert accesses(VOCAB, 128) < 2.1 * many and many < 16 * 64


@pytest.mark.parametrize(("divergence", "support"), PAIRS)
def test_trap_08_gradient_by_finite_differences(divergence, support):
    """Independent of the oracle: central differences of the kernel's own loss, all columns moved in one launch."""
    vocab, step = 23, 0.02
    for temperature in (1.0, 2.0):
        one = make_case(5, 1, vocab, 4, 2.0, temperature, "teacher", "none", mode_of(support))
        case = Case(*(np.repeat(array, 2 * vocab, axis=0) for array in one))
        shift_NV = step * np.concatenate([np.eye(vocab), -np.eye(vocab)])
        case = case._replace(logits_NV=(case.logits_NV + shift_NV).astype(np.float32))
        settings = {"ce_weight": 0.3, "kd_weight": 0.7, "temperature": temperature, "divergence": divergence}
        settings |= {"support": support}
        moved = launch(case, write_gradient=False, **settings)[0]
        loss_N = case.loss_weight_N * (0.3 * moved.ce_N.astype(np.float64) + 0.7 * moved.kd_N)
        numeric_V = (loss_N[:vocab] - loss_N[vocab:]) / (2 * step)
        grad_V = launch(one, **settings)[0].logits_NV[0]
        assert np.abs(grad_V - numeric_V).max() <= 2e-3 * np.abs(grad_V).max()
