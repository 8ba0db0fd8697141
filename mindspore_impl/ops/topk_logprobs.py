"""Top-k or sampled log-probabilities of a teacher, as a capture stores them: K ids, and the mass of the rest.

Legend: N tokens, V vocabulary, K ids a token; W ids in a block of the vocabulary, A blocks.
"""

import math

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindspore_impl.ops import native
from mindspore_impl.ops.log_floor import LOG_FLOOR
from mindspore_impl.ops.topk_distill import backend
from mindspore_impl.ops.topk_distill_composed import FAR, RowLogSumExp, wide_dtype


def topk_logprobs(top_k: int, temperature: float, backend_name: str | None = None) -> nn.Cell:
    """construct(logits_NV f32) -> (ids_NK i32, logp_NK f32, tail_logp_N f32), at `temperature`.

    Ids come by falling probability. The tail's mass is summed directly over the other ids; it is LOG_FLOOR when K = V.
    On the CPU one pass of kernels/cpu where it is built; elsewhere plain operators (on Ascend the vendor's top-k).
    """
    name = backend_name or backend()
    return (CpuTopkLogprobs if name == "cpu" else ComposedTopkLogprobs)(top_k, float(temperature))


class CpuTopkLogprobs(nn.Cell):
    """`topk_logprobs` by kernels/cpu, which reads the logits once from memory and holds one row."""

    def __init__(self, top_k: int, temperature: float):
        super().__init__()

        def shapes(logits_NV, _):
            return (logits_NV[0], top_k), (logits_NV[0], top_k), (logits_NV[0],)

        dtypes = (ms.int32, ms.float32, ms.float32)
        self.run = ops.Custom(native.operator("TopkLogprobs"), shapes, dtypes, func_type="aot")
        self.settings_1 = Tensor([temperature], ms.float32)

    def construct(self, logits_NV):
        return self.run(logits_NV, self.settings_1)


class ComposedTopkLogprobs(nn.Cell):
    """`topk_logprobs` from plain operators."""

    def __init__(self, top_k: int, temperature: float):
        super().__init__()
        self.top_k, self.temperature = top_k, temperature
        self.wide = wide_dtype()
        self.log_sum = RowLogSumExp()
        self.scatter = ops.TensorScatterElements(axis=1)

    def construct(self, logits_NV):
        top_NK, ids_NK = ops.topk(logits_NV, self.top_k, -1)
        ids_NK = ids_NK.astype(ms.int32)
        row_max_N1 = top_NK[:, :1].astype(self.wide)
        z_NK = (top_NK.astype(self.wide) - row_max_N1) / self.temperature
        outside_NV = self.scatter(logits_NV, ids_NK, ops.full_like(top_NK, FAR))
        if self.temperature != 1.0:
            outside_NV = outside_NV / self.temperature
        log_tail_N1, tail_max_N1, _ = self.log_sum(outside_NV)
        log_tail_N1 = log_tail_N1 + (tail_max_N1 - row_max_N1 / self.temperature)
        log_norm_N1 = ops.log(ops.exp(log_tail_N1) + ops.exp(z_NK).sum(axis=1, keepdims=True))
        tail_N = ops.maximum(log_tail_N1 - log_norm_N1, LOG_FLOOR).reshape((-1,))
        return ids_NK, ops.maximum(z_NK - log_norm_N1, LOG_FLOOR).astype(ms.float32), tail_N.astype(ms.float32)


class LogprobsAt(nn.Cell):
    """construct(logits_NV f32, ids_NK i32) -> (logp_NK, agree_NK, mean_N, variance_N), all f32, at `temperature`.

    Log-probabilities of given ids (-1 reads id 0), 1 where an id is among the row's top_k most probable (all of V when
    top_k exceeds it), and mean and variance of log p under p, to judge drawn ids by.
    """

    def __init__(self, top_k: int, temperature: float):
        super().__init__()
        self.top_k, self.temperature = top_k, float(temperature)
        self.log_sum = RowLogSumExp()

    def construct(self, logits_NV, ids_NK):
        log_sum_N1, max_N1, p_NV = self.log_sum(logits_NV / self.temperature)
        kth_N1 = ops.topk(logits_NV, min(self.top_k, logits_NV.shape[-1]), -1)[0][:, -1:]
        chosen_NK = ops.gather_elements(logits_NV, 1, ops.maximum(ids_NK, 0))
        logp_NK = (chosen_NK / self.temperature - max_N1 - log_sum_N1).astype(ms.float32)
        log_p_NV = logits_NV / self.temperature - (max_N1 + log_sum_N1).astype(ms.float32)
        mean_N1 = (p_NV * log_p_NV).sum(axis=1, keepdims=True)
        variance_N = (p_NV * ops.square(log_p_NV - mean_N1)).sum(axis=1)
        return logp_NK, (chosen_NK >= kth_N1).astype(ms.float32), mean_N1.reshape((-1,)), variance_N


class SampledIds(nn.Cell):
    """construct(logits_NV f32, uniform_NK f32 in [0, 1)) -> (ids_NK i32, logp_NK f32): ids drawn with replacement.

    The draw inverts the cumulative distribution at `temperature` in two levels, blocks of about sqrt(V) ids and then
    ids: one running float32 sum would lose ids of probability below 6e-8. An id of probability 0 is never drawn.
    """

    def __init__(self, vocab_size: int, temperature: float):
        super().__init__()
        self.temperature = float(temperature)
        self.width = math.isqrt(vocab_size - 1) + 1
        self.blocks = -(-vocab_size // self.width)
        self.padding = self.blocks * self.width - vocab_size
        self.wide = wide_dtype()

    def construct(self, logits_NV, uniform_NK):
        count, draws = uniform_NK.shape
        probability_NV = ops.softmax(logits_NV / self.temperature, -1)
        if self.padding:
            probability_NV = ops.concat((probability_NV, ops.zeros((count, self.padding), ms.float32)), 1)
        blocks_NAW = probability_NV.reshape((count, self.blocks, self.width))
        running_NA = blocks_NAW.sum(axis=2).astype(self.wide).cumsum(1)
        block_NK, inside_NK = self._invert(running_NA.expand_dims(1), uniform_NK)
        row_N1 = ops.arange(0, count).astype(ms.int32).reshape((-1, 1))
        block_T = (row_N1 * self.blocks + block_NK).reshape((-1,))
        chosen_NKW = blocks_NAW.reshape((-1, self.width)).gather(block_T, 0).reshape((count, draws, self.width))
        within_NK, _ = self._invert(chosen_NKW.astype(self.wide).cumsum(2), inside_NK)
        ids_NK = block_NK * self.width + within_NK
        drawn_NK = ops.gather_elements(probability_NV, 1, ids_NK)
        return ids_NK, ops.log(drawn_NK)

    def _invert(self, running_NKX, fraction_NK):
        """The first entry whose running sum exceeds fraction * total, and how far into that entry the point lies."""
        total_NK1 = running_NKX[:, :, -1:]
        point_NK1 = ops.minimum(fraction_NK.expand_dims(2).astype(running_NKX.dtype), 1 - 1e-7) * total_NK1
        passed_NKX = running_NKX <= point_NK1
        passed_as_number_NKX = passed_NKX.astype(running_NKX.dtype)
        below_NK = (running_NKX * passed_as_number_NKX).max(axis=2)
        above_NK = (running_NKX + 2 * total_NK1 * passed_as_number_NKX).min(axis=2)
        inside_NK = (point_NK1.squeeze(2) - below_NK) / (above_NK - below_NK)
        return passed_NKX.astype(ms.int32).sum(axis=2).astype(ms.int32), inside_NK
