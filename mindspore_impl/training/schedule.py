"""Learning-rate schedules: mindformers' own, held at the last step, and the same formula in plain Python for logs.

Update `t` of `steps` (from 1) uses schedule value `t`, the last one the value half an update before the end, where the
decay would reach `min_lr_ratio * learning_rate`: every rate is above 0, also that of a single update. There it stays
(mindformers' cosine rises again, its warm-up/stable/decay turns negative).
"""

import math

from mindspore_impl.schema import check_ranges
from mindspore_impl.training.mindformers import import_mindformers
from mindspore_impl.training.options import OptimizerOptions

LAST = 0.5  # of an update, before the end


def warmup_steps(options: OptimizerOptions, steps: int) -> int:
    """How many updates warm up: `warmup_steps`, or `warmup_ratio` of all of them; always fewer than `steps`."""
    wanted = options.warmup_steps if options.warmup_steps is not None else int(steps * options.warmup_ratio)
    return min(wanted, steps - 1)


def decay_start(options: OptimizerOptions, steps: int) -> int:
    """warmup_stable_decay: the last update at the full rate."""
    return max(warmup_steps(options, steps), steps - max(1, int(steps * options.decay_ratio)))


def learning_rate(options: OptimizerOptions, steps: int, update: int) -> float:
    """The rate of update number `update` (from 1) of `steps`: what `make_schedule` computes in the graph."""
    peak, low = options.learning_rate, options.learning_rate * options.min_lr_ratio
    t, warm = min(update, steps - LAST), warmup_steps(options, steps)
    if t < warm:
        return peak * t / warm
    if options.lr_scheduler_type == "constant":
        return peak
    if options.lr_scheduler_type == "warmup_stable_decay":
        start = decay_start(options, steps)
        return peak if t < start else peak - (peak - low) * (t - start) / (steps - start)
    progress = (t - warm) / (steps - warm)
    if options.lr_scheduler_type == "linear":
        return low + (peak - low) * (1 - progress)
    return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * progress))


def make_schedule(options: OptimizerOptions, steps: int):
    """A LearningRateSchedule Cell over mindformers': optimizer step (int32 [1], from 0) -> float32 rate.

    Raises UserError for values no schedule accepts.
    """
    from mindspore import Tensor, ops
    from mindspore import dtype as mstype
    from mindspore.nn.learning_rate_schedule import LearningRateSchedule

    inner = _mindformers_schedule(options, steps)

    class ClampedSchedule(LearningRateSchedule):
        """`inner`, asked for value step + 1 and never for one beyond the last."""

        def __init__(self):
            super().__init__()
            self.inner = inner
            self.last = Tensor(steps - LAST, mstype.float32)
            # float32 rounds the end of a long cosine to 0
            self.least = Tensor(min(learning_rate(options, steps, update) for update in (1, steps)), mstype.float32)

        def construct(self, global_step):
            update = ops.minimum(ops.cast(global_step, mstype.float32) + 1.0, self.last)
            return ops.maximum(self.inner(update), self.least)

    return ClampedSchedule()


def _mindformers_schedule(options: OptimizerOptions, steps: int):
    import_mindformers("core.lr")
    from mindformers.core import lr

    check_ranges(options, "optimizer")
    peak, low = float(options.learning_rate), float(options.learning_rate * options.min_lr_ratio)
    warm = warmup_steps(options, steps)
    if options.lr_scheduler_type == "constant" or low == peak:  # the decaying ones refuse an end that is not lower
        return lr.ConstantWarmUpLR(peak, warmup_steps=warm)
    if options.lr_scheduler_type == "linear":
        return lr.PolynomialWithWarmUpLR(peak, total_steps=steps, warmup_steps=warm, lr_end=low, power=1.0)
    if options.lr_scheduler_type == "warmup_stable_decay":
        start = decay_start(options, steps)
        return lr.WarmUpStableDecayLR(peak, lr_end=low, warmup_steps=warm, total_steps=steps, decay_start_steps=start)
    return lr.CosineWithWarmUpLR(peak, warmup_steps=warm, total_steps=steps, lr_end=low)
