"""Examine this machine: what it has, what is missing for what, and the command that installs it."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

INSTALL = "pip install -e ."
REQUIRED = ("mindspore", "mindformers", "numpy", "sentencepiece", "hydra-core", "safetensors", "tqdm", "tensorboardX",
            "matplotlib", "psutil", "scipy")  # fmt: skip
OPTIONAL = {  # package: (what needs it, the extra that brings it)
    "pytest": ("tests", "test"),
    "ruff": ("linting", "test"),
    "tokenizers": ("tokenizer.json files", "hf"),
    "gguf": ("GGUF weights", "gguf"),
    "datasketch": ("near-duplicates in select_data", "select"),
    "optuna": ("sweeps that search", "sweep"),
    "lm_eval": ("evaluate --harness", "eval"),
    "torch": ("parity tests and benchmark peers", "bench"),
    "transformers": ("parity tests and benchmark peers", "bench"),
}
CANN_FOLDERS = ("/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/latest")
SET_ENV = "/usr/local/Ascend/ascend-toolkit/set_env.sh"


@dataclass(frozen=True)
class Finding:
    """One line of the examination. remedy: what to run or do about it; empty where nothing is to be done."""

    state: Literal["ok", "missing", "note"]
    name: str
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.state:<8} {self.name:<18} {self.detail}"
        return f"{line}\n{'':<27} remedy: {self.remedy}" if self.remedy else line


def examine() -> list[Finding]:
    """The findings of this machine. Never raises for something that is absent."""
    return [_python(), *_packages(), *_device(), *_files(), *_sandbox(), _memory()]


def _python() -> Finding:
    version = platform.python_version()
    if (3, 10) <= sys.version_info[:2] < (3, 12):
        return Finding("ok", "python", version)
    return Finding("missing", "python", f"{version}; MindSpore 2.9 needs 3.10 or 3.11", "python3.11 -m venv .venv")


def _packages() -> Iterator[Finding]:
    needs = {name: ("every command", "") for name in REQUIRED} | OPTIONAL
    for name, (use, extra) in needs.items():
        try:
            yield Finding("ok", name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            remedy = f'{INSTALL[:-1]}".[{extra}]"' if extra else INSTALL
            yield Finding("note" if extra else "missing", name, f"needed by {use}", remedy)


def _device() -> list[Finding]:
    if importlib.util.find_spec("mindspore") is None:
        return [Finding("missing", "device", "MindSpore is not installed", INSTALL)]
    from mindspore_impl import runtime
    from mindspore_impl.errors import UserError

    try:
        runtime.setup(runtime.RuntimeOptions())
    except (UserError, RuntimeError) as error:
        return [Finding("missing", "device", str(error).splitlines()[0], "npu-smi info; then compare driver and CANN")]
    import mindspore as ms

    total = float((ms.Tensor([1.0, 2.0], ms.float32) * 2).sum().asnumpy())
    what = f"{runtime.device()} ({runtime.device_description()}), computes 2*(1+2) = {total:g}"
    findings = [Finding("ok" if total == 6.0 else "missing", "device", what)]
    if runtime.device() == "CPU":
        detail = "no NPU found: tiny models only, fp32; the 1B needs Atlas A2 or A3"
        findings.append(Finding("note", "Ascend", detail, "npu-smi info, with the driver and firmware installed"))
    return findings


def _files() -> Iterator[Finding]:
    """What is found by its path: the first that exists, else what it is for and how it comes there."""
    from mindspore_impl.ops.native import LIBRARY

    homes = os.environ.get("ASCEND_HOME_PATH"), os.environ.get("ASCEND_TOOLKIT_HOME"), *CANN_FOLDERS
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    for name, paths, state, detail, remedy in (
        ("CANN", homes, "note", "needed on NPUs", f"install the toolkit, then: source {SET_ENV}"),
        ("custom operators", [os.environ.get("ASCEND_CUSTOM_OPP_PATH")], "note",
         "none installed for Ascend; composed ones are used",
         "bash kernels/build.sh; bash outputs/custom_opp/*.run (kernels/README.md)"),
        ("native operators", [LIBRARY], "note",
         "not built; built at first use in a clone with g++, else composed ones are used",
         "python kernels/cpu/build.py"),
        ("g++", [compiler], "missing", "needed to build the native CPU operators", "apt install g++, or set CXX"),
    ):  # fmt: skip
        found = next((str(path) for path in paths if path and Path(path).exists()), None)
        yield Finding("ok", name, found) if found else Finding(state, name, detail, remedy)


def _sandbox() -> Iterator[Finding]:
    from mindspore_impl.evaluation.sandbox.layers import LAYERS, PROMISES
    from mindspore_impl.evaluation.sandbox.run import isolation

    found = isolation()
    for name in found.layers:
        yield Finding("ok", "isolation", f"{name}: {LAYERS[name]}")
    for name, reason in found.reasons.items():
        yield Finding("missing", "isolation", f"{name}: {reason}")
    kept = ", ".join(name for name in PROMISES if name not in found.missing) or "nothing"
    if not found.missing:
        yield Finding("ok", "generated code", f"protected from it: {kept}")
        return
    detail = f"protected from it: {kept}; not protected: {', '.join(found.missing)}, so HumanEval and MBPP are refused"
    yield Finding("missing", "generated code", detail,
                  "a newer kernel with user namespaces, or a container and evaluate --code-unisolated")  # fmt: skip


def _memory() -> Finding:
    memory, free = psutil.virtual_memory(), psutil.disk_usage(str(Path.cwd())).free
    detail = (
        f"{memory.total / 2**30:.1f} GiB memory ({memory.available / 2**30:.1f} available), "
        f"{free / 2**30:.1f} GiB free disk here"
    )
    return Finding("note", "memory, disk", detail)
