"""What this machine has, and what is missing for what."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

REQUIRED = ("mindspore", "mindformers", "numpy", "sentencepiece", "hydra-core", "safetensors", "tqdm", "tensorboardX",
            "matplotlib")  # fmt: skip
OPTIONAL = {
    "pytest": "tests (extra test)",
    "ruff": "linting (extra test)",
    "torch": "parity tests and benchmark peers (extra bench)",
    "transformers": "parity tests and benchmark peers (extra bench)",
}


def examine() -> list[str]:
    """One line a finding, each starting with ok, missing or note. Never raises for something that is absent."""
    lines = [_python(), *_packages(), *_device(), _cann(), _operators(), _native(), _compiler(), *_sandbox(), _memory()]
    return lines


def _line(state: str, what: str, detail: str) -> str:
    return f"{state:<8} {what:<18} {detail}"


def _python() -> str:
    good = (3, 10) <= sys.version_info[:2] < (3, 12)
    return _line(
        "ok" if good else "missing", "python", platform.python_version() + ("" if good else ": 3.10 or 3.11 needed")
    )


def _packages() -> list[str]:
    lines = []
    for name in REQUIRED:
        lines.append(_package(name, "needed by everything: pip install -e ."))
    return lines + [_package(name, f"only for {use}") for name, use in OPTIONAL.items()]


def _package(name: str, use: str) -> str:
    try:
        return _line("ok", name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return _line("missing", name, use)


def _device() -> list[str]:
    if importlib.util.find_spec("mindspore") is None:
        return [_line("missing", "device", "MindSpore is not installed")]
    from mindspore_impl import runtime
    from mindspore_impl.errors import UserError

    try:
        runtime.setup(runtime.RuntimeOptions())
    except (UserError, RuntimeError) as error:
        return [_line("missing", "device", str(error).splitlines()[0])]
    import mindspore as ms

    total = float((ms.Tensor([1.0, 2.0], ms.float32) * 2).sum().asnumpy())
    state = "ok" if total == 6.0 else "missing"
    lines = [
        _line(state, "device", f"{runtime.device()} ({runtime.device_description()}), computes 2*(1+2) = {total:g}")
    ]
    if runtime.device() == "CPU":
        lines.append(_line("note", "Ascend", "no NPU answers: tiny models only, fp32; the 1B needs Atlas A2 or A3"))
    return lines


def _cann() -> str:
    home = os.environ.get("ASCEND_HOME_PATH") or os.environ.get("ASCEND_TOOLKIT_HOME")
    for folder in filter(None, (home, "/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/latest")):
        if Path(folder).is_dir():
            return _line("ok", "CANN", str(folder))
    return _line("missing", "CANN", "needed on NPUs only: install the toolkit and source its set_env.sh")


def _operators() -> str:
    path = os.environ.get("ASCEND_CUSTOM_OPP_PATH")
    if path and Path(path).is_dir():
        return _line("ok", "custom operators", path)
    return _line("note", "custom operators", "none installed for Ascend (ASCEND_CUSTOM_OPP_PATH)")


def _native() -> str:
    from mindspore_impl.ops.native import LIBRARY

    if LIBRARY.is_file():
        return _line("ok", "native operators", str(LIBRARY))
    return _line("note", "native operators", "none; built at first use in a clone with g++, else composed ones serve")


def _compiler() -> str:
    found = shutil.which(os.environ.get("CXX") or "g++")
    return _line("ok" if found else "missing", "g++", found or "needed to build the native operators for the CPU")


def _sandbox() -> list[str]:
    from mindspore_impl.evaluation.sandbox import LAYERS, PROMISES, isolation

    found = isolation()
    lines = [_line("ok", "isolation", f"{name}: {LAYERS[name]}") for name in found.layers]
    lines += [_line("missing", "isolation", f"{name}: {reason}") for name, reason in found.reasons.items()]
    kept = [name for name in PROMISES if name not in found.missing]
    lost = f"; not protected: {', '.join(found.missing)}, so HumanEval and MBPP are refused" if found.missing else ""
    state = "missing" if found.missing else "ok"
    return [*lines, _line(state, "generated code", f"protected from it: {', '.join(kept) or 'nothing'}{lost}")]


def _memory() -> str:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    free = shutil.disk_usage(Path.cwd()).free
    return _line(
        "note", "memory, disk", f"{pages * size / 2**30:.1f} GiB memory, {free / 2**30:.1f} GiB free disk here"
    )
