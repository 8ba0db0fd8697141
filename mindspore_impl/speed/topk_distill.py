"""The distillation operator on the CPU: native, composed, and PyTorch eager; and the capture of a teacher's top-k.

Loss and gradient of 0.3 CE + 0.7 forward KL (tail bucket, T = 1) for logits as wide as openPangu's vocabulary. Both of
MindSpore's run in graph mode through `ops/topk_distill.py`, the native one thus through `ops.Custom`. PyTorch's is what
one writes plainly: log_softmax, gather, a masked logsumexp for the tail, backward; and, quicker, the tail as 1 - sum,
which has no correct digit where the support holds nearly all mass. Extra memory is the peak of a new process less what
it held when its inputs stood.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mindspore_impl import runtime
from mindspore_impl.speed.common import Row, alternate, compared, medians, publish

NAME = "topk_distill"
VOCAB, TOP_K = 153_376, 64
CE_WEIGHT, KD_WEIGHT = 0.3, 0.7
OBJECTIVE = ("forward_kl", "tail_bucket", 1.0, CE_WEIGHT, KD_WEIGHT)
PEERS = {
    "composed": "composed MindSpore operators",
    "torch": "PyTorch eager",
    "torch_short": "PyTorch eager, tail by subtraction",
}


def run(json_path: str | Path | None = None, rows: int = 1024, rounds: int = 5, vocab: int = VOCAB) -> list[Row]:
    """Measure, print, append to outputs/benchmarks.csv, write JSON on request. `rows` is N.

    Raises ValueError where the native operators are not available: there is nothing to compare then.
    """
    from mindspore_impl.ops import native

    if native.library() is None:
        raise ValueError("the native CPU operators are not available here; tools/doctor.py says why")
    runtime.setup(runtime.RuntimeOptions(), seed=0)
    versions = runtime.versions()
    if find_spec("torch"):
        import torch

        versions["torch"] = torch.__version__
    case = f"N = {rows:,}, V = {vocab:,}, K = {TOP_K}, fp32"
    peers = {name: words for name, words in PEERS.items() if name == "composed" or find_spec("torch")}
    given = inputs(rows, vocab)
    runs = {name: BUILDERS[name](given) for name in ("ours", *peers)}
    runs["memory"] = scaling(given)
    seconds = medians(alternate(runs, rounds))
    megabytes = {name: extra_memory(name, rows, vocab) for name in ("ours", *peers)}
    table = []
    for name, words in peers.items():
        table.append(
            compared(NAME, case, "loss and gradient", "ms", 1e3 * seconds["ours"], 1e3 * seconds[name], words, False,
                     versions=versions)
        )  # fmt: skip
    for name, words in peers.items():
        table.append(
            compared(NAME, case, "extra memory", "MB", megabytes["ours"], megabytes[name], words, False,
                     versions=versions)
        )  # fmt: skip
    gigabytes = given["logits_NV"].nbytes / 1e9
    table.append(
        compared(NAME, case, "three passes over the logits", "GB/s", 3 * gigabytes / seconds["ours"],
                 2 * gigabytes / seconds["memory"], "scaling them in place", True, versions=versions)
    )  # fmt: skip
    if find_spec("torch"):
        seconds = medians(alternate({"ours": capture(given), "torch": torch_capture(given)}, rounds))
        words = "PyTorch topk and logsumexp, tail by subtraction"
        table.append(
            compared(NAME, case, "capture of the top K", "ms", 1e3 * seconds["ours"], 1e3 * seconds["torch"], words,
                     False, versions=versions)
        )  # fmt: skip
    publish(table, json_path)
    return table


def inputs(rows: int, vocab: int) -> dict[str, np.ndarray]:
    """Random logits and a teacher with 0.9 of its mass on K ids. Legend: N rows, V vocabulary, K teacher ids."""
    rng = np.random.default_rng(0)
    first_N1 = rng.integers(0, vocab, (rows, 1))
    return {
        "logits_NV": rng.standard_normal((rows, vocab), np.float32) * np.float32(4),
        "target_ids_N": rng.integers(0, vocab, rows).astype(np.int32),
        "row_weight_N": np.ones(rows, np.float32),
        "teacher_ids_NK": ((first_N1 + np.arange(TOP_K) * (vocab // TOP_K)) % vocab).astype(np.int32),
        "teacher_logp_NK": np.full((rows, TOP_K), np.log(0.9 / TOP_K), np.float32),
        "teacher_tail_logp_N": np.full(rows, np.log(0.1), np.float32),
    }


def ours(given: dict[str, np.ndarray]) -> Callable[[], object]:
    """The native operator, on logits of its own: it overwrites them, so that later rounds work on gradients.

    Its time does not depend on the values. The gradient is no output of the graph, which would copy it.
    """
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


def composed(given: dict[str, np.ndarray]) -> Callable[[], object]:
    """The same from plain MindSpore operators."""
    from mindspore import Tensor

    from mindspore_impl.ops.topk_distill import topk_distill

    network = topk_distill(*OBJECTIVE, backend_name="composed")
    tensors = [Tensor(array) for array in given.values()]

    def step():
        outputs = network(*tensors)
        return (*(out.asnumpy() for out in outputs[:3]), outputs[3])

    return step


def torch_eager(given: dict[str, np.ndarray], subtract: bool = False) -> Callable[[], object]:
    """The same by PyTorch's autograd; `subtract`: the tail's mass as 1 - sum."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    logits_NV = torch.tensor(given["logits_NV"], requires_grad=True)
    targets_N1 = torch.tensor(given["target_ids_N"]).long()[:, None]
    ids_NK = torch.tensor(given["teacher_ids_NK"]).long()
    weight_N, log_p_NK, log_p_tail_N = (
        torch.tensor(given[name]) for name in ("row_weight_N", "teacher_logp_NK", "teacher_tail_logp_N")
    )

    def step():
        logits_NV.grad = None
        log_q_NV = torch.log_softmax(logits_NV, -1)
        ce_N = -log_q_NV.gather(1, targets_N1)[:, 0]
        log_q_NK = log_q_NV.gather(1, ids_NK)
        if subtract:
            log_q_tail_N = torch.log1p(-log_q_NK.exp().sum(1))
        else:
            log_q_tail_N = torch.logsumexp(log_q_NV.scatter(1, ids_NK, -torch.inf), -1)
        kd_N = (log_p_NK.exp() * (log_p_NK - log_q_NK)).sum(1)
        kd_N = kd_N + log_p_tail_N.exp() * (log_p_tail_N - log_q_tail_N)
        (weight_N * (CE_WEIGHT * ce_N + KD_WEIGHT * kd_N)).sum().backward()
        return ce_N.detach(), kd_N.detach(), None, logits_NV.grad

    return step


