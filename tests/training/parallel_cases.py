"""What the processes of tests/training/test_parallel.py do: each returns numbers that the parent compares."""

import hashlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mindspore_impl import runtime
from mindspore_impl.distributed import ranks
from mindspore_impl.losses.objective import tensors_of
from mindspore_impl.ops import collectives
from mindspore_impl.training.options import OptimizerOptions, TrainOptions
from tests.distributed.rank_cases import meetings
from tests.training import small

VOCAB = 15  # odd, so that no tensor can be cut in two equal parts
CLIP = 0.2  # below every norm
OPTIONS = OptimizerOptions(learning_rate=0.05, lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.3)


class Trainer:
    """A linear network with its optimizer; `step` takes a global batch, of which this rank trains on its rows."""

    def __init__(self, shares: bool, accumulation: int):
        from mindspore_impl.training.optimizer import make_optimizer
        from mindspore_impl.training.step import make_step

        self.count, self.accumulation = runtime.world_size(), accumulation
        self.network = small.linear_network(vocab=VOCAB)
        parameters = list(self.network.trainable_params())
        self.optimizer = make_optimizer(parameters, OPTIONS, 100, self.count if shares else 1)
        self.run = make_step(self.network, self.optimizer, CLIP, accumulation, 2, self.count)

    def step(self, number: int, spoilt: bool = False) -> list[float]:
        """-> loss, norm, finite, metrics. `spoilt`: the last row's weights are NaN, in the last rank alone."""
        whole = small.batch(number, vocab=VOCAB)
        if spoilt:
            whole.loss_weight_BL[-1] = np.nan
        first = runtime.rank() * self.accumulation
        parts = small.split(whole, self.count * self.accumulation)[first : first + self.accumulation]
        report = self.run([tensors_of(part, False) for part in parts])
        return [report.loss, report.gradient_norm, float(report.finite), *report.metrics.tolist()]

    def save(self, path) -> dict[str, list]:
        """Write weights and state as rank 0 does; -> the shapes of what this rank was given to write."""
        from mindspore_impl.training.optimizer import state_of

        state = state_of(self.optimizer)
        if runtime.rank() == 0:
            save_file(state | small.weights(self.network), path)
        ranks.barrier()
        return {name: list(array.shape) for name, array in state.items()}

    def load(self, path) -> None:
        """Take over a file of `save`, whoever wrote it."""
        import mindspore as ms

        from mindspore_impl.training.optimizer import load_state

        arrays = load_file(path)
        with pytest.MonkeyPatch.context() as patch:  # into the memory that the graphs were compiled with
            patch.setattr(ms.Parameter, "set_data", lambda parameter, value: ms.ops.assign(parameter, value))
            for parameter in self.network.get_parameters():
                parameter.set_data(ms.Tensor(arrays.pop(parameter.name)))
            load_state(self.optimizer, arrays, str(path))

    def digest(self) -> str:
        """Of the weights' bits."""
        arrays = small.weights(self.network)
        return hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest()


def essentials(folder):
    """Two steps, a saved state, a third step, one that must change nothing; without and with shares; an exchange.

    And a meeting.
    """
    collectives.BUFFER = 100  # the table travels alone
    found, trainers = {}, {"whole": Trainer(False, 2), "shares": Trainer(True, 2)}
    for name, trainer in trainers.items():
        steps = [trainer.step(0), trainer.step(1)]
        saved = trainer.save(folder / f"{name}.safetensors")
        steps += [trainer.step(2)]
        before = trainer.digest()
        spoilt = trainer.step(3, spoilt=True)[2]
        moments = (*trainer.optimizer.exp_avg, *trainer.optimizer.exp_avg_sq)
        found[name] = {
            "steps": steps,
            "weights": before,
            "saved": saved,
            "spoilt": [spoilt, trainer.digest() == before],
            "held": {moment.name: moment.size for moment in moments},
        }
    for name, other in (("whole", "shares"), ("shares", "whole")):
        trainers[name].load(folder / f"{other}.safetensors")
        found[name]["exchanged"] = [trainers[name].step(2), trainers[name].digest()]
    return found | {"meeting": meetings(folder)}


def run_of_trainer(folder, steps: int, killed_at: int | None = None) -> dict:
    """The training loop of a tiny model in `folder`, or what is left of it; -> its weights by name, for a file."""
    from mindspore_impl.training.trainer import TrainingJob, train

    model, stream = small.tiny_model(), RankStream(killed_at)
    try:
        options = TrainOptions(max_steps=steps, save_steps=2)
        job = TrainingJob(model=model, stream=stream, optimizer=OPTIONS, options=options, folder=folder, steps=steps)
        train(job)
    except KeyboardInterrupt:
        pass
    return small.weights(model)


class RankStream(small.Stream):
    """This rank's rows of `small.Stream`'s batches."""

    def steps(self, start, stop):
        for parts in super().steps(start, stop):
            yield [small.split(parts[0], runtime.world_size())[runtime.rank()]]


def resumes(folder):
    """With shares: 6 steps at once; and killed after 4. Then without: what was killed, here or alone, goes on."""
    options = {"device": "CPU", "threads": 1}
    runtime.setup(runtime.RuntimeOptions(**options, shard_optimizer=True))
    at_once = run_of_trainer(folder / "at_once", 6)
    run_of_trainer(folder / "killed", 6, killed_at=4)
    ranks.barrier()
    if runtime.rank() == 0:
        shutil.copytree(folder / "killed", folder / "for_one")
    ranks.barrier()
    runtime.setup(runtime.RuntimeOptions(**options, shard_optimizer=False))
    resumed = run_of_trainer(folder / "killed", 6)
    run_of_trainer(folder / "for_two", 6)
    return {name: bool((array == at_once[name]).all()) for name, array in resumed.items()}
