"""Extend cached sequences (of `decode.py`) by several tokens at once; sequences may share a cached prefix.

Legend: R sequences of the given caches, B sequences, L stretch, T cache slots, D hidden, H query heads, G key/value
heads, C head dimension, N = B*L.
"""

import math

from mindspore import dtype as mstype
from mindspore import nn, ops

from mindspore_impl.model.decode import cache_rows
from mindspore_impl.model.pangu import PanguForCausalLM, head_sizes
from mindspore_impl.ops.attention import MASKED


class Extend(nn.Cell):
    """construct(input_ids_BL, start_B, row_B, *caches) -> (hidden_BLD after the final norm, caches of the B sequences).

    int32. Sequence b goes on from row `row_B[b]` of the given caches at slot `start_B[b]`; later slots of that row are
    ignored. start + L may not exceed T.
    """

    def __init__(self, model: PanguForCausalLM):
        super().__init__(auto_prefix=False)
        options = model.options
        self.model = model
        self.heads, self.kv_heads, self.width = head_sizes(options)
        self.last_position = options.max_position_embeddings - 1
        self.scale = 1.0 / math.sqrt(self.width)
        self.scatter = ops.TensorScatterUpdate()
        self.product = ops.BatchMatMul()
        self.product_right = ops.BatchMatMul(transpose_b=True)
        self.softmax = ops.Softmax(-1)

    def heads_first(self, x_NHC, batch, length, heads):
        """[N, heads, C] -> [B, heads, L, C]."""
        return ops.transpose(ops.reshape(x_NHC, (batch, length, heads, self.width)), (0, 2, 1, 3))

    def attend(self, query_NHC, key_BGTC, value_BGTC, bias_BGST):
        """-> mixed_ND, the R*L queries of a key head stacked (S)."""
        batch, kv_heads, stacked, _ = bias_BGST.shape
        length = query_NHC.shape[0] // batch
        query_BHLC = self.heads_first(query_NHC * self.scale, batch, length, self.heads)
        query_BGSC = ops.reshape(query_BHLC, (batch, kv_heads, stacked, self.width))
        scores_BGST = ops.cast(self.product_right(query_BGSC, key_BGTC), mstype.float32)
        weights_BGST = ops.cast(self.softmax(scores_BGST + bias_BGST), query_NHC.dtype)
        mixed_BHLC = ops.reshape(self.product(weights_BGST, value_BGTC), (batch, self.heads, length, self.width))
        return ops.reshape(ops.transpose(mixed_BHLC, (0, 2, 1, 3)), (batch * length, self.heads * self.width))

    def bias(self, slot_BL, slots):
        """0 where a cache slot is not after the token's own, MASKED elsewhere, stacked over the heads of a key head."""
        batch, length = slot_BL.shape
        seen_BLT = ops.reshape(ops.arange(slots), (1, 1, slots)) <= ops.reshape(slot_BL, (batch, length, 1))
        bias_BLT = (1.0 - ops.cast(seen_BLT, mstype.float32)) * MASKED
        return ops.tile(
            ops.reshape(bias_BLT, (batch, 1, length, slots)), (1, self.kv_heads, self.heads // self.kv_heads, 1)
        )

    def construct(self, input_ids_BL, start_B, row_B, *caches):
        batch, length = input_ids_BL.shape
        slot_BL = ops.reshape(start_B, (batch, 1)) + ops.cast(
            ops.reshape(ops.arange(length), (1, length)), mstype.int32
        )
        body = self.model.model
        x_ND = body.embed(input_ids_BL)
        tables = body.tables(ops.minimum(slot_BL, self.last_position))  # only padding lies beyond
        bias_BGST = self.bias(slot_BL, caches[0].shape[2])
        where = cache_rows(slot_BL, self.kv_heads)
        kept = ()
        for index, layer in enumerate(body.layers):
            query_NHC, key_NGC, value_NGC = layer.project(x_ND, tables)
            key_BGLC = self.heads_first(key_NGC, batch, length, self.kv_heads)
            value_BGLC = self.heads_first(value_NGC, batch, length, self.kv_heads)
            key_BGTC = self.scatter(ops.gather(caches[2 * index], row_B, 0), where, key_BGLC)
            value_BGTC = self.scatter(ops.gather(caches[2 * index + 1], row_B, 0), where, value_BGLC)
            kept += (key_BGTC, value_BGTC)
            x_ND = layer.finish(x_ND, self.attend(query_NHC, key_BGTC, value_BGTC, bias_BGST))
        return ops.reshape(body.norm(x_ND), (batch, length, -1)), kept


class ScoreExtension(nn.Cell):
    """Log-probabilities of given tokens behind a stretch.

    construct(input_ids_BL, start_B, row_B, where_BS, target_ids_BSK, *caches) -> (logp_BSK float32, best_BS int32): of
    the K targets that may follow the S positions `where_BS` of each stretch, and the most probable token there.
    """

    def __init__(self, model: PanguForCausalLM, most_logits: int = 2**27):
        super().__init__(auto_prefix=False)
        self.model, self.extend = model, Extend(model)
        self.rows = max(1, most_logits // model.options.vocab_size)  # whose logits are held at a time
        self.argmax = ops.Argmax(-1, mstype.int32)

    def construct(self, input_ids_BL, start_B, row_B, where_BS, target_ids_BSK, *caches):
        batch, length = input_ids_BL.shape
        _, count, several = target_ids_BSK.shape
        hidden_BLD, _ = self.extend(input_ids_BL, start_B, row_B, *caches)
        first_B1 = ops.cast(ops.reshape(ops.arange(batch) * length, (batch, 1)), mstype.int32)
        row_N = ops.reshape(first_B1 + where_BS, (-1,))
        hidden_ND = ops.gather(ops.reshape(hidden_BLD, (batch * length, -1)), row_N, 0)
        target_NK = ops.reshape(target_ids_BSK, (batch * count, several))
        logp, best = (), ()
        for first in range(0, batch * count, self.rows):
            logits_NV = self.model.logits(hidden_ND[first : first + self.rows])
            chosen_NK = ops.gather_elements(logits_NV, 1, target_NK[first : first + self.rows])
            logp += (chosen_NK - ops.logsumexp(logits_NV, -1, True),)
            best += (self.argmax(logits_NV),)
        if len(logp) == 1:
            return ops.reshape(logp[0], (batch, count, several)), ops.reshape(best[0], (batch, count))
        logp_BSK = ops.reshape(ops.concat(logp, 0), (batch, count, several))
        return logp_BSK, ops.reshape(ops.concat(best, 0), (batch, count))
