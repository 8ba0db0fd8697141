"""The cross-entropy of every target by itself, where the objective gives its sum."""

from mindspore import nn

from mindspore_impl.losses.fused_linear import FusedLinear
from mindspore_impl.losses.options import ObjectiveOptions


class TokenLosses(nn.Cell):
    """construct(input_ids_BL, target_ids_BL i32, loss_weight_BL f32, segment_ids_BL, position_ids_BL i32) -> ce_BL f32:
    the cross-entropy in nats of each target whose weight is not 0, and 0 elsewhere. For evaluation: without gradients.
    """

    def __init__(self, model: nn.Cell):
        super().__init__(auto_prefix=False)
        self.model = model
        self.rows = FusedLinear(ObjectiveOptions(), with_teacher=False, gradient=False, head_gradient=False)

    def construct(self, input_ids_BL, target_ids_BL, loss_weight_BL, segment_ids_BL, position_ids_BL):
        hidden_BLD = self.model.hidden(input_ids_BL, position_ids_BL, segment_ids_BL)
        target_ids_N, weight_N = target_ids_BL.reshape((-1,)), loss_weight_BL.reshape((-1,))
        no_teacher = target_ids_N.reshape((-1, 1)), weight_N.reshape((-1, 1)), weight_N  # not read
        hidden_ND = hidden_BLD.reshape((-1, hidden_BLD.shape[-1]))
        outputs = self.rows(hidden_ND, self.model.lm_head_weight, target_ids_N, weight_N, *no_teacher)
        return outputs[1].reshape(target_ids_BL.shape)
