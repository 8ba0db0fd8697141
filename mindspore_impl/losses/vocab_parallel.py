"""Projection and objective where ranks share the vocabulary: each holds some rows of lm_head, for the tokens of all.

The loss, its metrics and its gradients are those of `losses/fused_linear.py`, with the composed operator: only what
reads along the vocabulary is answered by all ranks. A chunk's logits are local, [n, W]; so is the gradient of lm_head,
which is complete (no rank holds another part of it) and must not be summed again. What is K wide is computed by every
rank from the same numbers, so all get the same digits.

Communication in bytes, for a token of the group's, R ranks, K teacher ids, s bytes a number of the compute dtype:
    4 (K + 1)            all-reduced: the logits of label and support, each from the rank that owns it, 0 elsewhere
    8 (16 on the CPU)    gathered from each rank: maximum and sum of exponentials of what remains when those are taken
                         out, so that the tail's mass is a sum; twice where the temperature is not 1
    4 D                  all-reduced: the gradient of the hidden state
    s D + 8 K + 12       gathered from the rank that brought it: hidden state, label, weight and teacher row, where
                         ranks bring rows of their own (`own_rows`)
Plain data parallelism all-reduces 4 V D bytes a step for the gradient of lm_head instead. Memory: lm_head, its
gradient and its moments are W rows; hidden states of all the group's tokens and their gradient exist at once.

The gradients are made with the loss, and the backward pass only scales them: nothing is differentiated through a
collective. (AllReduce's own derivative sums again, R times too much for a loss that every rank has; AllGather's needs
ReduceScatter, which the CPU backend lacks. It also has no AllReduce of maxima, hence the gathered pairs.)

Legend: n rows of a rank, N rows of all, D hidden, V vocabulary, W rows of lm_head on a rank, K teacher ids, J = K + 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.communication import GlobalComm

from mindspore_impl import runtime
from mindspore_impl.losses.fused_linear import ChunkLoop, FusedLinear, Rows
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.ops.topk_distill_composed import FAR, WholeVocabulary, wide_dtype


@dataclass(frozen=True)
class Shard:
    """What one rank of a group holds of a vocabulary: the ids [borders[rank], borders[rank + 1]).

    borders: 0, where each next rank's ids start, V; the same on all ranks. Every rank stores `rows` rows of lm_head;
    those beyond its ids are padding of any finite value, which takes no mass and gets no gradient.
    """

    borders: tuple[int, ...]
    rank: int

    def __post_init__(self):
        if not 0 <= self.rank < self.ranks or self.borders[0] != 0 or sorted(self.borders) != list(self.borders):
            raise ValueError(f"rank {self.rank} of borders {self.borders}: these do not share a vocabulary")

    @property
    def ranks(self) -> int:
        """How many ranks share the vocabulary."""
        return len(self.borders) - 1

    @property
    def ids(self) -> slice:
        """The ids of this rank."""
        return slice(self.borders[self.rank], self.borders[self.rank + 1])

    @property
    def count(self) -> int:
        """How many ids this rank has."""
        return self.ids.stop - self.ids.start

    @property
    def rows(self) -> int:
        """W: rows of lm_head that every rank stores."""
        return max(last - first for first, last in pairwise(self.borders))

    def cut(self, lm_head_VD: np.ndarray) -> np.ndarray:
        """This rank's rows, padded with zeros -> lm_head_WD."""
        own = lm_head_VD[self.ids]
        return np.pad(own, ((0, self.rows - len(own)), (0, 0)))


