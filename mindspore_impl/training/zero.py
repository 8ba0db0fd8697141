"""ZeRO, stage 1: each of R ranks holds and updates one share of every parameter's moments.

Shares are equal flat slices (see `ops/collectives.py`): ranks balance whatever the sizes are, all compile the same
graph, and one gathering of the updated shares restores the weights. Weights and gradients stay whole. On the CPU the
result has the bits of the update without shares.
"""

import functools

import numpy as np
from mindspore import Parameter, ParameterTuple, nn, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import initializer

from mindspore_impl import runtime
from mindspore_impl.distributed import ranks
from mindspore_impl.ops import collectives
from mindspore_impl.ops.adamw_update import make_update


@functools.cache
def sharded(base: type, count: int) -> type:
    """A subclass of `base` (FusedAdamW) whose moments are this rank's shares among `count` ranks.

    construct(shares): the summed gradients' shares float32 [s], in the order of `parameters`.
    """

    class ShardedAdamW(base):
        """See `sharded`. Attribute `rank_count`: the number of ranks that the moments are sharded over."""

        rank_count = count

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            shapes = [tuple(parameter.shape) for parameter in self.parameters]
            self.update_share = make_update()
            self.share = collectives.Shares(shapes, count)
            self.buffers = collectives.buffers(shapes)
            gathers = [collectives.make_gather([shapes[i] for i in buffer], count) for buffer in self.buffers]
            self.gathers = nn.CellList(gathers)

        def clone_state(self, prefix, init):
            """The moments `prefix` at zero: a share of each."""
            sizes = [collectives.share_size(tuple(parameter.shape), count) for parameter in self.parameters]
            return ParameterTuple(
                Parameter(initializer(init, [size], mstype.float32), name=f"{prefix}.{parameter.name}")
                for size, parameter in zip(sizes, self.parameters, strict=True)
            )

        def construct(self, gradients):
            scalars, outputs, before = self.scalars(), (), ()
            for b in range(len(self.buffers)):  # one after the other: the copies of one buffer exist at a time
                before = self.restore(b, self.gathers[b](self.update_shares(b, gradients, scalars, before)))
                outputs += before
            return outputs

        def update_shares(self, b, gradients, scalars, before):
            """-> the new shares of the parameters of buffer number b, made after `before`."""
            rate, beta1, beta2, eps, ratio = scalars
            updated = ()
            for i in self.buffers[b]:
                share = self.share(i, ops.depend(self._parameters[i], before))
                updated += (
                    self.update_share(
                        share, self.exp_avg[i], self.exp_avg_sq[i],
                        rate, beta1, beta2, eps, self.weight_decay[i] * ratio, gradients[i],
                    ),
                )  # fmt: skip
            return updated

        def restore(self, b, whole):
            """Set the parameters of buffer number b."""
            outputs = ()
            for k in range(len(whole)):
                outputs += (ops.assign(self._parameters[self.buffers[b][k]], whole[k]),)
            return outputs

    return ShardedAdamW


def rank_count(optimizer: nn.Optimizer) -> int:
    """The number of ranks that the optimizer's moments are sharded over; 1: not sharded."""
    return getattr(optimizer, "rank_count", 1)


def whole(moment: Parameter, parameter: Parameter, count: int) -> np.ndarray:
    """The moment of the whole `parameter`. With `count` > 1 all ranks must call it, in the same order."""
    array = np.array(moment.asnumpy())
    return array if count == 1 else collectives.whole_of(ranks.gather_array(array), tuple(parameter.shape))


def own(array: np.ndarray, count: int) -> np.ndarray:
    """This rank's share, one of `count`, of a whole moment."""
    return array if count == 1 else collectives.share_of(array, count, runtime.rank())
