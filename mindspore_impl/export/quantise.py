"""Weight-only int8: one symmetric scale an output channel. Legend: O output channels, I inputs."""

import numpy as np

LEVELS = 127  # -128 is not used, so that the scale is the same in both directions


def quantise(weight_OI: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 weight_OI -> (int8 values_OI, float32 scale_O1) with |weight - values * scale| <= scale / 2.

    A channel of zeros gets the scale 1.
    """
    peak_O1 = np.abs(weight_OI).max(axis=1, keepdims=True)
    scale_O1 = np.where(peak_O1 > 0, peak_O1 / np.float32(LEVELS), np.float32(1.0)).astype(np.float32)
    scale_O1 = np.maximum(scale_O1, np.finfo(np.float32).tiny)  # a channel below 1e-36 becomes zeros
    values_OI = np.clip(np.rint(weight_OI / scale_O1), -LEVELS, LEVELS).astype(np.int8)
    return values_OI, scale_O1


def dequantise(values_OI: np.ndarray, scale_O1: np.ndarray) -> np.ndarray:
    """The float32 weight_OI that the graph multiplies with (before its cast to the compute dtype)."""
    return values_OI.astype(np.float32) * scale_O1
