"""AdamW update of a plain tensor: (w, m, v, g) -> new w, with m and v changed in place.

    m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2,   w - rate (m / (sqrt(v) + eps) + decay w)

It is the arithmetic of `ops.AdamWeightDecay`, which takes parameters only.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.ops import signature

from mindspore_impl import runtime


def make_update() -> nn.Cell:
    """A Cell (w, m, v, rate, beta1, beta2, eps, decay, g) -> w after the update; w must not be read again.

    w, g: float32 tensors; m, v: float32 parameters of the same shape, changed; the others: float32 scalars.
    """
    return ComposedUpdate() if runtime.device() == "Ascend" else CpuUpdate()


class ComposedUpdate(nn.Cell):
    """Of plain operators, as the Ascend backend takes `ops.AdamWeightDecay` to pieces by itself."""

    def __init__(self):
        super().__init__()
        self.one = Tensor(1.0, ms.float32)

    def construct(self, w, m, v, rate, beta1, beta2, eps, decay, g):
        new_m = m * beta1 + g * (self.one - beta1)
        new_v = v * beta2 + g * g * (self.one - beta2)
        new_w = w - rate * (new_m / (ops.sqrt(new_v) + eps) + decay * w)
        return ops.depend(new_w, (ops.assign(m, new_m), ops.assign(v, new_v)))


class CpuUpdate(nn.Cell):
    """The CPU's fused operator, told that w is no parameter; it writes w in place, and `depend` orders its readers."""

    def __init__(self):
        super().__init__()
        first = signature.make_sig("var", dtype=signature.sig_dtype.T)  # without RW_WRITE, which parameters alone fit
        signatures = (first, *ops.AdamWeightDecay.__mindspore_signature__[1:])
        named = "AdamWeightDecay"  # the class's name is the operator's
        self.update = type(named, (ops.AdamWeightDecay,), {"__mindspore_signature__": signatures})()

    def construct(self, w, m, v, rate, beta1, beta2, eps, decay, g):
        return ops.depend(w, self.update(w, m, v, rate, beta1, beta2, eps, decay, g))
