"""The distillation loss as an Ascend device would run it: choice of the backend, arguments, and what becomes of them.

No NPU is at hand: a stand-in for `ops.Custom` notes the call and computes the documented result with plain operators.
"""

import re
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from mindspore_impl import runtime
from mindspore_impl.losses.fused_linear import FusedLinear
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.losses.oracle import objective
from mindspore_impl.ops import topk_distill as operator
from mindspore_impl.ops.topk_distill_composed import ComposedTopkDistill
from tests.losses.teacher_cases import make_case, row_error
from tests.ops.ascend_recorder import ascend  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
SIGNATURE = """
__attribute__((visibility("default")))
aclnnStatus aclnnTopkDistillLossGetWorkspaceSize(
    aclTensor *logitsRef, const aclTensor *targetIds, const aclTensor *teacherIds, const aclTensor *teacherLogp,
    const aclTensor *teacherTailLogp, const aclTensor *rowWeight, double ceWeight, double kdWeight, double temperature,
    int64_t divergence, int64_t support, bool writeGradient, int64_t coresARow, const aclTensor *ceOut,
    const aclTensor *kdOut, const aclTensor *diagnosticsOut, uint64_t *workspaceSize, aclOpExecutor **executor);
"""  # what the build generates of op_host's prototype


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed operator, as far as Python can see: its header."""
    folder = tmp_path / "vendors" / "pangu"
    (folder / "op_api" / "include").mkdir(parents=True)
    (folder / "op_api" / "include" / operator.HEADER).write_text(SIGNATURE)
    monkeypatch.setenv("ASCEND_CUSTOM_OPP_PATH", str(folder))
    monkeypatch.setenv("ASCEND_OPP_PATH", str(tmp_path))
    return folder


@pytest.fixture
def custom(ascend, package, monkeypatch):  # noqa: F811
    """`ops.Custom` that checks dtypes and shapes, writes over the logits where it should, and keeps its calls."""
    calls = []

    class Custom:
        def __init__(self, func, out_shape, out_dtype, func_type, reg_info):
            assert (func, func_type) == ("aclnnTopkDistillLoss", "aot")
            assert [entry["name"] for entry in reg_info["attr"]] == list(operator.ASCEND_ATTRIBUTES)
            self.out_shape = out_shape

        def __call__(self, logits, target_ids, teacher_ids, teacher_logp, tail_logp, row_weight, *attributes):
            calls.append(dict(zip(operator.ASCEND_ATTRIBUTES, attributes, strict=True)) | {"dtype": logits.dtype})
            assert target_ids.dtype == teacher_ids.dtype == ms.int32
            assert teacher_logp.dtype == tail_logp.dtype == row_weight.dtype == ms.float32
            ce, kd, temperature, divergence, support, write, cores = attributes
            assert cores == 0
            names = operator.DIVERGENCES[divergence], operator.SUPPORTS[support]
            cell = ComposedTopkDistill(*names, temperature, ce, kd, True)
            ce_N, kd_N, diagnostics_4N, grad_NV = cell(
                logits, target_ids, row_weight, teacher_ids, teacher_logp, tail_logp
            )
            shapes = self.out_shape(logits.shape, target_ids.shape, *[()] * (4 + len(attributes)))
            assert shapes == (ce_N.shape, kd_N.shape, diagnostics_4N.shape)
            if write:
                logits.assign_value(grad_NV)
            return ce_N, kd_N, diagnostics_4N

    def matmul_add(x, weight, C):
        assert x.dtype == weight.dtype and x.dtype in (ms.float16, ms.bfloat16) and C.dtype == ms.float32
        calls.append("matmul_add_")
        C.assign_value(C + ops.matmul(x.astype(ms.float32).T, weight.astype(ms.float32)))

    monkeypatch.setattr(ops, "Custom", Custom)
    monkeypatch.setattr(ops.auto_generate, "inplace_matmul_add_op", matmul_add)
    return calls


def test_the_package_decides_the_backend(ascend, package, monkeypatch):  # noqa: F811
    assert operator.backend() == "ascend"
    monkeypatch.setitem(runtime._state, "kernels", "composed")
    assert operator.backend() == "composed"
    monkeypatch.setitem(runtime._state, "kernels", "auto")
    monkeypatch.delenv("ASCEND_CUSTOM_OPP_PATH")
    assert operator.ascend_package().parts[-4:] == ("pangu", "op_api", "include", operator.HEADER)  # among the vendors
    monkeypatch.delenv("ASCEND_OPP_PATH")
    assert operator.backend() == "composed"


@pytest.mark.parametrize("gradient", [True, False])
def test_arguments_and_results(custom, gradient):
    case = make_case(0, 5, 43, 4, 2.0, temperature=2.0)
    cell = operator.topk_distill("jsd", "renormalised", 2.0, 0.25, 0.75, gradient)
    assert isinstance(cell, operator.AscendTopkDistill)
    logits_NV = Tensor(case.logits_NV.copy())
    outputs = cell(logits_NV, *(Tensor(array) for array in (case.target_ids_N, case.loss_weight_N, *case[3:])))
    assert custom[0] == {"ce_weight": 0.25, "kd_weight": 0.75, "temperature": 2.0, "divergence": 2, "support": 1,
                         "write_gradient": gradient, "cores_a_row": 0, "dtype": ms.float32}  # fmt: skip
    reference = objective(*case, ObjectiveOptions(0.75, 0.25, "jsd", "renormalised", 2.0))
    on = case.loss_weight_N != 0
    np.testing.assert_allclose(outputs[0].asnumpy(), reference.ce_N * on, rtol=1e-5, atol=1e-6)
    if gradient:
        assert row_error(outputs[3].asnumpy(), reference.grad_NV, 0.02) <= 1e-5
        np.testing.assert_array_equal(outputs[3].asnumpy(), logits_NV.asnumpy())
    else:
        assert len(outputs) == 3
        np.testing.assert_array_equal(case.logits_NV, logits_NV.asnumpy())


def test_sixteen_bit_chunks_reach_the_fused_sum(custom, monkeypatch):
    """float16 stands in for bfloat16, which has no kernels here: logits in the compute dtype, sums in float32."""
    monkeypatch.setattr(runtime, "compute_dtype", lambda: ms.float16)
    monkeypatch.setattr(runtime, "logits_elements", lambda: 4 * 43)
    rng = np.random.default_rng(0)
    hidden_ND, head_VD = (rng.standard_normal((n, 6)).astype(np.float16).astype(np.float32) for n in (9, 43))
    case = make_case(1, 9, 43, 4, 1.0, mask="some")
    cell = FusedLinear(ObjectiveOptions(0.5), True)
    outputs = cell(Tensor(hidden_ND), Tensor(head_VD), *(Tensor(array) for array in case[1:]))
    assert [call if isinstance(call, str) else call["dtype"] for call in custom] == [
        ms.float16, ms.float16, "matmul_add_", ms.float16, "matmul_add_",
    ]  # fmt: skip
    reference = objective(hidden_ND @ head_VD.T, *case[1:], ObjectiveOptions(0.5))
    assert outputs[5].dtype == ms.float32 and outputs[4].dtype == ms.float32
    assert row_error(outputs[4].asnumpy(), reference.grad_NV @ head_VD, 0.1) < 5e-3
    assert row_error(outputs[5].asnumpy(), reference.grad_NV.T @ hidden_ND, 0.1) < 5e-3


def test_the_registration_fits_the_generated_call(package):
    """MindSpore's own generator accepts the registration and writes the call of the header."""
    from mindspore.ops.operations._custom_ops_utils import CustomCodeGenerator, CustomInfoGenerator

    types = CustomInfoGenerator(operator.ACLNN).get_aclnn_api_types()
    code = CustomCodeGenerator().generate_callback_by_types(operator.ACLNN, operator.ascend_registration(), types)
    assert "input0, input1, input2, input3, input4, input5, *input6" in code and "*input12, output0, output1" in code


def test_the_registration_is_that_of_the_host_side():
    """Names and order of inputs, outputs and attributes are those of op_host."""
    source = (ROOT / "kernels/topk_distill_loss/op_host/topk_distill_loss.cpp").read_text(encoding="utf-8")
    registration = operator.ascend_registration()
    inputs, outputs = (re.findall(rf'^ +Add{kind}\("(\w+)"', source, re.M) for kind in ("Input", "Output"))
    assert [entry["name"] for entry in registration["inputs"]] == inputs
    assert [entry["name"] for entry in registration["outputs"]] == [name for name in outputs if name not in inputs]
    attributes = re.findall(r'Attr\("(\w+)"\)\.AttrType\(OPTIONAL\)\.(\w+)\(', source)
    assert [(entry["name"], entry["type"]) for entry in registration["attr"]] == [
        (name, kind.lower()) for name, kind in attributes
    ]
