"""Composed operators, the native ones and the emulated Ascend kernel give one answer. Each has its own tests, too."""

import pytest

from tests.kernels.test_ascend_kernel import emulated
from tests.losses.teacher_cases import PAIRS, make_case, row_error, run_operator

pytestmark = pytest.mark.usefixtures("ms_runtime")


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("divergence", "support"), PAIRS)
def test_backends_agree(divergence, support, temperature, native_operators):
    mode = "sampled" if support == "sampled" else "top_k"
    case = make_case(3, 7, 1423, 10, 8.0, temperature, "student", "some", mode, pad=2)
    kind = (divergence, support, temperature, 0.3, 0.7)
    results = {name: run_operator(case, *kind, name)[1:] for name in ("composed", "cpu")}
    launched = emulated.launch(
        case.logits_NV, case.target_ids_N, *case[3:], case.loss_weight_N, ce_weight=0.3, kd_weight=0.7,
        temperature=temperature, divergence=divergence, support=support,
    )  # fmt: skip
    results["ascend"] = (launched.ce_N, launched.kd_N, launched.diagnostics_4N, launched.logits_NV)
    for name in ("composed", "ascend"):
        for got, wanted, floor in zip(results[name], results["cpu"], (1e-3, 0.02, 0.1, 0.02), strict=True):
            rows, wanted = (got.T, wanted.T) if got.shape[0] == 4 else (got, wanted)
            assert row_error(rows, wanted, floor) < 2e-5, name
