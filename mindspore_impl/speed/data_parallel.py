"""Data parallel training: losses, optimizer memory and speed of two ranks against one.

The model of `train_step.py`, rows supervised unevenly, ranks of one thread. Momentum shows that sums over ranks are
sums, AdamW what its division makes of their rounding, and optimizer shares (`runtime.shard_optimizer`) must not show.
"""

import hashlib
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from mindspore_impl import runtime
from mindspore_impl.distributed import processes, ranks, scheduler
from mindspore_impl.speed.common import Row, alternate, compared, medians

RATES = {"momentum": 0.05, "adamw": 2e-3}
MEMORY = (48, (1024, 2048))  # so many matrices of this shape: 100 million elements
SEED = 0


def rows(steps: int = 24, rounds: int = 5) -> list[Row]:
    """Differences of losses, memory of the optimizer, throughput, and times of collectives: four minutes on 2 cores."""
    runtime.setup(runtime.RuntimeOptions(), seed=SEED)
    tasks = [(count, task, number) for task, number in (("curves", steps), ("speed", rounds)) for count in (1, 2)]
    found = []
    with runtime.progress_bar(6, "data_parallel", "run") as bar:
        for task in [*tasks, (2, "memory", 0), (2, "memory", 1)]:
            found.append(launch(*task)[0])
            bar.update()
    curve, curves, one, two, whole, shared = found
    table = []
    for name in RATES:
        worst = np.max(np.abs(np.array(curves[name]) / curve[name] - 1))
        what = f"largest difference in {steps} losses"
        table.append(Row(f"2 ranks against 1, {name}", what, "relative", float(worst)))
    apart = any(curves[key] != curves[key.replace("adamw", "shares")] for key in ("adamw", "adamw_weights"))
    case = "2 ranks, AdamW with shares against without"
    table.append(Row(case, f"{steps} losses or a weight differ in a bit", "yes or no", float(apart)))
    case = f"2 ranks, {MEMORY[0] * MEMORY[1][0] * MEMORY[1][1]:,} elements, shares"
    held = {"tensors of the optimizer, a rank": "held", "process after 3 updates": "resident", "its peak": "peak"}
    for metric, key in held.items():
        table.append(compared(case, metric, "MiB", shared[key], whole[key], "2 ranks without shares"))
    for name, case in (("adamw", "2 ranks"), ("shares", "2 ranks, shares")):
        table.append(compared(case, "throughput", "tokens/s", two[name], one["adamw"], "1 rank", True))
    sums = two["sum"], two["sum_each"]
    table.append(compared("2 ranks, buffers", "gradients' sum", "ms a step", *sums, "an AllReduce a tensor"))
    return [*table, Row("2 ranks, shares", "gathering of the weights", "ms a step", two["gather"])]


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
    step, weights = stepper(optimizer, shares)
    losses = [step(number) for number in range(steps)]
    digest = hashlib.sha256(b"".join(parameter.asnumpy().tobytes() for parameter in weights))
    return losses, digest.hexdigest()


def stepper(optimizer: str, shares: bool = False) -> tuple[Callable[[int], float], list]:
    """-> a function that trains on global batch number n and returns its loss, and the weights.

    optimizer: "adamw", or "momentum" (`nn.Momentum`, whose update is linear in the gradient: for comparisons).
    """
    from mindspore import nn

    from mindspore_impl.speed import train_step

    settings, count = replace(train_step.SETTINGS, learning_rate=RATES[optimizer]), runtime.world_size()
    more = (
        {"updates": lambda weights, *_: nn.Momentum(weights, RATES[optimizer], 0.9)} if optimizer == "momentum" else {}
    )
    step, model, _ = train_step.make_training(settings=settings, shares=count if shares else 1, ranks=count, **more)
    return lambda number: step(batch(number)), list(model.trainable_params())


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
    from mindspore_impl.speed.train_step import LENGTH, ROWS

    turns = {name: lambda call=call: [call(number) for number in range(calls)] for name, call in runs.items()}
    middle = {name: value / calls for name, value in medians(alternate(turns, rounds, before=ranks.barrier)).items()}
    rates = {name: ROWS * LENGTH / middle[name] for name in ("adamw", "shares") if name in middle}
    return rates | {name: 1000 * value for name, value in middle.items() if name not in rates}


def collectives() -> dict[str, Callable[[int], object]]:
    """The gradients' sum in buffers (`sum`) and tensor by tensor (`sum_each`), and the gathering of shares."""
    import mindspore as ms

    from mindspore_impl.ops import collectives
    from mindspore_impl.speed.train_step import make_training

    count = runtime.world_size()
    if count == 1:
        return {}
    shapes = [tuple(parameter.shape) for parameter in make_training()[1].trainable_params()]
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
