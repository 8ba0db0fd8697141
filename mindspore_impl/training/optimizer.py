"""AdamW from mindformers, with weight decay on matrices only and the update in one fused operator a parameter."""

import functools

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindspore_impl import runtime
from mindspore_impl.errors import UserError
from mindspore_impl.model.weights import check_shapes
from mindspore_impl.ops.collectives import TENSORS
from mindspore_impl.training import zero
from mindspore_impl.training.mindformers import import_mindformers
from mindspore_impl.training.options import OptimizerOptions
from mindspore_impl.training.schedule import make_schedule


@functools.cache
def fused_adamw_class() -> type:
    """A subclass of mindformers' AdamW (same groups, state and schedule) whose update is one operator a parameter.

    mindformers composes the update of about 14 operators a parameter. `ops.AdamWeightDecay` does it in one pass but
    has no bias correction; with c1 = 1 - beta1^t, c2 = 1 - beta2^t and r = sqrt(c2),

        w - lr * decay * w - lr / c1 * m / (sqrt(v / c2) + eps)
          = w - (lr * r / c1) * (m / (sqrt(v) + eps * r) + (decay * c1 / r) * w)

    so three scalars a step correct it (measured by speed/train_step.py).
    """
    import_mindformers("core.optim")
    from mindformers.core.optim.adamw import AdamW  # `mindformers.core.optim.AdamW` is a factory: not to be subclassed

    class FusedAdamW(AdamW):
        """construct(gradients): one update in place; gradients float32, in the order of `parameters`."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.update = ops.AdamWeightDecay()
            self.one = Tensor(1.0, ms.float32)

        def scalars(self):
            """Count this update; -> rate, beta1, beta2, eps and the decay factor, as `update` takes them."""
            beta1, beta2, eps = self.beta1.reshape(()), self.beta2.reshape(()), self.eps.reshape(())
            rate = self.get_lr()
            self.assignadd(self.global_step, self.global_step_increase_tensor)
            update = ops.cast(self.global_step, ms.float32).reshape(())
            correction1 = self.one - ops.pow(beta1, update)
            root = ops.sqrt(self.one - ops.pow(beta2, update))
            return rate * root / correction1, beta1, beta2, eps * root, correction1 / root

        def construct(self, gradients):
            scalars, outputs = self.scalars(), ()
            for start in range(0, self.param_length, TENSORS):
                outputs += self.update_some(start, gradients, scalars)
            return outputs

        def update_some(self, start, gradients, scalars):
            """Update TENSORS parameters: a graph takes no loop over hundreds."""
            rate, beta1, beta2, eps, ratio = scalars
            outputs = ()
            for i in range(start, min(start + TENSORS, self.param_length)):
                outputs += (
                    self.update(
                        self._parameters[i], self.exp_avg[i], self.exp_avg_sq[i],
                        rate, beta1, beta2, eps, self.weight_decay[i] * ratio, gradients[i],
                    ),
                )  # fmt: skip
            return outputs

    return FusedAdamW


def make_optimizer(
    parameters: list[Parameter], options: OptimizerOptions, steps: int, share_ranks: int = 1
) -> nn.Optimizer:
    """The optimizer of one stage of `steps` updates. Decay applies to parameters with two or more axes.

    Its state: `adam_m.<name>`, `adam_v.<name>` (float32) and `global_step` (applied updates, int32 [1]). share_ranks:
    ranks that the moments are sharded over (`training/zero.py`). Raises UserError that names an option out of range.
    """
    for key in ("adam_beta1", "adam_beta2"):
        if getattr(options, key) == 1:
            raise UserError(f"optimizer.{key}: must be below 1")
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    others = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((matrices, float(options.weight_decay)), (others, 0.0))
        if group
    ]
    adamw = fused_adamw_class() if share_ranks == 1 else zero.sharded(fused_adamw_class(), share_ranks)
    return adamw(
        [*groups, {"order_params": parameters}],
        learning_rate=make_schedule(options, steps),
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
    )


def state_of(optimizer: nn.Optimizer) -> dict[str, np.ndarray]:
    """The optimizer's whole state by name (copies), on rank 0; nothing on the others. All ranks must call this."""
    first, state = runtime.rank() == 0, {}
    for moment, parameter in _moments(optimizer):
        if first or zero.rank_count(optimizer) > 1:
            array = zero.whole(moment, parameter, zero.rank_count(optimizer))
            state |= {moment.name: array} if first else {}
    step = optimizer.global_step
    return state | ({step.name: np.array(step.asnumpy())} if first else {})


def load_state(optimizer: nn.Optimizer, arrays: dict[str, np.ndarray], where: str) -> None:
    """Put a whole saved state back, or this rank's share, before the first step is compiled; UserError: no fit."""
    shapes = {moment.name: tuple(parameter.shape) for moment, parameter in _moments(optimizer)}
    shapes[optimizer.global_step.name] = (1,)
    check_shapes(shapes, {name: tuple(array.shape) for name, array in arrays.items()}, where)
    for moment, _ in _moments(optimizer):
        moment.set_data(Tensor(zero.own(arrays[moment.name], zero.rank_count(optimizer)), moment.dtype))
    step = optimizer.global_step
    step.set_data(Tensor(arrays[step.name], step.dtype))


def _moments(optimizer: nn.Optimizer) -> list[tuple[Parameter, Parameter]]:
    parameters = optimizer.parameters
    return [*zip(optimizer.exp_avg, parameters, strict=True), *zip(optimizer.exp_avg_sq, parameters, strict=True)]
