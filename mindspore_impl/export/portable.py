"""The model for inference on a board: batch 1, static shapes, weights in stored form, portable operators only.

The mathematics is implemented a second time, and the parity report compares both. Residual stream, norms, softmax and
activation are float32; matrix products and the cache have the compute dtype. On the CPU an operator that broadcasts
keeps 16 bytes an element of its result while the graph lives, so whatever is large is tiled first; and what depends on
weights alone runs first of all and at once, so a weight is made to wait for the activations that it meets.

Legend: L prompt length, T cache slots, D hidden, F feed-forward, V vocabulary, H query heads, G key/value heads,
R = H/G, C head dimension, I/O in and out features.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from mindspore_impl.export.stored import COS, SIN, Stored, compute_dtype, scale_name, stored_tensors
from mindspore_impl.model.decode import cache_of, cache_rows
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.model.pangu import head_sizes
from mindspore_impl.ops.attention import MASKED


def _parameter(stored: dict[str, Stored], name: str) -> Parameter | None:
    """A Parameter of zeros, since graphs are exported without their weights; None where the package has none."""
    if name not in stored:
        return None
    return Parameter(Tensor(np.zeros(stored[name].shape, stored[name].dtype)), name=name, requires_grad=False)


def _constant(number: float) -> Tensor:
    """A float32 scalar; a Python number would become `Muls` in the graph, which older backends lack."""
    return Tensor(number, mstype.float32)


class _Linear(nn.Cell):
    """x_1I (compute dtype) -> x @ weight_OI^T + bias, the weight dequantised by a cast and a product if it is int8."""

    def __init__(self, stored: dict[str, Stored], name: str, dtype: ms.Type):
        super().__init__(auto_prefix=False)
        self.weight, self.bias = _parameter(stored, f"{name}.weight"), _parameter(stored, f"{name}.bias")
        self.scale = _parameter(stored, scale_name(f"{name}.weight"))
        self.dtype, self.inputs = dtype, self.weight.shape[1]
        self.matmul, self.bias_add = ops.MatMul(transpose_b=True), ops.BiasAdd()

    def construct(self, x_LI):
        weight_OI = ops.depend(self.weight, x_LI)
        if self.scale is not None:
            scale_OI = ops.tile(ops.depend(self.scale, x_LI), (1, self.inputs))
            weight_OI = ops.cast(ops.cast(weight_OI, mstype.float32) * scale_OI, self.dtype)
        y_LO = self.matmul(x_LI, weight_OI)
        if self.bias is not None:
            y_LO = self.bias_add(y_LO, self.bias)
        return y_LO


class _Norm(nn.Cell):
    """x_LD float32 -> its RMS normalisation in the compute dtype; statistics in float32."""

    def __init__(self, stored: dict[str, Stored], name: str, eps: float, dtype: ms.Type):
        super().__init__(auto_prefix=False)
        self.weight = _parameter(stored, f"{name}.weight")
        self.eps, self.dtype, self.size = _constant(eps), dtype, self.weight.shape[0]
        self.mean, self.rsqrt = ops.ReduceMean(keep_dims=True), ops.Rsqrt()

    def construct(self, x_LD):
        factor_L1 = self.rsqrt(self.mean(x_LD * x_LD, -1) + self.eps)
        weight_LD = ops.tile(ops.reshape(self.weight, (1, self.size)), (x_LD.shape[0], 1))
        return ops.cast(x_LD * ops.tile(factor_L1, (1, self.size)) * weight_LD, self.dtype)


class _Layer(nn.Cell):
    """One transformer block without its mixing, which prefill and decode do in their own way."""

    def __init__(self, options: ModelOptions, stored: dict[str, Stored], name: str, dtype: ms.Type):
        super().__init__(auto_prefix=False)
        _, self.kv_heads, self.width = head_sizes(options)
        self.before_attention = _Norm(stored, f"{name}.input_layernorm", options.rms_norm_eps, dtype)
        self.before_mlp = _Norm(stored, f"{name}.post_attention_layernorm", options.rms_norm_eps, dtype)
        self.query, self.key, self.value, self.mix = (
            _Linear(stored, f"{name}.self_attn.{part}_proj", dtype) for part in "qkvo"
        )
        self.gate, self.up, self.down = (
            _Linear(stored, f"{name}.mlp.{part}_proj", dtype) for part in ("gate", "up", "down")
        )
        self.dtype, self.sigmoid, self.concat, self.split = dtype, ops.Sigmoid(), ops.Concat(-1), ops.Split(-1, 2)

    def rotated(self, x_LI, cos_LHC, sin_LHC):
        """x_LI -> x_LHC in the compute dtype, rotated in float32: x * cos + swapped halves * signed sin."""
        x_LHC = ops.reshape(ops.cast(x_LI, mstype.float32), cos_LHC.shape)
        low, high = self.split(x_LHC)
        return ops.cast(x_LHC * cos_LHC + self.concat((high, low)) * sin_LHC, self.dtype)

    def project(self, x_LD, tables):
        """x_LD -> query_LHC (rotated and scaled), key_LGC (rotated), value_LGC in the compute dtype."""
        cos_LHC, sin_LHC, cos_LGC, sin_LGC = tables
        normed_LD = self.before_attention(x_LD)
        value_LGC = ops.reshape(self.value(normed_LD), (-1, self.kv_heads, self.width))
        query_LHC = self.rotated(self.query(normed_LD), cos_LHC, sin_LHC)
        return query_LHC, self.rotated(self.key(normed_LD), cos_LGC, sin_LGC), value_LGC

    def finish(self, x_LD, mixed_LI):
        """The residual stream after attention and feed-forward, from what attention mixed."""
        x_LD = x_LD + ops.cast(self.mix(mixed_LI), mstype.float32)
        normed_LD = self.before_mlp(x_LD)
        gate_LF = ops.cast(self.gate(normed_LD), mstype.float32)
        active_LF = gate_LF * self.sigmoid(gate_LF) * ops.cast(self.up(normed_LD), mstype.float32)
        return x_LD + ops.cast(self.down(ops.cast(active_LF, self.dtype)), mstype.float32)


class _Body(nn.Cell):
    """What prefill and decode share."""

    def __init__(self, options: ModelOptions, precision: str, slots: int):
        super().__init__(auto_prefix=False)
        stored, dtype = stored_tensors(options, precision, slots), getattr(mstype, compute_dtype(precision))
        self.dtype, self.slots = dtype, slots
        self.heads, self.kv_heads, self.width = head_sizes(options)
        self.group = self.heads // self.kv_heads
        self.embedding = _parameter(stored, "model.embed_tokens.weight")
        self.head = self.embedding if options.tie_word_embeddings else _parameter(stored, "lm_head.weight")
        self.cos, self.sin = _parameter(stored, COS), _parameter(stored, SIN)
        layers = [_Layer(options, stored, f"model.layers.{index}", dtype) for index in range(options.num_hidden_layers)]
        self.layers = nn.CellList(layers, auto_prefix=False)
        self.norm = _Norm(stored, "model.norm", options.rms_norm_eps, dtype)
        self.gather, self.scatter = ops.Gather(), ops.TensorScatterUpdate()
        self.matmul, self.softmax = ops.MatMul(transpose_b=True), ops.Softmax(-1)
        self.product, self.product_right = ops.BatchMatMul(), ops.BatchMatMul(transpose_b=True)
        self.one, self.masked = _constant(1.0), _constant(MASKED)
        self.scale = _constant(1.0 / math.sqrt(self.width))

    def hidden(self, seen):
        """0 where `seen`, MASKED elsewhere."""
        return (self.one - ops.cast(seen, mstype.float32)) * self.masked

    def tables(self, cos_LC, sin_LC):
        """Rotary tables spread over the query heads (times the scale of attention scores) and over the key heads."""
        cos_L1C, sin_L1C = ops.reshape(cos_LC, (-1, 1, self.width)), ops.reshape(sin_LC, (-1, 1, self.width))
        query, key = (1, self.heads, 1), (1, self.kv_heads, 1)
        scaled = ops.tile(cos_L1C * self.scale, query), ops.tile(sin_L1C * self.scale, query)
        return (*scaled, ops.tile(cos_L1C, key), ops.tile(sin_L1C, key))

    def embed(self, ids_L):
        """ids_L -> x_LD float32."""
        return ops.cast(self.gather(self.embedding, ids_L, 0), mstype.float32)

    def logits(self, x_1D):
        """x_1D -> logits_1V float32."""
        return ops.cast(self.matmul(self.norm(x_1D), self.head), mstype.float32)


class PortablePrefill(_Body):
    """Read one prompt.

    construct(input_ids_1L int32, last_1 int32) -> (logits_1V float32, caches): the prompt stands left, `last_1` is the
    index of its last token; caches are key and value of layer 0, of layer 1, ..., [1, G, T, C] in the compute dtype,
    zero behind the bucket. What padding leaves in them is hidden from, and overwritten by, decoding.
    """

    def mixed(self, query_LHC, key_LGC, value_LGC, bias_HLL):
        """Causal attention; the R query heads of a key head are stacked along the sequence."""
        length = bias_HLL.shape[-1]
        query_GSC = ops.reshape(ops.transpose(query_LHC, (1, 0, 2)), (self.kv_heads, -1, self.width))
        scores_GSL = self.product_right(query_GSC, ops.transpose(key_LGC, (1, 0, 2)))
        scores_HLL = ops.reshape(ops.cast(scores_GSL, mstype.float32), (self.heads, length, length))
        weights_GSL = ops.reshape(self.softmax(scores_HLL + bias_HLL), (self.kv_heads, -1, length))
        mixed_GSC = self.product(ops.cast(weights_GSL, self.dtype), ops.transpose(value_LGC, (1, 0, 2)))
        mixed_HLC = ops.reshape(mixed_GSC, (self.heads, length, self.width))
        return ops.reshape(ops.transpose(mixed_HLC, (1, 0, 2)), (length, self.heads * self.width))

    def construct(self, input_ids_1L, last_1):
        length = input_ids_1L.shape[1]
        x_LD = self.embed(ops.reshape(input_ids_1L, (-1,)))
        tables = self.tables(self.cos[:length], self.sin[:length])
        place_L = ops.arange(length)
        causal_LL = ops.reshape(place_L, (length, 1)) >= ops.reshape(place_L, (1, length))
        bias_HLL = ops.tile(ops.reshape(self.hidden(causal_LL), (1, length, length)), (self.heads, 1, 1))
        caches = ()
        for layer in self.layers:
            query_LHC, key_LGC, value_LGC = layer.project(x_LD, tables)
            caches += (cache_of(key_LGC, 1, self.slots), cache_of(value_LGC, 1, self.slots))
            x_LD = layer.finish(x_LD, self.mixed(query_LHC, key_LGC, value_LGC, bias_HLL))
        return self.logits(self.gather(x_LD, last_1, 0)), caches


class PortableDecode(_Body):
    """Take one token.

    construct(token_1 int32, position_1 int32, *caches) -> (logits_1V float32, caches): the token is written into cache
    slot `position_1` and attends to the slots up to it.
    """

    def construct(self, token_1, position_1, *caches):
        x_1D = self.embed(token_1)
        tables = self.tables(self.gather(self.cos, position_1, 0), self.gather(self.sin, position_1, 0))
        bias_1T = ops.reshape(self.hidden(ops.arange(self.slots) <= position_1), (1, 1, 1, self.slots))
        where_1G3 = cache_rows(position_1, self.kv_heads)
        kept = ()
        for index, layer in enumerate(self.layers):
            query_1HC, key_1GC, value_1GC = layer.project(x_1D, tables)
            key_cache = self.scatter(caches[2 * index], where_1G3, key_1GC)
            value_cache = self.scatter(caches[2 * index + 1], where_1G3, value_1GC)
            kept += (key_cache, value_cache)
            query_1GRC = ops.reshape(query_1HC, (1, self.kv_heads, self.group, self.width))
            scores_1GRT = ops.cast(self.product_right(query_1GRC, key_cache), mstype.float32) + bias_1T
            weights_1GRT = ops.cast(self.softmax(scores_1GRT), self.dtype)
            mixed_1GRC = self.product(weights_1GRT, value_cache)
            x_1D = layer.finish(x_1D, ops.reshape(mixed_1GRC, (1, self.heads * self.width)))
        return self.logits(x_1D), kept
