"""The distillation operator on the CPU: native, composed, and PyTorch eager; and the capture of a teacher's top-k.

Loss and gradient of 0.3 CE + 0.7 forward KL (tail bucket, T = 1). PyTorch's is what one writes plainly: log_softmax,
gather, a masked logsumexp for the tail; and, quicker, the tail as 1 - sum, which has no correct digit where the support
holds nearly all mass. Extra memory is the peak of a new process less what it held when its inputs stood.
Legend: N rows, V vocabulary, K teacher ids.
"""

import functools
import json
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mindspore_impl import runtime
from mindspore_impl.speed.common import Row, alone, alternate, compared, contest, medians, teacher, torch_losses

VOCAB, TOP_K = 153_376, 64
CE_WEIGHT, KD_WEIGHT = 0.3, 0.7
OBJECTIVE = ("forward_kl", "tail_bucket", 1.0, CE_WEIGHT, KD_WEIGHT)
Inputs = dict[str, np.ndarray]


def rows(rows: int = 1024, rounds: int = 5, vocab: int = VOCAB) -> list[Row]:
    """Time, memory and bandwidth of the loss and its gradient on N = `rows`, and the time of a capture.

    Raises ValueError where the native operators are not available.
    """
    from mindspore_impl.ops import native

    if native.library() is None:
        raise ValueError("the native CPU operators are not available here; tools/doctor.py says why")
    runtime.setup(runtime.RuntimeOptions(), seed=0)
    case = f"N = {rows:,}, V = {vocab:,}, K = {TOP_K}, fp32"
    given = inputs(rows, vocab)
    sides = {name: build for name, build in SIDES.items() if find_spec("torch") or not name.startswith("PyTorch")}
    seconds = medians(alternate({name: build(given) for name, build in (sides | {"memory": scaling}).items()}, rounds))
    megabytes = {name: alone("topk_distill", name, rows, vocab) for name in sides}
    peers = list(sides)[1:]
    gigabytes = given["logits_NV"].nbytes / 1e9
    found = [
        *(compared(case, "loss and gradient", "ms", 1e3 * seconds["ours"], 1e3 * seconds[p], p) for p in peers),
        *(compared(case, "extra memory", "MB", megabytes["ours"], megabytes[p], p) for p in peers),
        compared(case, "three passes over the logits", "GB/s", 3 * gigabytes / seconds["ours"],
                 2 * gigabytes / seconds["memory"], "scaling them in place", True),
    ]  # fmt: skip
    if find_spec("torch"):
        runs = {"ours": capture(given), "PyTorch topk and logsumexp, tail by subtraction": torch_capture(given)}
        found += contest(case, "capture of the top K", "ms", runs, rounds, lambda s: 1e3 * s)
    return found


def inputs(rows: int, vocab: int) -> Inputs:
    """Random logits, labels, and a teacher with 0.9 of its mass on K ids, in the order of the operator's inputs."""
    rng = np.random.default_rng(0)
    return {
        "logits_NV": rng.standard_normal((rows, vocab), np.float32) * np.float32(4),
        "target_ids_N": rng.integers(0, vocab, rows).astype(np.int32),
        "row_weight_N": np.ones(rows, np.float32),
        **teacher(rng, rows, vocab, TOP_K),
    }


def ours(given: Inputs) -> Callable[[], object]:
    """The native operator, on logits of its own: it overwrites them, so that later rounds work on gradients."""
    from mindspore import Tensor, nn

    from mindspore_impl.ops.topk_distill import topk_distill

    class WithoutCopy(nn.Cell):
        def __init__(self):
            super().__init__()
            self.operator = topk_distill(*OBJECTIVE, backend_name="cpu")

        def construct(self, *tensors):
            return self.operator(*tensors)[:3]

    network, tensors = WithoutCopy(), [Tensor(array.copy()) for array in given.values()]
    return lambda: (*(out.asnumpy() for out in network(*tensors)), tensors[0])


def composed(given: Inputs) -> Callable[[], object]:
    """The same from plain MindSpore operators."""
    from mindspore import Tensor

    from mindspore_impl.ops.topk_distill import topk_distill

    network = topk_distill(*OBJECTIVE, backend_name="composed")
    tensors = [Tensor(array) for array in given.values()]

    def step():
        outputs = network(*tensors)
        return (*(out.asnumpy() for out in outputs[:3]), outputs[3])

    return step


def torch_eager(given: Inputs, subtract: bool = False) -> Callable[[], object]:
    """The same by PyTorch's autograd; `subtract`: the tail's mass as 1 - sum."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    logits_NV, targets_N, weight_N, ids_NK, *logps = map(torch.tensor, given.values())
    logits_NV.requires_grad_()

    def step():
        logits_NV.grad = None
        log_q_NV = torch.log_softmax(logits_NV, -1)
        ce_N, kd_N = torch_losses(log_q_NV, targets_N.long(), (ids_NK.long(), *logps), subtract)
        (weight_N * (CE_WEIGHT * ce_N + KD_WEIGHT * kd_N)).sum().backward()
        return ce_N.detach(), kd_N.detach(), None, logits_NV.grad

    return step


SIDES = {
    "ours": ours,
    "composed MindSpore operators": composed,
    "PyTorch eager": torch_eager,
    "PyTorch eager, tail by subtraction": functools.partial(torch_eager, subtract=True),
}


def scaling(given: Inputs) -> Callable[[], object]:
    """One read and one write of logits, without arithmetic to speak of: what memory allows."""
    import mindspore as ms
    from mindspore import Tensor, ops

    from mindspore_impl.ops import native

    operator = ops.Custom(native.operator("ScaleInPlace"), (1,), ms.float32, func_type="aot")
    logits_NV, factor_1 = Tensor(given["logits_NV"].copy()), Tensor([1.0000001], ms.float32)
    return lambda: operator(logits_NV, factor_1).asnumpy()


def capture(given: Inputs) -> Callable[[], object]:
    """The native top-K, log-probabilities and directly summed tail."""
    from mindspore import Tensor

    from mindspore_impl.ops.topk_logprobs import topk_logprobs

    network, logits_NV = topk_logprobs(TOP_K, 1.0, backend_name="cpu"), Tensor(given["logits_NV"])
    return lambda: [out.asnumpy() for out in network(logits_NV)]


def torch_capture(given: Inputs) -> Callable[[], object]:
    """The shortest way in PyTorch; its tail mass is 1 - sum, which loses digits."""
    import torch

    logits_NV = torch.tensor(given["logits_NV"])

    def step():
        top_NK, ids_NK = torch.topk(logits_NV, TOP_K, -1)
        logp_NK = top_NK - torch.logsumexp(logits_NV, -1, keepdim=True)
        return ids_NK, logp_NK, torch.log1p(-logp_NK.exp().sum(1))

    return step


def extra_memory(side: str, rows: int, vocab: int) -> float:
    """Megabytes (1e6) that one call needs beyond its inputs; for a process that has done nothing else."""
    if not side.startswith("PyTorch"):
        runtime.setup(runtime.RuntimeOptions(), seed=0)
    SIDES[side](inputs(2, vocab))()  # libraries, thread pools and compilers come first
    step = SIDES[side](inputs(rows, vocab))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = runtime.process_bytes("VmRSS")
    step()
    return (runtime.process_bytes("VmHWM") - before) / 1e6


if __name__ == "__main__":
    print(json.dumps(extra_memory(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
