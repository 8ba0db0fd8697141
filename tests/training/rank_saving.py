"""What two processes do in test_saving.py: a stage that one process began, and one that one process will end."""

from types import SimpleNamespace

from mindspore_impl import runtime
from mindspore_impl.distributed import ranks
from tests.training.small import Stream, batch, run, split


class Share(Stream):
    """This rank's rows of every step, the same global batches whatever the number of ranks."""

    def steps(self, start, stop):
        for step in range(start, stop):
            if step == self.raise_at:
                raise KeyboardInterrupt
            part = split(batch(seed=step), runtime.world_size())[runtime.rank()]
            yield [SimpleNamespace(**vars(part), tokens=7)]


def stage(folder, raise_at=None):
    """Train until the end, or until the step `raise_at`."""
    from mindspore_impl.training import trainer

    trainer.LossNetwork = lambda model, *_, **__: model
    run(folder, Share(raise_at=raise_at), validation={})


def two(folder):
    """Continue the stage "one"; begin the stage "two" and stop after its first checkpoint."""
    stage(folder / "one")
    try:
        stage(folder / "two", raise_at=5)
    except KeyboardInterrupt:
        ranks.barrier()
    return runtime.world_size()
