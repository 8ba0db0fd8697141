"""SwiGLU: silu(gate) * up, the activation of the feed-forward block. Legend: N tokens, F feed-forward width."""

from mindspore import nn, ops

from mindspore_impl import runtime


def make_swiglu() -> nn.Cell:
    """Return a Cell (gate_NF, up_NF) -> silu(gate) * up, in their dtype."""
    return _AscendSwiglu() if runtime.device() == "Ascend" else _ComposedSwiglu()


class _AscendSwiglu(nn.Cell):
    """`ops.swiglu` takes one tensor whose last axis is [gate, up]."""

    def construct(self, gate_NF, up_NF):
        return ops.swiglu(ops.concat((gate_NF, up_NF), -1), -1)


class _ComposedSwiglu(nn.Cell):
    def __init__(self):
        super().__init__()
        self.sigmoid = ops.Sigmoid()

    def construct(self, gate_NF, up_NF):
        return gate_NF * self.sigmoid(gate_NF) * up_NF
