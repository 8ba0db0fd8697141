"""Calls of the native CPU operators through their C interface, and of the Ascend C kernel through the emulator."""

import ctypes
import os
import shutil
from pathlib import Path
from unittest import mock

import numpy as np

from mindspore_impl.model.tensor_file import from_bfloat16, to_bfloat16
from mindspore_impl.ops import native
from mindspore_impl.ops.divergence_codes import DIVERGENCES, SUPPORTS
from mindspore_impl.speed.ascend_traffic import load_kernel

ROOT = Path(__file__).resolve().parents[2]
DTYPES = ("float32", "float16", "bfloat16")
ISAS = ("baseline", "avx2", "avx512")

emulated = load_kernel()
emulate = emulated.emulate


def encode(logits_NV: np.ndarray, dtype: str) -> np.ndarray:
    """The nearest numbers of a dtype; bfloat16, which NumPy lacks, as its bits in uint16."""
    with np.errstate(over="ignore"):
        return (
            to_bfloat16(np.ascontiguousarray(logits_NV, np.float32)) if dtype == "bfloat16" else logits_NV.astype(dtype)
        )


def decode(stored_NV: np.ndarray) -> np.ndarray:
    """float32 values of what `encode` gives."""
    return from_bfloat16(stored_NV) if stored_NV.dtype == np.uint16 else stored_NV.astype(np.float32)


class Twin:
    """One loaded library; a copy of the file keeps its own choice of instruction set."""

    def __init__(self, folder: Path, isa: str = ""):
        path = folder / f"twin_{isa or 'best'}.so"
        shutil.copy(native.library(), path)
        self.library = ctypes.CDLL(str(path))
        self.library.InstructionSet.restype = ctypes.c_char_p
        with mock.patch.dict(os.environ, PANGU_CPU_ISA=isa):
            self.isa = self.library.InstructionSet().decode()  # chosen now and kept

    def set_threads(self, count: int) -> None:
        self.library.SetThreads(count)

    def call(self, name: str, *arrays: np.ndarray, first_dtype: str = "float32") -> int:
        """Inputs, then outputs, all C contiguous; returns the operator's code."""
        count = len(arrays)
        assert all(array.flags.c_contiguous for array in arrays)
        dtypes = [first_dtype, *(str(array.dtype) for array in arrays[1:])]
        shapes = [(ctypes.c_int64 * max(array.ndim, 1))(*array.shape) for array in arrays]
        return getattr(self.library, name)(
            count,
            (ctypes.c_void_p * count)(*(array.ctypes.data for array in arrays)),
            (ctypes.c_int * count)(*(array.ndim for array in arrays)),
            (ctypes.c_void_p * count)(*(ctypes.addressof(shape) for shape in shapes)),
            (ctypes.c_char_p * count)(*(dtype.encode() for dtype in dtypes)), None, None,
        )  # fmt: skip

    def distill(self, case, divergence, support, temperature, ce, kd, dtype="float32", gradient=True):
        """(code, ce_N, kd_N, diagnostics_4N, logits or gradient): what TopkDistillLoss[Forward] leaves.

        Outputs start as 7s, so that one that is not written shows. `case.logits_NV` itself is left alone.
        """
        logits_NV, count = case.logits_NV.copy(), len(case.logits_NV)
        settings = np.array([ce, kd, temperature, DIVERGENCES.index(divergence), SUPPORTS.index(support)], np.float32)
        outputs = [np.full(shape, 7, np.float32) for shape in (count, count, (4, count))]
        code = self.call(
            "TopkDistillLoss" if gradient else "TopkDistillLossForward",
            logits_NV, case.target_ids_N, case.teacher_ids_NK, case.teacher_logp_NK, case.teacher_tail_logp_N,
            case.loss_weight_N, settings, *outputs, first_dtype=dtype,
        )  # fmt: skip
        return code, *outputs, logits_NV

    def top_k(self, logits_NV, top_k, temperature=1.0):
        """(code, ids_NK, logp_NK, tail_logp_N)."""
        shape = (len(logits_NV), top_k)
        outputs = np.full(shape, 7, np.int32), np.full(shape, 7, np.float32), np.full(shape[0], 7, np.float32)
        return self.call("TopkLogprobs", logits_NV, np.array([temperature], np.float32), *outputs), *outputs

    def exponentials(self, x: np.ndarray) -> np.ndarray:
        y = np.empty_like(x)
        at = ctypes.c_void_p
        self.library.Exponentials(at(x.ctypes.data), at(y.ctypes.data), ctypes.c_int64(x.size))
        return y
