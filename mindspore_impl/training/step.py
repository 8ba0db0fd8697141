"""One training step in graph mode: gradients, reduction over ranks, clipping, update; non-finite steps change nothing.

The loss is a SUM with the global denominator already inside its weights, so micro-batches and ranks are added up and
nothing is ever divided again.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindspore_impl.ops.collectives import make_sum
from mindspore_impl.training import zero


def _scaled(scale, gradient):
    return ops.cast(gradient, ms.float32) * scale


def _add_into(total, gradient):
    return ops.assign_add(total, ops.cast(gradient, ms.float32))


def _clear(total):
    return ops.assign(total, ops.zeros_like(total))


class TrainStep(nn.TrainOneStepCell):
    """construct(*micro-batch) -> report float32 [3 + M]: loss, gradient norm, 1 if finite, then the metric sums.

    max_grad_norm: global norm, 0 for none; world_size: ranks whose gradients and sums are added, once an update. A
    non-finite loss or norm changes neither weights nor moments nor the count of updates.
    """

    def __init__(self, network: nn.Cell, optimizer: nn.Optimizer, max_grad_norm: float, world_size: int = 1):
        super().__init__(network, optimizer)
        # One traversal gives value and gradients; the base class's own form computes the forward pass twice.
        self.value_and_grad = ops.value_and_grad(self.network, None, self.weights, has_aux=True)
        self.clips = max_grad_norm > 0
        self.max_grad_norm = Tensor(max(max_grad_norm, 1e-30), ms.float32)
        self.one, self.two, self.tiny = (Tensor(value, ms.float32) for value in (1.0, 2.0, 1e-30))
        self.distributed = world_size > 1
        self.map = ops.HyperMap()
        shapes = [tuple(weight.shape) for weight in self.weights]
        self.sum_gradients = make_sum(shapes, world_size, shares=zero.rank_count(optimizer) > 1)
        if self.distributed:
            self.all_reduce = ops.AllReduce()  # adds up

    def differentiate(self, inputs):
        """-> loss, metrics_M and the gradients of one micro-batch."""
        (loss, metrics_M), gradients = self.value_and_grad(*inputs)
        return loss, metrics_M, gradients

    def reduce(self, loss, metrics_M, gradients):
        """Sum over all ranks; no other place communicates. -> loss, metrics, what the optimizer takes, norm."""
        gradients, half_squares = self.sum_gradients(gradients)
        if self.distributed:
            sums = ops.depend(ops.concat((loss.reshape((1,)), metrics_M)), half_squares)  # the same order on every rank
            sums = self.all_reduce(sums)
            loss, metrics_M = sums[0], sums[1:]
        return loss, metrics_M, gradients, ops.sqrt(half_squares * self.two)

    def update(self, loss, metrics_M, gradients):
        """Clip and apply; -> report."""
        loss, metrics_M, gradients, norm = self.reduce(loss, metrics_M, gradients)
        finite = ops.isfinite(norm + loss)
        report = ops.concat((ops.stack((loss, norm, ops.cast(finite, ms.float32))), metrics_M))
        if finite:  # in the graph: 0.3 ms; blanking gradients and betas instead cost 2 ms
            if self.clips:
                scale = ops.minimum(self.one, self.max_grad_norm / ops.maximum(norm, self.tiny))
                gradients = self.map(ops.partial(_scaled, scale), gradients)
            report = ops.depend(report, self.optimizer(gradients))
        return report

    def construct(self, *inputs):
        loss, metrics_M, gradients = self.differentiate(inputs)
        return self.update(loss, metrics_M, gradients)


class Accumulate(nn.Cell):
    """construct(*micro-batch) -> sums: add loss, metric sums and gradients of one micro-batch to float32 totals."""

    def __init__(self, step: TrainStep, metric_count: int):
        super().__init__(auto_prefix=False)
        self.step = step
        self.totals = ParameterTuple(
            Parameter(Tensor(np.zeros(weight.shape, np.float32)), name=f"accumulated.{weight.name}")
            for weight in step.weights
        )
        self.sums = Parameter(Tensor(np.zeros(1 + metric_count, np.float32)), name="accumulated_sums")
        self.map = ops.HyperMap()

    def construct(self, *inputs):
        loss, metrics_M, gradients = self.step.differentiate(inputs)
        done = self.map(_add_into, self.totals, gradients)
        return ops.depend(ops.assign_add(self.sums, ops.concat((loss.reshape((1,)), metrics_M))), done)


class ApplyTotals(nn.Cell):
    """construct() -> report: one update from the totals, which start again from zero."""

    def __init__(self, step: TrainStep, accumulate: Accumulate):
        super().__init__(auto_prefix=False)
        self.step, self.totals, self.sums = step, accumulate.totals, accumulate.sums
        self.map = ops.HyperMap()

    def construct(self):
        report = self.step.update(self.sums[0], self.sums[1:], self.totals)
        zeros = ops.depend(ops.zeros_like(self.sums), report)
        return ops.depend(report, (ops.assign(self.sums, zeros), self.map(_clear, self.totals)))


@dataclass(frozen=True)
class StepReport:
    """What one step of the whole global batch did. `metrics` are float64 sums over supervised positions."""

    loss: float
    gradient_norm: float
    finite: bool
    metrics: np.ndarray


def make_step(
    network: nn.Cell,
    optimizer: nn.Optimizer,
    max_grad_norm: float,
    accumulation: int,
    metric_count: int,
    world_size: int = 1,
) -> Callable[[list[tuple[Tensor, ...]]], StepReport]:
    """A function from the micro-batches of one step to its report. The first call compiles.

    Args:
        network: a LossNetwork.
        optimizer: from `make_optimizer`, of the network's trainable parameters.
        max_grad_norm: the global gradient norm is clipped to it; 0: no clipping.
        accumulation: micro-batches of every step.
        metric_count: metrics that the network returns.
        world_size: ranks whose gradients and sums are added.
    """
    step = TrainStep(network, optimizer, max_grad_norm, world_size)
    step.set_train()
    if accumulation == 1:
        return lambda micro_batches: _report(step(*micro_batches[0]))
    accumulate = Accumulate(step, metric_count)
    apply = ApplyTotals(step, accumulate)

    def run(micro_batches: list[tuple[Tensor, ...]]) -> StepReport:
        for tensors in micro_batches:
            accumulate(*tensors)
        return _report(apply())

    return run


def _report(report: Tensor) -> StepReport:
    values = report.asnumpy().astype(np.float64)
    return StepReport(float(values[0]), float(values[1]), bool(values[2] == 1), values[3:])