def even_borders(vocab_size: int, ranks: int) -> tuple[int, ...]:
    """Borders of equal parts; where V is no multiple of the ranks, the last ones hold less."""
    rows = -(-vocab_size // ranks)
    return tuple(min(rank * rows, vocab_size) for rank in range(ranks + 1))


def join(parts_WD: list[np.ndarray], borders: tuple[int, ...]) -> np.ndarray:
    """lm_head_VD from every rank's lm_head_WD, without the padding: the inverse of `Shard.cut`."""
    return np.concatenate(
        [part[: last - first] for part, (first, last) in zip(parts_WD, pairwise(borders), strict=True)]
    )


@dataclass(frozen=True)
class Collectives:
    """How the ranks of a group meet. all_sum(x): the sum over ranks; all_rows(x): their rows below one another."""

    all_sum: Callable
    all_rows: Callable


def collectives(group: str = GlobalComm.WORLD_COMM_GROUP) -> Collectives:
    """Those of a MindSpore communication group; the process must have joined."""
    return Collectives(ops.AllReduce(group=group), ops.AllGather(group=group))


class SharedVocabulary(WholeVocabulary):
    """The vocabulary's axis where each rank holds W columns: `_NW` is local, all else is the same on every rank.

    Collectives come in one order on all ranks, each depending on the one before.
    """

    def __init__(self, shard: Shard, group: Collectives):
        super().__init__()
        self.all_sum, self.all_rows = group.all_sum, group.all_rows
        self.first, self.count, self.vocab_size = shard.ids.start, shard.count, shard.borders[-1]
        self.padding_1W = Tensor(np.arange(shard.rows)[None] >= shard.count)
        self.wide = wide_dtype()

    def size(self, logits_NW):
        return self.vocab_size

    def split(self, logits_NW, ids_NJ, far_NJ):
        logits_NW = ops.masked_fill(logits_NW, self.padding_1W, FAR)
        own_NJ, local_NJ = self._own(ids_NJ)
        chosen_NJ = ops.gather_elements(logits_NW, 1, local_NJ)
        chosen_NJ = self.all_sum(ops.select(own_NJ, chosen_NJ, ops.zeros_like(chosen_NJ)))
        return chosen_NJ, ops.depend(self.add(logits_NW, ids_NJ, far_NJ), chosen_NJ)

    def log_sum(self, x_NW):
        log_sum_N1, max_N1, q_NW = self.log_sum_exp(x_NW)
        pairs_RN2 = self.all_rows(ops.concat((max_N1, log_sum_N1), 1).expand_dims(0))
        max_RN1, log_sum_RN1 = pairs_RN2[:, :, :1], pairs_RN2[:, :, 1:]
        top_N1 = max_RN1.max(axis=0)
        sum_N1 = ops.exp(max_RN1 - top_N1 + log_sum_RN1).sum(axis=0)
        share_N1 = ops.exp(max_N1 - top_N1 + log_sum_N1) / sum_N1
        return ops.log(sum_N1), top_N1, q_NW * share_N1.astype(q_NW.dtype)

    def add(self, x_NW, ids_NJ, values_NJ):
        own_NJ, local_NJ = self._own(ids_NJ)
        return self.scatter_add(x_NW, local_NJ, ops.select(own_NJ, values_NJ, ops.zeros_like(values_NJ)))

    def _own(self, ids_NJ):
        """-> which ids are this rank's, and their columns; column 0 for the others."""
        local_NJ = ids_NJ - self.first
        own_NJ = ops.logical_and(local_NJ >= 0, local_NJ < self.count)
        return own_NJ, ops.select(own_NJ, local_NJ, ops.zeros_like(local_NJ))


class SharedChunks(nn.Cell):
    """ChunkLoop over the rows of all ranks, with lm_head_WD for lm_head_VD, and the results for the rank's own rows."""

    def __init__(
        self,
        options: ObjectiveOptions,
        with_teacher: bool,
        gradient: bool,
        head_gradient: bool,
        shard: Shard,
        own_rows: bool,
        group: Collectives,
    ):
        super().__init__()
        self.gradient, self.own_rows, self.rank, self.width = gradient, own_rows, shard.rank, shard.rows
        self.all_sum, self.all_rows = group.all_sum, group.all_rows
        self.loop = ChunkLoop(Rows(options, with_teacher, gradient, SharedVocabulary(shard, group)), head_gradient)
        self.compute_dtype = runtime.compute_dtype()

    def construct(
        self, hidden_nD, lm_head_WD, target_ids_n, row_weight_n, teacher_ids_nK, teacher_logp_nK, teacher_tail_logp_n
    ):
        if lm_head_WD.shape[0] != self.width:  # ranks would wait for chunks that another does not have
            raise ValueError("every rank must store the same number of lm_head's rows: Shard.rows")
        inputs = hidden_nD, target_ids_n, row_weight_n, teacher_ids_nK, teacher_logp_nK, teacher_tail_logp_n
        if self.own_rows:
            inputs = self._of_all(*inputs)
        outputs = self.loop(inputs[0], lm_head_WD, *inputs[1:])
        first, last = 0, hidden_nD.shape[0]
        if self.own_rows:
            first, last = self.rank * last, self.rank * last + last
        ce_n, kd_n, diagnostics_4n = outputs[0][first:last], outputs[1][first:last], outputs[2][:, first:last]
        if not self.gradient:
            return ce_n, kd_n, diagnostics_4n
        hidden_grad_ND = self.all_sum(ops.cast(outputs[3], ms.float32))
        ce_n = ops.depend(ce_n, hidden_grad_ND)  # a caller's own collectives come after
        return (ce_n, kd_n, diagnostics_4n, ops.cast(hidden_grad_ND[first:last], hidden_nD.dtype)) + outputs[4:]

    def _of_all(self, hidden_nD, target_ids_n, row_weight_n, teacher_ids_nK, teacher_logp_nK, teacher_tail_logp_n):
        """The inputs of all ranks in two collectives; float32 holds every id below 2^24 exactly."""
        top_k = teacher_ids_nK.shape[1]
        hidden_ND = self.all_rows(ops.cast(hidden_nD, self.compute_dtype))
        columns_n3 = ops.stack((ops.cast(target_ids_n, ms.float32), row_weight_n, teacher_tail_logp_n), 1)
        rest_nX = ops.concat((columns_n3, ops.cast(teacher_ids_nK, ms.float32), teacher_logp_nK), 1)
        rest_NX = self.all_rows(ops.depend(rest_nX, hidden_ND))
        target_ids_N, teacher_ids_NK = ops.cast(rest_NX[:, 0], ms.int32), ops.cast(rest_NX[:, 3 : 3 + top_k], ms.int32)
        return (
            ops.depend(hidden_ND, rest_NX),
            target_ids_N,
            rest_NX[:, 1],
            teacher_ids_NK,
            rest_NX[:, 3 + top_k :],
            rest_NX[:, 2],
        )


def vocab_parallel(
    options: ObjectiveOptions,
    with_teacher: bool,
    shard: Shard,
    *,
    own_rows: bool = True,
    gradient: bool = True,
    head_gradient: bool = True,
    group: Collectives | None = None,
) -> FusedLinear:
    """FusedLinear that takes `Shard.cut(lm_head_VD)` for lm_head_VD; every rank of the group must call it together.

    own_rows True (data parallelism): each rank brings equally many rows of its own and gets the losses of these; the
    ranks' losses add up to the loss of all. hidden's gradient is that of the sum, for the rank's rows; lm_head's is
    that of the sum, for the rank's ids. An upstream factor must be the same on all ranks.
    own_rows False: all bring the same rows and get the same loss, and its gradients.
    group: the world by default; for a named one `collectives(name)`, where shard.rank is the place within it, and
    lm_head's gradients of ranks in other groups that hold the same ids are still to be summed.
    """
    chunks = SharedChunks(
        options, with_teacher, gradient, gradient and head_gradient, shard, own_rows, group or collectives()
    )
    return FusedLinear(options, with_teacher, gradient, head_gradient, chunks)
