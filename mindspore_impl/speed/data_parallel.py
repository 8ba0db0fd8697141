"""Data parallel training: losses, optimizer memory and speed of two ranks against one.

The model of `train_step.py`, rows supervised unevenly, fp32, ranks of one thread each. One rank and two take the same
global batches: Momentum shows that sums over ranks are sums, AdamW what its division makes of their rounding, and
optimizer shares (`runtime.shard_optimizer`) must not show at all. Memory is that of an optimizer of MEMORY elements in
processes of its own; what gathers the updated weights is part of its peak.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from mindspore_impl import runtime
from mindspore_impl.distributed import processes, ranks, scheduler
from mindspore_impl.speed.common import Row, compared, publish

NAME = "data_parallel"
STEPS = 24
RATES = {"momentum": 0.05, "adamw": 2e-3}
MEMORY = (48, (1024, 2048))  # so many matrices of this shape: 100 million elements
SEED = 0


def run(json_path: str | Path | None = None, steps: int = STEPS, rounds: int = 5) -> list[Row]:
    """Measure, print, append to outputs/benchmarks.csv, write JSON on request: four minutes on 2 cores."""
    runtime.setup(runtime.RuntimeOptions(), seed=SEED)
    with runtime.progress_bar(6, NAME, "run") as bar:

        def launched(count: int, task: str, *arguments: int) -> dict:
            found = launch(count, task, *arguments)[0]
            bar.update()
            return found

        curves = [launched(count, "curves", steps) for count in (1, 2)]
        speed = [launched(count, "speed", rounds) for count in (1, 2)]
        whole, shared = launched(2, "memory", 0), launched(2, "memory", 1)
    rows = [_difference(curves, name, steps) for name in RATES]
    two = curves[1]
    apart = float(two["adamw"] != two["shares"] or two["adamw_weights"] != two["shares_weights"])
    case = "2 ranks, AdamW with shares against without"
    rows += [Row(NAME, case, f"{steps} losses or a weight differ in a bit", "yes or no", apart)]
    for metric, key in (("tensors of the optimizer, a rank", "held"), ("process after 3 updates", "resident"),
                        ("its peak", "peak")):  # fmt: skip
        case = f"2 ranks, {MEMORY[0] * MEMORY[1][0] * MEMORY[1][1]:,} elements, shares"
        rows.append(compared(NAME, case, metric, "MiB", shared[key], whole[key], "2 ranks without shares", False))
    one, two = speed
    for name, words in (("adamw", "2 ranks"), ("shares", "2 ranks, shares")):
        rows.append(compared(NAME, words, "throughput", "tokens/s", two[name], one["adamw"], "1 rank", True))
    rows.append(compared(NAME, "2 ranks, buffers", "gradients' sum", "ms a step", two["sum"], two["sum_each"],
                         "an AllReduce a tensor", False))  # fmt: skip
    rows.append(Row(NAME, "2 ranks, shares", "gathering of the weights", "ms a step", two["gather"]))
    publish(rows, json_path)
    return rows


def _difference(curves: list[dict], name: str, steps: int) -> Row:
    one, two = (np.array(curve[name]) for curve in curves)
    worst = float(np.max(np.abs(one - two) / np.abs(one)))
    return Row(NAME, f"2 ranks against 1, {name}", f"largest difference in {steps} losses", "relative", worst)


def launch(count: int, task: str, *arguments: int) -> list[dict]:
    """Run a function of TASKS in `count` processes of one thread each; -> the result of every rank."""
    with tempfile.TemporaryDirectory(prefix="data_parallel_") as folder:
        command = [str(Path(__file__).resolve()), task, folder, *map(str, arguments)]
        if count == 1:
            command = [sys.executable, *command]
        else:
            command = [f"--worker_num={count}", f"--local_worker_num={count}", "--join=True", *command]
            command = ["msrun", f"--master_port={processes.free_port()}", f"--log_dir={folder}/log", *command]
        done = subprocess.run(command, env=processes.environment(GLOG_v="3"), capture_output=True, text=True)
        if done.returncode:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in Path(folder).glob("log/*.log"))
            said = f"{done.stdout[-1000:]}\n{done.stderr[-2000:]}"
            raise RuntimeError(f"{task} with {count} ranks failed:\n{logs}\n{said}")
        return [json.loads(Path(folder, f"{rank}.json").read_text(encoding="utf-8")) for rank in range(count)]


def main(task: str, folder: str, *arguments: str) -> None:
    """What each process of `launch` runs."""
    if ranks.is_scheduler():
        return scheduler.serve()
    if ranks.is_worker():
        ranks.join("CPU")
    runtime.setup(runtime.RuntimeOptions(device="CPU", threads=1), seed=SEED)
    result = TASKS[task](*map(int, arguments))
    Path(folder, f"{runtime.rank()}.json").write_text(json.dumps(result), encoding="utf-8")
    ranks.barrier()


def curves(steps: int) -> dict:
    """-> losses of every optimizer; and the hash of the weights that AdamW leaves, without and with shares."""
    found = {"momentum": trained("momentum", steps)[0]}
    for name, shares in (("adamw", False), ("shares", True)):
        found[name], found[f"{name}_weights"] = trained("adamw", steps, shares)
    return found


def trained(optimizer: str, steps: int, shares: bool = False) -> tuple[list[float], str]:
    """Train for `steps` steps on batches 0, 1, ...; -> their losses, and the hash of the weights."""
    import hashlib

    step, weights = stepper(optimizer, shares)
    losses = [step(number) for number in range(steps)]
    digest = hashlib.sha256(b"".join(parameter.asnumpy().tobytes() for parameter in weights))
    return losses, digest.hexdigest()


def stepper(optimizer: str, shares: bool = False) -> tuple[Callable[[int], float], list]:
    """-> a function that trains on global batch number n and returns its loss, and the weights.

    optimizer: "adamw", or "momentum" (`nn.Momentum`, whose update is linear in the gradient: for comparisons).
    """
    from mindspore import nn

    from mindspore_impl.losses.objective import METRICS, LossNetwork, tensors_of
    from mindspore_impl.losses.options import ObjectiveOptions
    from mindspore_impl.speed.train_step import model_and_options
    from mindspore_impl.training.optimizer import make_optimizer
    from mindspore_impl.training.step import make_step

    count = runtime.world_size()
    model, settings = model_and_options()
    weights = list(model.trainable_params())
    settings.learning_rate = RATES[optimizer]
    if optimizer == "momentum":
        updates = nn.Momentum(weights, RATES[optimizer], 0.9)
    else:
        updates = make_optimizer(weights, settings, 10_000, count if shares else 1)
    network = LossNetwork(model, ObjectiveOptions(), False)
    step = make_step(network, updates, settings.max_grad_norm, 1, len(METRICS), count)
    return lambda number: step([tensors_of(batch(number), False)]).loss, weights


def batch(number: int):
    """This rank's rows of global batch `number`: rows are supervised unevenly, weights hold the global denominator."""
    from mindspore_impl.data.batches import PackedBatch
    from mindspore_impl.speed.train_step import packed_batch

    whole, count = packed_batch(), runtime.world_size()
    rows, length = whole.input_ids_BL.shape
    draw = np.random.default_rng(number)
    kept_BL = draw.random((rows, length)) < np.linspace(0.1, 0.9, rows)[:, None]
    weight_BL = ((whole.loss_weight_BL > 0) & kept_BL).astype(np.float32)
    weight_BL /= weight_BL.sum()
    own = slice(runtime.rank() * rows // count, (runtime.rank() + 1) * rows // count)
    arrays = (whole.input_ids_BL, whole.target_ids_BL, whole.segment_ids_BL, whole.position_ids_BL, weight_BL)
    return PackedBatch(*(np.ascontiguousarray(array[own]) for array in arrays))


def speed(rounds: int, calls: int = 10) -> dict:
    """-> tokens/s of the whole job by optimizer, and milliseconds of the sum and of the gathering alone; medians."""
    runs = {"adamw": stepper("adamw")[0]} | collectives()
    if runtime.world_size() > 1:
        runs["shares"] = stepper("adamw", shares=True)[0]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):  # the first one compiles
        for name, call in runs.items():
            ranks.barrier()
            start = time.perf_counter()
            for number in range(calls):
                call(number)
            if turn:
                seconds[name].append((time.perf_counter() - start) / calls)
    from mindspore_impl.speed.train_step import LENGTH, ROWS

    middle = {name: statistics.median(values) for name, values in seconds.items()}
    rates = {name: ROWS * LENGTH / middle[name] for name in ("adamw", "shares") if name in middle}
    return rates | {name: 1000 * value for name, value in middle.items() if name not in rates}


