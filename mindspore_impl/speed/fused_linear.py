"""Projection, loss and all gradients in chunks, at openPangu-1B's sizes: time and peak memory against chunked PyTorch.

N = 4096 tokens, D = 1536, V = 153376, K = 64, fp32, untied head; 0.1 CE + 0.9 forward KL (tail bucket, T = 1). Ours
is `losses/fused_linear.py` inside a compiled gradient, as training uses it. PyTorch's peer cuts the tokens into chunks
of as many rows, lets autograd differentiate each, and adds up the head's gradient. Every measurement is a process of
its own, whose whole peak memory is reported (interpreter, framework, weights 0.94 GB and their gradient 0.94 GB
included); what compiles does so before the clock starts. `composed` repeats ours without the native operators, once.
Legend: N tokens, D hidden, V vocabulary, K teacher ids.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mindspore_impl import runtime
from mindspore_impl.speed.common import Row, compared, publish

NAME = "fused_linear"
SIZES = {"tokens": 4096, "hidden": 1536, "vocab": 153_376, "top_k": 64, "logits_mb": 128}
CE_WEIGHT, KD_WEIGHT = 0.1, 0.9


def run(json_path: str | Path | None = None, rounds: int = 5, sizes: dict[str, int] | None = None) -> list[Row]:
    """Measure in turns, print, append to outputs/benchmarks.csv, write JSON on request: ten minutes on 2 cores."""
    sizes = SIZES if sizes is None else sizes
    runtime.setup(runtime.RuntimeOptions(), seed=0)
    names = ("ours", "torch") if find_spec("torch") else ("ours",)
    found: dict[str, list[dict]] = {name: [] for name in names}
    with runtime.progress_bar(rounds * len(names) + 1, NAME, "run") as bar:
        for _ in range(rounds):
            for name in names:
                found[name].append(apart(name, sizes))
                bar.update()
        composed = apart("composed", sizes)
        bar.update()
    middle = {
        name: {key: statistics.median(result[key] for result in results) for key in ("seconds", "peak_mb")}
        for name, results in found.items()
    }
    versions = runtime.versions() | ({"torch": found["torch"][0]["version"]} if "torch" in found else {})
    case = (
        f"N = {sizes['tokens']:,}, D = {sizes['hidden']:,}, V = {sizes['vocab']:,}, chunks of {sizes['logits_mb']} MB"
    )
    peers = {"composed MindSpore operators in the same chunks": composed}
    if "torch" in middle:
        peers = {"PyTorch eager in the same chunks": middle["torch"]} | peers
    table = [
        compared(NAME, case, metric, unit, middle["ours"][key], peer[key], words, False, versions=versions)
        for words, peer in peers.items()
        for metric, key, unit in (("loss and all gradients", "seconds", "s"), ("peak of the process", "peak_mb", "MiB"))
    ]
    publish(table, json_path)
    return table


def apart(name: str, sizes: dict[str, int]) -> dict:
    """{"seconds", "peak_mb", "loss", "version"} of one call in its own process. Raises RuntimeError when it fails."""
    command = [sys.executable, "-m", "mindspore_impl.speed.fused_linear", name, json.dumps(sizes)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{NAME}: the {name} process failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def peak_mb() -> float:
    """The process's peak resident memory in MiB, as Linux counts it."""
    return runtime.process_bytes("VmHWM") / 2**20


