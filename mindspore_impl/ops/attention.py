"""Causal attention that never crosses a document: padding (segment 0) is one more segment.

Masking adds a finite value (never -inf), so small that its exponential is exactly 0 in float32. Legend: B batch, L
sequence, N = B*L tokens, H query heads, G key/value heads, R = H/G, S = R*L, C head dimension, M document slots.
"""

import math

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from mindspore_impl import runtime

MASKED = -1e30  # finite: -inf gives NaN in backward passes; exp(-1e30 - max) is exactly 0
MAX_DOCUMENTS = 1024  # the fused kernel's limit of documents a call, padding runs included


def make_attention(num_heads: int, num_kv_heads: int, head_dim: int) -> tuple[nn.Cell, nn.Cell]:
    """Return (mask, attend), two Cells.

    mask(segment_ids_BL int32) -> plan, once a forward, shared by all layers (its form is the backend's affair);
    attend(query_NHC, key_NGC, value_NGC, plan) -> mixed_ND with D = H*C, in query's dtype; softmax in float32.
    """
    if runtime.device() == "Ascend":
        return _AscendMask(), _AscendAttention(num_heads, head_dim)
    return _ComposedMask(num_heads, num_kv_heads), _ComposedAttention(num_heads, num_kv_heads, head_dim)


