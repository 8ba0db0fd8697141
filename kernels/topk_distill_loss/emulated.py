"""Run the Ascend C kernel on NumPy arrays through the host emulator, with the tiling that the host side would make.

    result = launch(logits_NV, target_ids_N, teacher_ids_NK, teacher_logp_NK, tail_logp_N, row_weight_N, kd_weight=0.5)

Legend: N rows, V columns, K teacher ids a row. bfloat16 logits are given as their bits in uint16.
"""

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mindspore_impl.ops.divergence_codes import DIVERGENCES, SUPPORTS

HERE = Path(__file__).resolve().parent
TYPES = {"float32": "float", "float16": "half", "uint16": "bfloat16_t"}  # by NumPy's name
_spec = importlib.util.spec_from_file_location("emulate", HERE.parent / "emulator" / "emulate.py")
emulate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(emulate)


def _fields(ctype, names: str) -> list[tuple]:
    return [(name, ctype) for name in names.split()]


class Problem(ctypes.Structure):
    """TopkDistillLossProblem of op_kernel/topk_distill_loss_tiling.h."""

    _fields_ = [
        *_fields(ctypes.c_int64, "rows vocab topK logitBytes cores ubBytes"),
        *_fields(ctypes.c_float, "ceWeight kdWeight temperature"),
        *_fields(ctypes.c_int64, "divergence support"),
        ("writeGradient", ctypes.c_bool),
        *_fields(ctypes.c_int64, "split maxTile"),
    ]


class Tiling(ctypes.Structure):
    """TopkDistillLossTiling of op_kernel/topk_distill_loss_tiling.h."""

    _fields_ = [
        *_fields(ctypes.c_uint32, "rows vocab topK cores split span tile slots floats lanes"),
        *_fields(ctypes.c_float, "ceWeight kdWeight temperature"),
        *_fields(ctypes.c_uint32, "divergence support writeGradient"),
    ]


class Launch(NamedTuple):
    """What a launch leaves: `logits_NV` holds the gradient, or is as given in the loss-only form."""

    logits_NV: np.ndarray
    ce_N: np.ndarray
    kd_N: np.ndarray
    diagnostics_4N: np.ndarray
    counters: dict
    tiling: Tiling


@cache
def tiling_library() -> ctypes.CDLL:
    """The host's tiling function, compiled without the emulator."""
    code = ctypes.CDLL(str(emulate.build(HERE / "tiling_abi.cpp", include_dirs=[HERE / "op_kernel"])))
    code.topk_distill_make_tiling.restype = ctypes.c_char_p
    code.topk_distill_workspace_bytes.restype = ctypes.c_uint64
    code.topk_distill_needed_bytes.restype = ctypes.c_int64
    code.topk_distill_needed_bytes.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    return code


def make_tiling(problem: Problem) -> Tiling:
    """Raises ValueError with the reason where the host side refuses the problem."""
    tiling = Tiling()
    refusal = tiling_library().topk_distill_make_tiling(ctypes.byref(problem), ctypes.byref(tiling))
    if refusal:
        raise ValueError(refusal.decode())
    return tiling


def launch(
    logits_NV: np.ndarray,
    target_ids_N: np.ndarray,
    teacher_ids_NK: np.ndarray,
    teacher_logp_NK: np.ndarray,
    teacher_tail_logp_N: np.ndarray,
    row_weight_N: np.ndarray,
    *,
    ce_weight: float = 0.0,
    kd_weight: float = 1.0,
    temperature: float = 1.0,
    divergence: str = "forward_kl",
    support: str = "tail_bucket",
    write_gradient: bool = True,
    cores: int = 2,
    split: int = 0,
    max_tile: int = 0,
) -> Launch:
    """One launch on copies of the arrays, which are those of `mindspore_impl/ops/topk_distill.py`.

    Args:
        logits_NV: float32, float16, or bfloat16 as its bits in uint16.
        target_ids_N: int32.
        teacher_ids_NK: int32, -1 pads K.
        teacher_logp_NK: float32.
        teacher_tail_logp_N: float32.
        row_weight_N: float32.
        ce_weight: factor of the cross-entropy.
        kd_weight: factor of the divergence.
        temperature: T of the divergence.
        divergence: a name of `ops/divergence_codes.py`.
        support: the same.
        write_gradient: False computes the losses alone.
        cores: how many vector cores there are.
        split: cores a row, 0 lets the tiling choose.
        max_tile: columns of the largest tile, 0 lets the tiling choose.

    Raises ValueError (tiling) or emulate.EmulatorError (a broken rule).
    """
    count, vocab = logits_NV.shape
    problem = Problem(
        count, vocab, teacher_ids_NK.shape[1], logits_NV.itemsize, cores, emulate.UB_BYTES, ce_weight, kd_weight,
        temperature, DIVERGENCES.index(divergence), SUPPORTS.index(support), write_gradient, split, max_tile,
    )  # fmt: skip
    tiling = make_tiling(problem)
    logits_NV = np.array(logits_NV, order="C")
    ce_N, kd_N, diagnostics_4N = (np.full(shape, np.nan, np.float32) for shape in (count, count, (4, count)))
    words = int(tiling_library().topk_distill_workspace_bytes(ctypes.byref(tiling))) // 4
    arguments = [
        ("logits", logits_NV),
        ("target_ids", np.array(target_ids_N, np.int32)),
        ("teacher_ids", np.array(teacher_ids_NK, np.int32, order="C")),
        ("teacher_logp", np.array(teacher_logp_NK, np.float32, order="C")),
        ("teacher_tail_logp", np.array(teacher_tail_logp_N, np.float32)),
        ("row_weight", np.array(row_weight_N, np.float32)),
        ("logits", logits_NV),  # the same memory: the gradient overwrites the logits
        ("ce", ce_N),
        ("kd", kd_N),
        ("diagnostics", diagnostics_4N),
        ("workspace", np.full(max(words, 8), np.nan, np.float32)),
        ("tiling", bytes(tiling)),
    ]
    kernel = HERE / "op_kernel" / "topk_distill_loss.cpp"
    library = emulate.build(kernel, defines={"DTYPE_LOGITS": TYPES[logits_NV.dtype.name]})
    counters = emulate.run(library, "topk_distill_loss", arguments, cores=tiling.cores)
    return Launch(logits_NV, ce_N, kd_N, diagnostics_4N, counters, tiling)
