"""Prefill and single-token decoding with a static key/value cache, on the Parameters of a training model.

Caches are inputs and outputs, a key and a value tensor [B, G, T, C] a layer in the compute dtype: the graphs keep no
state and export to MindIR. Sequence b occupies the slots from `start_B[b]` on, its rotary position is slot - start.
Legend: B batch, L prompt length, T cache slots, D hidden, G key/value heads, R = H/G, C head dimension, V vocabulary.
"""

from mindspore import dtype as mstype
from mindspore import nn, ops

from mindspore_impl.errors import UserError
from mindspore_impl.model.pangu import PanguForCausalLM, head_sizes
from mindspore_impl.ops.attention import CachedAttention, cache_bias


def cache_of(x_NGC, batch: int, slots: int):
    """x_NGC -> [B, G, T, C], zeros after the prompt."""
    heads, width = x_NGC.shape[1:]
    x_BGLC = ops.transpose(ops.reshape(x_NGC, (batch, -1, heads, width)), (0, 2, 1, 3))
    if x_BGLC.shape[2] == slots:
        return x_BGLC
    return ops.concat((x_BGLC, ops.zeros((batch, heads, slots - x_BGLC.shape[2], width), x_NGC.dtype)), 2)


def cache_rows(slot, kv_heads: int):
    """int32 indices (b, g, slot) of the rows for new keys and values: slot [B] -> [B, G, 3], [B, L] -> [B, G, L, 3]."""
    batch, rest, ones = slot.shape[0], slot.shape[1:] + (1,), (1,) * slot.ndim
    row = ops.tile(ops.reshape(ops.arange(batch), (batch, 1) + ones), (1, kv_heads) + rest)
    head = ops.tile(ops.reshape(ops.arange(kv_heads), (1, kv_heads) + ones), (batch, 1) + rest)
    slot = ops.tile(ops.reshape(slot, (batch, 1) + rest), (1, kv_heads) + ones)
    return ops.concat((ops.cast(row, mstype.int32), ops.cast(head, mstype.int32), slot), -1)


class Prefill(nn.Cell):
    """Read prompts, return the logits after their last token and the filled caches.

    construct(input_ids_BL, position_ids_BL, segment_ids_BL, last_B) -> (logits_BV float32, caches): `last_B` is the
    index of each last token; padding has segment 0, left or right; caches is (key, value) of each layer, flattened.
    """

    def __init__(self, model: PanguForCausalLM, slots: int):
        super().__init__(auto_prefix=False)
        _check_slots(model, slots)
        self.model = model
        self.slots = slots

    def construct(self, input_ids_BL, position_ids_BL, segment_ids_BL, last_B):
        batch, length = input_ids_BL.shape
        body = self.model.model
        x_ND = body.embed(input_ids_BL)
        tables = body.tables(position_ids_BL)
        plan = body.mask(segment_ids_BL)
        caches = ()
        for layer in body.layers:
            query_NHC, key_NGC, value_NGC = layer.project(x_ND, tables)
            caches += (cache_of(key_NGC, batch, self.slots), cache_of(value_NGC, batch, self.slots))
            x_ND = layer.finish(x_ND, layer.self_attn.attend(query_NHC, key_NGC, value_NGC, plan))
        row_B = ops.arange(batch) * length + last_B
        x_BD = ops.gather(x_ND, row_B, 0)
        return self.model.logits(body.norm(x_BD)), caches


class Decode(nn.Cell):
    """construct(token_B, slot_B, start_B, *caches) -> (logits_BV float32, caches): take one token a sequence.

    The token is written into cache slot `slot_B` and attends to the slots from `start_B` to `slot_B`.
    """

    def __init__(self, model: PanguForCausalLM, slots: int):
        super().__init__(auto_prefix=False)
        _check_slots(model, slots)
        options = model.options
        self.model = model
        self.slots = slots
        heads, self.kv_heads, width = head_sizes(options)
        self.group = heads // self.kv_heads
        self.attend = CachedAttention(heads, self.kv_heads, width)
        self.scatter = ops.TensorScatterUpdate()

    def construct(self, token_B, slot_B, start_B, *caches):
        body = self.model.model
        x_BD = body.embed(token_B)
        tables = body.tables(slot_B - start_B)
        bias_BGRT = cache_bias(start_B, slot_B, self.slots, self.kv_heads, self.group)
        where = cache_rows(slot_B, self.kv_heads)
        kept = ()
        for index, layer in enumerate(body.layers):
            query_BHC, key_BGC, value_BGC = layer.project(x_BD, tables)
            key_cache = self.scatter(caches[2 * index], where, key_BGC)
            value_cache = self.scatter(caches[2 * index + 1], where, value_BGC)
            kept += (key_cache, value_cache)
            x_BD = layer.finish(x_BD, self.attend(query_BHC, key_cache, value_cache, bias_BGRT))
        return self.model.logits(body.norm(x_BD)), kept


def _check_slots(model: PanguForCausalLM, slots: int) -> None:
    limit = model.options.max_position_embeddings
    if not 0 < slots <= limit:
        raise UserError(f"a cache of {slots} slots does not fit max_position_embeddings {limit}; use at most {limit}")