def rows_that_fit(num_heads: int, length: int) -> int:
    """How many sequences of this length a forward pass should take at once, at least 1.

    Composed attention holds [rows, H, L, L] floats a few times, and gets 2^27 of them (0.5 GiB); the fused kernel takes
    MAX_DOCUMENTS documents, and a padded row is two.
    """
    if runtime.device() == "Ascend":
        return MAX_DOCUMENTS // 2
    return max(1, 2**27 // (num_heads * length * length))


class _AscendMask(nn.Cell):
    """Cumulative document ends for the TND layout, of static length: the slots after the last document repeat N.

    Documents beyond the limit leave the last end below N, which the kernel refuses.
    """

    def construct(self, segment_ids_BL):
        batch, length = segment_ids_BL.shape
        tokens = batch * length
        slots = min(tokens, MAX_DOCUMENTS)
        first_B1 = ops.ones((batch, 1), mstype.int32)
        changed_BL = ops.cast(segment_ids_BL[:, 1:] != segment_ids_BL[:, :-1], mstype.int32)
        starts_N = ops.reshape(ops.concat((first_B1, changed_BL), 1), (tokens,))
        document_N = ops.cumsum(starts_N, 0, mstype.int32) - 1
        document_N = ops.minimum(document_N, Tensor(slots, mstype.int32))
        lengths = ops.unsorted_segment_sum(ops.ones((tokens,), mstype.int32), document_N, slots + 1)
        return ops.cast(ops.cumsum(lengths[:slots], 0, mstype.int32), mstype.int64)


class _AscendAttention(nn.Cell):
    """`ops.flash_attention_score`, layout TND, sparse mode 3, with the 2048 x 2048 mask it demands (1 hides)."""

    def __init__(self, num_heads: int, head_dim: int):
        super().__init__()
        self.num_heads = num_heads
        self.width = num_heads * head_dim
        self.scale = 1.0 / math.sqrt(head_dim)
        self.hidden_mask = Tensor(np.triu(np.ones((2048, 2048), np.uint8), k=1))

    def construct(self, query_NHC, key_NGC, value_NGC, ends_M):
        mixed_NHC = ops.flash_attention_score(
            query_NHC,
            key_NGC,
            value_NGC,
            self.num_heads,
            attn_mask=self.hidden_mask,
            actual_seq_qlen=ends_M,
            actual_seq_kvlen=ends_M,
            scalar_value=self.scale,
            next_tokens=0,
            input_layout="TND",
            sparse_mode=3,
        )
        return ops.reshape(mixed_NHC, (-1, self.width))


class _ComposedMask(nn.Cell):
    """The additive mask, repeated over the heads once: a broadcast addition in every layer costs three plain ones."""

    def __init__(self, num_heads: int, num_kv_heads: int):
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads

    def construct(self, segment_ids_BL):
        batch, length = segment_ids_BL.shape
        slot_L = ops.arange(length)
        causal_LL = slot_L.reshape((length, 1)) >= slot_L.reshape((1, length))
        same_BLL = segment_ids_BL.reshape((batch, length, 1)) == segment_ids_BL.reshape((batch, 1, length))
        seen_BLL = ops.logical_and(same_BLL, causal_LL)
        bias_BLL = (1.0 - ops.cast(seen_BLL, mstype.float32)) * MASKED
        bias_BHLL = ops.tile(bias_BLL.reshape((batch, 1, length, length)), (1, self.num_heads, 1, 1))
        return ops.reshape(bias_BHLL, (batch, self.num_kv_heads, -1, length))


class _ComposedAttention(nn.Cell):
    """Grouped heads without repeating keys: the R query heads of a key head are stacked along the sequence."""

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.core = _SoftmaxAttention(head_dim)
        self.transpose = ops.Transpose()
        self.reshape = ops.Reshape()

    def heads_first(self, x, batch, length, heads):
        return self.transpose(self.reshape(x, (batch, length, heads, self.head_dim)), (0, 2, 1, 3))

    def construct(self, query_NHC, key_NGC, value_NGC, bias_BGSL):
        batch, kv_heads, stacked, length = bias_BGSL.shape
        query_BHLC = self.heads_first(query_NHC, batch, length, self.num_heads)
        key_BGLC = self.heads_first(key_NGC, batch, length, kv_heads)
        value_BGLC = self.heads_first(value_NGC, batch, length, kv_heads)
        query_BGSC = self.reshape(query_BHLC, (batch, kv_heads, stacked, self.head_dim))
        mixed_BGSC, _ = self.core(query_BGSC, key_BGLC, value_BGLC, bias_BGSL)
        mixed_BHLC = self.reshape(mixed_BGSC, (batch, self.num_heads, length, self.head_dim))
        return self.reshape(self.transpose(mixed_BHLC, (0, 2, 1, 3)), (batch * length, self.num_heads * self.head_dim))


class _SoftmaxAttention(nn.Cell):
    """softmax(q k^T / sqrt(C) + bias) v, returned with its probabilities, and with its own backward pass.

    The row sums that the gradient of a softmax needs are rowsum(mixed * dmixed), C wide instead of L wide, and enter
    as one more column of the product with v^T. One element-wise pass over [S, L] is left in each direction.
    """

    def __init__(self, head_dim: int):
        super().__init__()
        self.scale = 1.0 / math.sqrt(head_dim)
        self.product = ops.BatchMatMul()
        self.product_left = ops.BatchMatMul(transpose_a=True)
        self.product_right = ops.BatchMatMul(transpose_b=True)
        self.softmax = ops.Softmax(-1)
        self.concat = ops.Concat(-1)
        self.row_sum = ops.ReduceSum(keep_dims=True)
        self.fill = ops.FillV2()

    def construct(self, query_BGSC, key_BGLC, value_BGLC, bias_BGSL):
        scores_BGSL = ops.cast(self.product_right(query_BGSC, key_BGLC * self.scale), mstype.float32)
        weights_BGSL = ops.cast(self.softmax(scores_BGSL + bias_BGSL), value_BGLC.dtype)
        return self.product(weights_BGSL, value_BGLC), weights_BGSL

    def bprop(self, query_BGSC, key_BGLC, value_BGLC, bias_BGSL, out, dout):
        mixed_BGSC, weights_BGSL = out
        dmixed_BGSC = dout[0]
        row_BGS1 = self.row_sum(mixed_BGSC * dmixed_BGSC, -1)
        minus_one = self.fill(value_BGLC.shape[:3] + (1,), Tensor(-1.0, mstype.float32))
        dweights_BGSL = self.product_right(self.concat((dmixed_BGSC, row_BGS1)), self.concat((value_BGLC, minus_one)))
        dscores_BGSL = weights_BGSL * dweights_BGSL
        dquery_BGSC = self.product(dscores_BGSL, key_BGLC * self.scale)
        dkey_BGLC = self.product_left(dscores_BGSL, query_BGSC) * self.scale
        dvalue_BGLC = self.product_left(weights_BGSL, dmixed_BGSC)
        return dquery_BGSC, dkey_BGLC, dvalue_BGLC, dscores_BGSL


class CachedAttention(nn.Cell):
    """One new query a sequence against a static key/value cache; composed on every device.

    (query_BHC, key_cache_BGTC, value_cache_BGTC, bias_BGRT float32) -> mixed_BD with D = H*C, in query's dtype.
    """

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int):
        super().__init__()
        self.shape = (num_kv_heads, num_heads // num_kv_heads, head_dim)
        self.scale = 1.0 / math.sqrt(head_dim)
        self.width = num_heads * head_dim
        self.product = ops.BatchMatMul()
        self.product_right = ops.BatchMatMul(transpose_b=True)
        self.softmax = ops.Softmax(-1)

    def construct(self, query_BHC, key_cache_BGTC, value_cache_BGTC, bias_BGRT):
        query_BGRC = ops.reshape(query_BHC * self.scale, query_BHC.shape[:1] + self.shape)
        scores_BGRT = ops.cast(self.product_right(query_BGRC, key_cache_BGTC), mstype.float32)
        weights_BGRT = ops.cast(self.softmax(scores_BGRT + bias_BGRT), query_BHC.dtype)
        return ops.reshape(self.product(weights_BGRT, value_cache_BGTC), (-1, self.width))


def cache_bias(start_B, slot_B, slots: int, num_kv_heads: int, group: int):
    """bias_BGRT: 0 where start <= cache slot <= slot, MASKED elsewhere, repeated over the heads. Called in a graph.

    Args:
        start_B: the first slot of each sequence.
        slot_B: its newest one.
        slots: T.
        num_kv_heads: G.
        group: R.
    """
    slot_1T = ops.reshape(ops.arange(slots), (1, slots))
    seen_BT = ops.logical_and(slot_1T >= ops.reshape(start_B, (-1, 1)), slot_1T <= ops.reshape(slot_B, (-1, 1)))
    bias_BT = (1.0 - ops.cast(seen_BT, mstype.float32)) * MASKED
    return ops.tile(ops.reshape(bias_BT, (-1, 1, 1, slots)), (1, num_kv_heads, group, 1))
