"""Projection, loss and all gradients in chunks, at openPangu-1B's sizes: time and peak memory against chunked PyTorch.

fp32, untied head; 0.1 CE + 0.9 forward KL (tail bucket, T = 1). Ours is `losses/fused_linear.py`, compiled;
PyTorch cuts the tokens into chunks of as many rows and adds up what autograd gives. Every measurement is a process of
its own, whose whole peak memory is reported; what compiles does so before the clock starts. `composed` repeats ours
without the native operators, once. Legend: N tokens, D hidden, V vocabulary, K teacher ids.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np

from mindspore_impl import runtime
from mindspore_impl.speed.common import Row, alone, compared, teacher, torch_losses

SIZES = {"tokens": 4096, "hidden": 1536, "vocab": 153_376, "top_k": 64, "logits_mb": 128}
CE_WEIGHT, KD_WEIGHT = 0.1, 0.9


def rows(rounds: int = 5, sizes: dict[str, int] = SIZES) -> list[Row]:
    """Seconds and peak MiB against each peer, measured in turns: ten minutes on 2 cores."""
    runtime.setup(runtime.RuntimeOptions(), seed=0)
    names = ["ours", "torch"] if find_spec("torch") else ["ours"]
    found: dict[str, list[dict]] = {}
    with runtime.progress_bar(rounds * len(names) + 1, "fused_linear", "run") as bar:
        for name in [*names * rounds, "composed"]:
            found.setdefault(name, []).append(alone("fused_linear", name, json.dumps(sizes)))
            bar.update()
    case = (
        f"N = {sizes['tokens']:,}, D = {sizes['hidden']:,}, V = {sizes['vocab']:,}, chunks of {sizes['logits_mb']} MB"
    )
    peers = {"torch": "PyTorch eager", "composed": "composed MindSpore operators"}
    figures = (("loss and all gradients", "seconds", "s"), ("peak of the process", "peak_mb", "MiB"))
    return [
        compared(case, metric, unit, *(statistics.median(one[key] for one in found[side]) for side in ("ours", peer)),
                 f"{words} in the same chunks")
        for peer, words in peers.items() if peer in found
        for metric, key, unit in figures
    ]  # fmt: skip


def inputs(sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Hidden states of unit scale, labels, and a teacher with 0.9 of its mass on K ids."""
    rng = np.random.default_rng(0)
    count, vocab = sizes["tokens"], sizes["vocab"]
    return {
        "hidden_ND": rng.standard_normal((count, sizes["hidden"]), np.float32),
        "target_ids_N": rng.integers(0, vocab, count).astype(np.int32),
        "row_weight_N": np.full(count, 1 / count, np.float32),
        **teacher(rng, count, vocab, sizes["top_k"]),
    }


def ours(given: dict[str, np.ndarray], sizes: dict[str, int], kernels: str) -> Callable[[], float]:
    """-> a function from nothing to the loss, which has also made both gradients."""
    import mindspore as ms
    from mindspore import Parameter, Tensor, nn, ops
    from mindspore.common.initializer import Normal, initializer

    from mindspore_impl.losses.fused_linear import FusedLinear
    from mindspore_impl.losses.options import ObjectiveOptions

    runtime.setup(runtime.RuntimeOptions(kernels=kernels, logits_mb=sizes["logits_mb"]), seed=0)
    head_VD = Parameter(initializer(Normal(0.02), [sizes["vocab"], sizes["hidden"]], ms.float32), name="head")
    head_VD.init_data()

    class Loss(nn.Cell):
        def __init__(self):
            super().__init__()
            self.fused = FusedLinear(ObjectiveOptions(KD_WEIGHT, CE_WEIGHT), with_teacher=True)
            self.head_VD = head_VD

        def construct(self, hidden_ND, *others):
            return self.fused(hidden_ND, self.head_VD, *others)[0]

    class Gradients(nn.Cell):
        def __init__(self):
            super().__init__()
            self.gradients = ops.value_and_grad(Loss(), 0, ms.ParameterTuple([head_VD]))

        def construct(self, *inputs):
            return self.gradients(*inputs)

    network, tensors = Gradients(), [Tensor(array) for array in given.values()]
    network.compile(*tensors)
    return lambda: float(network(*tensors)[0].asnumpy())


def torch_chunked(given: dict[str, np.ndarray], sizes: dict[str, int]) -> Callable[[], float]:
    """The same in PyTorch: autograd over one chunk at a time, gradients added up."""
    import torch

    generator = torch.Generator().manual_seed(0)
    head_VD = torch.empty(sizes["vocab"], sizes["hidden"]).normal_(0, 0.02, generator=generator).requires_grad_()
    hidden_ND, targets_N, weight_N, ids_NK, *logps = map(torch.from_numpy, given.values())
    tensors = (hidden_ND.requires_grad_(), targets_N.long(), weight_N, ids_NK.long(), *logps)
    size = max(1, (sizes["logits_mb"] << 20) // (4 * sizes["vocab"]))

    def step() -> float:
        total = 0.0
        for first in range(0, sizes["tokens"], size):
            hidden_nD, targets_n, weight_n, *teacher_n = (tensor[first : first + size] for tensor in tensors)
            ce_n, kd_n = torch_losses(torch.log_softmax(hidden_nD @ head_VD.T, -1), targets_n, teacher_n)
            loss = (weight_n * (CE_WEIGHT * ce_n + KD_WEIGHT * kd_n)).sum()
            loss.backward()
            total += float(loss.detach())
        return total

    return step


def main(name: str, sizes: dict[str, int]) -> None:
    """One measurement of "ours", "composed" or "torch"; prints a line of JSON."""
    given = inputs(sizes)
    if name == "torch":
        step = torch_chunked(given, sizes)
    else:
        step = ours(given, sizes, "composed" if name == "composed" else "auto")
    start = time.perf_counter()
    loss = step()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_mb": runtime.process_bytes("VmHWM") / 2**20, "loss": loss}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
