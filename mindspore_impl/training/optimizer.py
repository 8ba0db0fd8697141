"""AdamW from mindformers, with weight decay on matrices only and the update in one fused operator a parameter."""

import atexit
import functools
import importlib
import logging
import os
import shutil
import tempfile

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindspore_impl import checkpoint
from mindspore_impl.errors import UserError
from mindspore_impl.training.options import OptimizerOptions
from mindspore_impl.training.schedule import make_schedule


def import_mindformers(*modules: str) -> None:
    """Import these modules of mindformers (as "core.optim") without `./output/log` and without chatter on stdout.

    Its loggers read the path of their files when a module is imported, now or later, so the two variables stay set for
    this process, to a folder that goes away with it. Values that the user has set are kept.
    """
    _mindformers_logs()
    logging.disable(logging.WARNING)  # of what is logged while importing
    try:
        for module in modules:
            importlib.import_module(f"mindformers.{module}")
    finally:
        logging.disable(logging.NOTSET)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("mindformers") and isinstance(logger, logging.Logger):
            logger.setLevel(logging.ERROR)


@functools.cache
def _mindformers_logs() -> None:
    folder = tempfile.mkdtemp(prefix="mindformers_log_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in ("LOG_MF_PATH", "LOCAL_DEFAULT_PATH"):
        os.environ.setdefault(name, os.path.join(folder, "log"))


@functools.cache
def fused_adamw_class() -> type:
    """A subclass of mindformers' AdamW (same groups, state and schedule) whose update is one operator a parameter.

    mindformers composes the update of about 14 operators a parameter. `ops.AdamWeightDecay` does it in one pass but
    has no bias correction; with c1 = 1 - beta1^t, c2 = 1 - beta2^t and r = sqrt(c2),

        w - lr * decay * w - lr / c1 * m / (sqrt(v / c2) + eps)
          = w - (lr * r / c1) * (m / (sqrt(v) + eps * r) + (decay * c1 / r) * w)

    so three scalars a step put it right. (Measured in benchmarks/train_step.py.)
    """
    import_mindformers("core.optim")
    from mindformers.core.optim.adamw import AdamW  # `mindformers.core.optim.AdamW` is a factory: not to be subclassed

    class FusedAdamW(AdamW):
        """construct(gradients): one update in place; gradients float32, in the order of `parameters`."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.update = ops.AdamWeightDecay()
            self.one = Tensor(1.0, ms.float32)

        def construct(self, gradients):
            decay = self.get_weight_decay()
            beta1, beta2, eps = self.beta1.reshape(()), self.beta2.reshape(()), self.eps.reshape(())
            rate = self.get_lr()
            self.assignadd(self.global_step, self.global_step_increase_tensor)
            update = ops.cast(self.global_step, ms.float32).reshape(())
            correction1 = self.one - ops.pow(beta1, update)
            root = ops.sqrt(self.one - ops.pow(beta2, update))
            rate, eps, ratio = rate * root / correction1, eps * root, correction1 / root
            outputs = ()
            for i in range(self.param_length):
                outputs += (
                    self.update(
                        self._parameters[i], self.exp_avg[i], self.exp_avg_sq[i],
                        rate, beta1, beta2, eps, decay[i] * ratio, gradients[i],
                    ),
                )  # fmt: skip
            return outputs

    return FusedAdamW


def make_optimizer(parameters: list[Parameter], options: OptimizerOptions, steps: int) -> nn.Optimizer:
    """The optimizer of one stage of `steps` updates. Decay applies to parameters with two or more axes.

    Its state: `adam_m.<name>`, `adam_v.<name>` (float32) and `global_step` (applied updates, int32 [1]).
    """
    for key in ("beta1", "beta2"):
        if not 0 < getattr(options, key) < 1:
            raise UserError(f"optimizer.{key}={getattr(options, key)}: must lie between 0 and 1")
    if options.eps <= 0 or options.weight_decay < 0 or options.clip_norm < 0:
        raise UserError("optimizer: eps must be above 0, weight_decay and clip_norm 0 or more")
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    others = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((matrices, float(options.weight_decay)), (others, 0.0))
        if group
    ]
    return fused_adamw_class()(
        [*groups, {"order_params": parameters}],
        learning_rate=make_schedule(options, steps),
        betas=(options.beta1, options.beta2),
        eps=options.eps,
    )


def state_of(optimizer: nn.Optimizer) -> dict[str, np.ndarray]:
    """The optimizer's state by name: moments and the count of applied updates (copies)."""
    return {parameter.name: np.array(parameter.asnumpy()) for parameter in _state(optimizer)}


def load_state(optimizer: nn.Optimizer, arrays: dict[str, np.ndarray], where: str) -> None:
    """Put a saved state back. Raises UserError that names `where` and the first entry that differs."""
    state = {parameter.name: parameter for parameter in _state(optimizer)}
    checkpoint.check_shapes(
        {name: tuple(parameter.shape) for name, parameter in state.items()},
        {name: tuple(array.shape) for name, array in arrays.items()},
        where,
    )
    for name, parameter in state.items():
        parameter.set_data(Tensor(arrays[name], parameter.dtype))


def _state(optimizer: nn.Optimizer) -> list[Parameter]:
    return [*optimizer.exp_avg, *optimizer.exp_avg_sq, optimizer.global_step]