def torch_short(given: dict[str, np.ndarray]) -> Callable[[], object]:
    """`torch_eager` with the tail by subtraction."""
    return torch_eager(given, subtract=True)


BUILDERS = {"ours": ours, "composed": composed, "torch": torch_eager, "torch_short": torch_short}


def scaling(given: dict[str, np.ndarray]) -> Callable[[], object]:
    """One read and one write of logits, without arithmetic to speak of: what memory allows."""
    import mindspore as ms
    from mindspore import Tensor, ops

    from mindspore_impl.ops import native

    operator = ops.Custom(native.operator("ScaleInPlace"), (1,), ms.float32, func_type="aot")
    logits_NV, factor_1 = Tensor(given["logits_NV"].copy()), Tensor([1.0000001], ms.float32)
    return lambda: operator(logits_NV, factor_1).asnumpy()


def capture(given: dict[str, np.ndarray]) -> Callable[[], object]:
    """The native top-K, log-probabilities and directly summed tail."""
    from mindspore import Tensor

    from mindspore_impl.ops.topk_logprobs import topk_logprobs

    network, logits_NV = topk_logprobs(TOP_K, 1.0, backend_name="cpu"), Tensor(given["logits_NV"])
    return lambda: [out.asnumpy() for out in network(logits_NV)]


def torch_capture(given: dict[str, np.ndarray]) -> Callable[[], object]:
    """The shortest way in PyTorch; its tail mass is 1 - sum, which loses digits."""
    import torch

    logits_NV = torch.tensor(given["logits_NV"])

    def step():
        top_NK, ids_NK = torch.topk(logits_NV, TOP_K, -1)
        logp_NK = top_NK - torch.logsumexp(logits_NV, -1, keepdim=True)
        return ids_NK, logp_NK, torch.log1p(-logp_NK.exp().sum(1))

    return step


def extra_memory(name: str, rows: int, vocab: int) -> float:
    """Megabytes (1e6) that one call needs beyond its inputs, measured in a new process."""
    code = f"from mindspore_impl.speed.topk_distill import peak_here; print(peak_here({name!r}, {rows}, {vocab}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    if result.returncode:
        raise RuntimeError(f"the memory of {name} could not be measured:\n{result.stderr}")
    return float(result.stdout.split()[-1])


def peak_here(name: str, rows: int, vocab: int) -> float:
    """`extra_memory` in this process, which must be a new one."""
    if name in ("ours", "composed"):
        runtime.setup(runtime.RuntimeOptions(), seed=0)
    BUILDERS[name](inputs(2, vocab))()  # libraries, thread pools and compilers come first
    step = BUILDERS[name](inputs(rows, vocab))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = runtime.process_bytes("VmRSS")
    step()
    return (runtime.process_bytes("VmHWM") - before) / 1e6
