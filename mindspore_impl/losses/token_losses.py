"""Cross-entropy and top-1 prediction of each target token, for evaluation: without gradients."""

import mindspore as ms
from mindspore import nn, ops

from mindspore_impl.losses.fused_linear import ChunkLoop, FusedLinear
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.ops.topk_distill import cross_entropy
from mindspore_impl.ops.topk_logprobs import topk_logprobs


class TokenLosses(nn.Cell):
    """The cross-entropy in nats of each target whose weight is not 0 (0 elsewhere), and the `predictions` if asked for.

    construct(input_ids_BL, target_ids_BL i32, loss_weight_BL f32, segment_ids_BL, position_ids_BL i32) -> ce_BL f32, or
    (ce_BL, confidence_BL, right_BL) f32: the probability of the most probable id, and 1 where that is the target, both
    undefined where the weight is 0.
    """

    def __init__(self, model: nn.Cell, predictions: bool = False):
        super().__init__(auto_prefix=False)
        self.model, self.predictions = model, predictions
        chunks = ChunkLoop(_Rows(), False, False) if predictions else None
        self.rows = FusedLinear(ObjectiveOptions(), False, gradient=False, chunks=chunks)

    def construct(self, input_ids_BL, target_ids_BL, loss_weight_BL, segment_ids_BL, position_ids_BL):
        hidden_BLD = self.model.hidden(input_ids_BL, position_ids_BL, segment_ids_BL)
        hidden_ND, shape = hidden_BLD.reshape((-1, hidden_BLD.shape[-1])), target_ids_BL.shape
        target_ids_N, weight_N = target_ids_BL.reshape((-1,)), loss_weight_BL.reshape((-1,))
        no_teacher = target_ids_N.reshape((-1, 1)), weight_N.reshape((-1, 1)), weight_N  # not read
        outputs = self.rows(hidden_ND, self.model.lm_head_weight, target_ids_N, weight_N, *no_teacher)
        if not self.predictions:
            return outputs[1].reshape(shape)
        return outputs[1].reshape(shape), ops.exp(outputs[3][0]).reshape(shape), outputs[3][1].reshape(shape)


class _Rows(nn.Cell):
    """`row_operator` without teacher; its diagnostics: log-probability of the top id, and whether it is the target."""

    def __init__(self):
        super().__init__()
        self.loss, self.top = cross_entropy(1.0, gradient=False), topk_logprobs(1, 1.0)

    def construct(self, logits_NV, target_ids_N, row_weight_N, *teacher):
        ids_N1, logp_N1, _ = self.top(logits_NV.astype(ms.float32))
        right_N = (ids_N1.reshape((-1,)) == target_ids_N).astype(ms.float32)
        ce_N, kd_N, _ = self.loss(logits_NV, target_ids_N, row_weight_N, *teacher)
        return ce_N, kd_N, ops.stack((logp_N1.reshape((-1,)), right_N))
