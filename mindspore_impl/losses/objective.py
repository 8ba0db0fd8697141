"""The training objective as a network: model, output projection, losses and the sums that are logged.

    loss = sum_t w_t * [ce_weight * CE(t) + kd_weight * KD(t)],   KD = T^2 * D   (see `losses/oracle.py`)

The loss is a weighted SUM: w_t is 1 / (supervised tokens of the whole global batch), so that the sum over micro-batches
and ranks is the mean over tokens, however the batch was split. Legend: B rows, L positions, N = B*L tokens, K teacher
ids, M metrics.
"""

import math
from collections.abc import Iterable

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from mindspore_impl import runtime
from mindspore_impl.distributed import ranks
from mindspore_impl.errors import UserError
from mindspore_impl.losses.fused_linear import FusedLinear
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.losses.oracle import check_objective

FIELDS = ("input_ids_BL", "target_ids_BL", "loss_weight_BL", "segment_ids_BL", "position_ids_BL")
TEACHER_FIELDS = ("teacher_ids_BLK", "teacher_logp_BLK", "teacher_tail_logp_BL")
METRICS = ("ce", "kd", "teacher_entropy", "teacher_mass", "student_mass", "agreement", "tokens")


def tensors_of(batch, with_teacher: bool) -> tuple[ms.Tensor, ...]:
    """The arrays of a PackedBatch in the order in which LossNetwork takes them."""
    names = FIELDS + TEACHER_FIELDS if with_teacher else FIELDS
    return tuple(ms.Tensor(getattr(batch, name)) for name in names)


def held_out_sums(network: "LossNetwork", batch) -> tuple[float, float]:
    """Sum of the cross-entropy in nats over the supervised tokens of a PackedBatch, and their number.

    network: without a teacher. The sum may be NaN or infinite.
    """
    sums_M = network(*tensors_of(batch, False))[1].asnumpy().astype(float)
    return float(sums_M[METRICS.index("ce")]), float(sums_M[METRICS.index("tokens")])


def mean_loss(sums: Iterable[tuple[float, float]], name: str) -> dict[str, float | None]:
    """Mean cross-entropy in nats of the `held_out_sums` of all batches: {"loss", "perplexity", "tokens"}.

    What is not finite is None; perplexity is cut at exp(700). Raises UserError, naming `name`, without any token.
    """
    ce, tokens = 0.0, 0.0
    for batch_ce, batch_tokens in sums:
        ce, tokens = ce + batch_ce, tokens + batch_tokens
    if tokens == 0:
        raise UserError(f"no supervised token in the held-out set {name!r}; add records that fit sequence_length")
    loss = ce / tokens
    if not math.isfinite(loss):
        return {"loss": None, "perplexity": None, "tokens": round(tokens)}
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": round(tokens)}


def held_out_loss(network: "LossNetwork", batches: list, name: str) -> dict[str, float | None]:
    """`mean_loss` of PackedBatches, which the ranks share; every rank calls it and gets the same bits as one alone."""
    rank, size = runtime.rank(), runtime.world_size()
    own_B2 = np.zeros((-(-len(batches) // size), 2), np.float32)  # both sums are float32 to begin with
    for number, batch in enumerate(batches[rank::size]):
        runtime.reset_watchdog()
        own_B2[number] = held_out_sums(network, batch)
    sums_B2 = ranks.gather_array(own_B2.ravel()).reshape(size, -1, 2).swapaxes(0, 1).reshape(-1, 2)
    return mean_loss(sums_B2[: len(batches)].tolist(), name)


class LossNetwork(nn.Cell):
    """The model with its objective.

    construct(input_ids_BL, target_ids_BL i32, loss_weight_BL f32, segment_ids_BL, position_ids_BL i32[, teacher_ids_BLK
    i32, teacher_logp_BLK, teacher_tail_logp_BL f32]) -> (loss f32 scalar, metrics_M f32). Metrics are SUMS over the
    positions of non-zero weight, in the order of METRICS ("kd" carries T^2 and no weight), without a gradient. A
    position of weight 0 adds exactly 0 to everything. `gradient` False computes the losses alone. Raises UserError when
    the options have no meaning, or ask for distillation without a teacher.
    """

    def __init__(self, model: nn.Cell, options: ObjectiveOptions, with_teacher: bool, gradient: bool = True):
        super().__init__(auto_prefix=False)  # the parameters keep the model's names
        check_objective(options)
        if options.kd_weight > 0 and not with_teacher:
            raise UserError(f"objective.kd_weight={options.kd_weight} needs a teacher store; name one, or set it to 0")
        self.model, self.with_teacher = model, with_teacher
        self.rows = FusedLinear(options, with_teacher, gradient, model.lm_head_weight.requires_grad)

    def construct(self, input_ids_BL, target_ids_BL, loss_weight_BL, segment_ids_BL, position_ids_BL,
                  teacher_ids_BLK=None, teacher_logp_BLK=None, teacher_tail_logp_BL=None):  # fmt: skip
        hidden_BLD = self.model.hidden(input_ids_BL, position_ids_BL, segment_ids_BL)
        hidden_ND = hidden_BLD.reshape((-1, hidden_BLD.shape[-1]))
        target_ids_N, weight_N = target_ids_BL.reshape((-1,)), loss_weight_BL.reshape((-1,))
        if self.with_teacher:
            top_k = teacher_ids_BLK.shape[-1]
            teacher = (
                teacher_ids_BLK.reshape((-1, top_k)), teacher_logp_BLK.reshape((-1, top_k)),
                teacher_tail_logp_BL.reshape((-1,)),
            )  # fmt: skip
        else:
            teacher = target_ids_N.reshape((-1, 1)), weight_N.reshape((-1, 1)), weight_N  # not read
        outputs = self.rows(hidden_ND, self.model.lm_head_weight, target_ids_N, weight_N, *teacher)
        counted_1 = (weight_N != 0).astype(ms.float32).sum(keepdims=True)
        values_6N = ops.concat((ops.stack((outputs[1], outputs[2])), outputs[3]))
        return outputs[0], ops.stop_gradient(ops.concat((values_6N.sum(axis=1), counted_1)))
