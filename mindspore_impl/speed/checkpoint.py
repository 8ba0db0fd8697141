"""The cost of a checkpoint: 20 training steps with one saved in the background, between the steps, or not at all.

The model has the size of the quickstart's teacher. A save that is not done when its 20 steps are is waited for, so that
its whole cost counts. A larger state, of 200 MB, shows what of a save a step still waits for: the copy.
"""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from mindspore_impl import checkpoint, runtime
from mindspore_impl.speed import train_step
from mindspore_impl.speed.common import Row, alternate, compared, medians
from mindspore_impl.training.optimizer import state_of
from mindspore_impl.training.options import OptimizerOptions

INTERVAL = 20  # steps between checkpoints
SIZES = replace(  # conf/model/tiny_teacher.yaml
    train_step.SIZES, hidden_size=192, intermediate_size=512, num_hidden_layers=3, num_attention_heads=6,
    tie_word_embeddings=True,
)  # fmt: skip
LARGE_MB = 200


def rows(rounds: int = 9) -> list[Row]:
    """Milliseconds a step with and without a save, and seconds that a step waits for a large one."""
    runtime.setup(runtime.RuntimeOptions(), seed=0)
    with tempfile.TemporaryDirectory(prefix="checkpoint_benchmark_", dir=".") as folder:
        return [*_of_training(Path(folder), rounds), *_of_large_state(Path(folder), rounds)]


def _of_training(folder: Path, rounds: int) -> list[Row]:
    step, save, size = training()

    def block(background: checkpoint.Background, saves: bool) -> None:
        if saves:
            save(background, folder)
        for _ in range(INTERVAL):
            step()
        background.wait()

    with checkpoint.Background() as beside, checkpoint.Background(active=False) as between:
        measured = alternate({
            "none": lambda: block(between, False), "beside": lambda: block(beside, True),
            "between": lambda: block(between, True),
        }, rounds)  # fmt: skip
    case = f"every {INTERVAL} steps, {size / 2**20:.0f} MB"
    # Of neighbouring turns, so that a slow minute of the machine meets both.
    overhead = [
        100 * (statistics.median(a / b for a, b in zip(measured[name], measured["none"], strict=True)) - 1)
        for name in ("beside", "between")
    ]
    ms_a_step = {name: 1000 * value / INTERVAL for name, value in medians(measured).items()}
    return [
        compared(case, "a step, saved beside", "ms", ms_a_step["beside"], ms_a_step[peer], words)
        for peer, words in (("none", "no checkpoint"), ("between", "saved in between"))
    ] + [Row(case, "added to the steps", "%", *overhead, "saved in between")]


def training() -> tuple[Callable, Callable, int]:
    """A training step, what saves its state, and the state's size in bytes."""
    run, model, optimizer = train_step.make_training(SIZES, OptimizerOptions())
    batch = train_step.packed_batch()

    def state() -> tuple[dict, dict]:
        return checkpoint.weights_of(model), state_of(optimizer)

    def save(background: checkpoint.Background, folder: Path) -> None:
        weights, moments = state()
        background.submit(lambda: checkpoint.save(folder / "small", 1, weights, moments, {}, 1))

    size = sum(array.nbytes for arrays in state() for array in arrays.values())
    return lambda: run(batch), save, size


def _of_large_state(folder: Path, rounds: int) -> list[Row]:
    draw = np.random.default_rng(0)

    def parameters(prefix: str, count: int) -> nn.Cell:
        held = nn.Cell()
        for number in range(count):
            value = ms.Tensor(draw.random(1 << 20, np.float32))
            held.insert_param_to_cell(f"{prefix}{number}", ms.Parameter(value, name=f"{prefix}{number}"))
        return held

    cells = parameters("weight", LARGE_MB // 12), parameters("moment", LARGE_MB // 4 - LARGE_MB // 12)
    copies = [checkpoint.weights_of(cell) for cell in cells]
    seconds = medians(alternate({
        "copy": lambda: [checkpoint.weights_of(cell) for cell in cells],
        "whole": lambda: checkpoint.save(folder / "large", 1, *copies, {}, 1),
    }, rounds))  # fmt: skip
    whole = seconds["copy"] + seconds["whole"]
    return [compared(f"{LARGE_MB} MB of state", "a step waits", "s", seconds["copy"], whole, "the whole save")]
