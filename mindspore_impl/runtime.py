"""The machine: device, precision, threads, seeds, rank.

Nothing else asks which device it is on, except `ops/`, which asks here.
"""

import faulthandler
import os
import platform
import random
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mindspore_impl.errors import UserError
from mindspore_impl.schema import option


@dataclass
class RuntimeOptions:
    """Where and how a run executes. Never part of a stage's fingerprint."""

    device: Literal["auto", "CPU", "Ascend"] = "auto"  # auto: Ascend when an NPU answers, else CPU
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: fp32 on CPU, bf16 on Ascend
    threads: int = option(0, low=0)  # operator threads on the CPU; 0: all cores, shared by the workers
    workers: int = option(1, low=1)  # processes, one a device; more than one are started through msrun
    port: int = option(0, low=0, high=65535)  # where they find each other; 0: any free one
    join_seconds: int = option(300, low=1)  # how long they wait for each other at the start
    hang_seconds: int = option(1800, low=0)  # one of several that shows no progress for so long ends the job; 0: never
    shard_optimizer: bool = False  # cut the optimizer's moments among the workers (ZeRO-1)
    kernels: Literal["auto", "composed"] = "auto"  # composed: plain operators in place of the fused ones, to compare
    logits_mb: int = option(128, low=1)  # megabytes of logits held at once: a loss or a capture works in chunks
    profile_steps: int = option(0, low=0)  # profile this many training steps of each stage into <stage>/profile; 0: off
    cache: str | None = option(None, artifact="file")  # folder of stages that runs share; null: none, or a sweep's
    cache_gb: float = option(0.0, low=0)  # its size, beyond which the results not used for longest go; 0: no bound


_state = {
    "device": "CPU",
    "device_set": None,  # as MindSpore knows it
    "precision": "fp32",
    "threads_set": False,
    "threads": 0,
    "shard_optimizer": False,
    "kernels": "auto",
    "logits_mb": 128,
    "limit": 0,  # of the watchdog, seconds
    "armed_at": 0.0,
}


def setup(options: RuntimeOptions, seed: int = 0) -> None:
    """Choose device and precision, set graph mode, threads and every seed. Call once, before any Cell is built.

    Raises UserError when the device that was asked for does not exist here.
    """
    os.environ.setdefault("GLOG_v", "3")
    import mindspore as ms

    choose_device(options.device)
    precision = options.precision
    if precision == "auto":
        precision = "bf16" if _state["device"] == "Ascend" else "fp32"
    if precision == "bf16" and _state["device"] == "CPU":
        raise UserError("runtime.precision=bf16: MindSpore has no bf16 kernels on the CPU; use fp32 (or auto)")
    shared = max(1, (os.cpu_count() or 1) // world_size()) if world_size() > 1 else 0
    _state.update(precision=precision, threads=options.threads or shared)
    _state.update((key, getattr(options, key)) for key in ("kernels", "logits_mb", "shard_optimizer"))
    if _state["device"] == "CPU" and not _state["threads_set"]:  # MindSpore takes these once a process
        _state["threads_set"] = True
        ms.runtime.set_cpu_affinity(False)
        ms.device_context.cpu.op_tuning.threads_num(_state["threads"] or os.cpu_count() or 1)
    set_seed(seed)


def ensure_setup() -> None:
    """Call `setup` with its defaults, unless a device has been chosen already."""
    if _state["device_set"] is None:
        setup(RuntimeOptions())


def choose_device(wanted: str) -> None:
    """Graph mode on the device `wanted` ("auto", "CPU", "Ascend"); MindSpore takes it once a process.

    Raises UserError when it does not exist here.
    """
    import mindspore as ms

    available = _ascend_available()
    if wanted == "Ascend" and not available:
        raise UserError("runtime.device=Ascend: no such device answers; run tools/doctor.py, or set it to CPU")
    device = "Ascend" if wanted == "Ascend" or (wanted == "auto" and available) else "CPU"
    ms.set_context(mode=ms.GRAPH_MODE)
    if _state["device_set"] != device:
        ms.set_device(device)
    _state["device"] = _state["device_set"] = device


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and MindSpore."""
    import mindspore as ms

    random.seed(seed)
    np.random.seed(seed % 2**32)
    ms.set_seed(seed)


def _ascend_available() -> bool:
    import mindspore as ms

    with suppress(RuntimeError, ValueError):
        return ms.hal.is_available("Ascend") and ms.hal.device_count("Ascend") > 0
    return False


def device() -> str:
    """The device chosen by `setup`: "CPU" or "Ascend"."""
    return _state["device"]


def context() -> dict:
    """Graph mode and device in MindSpore's words, for a framework that would choose for itself."""
    return {"mode": 0, "device_target": device()}


def compute_dtype():
    """The MindSpore dtype of activations: float32 on the CPU, bfloat16 on Ascend. Reductions stay in float32."""
    import mindspore as ms

    return ms.bfloat16 if _state["precision"] == "bf16" else ms.float32


def numerics() -> str:
    """What of the machine changes results beyond rounding: device and precision, such as "CPU-fp32"."""
    return f"{_state['device']}-{_state['precision']}"


def kernels() -> str:
    """Which operators `setup` was asked for: "auto" (fused where they exist) or "composed"."""
    return _state["kernels"]


def threads() -> int:
    """Threads of the CPU's operators; 0: all cores."""
    return _state["threads"]


def logits_elements() -> int:
    """How many logits in the compute dtype may exist at once: the budget that `setup` was given."""
    return (_state["logits_mb"] << 20) // (2 if _state["precision"] == "bf16" else 4)


def rank() -> int:
    """This process's number among `world_size()`, as msrun set it."""
    return int(os.environ.get("RANK_ID", "0"))


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("RANK_SIZE", os.environ.get("MS_WORKER_NUM", "1")))


