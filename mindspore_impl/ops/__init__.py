"""Operators that have several backends, one file each.

Every file offers one factory that asks `runtime.device()` once, when the network is built, and returns a Cell: on
"Ascend" a call of the vendor's fused primitive, on "CPU" the same mathematics composed of operators that have CPU
kernels. The Cells hold no Parameters and take equal arguments on both, so nothing else asks which device it is on.
"""