def collectives() -> dict[str, Callable[[int], object]]:
    """The gradients' sum in buffers (`sum`) and tensor by tensor (`sum_each`), and the gathering of shares."""
    import mindspore as ms

    from mindspore_impl.ops import collectives
    from mindspore_impl.speed.train_step import model_and_options

    count = runtime.world_size()
    if count == 1:
        return {}
    shapes = [tuple(parameter.shape) for parameter in model_and_options()[0].trainable_params()]
    whole = tuple(ms.Tensor(np.ones(shape, np.float32)) for shape in shapes)
    own = tuple(ms.Tensor(np.ones(collectives.share_size(shape, count), np.float32)) for shape in shapes)
    together = collectives.make_sum(shapes, count, False)
    buffers = collectives.buffers(shapes)
    gathers = [collectives.make_gather([shapes[i] for i in buffer], count) for buffer in buffers]
    given = [tuple(own[i] for i in buffer) for buffer in buffers]
    each = collectives.CpuSum(shapes, count, False, limit=0)
    return {
        "sum": lambda number: together(whole)[1].asnumpy(),
        "sum_each": lambda number: each(whole)[1].asnumpy(),
        "gather": lambda number: [gather(part)[0].asnumpy() for gather, part in zip(gathers, given, strict=True)],
    }