def optimizer_ranks() -> int:
    """Among how many processes the optimizer's moments are cut; 1: each holds them whole."""
    return world_size() if _state["shard_optimizer"] else 1


def versions() -> dict[str, str]:
    """Versions that belong beside every measured number."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("mindspore", "mindformers", "numpy", "sentencepiece", "hydra-core"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def process_bytes(key: str) -> int | None:
    """Memory of this process in bytes: VmRSS (now) or VmHWM (at most so far); None where /proc does not tell.

    (`ru_maxrss` of getrusage would be the parent's after an exec.)
    """
    with suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))
    return None


def device_description() -> str:
    """The device in words, for reports: processor or NPU name, and how many cores are used."""
    if device() == "Ascend":
        import mindspore as ms

        return ms.hal.get_device_name()
    name = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as file:
        name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    return f"{name}, {os.cpu_count()} cores"


def watch(seconds: int) -> None:
    """End this process with the tracebacks of its threads when `reset_watchdog` is not called for so long; 0: never."""
    _state["limit"], _state["armed_at"] = seconds, -1.0
    if seconds <= 0:
        faulthandler.cancel_dump_traceback_later()
    reset_watchdog()


def reset_watchdog() -> None:
    """Reset the hang watchdog. Every progress bar and every meeting of ranks does."""
    now = time.monotonic()
    if _state["limit"] > 0 and now - _state["armed_at"] >= min(1.0, _state["limit"] / 4):
        _state["armed_at"] = now
        faulthandler.dump_traceback_later(_state["limit"], exit=True, file=sys.__stderr__)


def progress_bar(total: int, title: str, unit: str, shown: bool = True, **more):
    """A tqdm bar on stderr, of rank 0 alone; every half second on a terminal, every half minute in a log file.

    Its updates also reset the watchdog (see `watch`). more: arguments of tqdm.
    """
    from tqdm import tqdm

    class Bar(tqdm):
        def update(self, n=1):
            reset_watchdog()
            return super().update(n)

    pace = {"mininterval": 0.5 if sys.stderr.isatty() else 30.0, "miniters": 1}
    return Bar(total=total, desc=title, unit=unit, disable=not shown or rank() != 0, **pace, **more)
