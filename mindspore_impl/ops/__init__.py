"""Operators that have several backends, one file each: a factory returns the Cell for `runtime.device()`.

On "Ascend" it calls the vendor's fused primitive, on "CPU" composed operators; arguments are equal, without Parameters.
"""
