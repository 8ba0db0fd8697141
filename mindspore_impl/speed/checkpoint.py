"""The cost of a checkpoint: 20 training steps with one saved in the background, between the steps, or not at all.

The model has the size of the quickstart's teacher. A save that is not done when its 20 steps are is waited for, so that
its whole cost counts. A larger state, of 200 MB, shows what of a save a step still waits for: the copy.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mindspore_impl import checkpoint, runtime
from mindspore_impl.speed.common import Row, alternate, compared, medians, publish

NAME = "checkpoint"
INTERVAL = 20  # steps between checkpoints
HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 192, 512, 3, 6, 2  # conf/model/tiny_teacher.yaml
LARGE_MB = 200


def run(json_path: str | Path | None = None, rounds: int = 9) -> list[Row]:
    """Measure, print, append to outputs/benchmarks.csv, write JSON on request."""
    runtime.setup(runtime.RuntimeOptions(), seed=0)
    with tempfile.TemporaryDirectory(prefix="checkpoint_benchmark_", dir=".") as folder:
        rows = [*_of_training(Path(folder), rounds), *_of_large_state(Path(folder), max(5, rounds))]
    publish(rows, json_path)
    return rows


def _of_training(folder: Path, rounds: int) -> list[Row]:
    step, save, size = _training()

    def block(saves: Callable | None, background: checkpoint.Background) -> None:
        if saves is not None:
            saves(background, folder)
        for _ in range(INTERVAL):
            step()
        background.wait()

    with checkpoint.Background() as beside, checkpoint.Background(active=False) as between:
        measured = alternate({
            "none": lambda: block(None, between), "beside": lambda: block(save, beside),
            "between": lambda: block(save, between),
        }, rounds)  # fmt: skip
    seconds = medians(measured)
    case = f"every {INTERVAL} steps, {size / 2**20:.0f} MB"
    # Of neighbouring turns, so that a slow minute of the machine meets both.
    overhead = {
        name: 100 * (statistics.median(a / b for a, b in zip(measured[name], measured["none"], strict=True)) - 1)
        for name in ("beside", "between")
    }
    milliseconds = {name: 1000 * value / INTERVAL for name, value in seconds.items()}
    return [
        compared(
            NAME, case, "a step, saved beside", "ms", milliseconds["beside"], milliseconds["none"], "no checkpoint",
            False,
        ),
        compared(
            NAME, case, "a step, saved beside", "ms", milliseconds["beside"], milliseconds["between"],
            "saved in between", False,
        ),
        Row(NAME, case, "added to the steps", "%", overhead["beside"], overhead["between"], "saved in between"),
    ]  # fmt: skip


def _training() -> tuple[Callable, Callable, int]:
    """A training step, what saves its state, and the state's size in bytes."""
    from mindspore_impl.losses.objective import METRICS, LossNetwork, tensors_of
    from mindspore_impl.losses.options import ObjectiveOptions
    from mindspore_impl.model.options import ModelOptions
    from mindspore_impl.model.pangu import PanguForCausalLM
    from mindspore_impl.speed.train_step import VOCAB, packed_batch
    from mindspore_impl.training.optimizer import make_optimizer, state_of
    from mindspore_impl.training.options import OptimizerOptions
    from mindspore_impl.training.step import make_step

    sizes = ModelOptions(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
    )  # fmt: skip
    model, settings = PanguForCausalLM(sizes, seed=0), OptimizerOptions()
    optimizer = make_optimizer(list(model.trainable_params()), settings, 100_000)
    run_step = make_step(
        LossNetwork(model, ObjectiveOptions(), False), optimizer, settings.max_grad_norm, 1, len(METRICS)
    )
    batch = packed_batch()

    def state() -> tuple[dict, dict]:
        return checkpoint.weights_of(model), state_of(optimizer)

    def save(background: checkpoint.Background, folder: Path) -> None:
        weights, moments = state()
        background.submit(lambda: checkpoint.save(folder / "small", 1, weights, moments, {}, 1))

    size = sum(array.nbytes for arrays in state() for array in arrays.values())
    return lambda: run_step([tensors_of(batch, False)]), save, size


def _of_large_state(folder: Path, rounds: int) -> list[Row]:
    import mindspore as ms
    from mindspore import nn

    class Parameters(nn.Cell):
        def __init__(self, prefix: str, count: int):
            super().__init__()
            values = [np.random.default_rng(i).random((1 << 20), np.float32) for i in range(count)]
            self.held = ms.ParameterTuple(
                ms.Parameter(ms.Tensor(value), name=f"{prefix}{i}") for i, value in enumerate(values)
            )

    weights, moments = Parameters("weight", LARGE_MB // 12), Parameters("moment", LARGE_MB // 4 - LARGE_MB // 12)
    copies = [checkpoint.weights_of(weights), checkpoint.weights_of(moments)]
    seconds = medians(alternate({
        "copy": lambda: (checkpoint.weights_of(weights), checkpoint.weights_of(moments)),
        "whole": lambda: checkpoint.save(folder / "large", 1, *copies, {}, 1),
    }, rounds))  # fmt: skip
    whole = seconds["copy"] + seconds["whole"]
    case = f"{LARGE_MB} MB of state"
    return [compared(NAME, case, "a step waits", "s", seconds["copy"], whole, "the whole save", False)]
