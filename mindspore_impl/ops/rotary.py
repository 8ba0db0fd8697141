"""Rotary position embedding, rotate-half form: y = x * cos + rotate_half(x) * sin with rotate_half([a, b]) = [-b, a].

Legend: B batch, L sequence, N = B*L tokens, P table rows (positions), H heads, C head dimension (even).
"""

import numpy as np
from mindspore import Tensor, nn, ops

from mindspore_impl import runtime


def rotary_table(head_dim: int, theta: float, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """cos_PC and sin_PC in float32, the angles computed in float64.

    In float32 an angle near position 32768 would already be off by 1e-3 radians.
    """
    frequency = float(theta) ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    angle = np.arange(positions, dtype=np.float64)[:, None] * frequency[None, :]
    angle = np.concatenate([angle, angle], axis=1)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def make_rotary(num_heads: int, num_kv_heads: int, head_dim: int) -> tuple[nn.Cell, nn.Cell]:
    """Return (spread, rotate), two Cells.

    spread(cos_NC, sin_NC) -> tables, once a forward, in whatever form the backend wants;
    rotate(query_NHC, key_NGC, tables) -> (query_NHC, key_NGC) rotated, in each layer.
    """
    if runtime.device() == "Ascend":
        return _AscendSpread(), _AscendRotary()
    return _ComposedSpread(num_heads, num_kv_heads), _ComposedRotary(head_dim)


class _AscendSpread(nn.Cell):
    """The fused operator wants 4-dimensional tables: layout BSND with 1S1D tables, the N tokens being its S."""

    def construct(self, cos_NC, sin_NC):
        tokens, width = cos_NC.shape
        return ops.reshape(cos_NC, (1, tokens, 1, width)), ops.reshape(sin_NC, (1, tokens, 1, width))


class _AscendRotary(nn.Cell):
    """`ops.rotary_position_embedding` in mode 0 (rotate half)."""

    def construct(self, query_NHC, key_NGC, tables):
        cos, sin = tables
        cos, sin = ops.cast(cos, query_NHC.dtype), ops.cast(sin, query_NHC.dtype)
        query = ops.rotary_position_embedding(ops.expand_dims(query_NHC, 0), cos, sin, 0)
        key = ops.rotary_position_embedding(ops.expand_dims(key_NGC, 0), cos, sin, 0)
        return ops.reshape(query, query_NHC.shape), ops.reshape(key, key_NGC.shape)


class _ComposedSpread(nn.Cell):
    """Repeat the tables over the heads once: a broadcast product in every layer costs three plain ones."""

    def __init__(self, num_heads: int, num_kv_heads: int):
        super().__init__()
        self.heads, self.kv_heads = num_heads, num_kv_heads

    def construct(self, cos_NC, sin_NC):
        return (
            ops.tile(cos_NC, (1, self.heads)),
            ops.tile(sin_NC, (1, self.heads)),
            ops.tile(cos_NC, (1, self.kv_heads)),
            ops.tile(sin_NC, (1, self.kv_heads)),
        )


class _ComposedRotary(nn.Cell):
    """rotate_half as a product with a constant [C, C] matrix of 0, 1, -1: exact, and faster than split and concat."""

    def __init__(self, head_dim: int):
        super().__init__()
        half = head_dim // 2
        rotation_CC = np.zeros((head_dim, head_dim), np.float32)
        rotation_CC[np.arange(half) + half, np.arange(half)] = -1.0
        rotation_CC[np.arange(half), np.arange(half) + half] = 1.0
        self.rotation_CC = Tensor(rotation_CC)
        self.width = head_dim
        self.matmul = ops.MatMul()
        self.reshape = ops.Reshape()

    def rotate(self, x_NHC, cos, sin):
        rotated = self.matmul(self.reshape(x_NHC, (-1, self.width)), ops.cast(self.rotation_CC, x_NHC.dtype))
        y = self.reshape(x_NHC, cos.shape) * cos + self.reshape(rotated, cos.shape) * sin
        return ops.cast(self.reshape(y, x_NHC.shape), x_NHC.dtype)

    def construct(self, query_NHC, key_NGC, tables):
        cos_query, sin_query, cos_key, sin_key = tables
        return self.rotate(query_NHC, cos_query, sin_query), self.rotate(key_NGC, cos_key, sin_key)