def memory(shares: int) -> dict:
    """-> MiB of the optimizer's own tensors, of the process after three updates, and of its peak."""
    import mindspore as ms

    from mindspore_impl.training.optimizer import make_optimizer
    from mindspore_impl.training.options import OptimizerOptions

    number, shape = MEMORY
    weights = [ms.Parameter(ms.Tensor(np.ones(shape, np.float32)), name=f"w{n}") for n in range(number)]
    updates = make_optimizer(weights, OptimizerOptions(), 100, runtime.world_size() if shares else 1)
    update = _update(updates)
    given = tuple(ms.Tensor(np.ones(shape, np.float32)) for _ in range(number))
    for _ in range(3):
        update(given).asnumpy()
    held = sum(moment.nbytes for moment in (*updates.exp_avg, *updates.exp_avg_sq))
    resident, peak = psutil.Process().memory_info().rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return {name: value / 2**20 for name, value in (("held", held), ("resident", resident), ("peak", peak))}


def _update(optimizer):
    """What follows the backward pass, as in a training step: construct(gradients) -> a scalar."""
    from mindspore import nn, ops

    from mindspore_impl.ops.collectives import make_sum
    from mindspore_impl.training.zero import rank_count

    class Update(nn.Cell):
        def __init__(self):
            super().__init__(auto_prefix=False)
            shapes = [tuple(parameter.shape) for parameter in optimizer.parameters]
            self.sum_gradients = make_sum(shapes, runtime.world_size(), shares=rank_count(optimizer) > 1)
            self.optimizer = optimizer

        def construct(self, gradients):
            sums, half_squares = self.sum_gradients(gradients)
            return ops.depend(half_squares, self.optimizer(sums))

    return Update()


TASKS = {"curves": curves, "speed": speed, "memory": memory}

if __name__ == "__main__":
    main(*sys.argv[1:])
