"""Hidden states of packed rows, and logits of selected positions, in chunks.

Legend: B rows, L positions, N = B*L, D hidden, V vocabulary, S selected positions, R of them at a time.
"""

from collections.abc import Iterator

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindspore_impl import runtime
from mindspore_impl.losses.fused_linear import Projection


class HiddenStates(nn.Cell):
    """construct(input_ids_BL, position_ids_BL, segment_ids_BL) -> hidden_ND, the last hidden states of a model."""

    def __init__(self, model: nn.Cell):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, input_ids_BL, position_ids_BL, segment_ids_BL):
        hidden_BLD = self.model.hidden(input_ids_BL, position_ids_BL, segment_ids_BL)
        return hidden_BLD.reshape((-1, hidden_BLD.shape[-1]))


class ProjectedRows(nn.Cell):
    """construct(hidden_ND, position_R i32, *inputs) -> take(logits_RV f32, *inputs): gather, project, reduce.

    Ids at or beyond `vocab_size` (a padded lm_head) are left out.
    """

    def __init__(self, model: nn.Cell, vocab_size: int, take: nn.Cell):
        super().__init__(auto_prefix=False)
        self.model, self.vocab_size, self.take = model, vocab_size, take
        self.project = Projection()
        self.gather = ops.Gather()
        self.padded = model.lm_head_weight.shape[0] > vocab_size

    def construct(self, hidden_ND, position_R, *inputs):
        weight_VD = self.model.lm_head_weight
        if self.padded:
            weight_VD = weight_VD[: self.vocab_size]
        return self.take(self.project(self.gather(hidden_ND, position_R, 0), weight_VD).astype(ms.float32), *inputs)


class AllLogits(nn.Cell):
    """construct(logits_RV) -> (logits_RV,): a `take` of ProjectedRows that keeps everything."""

    def construct(self, logits_RV):
        return (logits_RV,)


def in_chunks(head: ProjectedRows, hidden_ND, position_S: np.ndarray, *inputs_S: np.ndarray) -> Iterator[list]:
    """Yield what `head` makes of the selected positions, as lists of arrays, R (`runtime.logits_mb`) at a time."""
    position_S = position_S.astype(np.int32)
    size = min(hidden_ND.shape[0], max(1, runtime.logits_elements() // head.vocab_size))
    for first in range(0, len(position_S), size):
        parts = [array[first : first + size] for array in (position_S, *inputs_S)]
        real = len(parts[0])
        filled = [np.concatenate([part, np.zeros((size - real, *part.shape[1:]), part.dtype)]) for part in parts]
        yield [out.asnumpy()[:real] for out in head(hidden_ND, *(Tensor(array) for array in filled))]
