"""Gradient sums over data-parallel ranks, and shares: the part of a tensor that one of R ranks holds.

A tensor of n elements is cut, flat and padded with zeros, into R equal shares of s = ceil(n / R). The CPU backend adds
and gathers a few flat buffers, one operator each, in a fixed order, and has no ReduceScatter; Ascend adds tensor by
tensor and fuses by itself, and each rank receives nothing but the share that it updates. Legend: R ranks, n elements of
a tensor, s of a share, S of all shares in one buffer.

Loops over tensors stand in methods of their own, buffer by buffer, and buffers are cut by `ops.slice`: MindSpore nests
what follows in another function at each turn of a loop, each `if` and each size of `ops.split`, and compiles a thousand
levels at most.
"""

import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindspore_impl import runtime

BUFFER = 1 << 22  # elements (16 MB) with which a buffer is full
TENSORS = 64  # at most, in a buffer

Shapes = Sequence[tuple[int, ...]]


def share_size(shape: tuple[int, ...], ranks: int) -> int:
    """Elements of one rank's share of a tensor."""
    return -(-math.prod(shape) // ranks)


def share_of(array: np.ndarray, ranks: int, rank: int) -> np.ndarray:
    """The share [s] of an array, as `Shares` cuts it on the device."""
    size = share_size(array.shape, ranks)
    flat = np.zeros(ranks * size, array.dtype)
    flat[: array.size] = array.ravel()
    return flat[rank * size : (rank + 1) * size]


def whole_of(shares: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array whose shares are the rows of [R, s]."""
    return shares.reshape(-1)[: math.prod(shape)].reshape(shape)


def make_sum(shapes: Shapes, ranks: int, shares: bool) -> nn.Cell:
    """A Cell (gradients) -> (their float32 sums over the ranks, half of the sum of all their squares).

    gradients: a tuple of tensors of `shapes`. `shares`: the sums are this rank's shares [s]; the squares are those
    of whole gradients. A single rank gets its gradients back as they are.
    """
    if ranks == 1:
        return SingleRankSum()
    if runtime.device() == "Ascend":
        return AscendShareSum(shapes, ranks) if shares else AscendSum(shapes)
    return CpuSum(shapes, ranks, shares)


def make_gather(shapes: Shapes, ranks: int) -> nn.Cell:
    """A Cell (shares [s], one a tensor) -> the tensors of `shapes`, all of one buffer, from all ranks' shares."""
    return AscendGather(shapes, ranks) if runtime.device() == "Ascend" else CpuGather(shapes, ranks)


def buffers(shapes: Shapes, limit: int | None = None) -> list[list[int]]:
    """Group the tensors, in order, by buffer: of `limit` elements (None: BUFFER), or of TENSORS tensors."""
    limit = BUFFER if limit is None else limit
    found, room = [], 0
    for i, shape in enumerate(shapes):
        if not found or room <= 0 or len(found[-1]) == TENSORS:
            found.append([])
            room = limit
        found[-1].append(i)
        room -= math.prod(shape)
    return found


_l2_loss = ops.L2Loss()  # sum(x * x) / 2 in one operator: four times faster here than square and sum


def _half_squares(tensor):
    return _l2_loss(ops.cast(tensor, ms.float32))


class HalfSquares(nn.Cell):
    """construct(tensors) -> half of the sum of all their squares, float32."""

    def __init__(self):
        super().__init__()
        self.map = ops.HyperMap()

    def construct(self, tensors):
        return ops.addn(self.map(_half_squares, tensors))


class SingleRankSum(nn.Cell):
    """`make_sum` of one rank."""

    def __init__(self):
        super().__init__()
        self.half_squares = HalfSquares()

    def construct(self, gradients):
        return gradients, self.half_squares(gradients)


class Padded(nn.Cell):
    """construct(number, tensor of that number in `shapes`) -> it flat, with zeros to R * s elements."""

    def __init__(self, shapes: Shapes, ranks: int):
        super().__init__()
        self.missing = tuple(ranks * share_size(shape, ranks) - math.prod(shape) for shape in shapes)
        self.zeros = Tensor(np.zeros(ranks, np.float32))

    def construct(self, i, tensor):
        flat = tensor.reshape((-1,))
        if self.missing[i] > 0:
            flat = ops.concat((flat, ops.slice(self.zeros, (0,), (self.missing[i],))))
        return flat


class Unpadded(nn.Cell):
    """construct(number, tensor of R * s elements) -> the tensor of that number in `shapes`."""

    def __init__(self, shapes: Shapes, ranks: int):
        super().__init__()
        self.shapes = tuple(shapes)
        self.counts = tuple(math.prod(shape) for shape in shapes)
        self.missing = tuple(
            ranks * share_size(shape, ranks) - count for shape, count in zip(shapes, self.counts, strict=True)
        )

    def construct(self, i, tensor):
        if self.missing[i] > 0:
            tensor = ops.slice(tensor.reshape((-1,)), (0,), (self.counts[i],))
        return tensor.reshape(self.shapes[i])


class Shares(nn.Cell):
    """construct(number, float32 tensor of that number in `shapes`) -> this rank's share [s], in memory of its own."""

    def __init__(self, shapes: Shapes, ranks: int):
        super().__init__()
        self.flat = Padded(shapes, ranks)
        self.sizes = tuple(share_size(shape, ranks) for shape in shapes)
        self.rank = runtime.rank()

    def construct(self, i, tensor):
        size = self.sizes[i]
        return ops.slice(self.flat(i, tensor), (self.rank * size,), (size,))


class CpuSum(nn.Cell):
    """`make_sum` by one AllReduce a buffer; with shares too, so that sums and norm have the same bits as without."""

    def __init__(self, shapes: Shapes, ranks: int, shares: bool, limit: int | None = None):
        super().__init__()
        self.shapes, self.buffers = tuple(shapes), buffers(shapes, limit)
        self.counts = tuple(math.prod(shape) for shape in shapes)
        self.all_reduce = ops.AllReduce()  # adds up
        self.half_squares = HalfSquares()
        self.kept = Shares(shapes, ranks) if shares else None

    def construct(self, gradients):
        sums, halves, before = (), (), ()
        for b in range(len(self.buffers)):
            # The same order on every rank; and whole sums of one buffer exist at a time, where shares are kept.
            wholes = self.cut(b, self.all_reduce(ops.depend(self.filled(b, gradients), before)))
            before = (self.half_squares(wholes), self.keep(b, wholes))
            halves += (before[0],)
            sums += before[1]
        return sums, ops.addn(halves)

    def filled(self, b, gradients):
        """-> the flat buffer."""
        flat = ()
        for i in self.buffers[b]:
            flat += (ops.cast(gradients[i], ms.float32).reshape((-1,)),)
        return ops.concat(flat)

    def cut(self, b, buffer):
        """-> the buffer's tensors."""
        wholes, start = (), 0
        for i in self.buffers[b]:
            wholes += (ops.slice(buffer, (start,), (self.counts[i],)).reshape(self.shapes[i]),)
            start += self.counts[i]
        return wholes

    def keep(self, b, wholes):
        """-> what this rank keeps of them."""
        if self.kept is None:
            return wholes
        kept = ()
        for k in range(len(wholes)):
            kept += (self.kept(self.buffers[b][k], wholes[k]),)
        return kept


class CpuGather(nn.Cell):
    """`make_gather` by one AllGather [R, S]."""

    def __init__(self, shapes: Shapes, ranks: int):
        super().__init__()
        self.ranks, self.count = ranks, len(shapes)
        self.sizes = tuple(share_size(shape, ranks) for shape in shapes)
        self.all_gather = ops.AllGather()
        self.unpadded = Unpadded(shapes, ranks)

    def construct(self, shares):
        buffer_RS = self.all_gather(ops.concat(shares)).reshape((self.ranks, -1))
        tensors, start = (), 0
        for i in range(self.count):
            rows = ops.slice(buffer_RS, (0, start), (self.ranks, self.sizes[i]))
            start += self.sizes[i]
            tensors += (self.unpadded(i, rows),)
        return tensors


def _fused(operator: type, shapes: Shapes) -> list:
    """An operator a tensor; MindSpore's Ascend backend fuses those of one `fusion` number into one."""
    found = []
    for number, buffer in enumerate(buffers(shapes), 1):
        for _ in buffer:
            found.append(operator())
            found[-1].add_prim_attr("fusion", number)
    return found


class AscendSum(nn.Cell):
    """`make_sum` of whole gradients: AllReduce, fused by the backend."""

    def __init__(self, shapes: Shapes):
        super().__init__()
        self.buffers = buffers(shapes)
        self.all_reduce = _fused(ops.AllReduce, shapes)
        self.half_squares = HalfSquares()

    def construct(self, gradients):
        sums, halves = (), ()
        for b in range(len(self.buffers)):
            added = self.add(b, gradients)
            halves += (self.half_squares(added),)
            sums += added
        return sums, ops.addn(halves)

    def add(self, b, gradients):
        """-> the sums of buffer number b."""
        sums = ()
        for i in self.buffers[b]:
            sums += (self.all_reduce[i](ops.cast(gradients[i], ms.float32)),)
        return sums


class AscendShareSum(AscendSum):
    """`make_sum` of shares: ReduceScatter moves half of what AllReduce does; the squares are added up afterwards."""

    def __init__(self, shapes: Shapes, ranks: int):
        super().__init__(shapes)
        self.flat = Padded(shapes, ranks)
        self.reduce_scatter = _fused(ops.ReduceScatter, shapes)
        self.add_halves = ops.AllReduce()

    def construct(self, gradients):
        shares, half_squares = super().construct(gradients)
        return shares, self.add_halves(half_squares.reshape((1,))).reshape(())

    def add(self, b, gradients):
        """-> this rank's shares of the sums of buffer number b."""
        shares = ()
        for i in self.buffers[b]:
            shares += (self.reduce_scatter[i](self.flat(i, ops.cast(gradients[i], ms.float32))),)
        return shares


class AscendGather(nn.Cell):
    """`make_gather` by AllGather, fused by the backend."""

    def __init__(self, shapes: Shapes, ranks: int):
        super().__init__()
        self.all_gather = _fused(ops.AllGather, shapes)
        self.unpadded = Unpadded(shapes, ranks)

    def construct(self, shares):
        tensors = ()
        for i in range(len(self.all_gather)):
            tensors += (self.unpadded(i, self.all_gather[i](shares[i])),)
        return tensors