def inputs(sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Hidden states of unit scale, and a teacher with 0.9 of its mass on K ids."""
    rng = np.random.default_rng(0)
    count, vocab, top_k = sizes["tokens"], sizes["vocab"], sizes["top_k"]
    first_N1 = rng.integers(0, vocab, (count, 1))
    return {
        "hidden_ND": rng.standard_normal((count, sizes["hidden"]), np.float32),
        "target_ids_N": rng.integers(0, vocab, count).astype(np.int32),
        "row_weight_N": np.full(count, 1 / count, np.float32),
        "teacher_ids_NK": ((first_N1 + np.arange(top_k) * (vocab // top_k)) % vocab).astype(np.int32),
        "teacher_logp_NK": np.full((count, top_k), np.log(0.9 / top_k), np.float32),
        "teacher_tail_logp_N": np.full(count, np.log(0.1), np.float32),
    }


def ours(given: dict[str, np.ndarray], sizes: dict[str, int], kernels: str = "auto") -> tuple[Callable, str]:
    """-> a function from nothing to the loss, which has also made both gradients; and MindSpore's version."""
    import mindspore as ms
    from mindspore import Parameter, Tensor, nn, ops
    from mindspore.common.initializer import Normal, initializer

    from mindspore_impl.losses.fused_linear import FusedLinear
    from mindspore_impl.losses.options import ObjectiveOptions

    runtime.setup(runtime.RuntimeOptions(kernels=kernels, logits_mb=sizes["logits_mb"]), seed=0)
    head_VD = Parameter(initializer(Normal(0.02), [sizes["vocab"], sizes["hidden"]], ms.float32), name="head")
    head_VD.init_data()
    fused = FusedLinear(ObjectiveOptions(KD_WEIGHT, CE_WEIGHT), with_teacher=True)

    class Loss(nn.Cell):
        def __init__(self):
            super().__init__()
            self.fused, self.head_VD = fused, head_VD

        def construct(self, hidden_ND, *others):
            return self.fused(hidden_ND, self.head_VD, *others)[0]

    class Gradients(nn.Cell):
        def __init__(self):
            super().__init__()
            self.loss = Loss()
            self.gradients = ops.value_and_grad(self.loss, 0, ms.ParameterTuple([head_VD]))

        def construct(self, *inputs):
            return self.gradients(*inputs)

    network, tensors = Gradients(), [Tensor(array) for array in given.values()]
    network.compile(*tensors)

    def step() -> float:
        return float(network(*tensors)[0].asnumpy())

    return step, ms.__version__


def torch_chunked(given: dict[str, np.ndarray], sizes: dict[str, int]) -> tuple[Callable, str]:
    """The same in PyTorch: autograd over one chunk at a time, gradients added up."""
    import torch

    generator = torch.Generator().manual_seed(0)
    head_VD = torch.empty(sizes["vocab"], sizes["hidden"]).normal_(0, 0.02, generator=generator).requires_grad_()
    tensors = {name: torch.from_numpy(array) for name, array in given.items()}
    for name in ("target_ids_N", "teacher_ids_NK"):
        tensors[name] = tensors[name].long()
    hidden_ND = tensors.pop("hidden_ND").requires_grad_()
    size = max(1, (sizes["logits_mb"] << 20) // (4 * sizes["vocab"]))

    def step() -> float:
        total = 0.0
        for first in range(0, sizes["tokens"], size):
            targets_n, weight_n, ids_nK, log_p_nK, log_p_tail_n = (
                tensor[first : first + size] for tensor in tensors.values()
            )
            log_q_nV = torch.log_softmax(hidden_ND[first : first + size] @ head_VD.T, -1)
            ce_n = -log_q_nV.gather(1, targets_n[:, None])[:, 0]
            log_q_tail_n = torch.logsumexp(log_q_nV.scatter(1, ids_nK, -torch.inf), -1)
            kd_n = (log_p_nK.exp() * (log_p_nK - log_q_nV.gather(1, ids_nK))).sum(1)
            kd_n = kd_n + log_p_tail_n.exp() * (log_p_tail_n - log_q_tail_n)
            loss = (weight_n * (CE_WEIGHT * ce_n + KD_WEIGHT * kd_n)).sum()
            loss.backward()
            total += float(loss.detach())
        return total

    return step, torch.__version__


def main(name: str, sizes: dict[str, int]) -> None:
    """One measurement; prints one line of JSON."""
    if name == "torch":
        step, version = torch_chunked(inputs(sizes), sizes)
    else:
        step, version = ours(inputs(sizes), sizes, "composed" if name == "composed" else "auto")
    start = time.perf_counter()
    loss = step()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb(), "loss": loss, "version": version}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
