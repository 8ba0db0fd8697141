"""Compiles the CPU operators into one shared library: `python kernels/cpu/build.py [FOLDER]`.

Standard library only: setup.py runs it in an environment that has nothing else. The vocabulary-wide loops
(isa_unit.cpp) are compiled once for each instruction set and chosen when the library runs, so that one library serves
every processor of an architecture; -march=native would not.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME = "libpangu_cpu.so"
# -O3 vectorises plain loops. What -ffast-math adds is left out: sums keep their order, so that thread counts and
# strips cannot change a result, and NaN and infinity keep their meaning. GCC contracts a * b + c to one FMA by itself
# where the instruction set has it. The uninitialised value GCC 12 warns of is in its own AVX-512 header.
FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -pthread -Wall -Wextra -Wno-maybe-uninitialized".split()
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
COMMON = ("operators", "tasks")  # what no vocabulary-wide loop is in
INSTRUCTION_SETS = {"x86_64": {"baseline": [], "avx2": AVX2, "avx512": AVX512}}


class BuildError(Exception):
    """The compiler is missing or refused; the text says which command and why."""


def compiler() -> str | None:
    """The C++ compiler: $CXX, or g++ where there is one."""
    return shutil.which(os.environ.get("CXX") or "g++")


def source_hash() -> str:
    """What decides the library: every source (this file holds the flags), its name, and the machine's architecture."""
    digest = hashlib.sha256(platform.machine().encode())
    for path in sorted(HERE.iterdir()):
        if path.suffix in (".h", ".cpp", ".py"):
            digest.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()


def is_current(folder: Path) -> bool:
    """Whether `folder` holds a library of exactly these sources."""
    try:
        return (folder / NAME).is_file() and (folder / f"{NAME}.sha256").read_text() == source_hash()
    except OSError:
        return False


def build(folder: Path) -> Path:
    """Compile into `folder` and return the library's path. Raises BuildError or OSError.

    The library appears by one rename and its hash after it; a process that has the old one loaded keeps it.
    """
    cxx = compiler()
    if cxx is None:
        raise BuildError(f"no C++ compiler: {os.environ.get('CXX') or 'g++'} is not on PATH")
    wanted = source_hash()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as work:
        commands = [[cxx, *FLAGS, "-c", str(HERE / f"{name}.cpp"), "-o", f"{name}.o"] for name in COMMON]
        for name, flags in INSTRUCTION_SETS.get(platform.machine(), {"baseline": []}).items():
            options = [*flags, "-fno-exceptions", f"-DPANGU_ISA={name}"]
            commands.append([cxx, *FLAGS, *options, "-c", str(HERE / "isa_unit.cpp"), "-o", f"{name}.o"])
        _run_all(commands, work)
        # nodelete: the helpers of tasks.cpp sleep in this library's code, whoever closes it.
        link = [cxx, "-shared", "-pthread", "-Wl,-z,nodelete,-z,defs"]
        _run_all([[*link, *(command[-1] for command in commands), "-o", NAME]], work)
        os.replace(Path(work) / NAME, folder / NAME)
        (Path(work) / "hash").write_text(wanted)
        os.replace(Path(work) / "hash", folder / f"{NAME}.sha256")
    return folder / NAME


def _run_all(commands: list[list[str]], work: str) -> None:
    """Run the commands side by side in the folder `work`."""
    running = [
        subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    said = [process.communicate()[0] for process in running]
    for command, process, text in zip(commands, running, said, strict=True):
        if process.returncode:
            raise BuildError(f"{' '.join(command)} failed ({process.returncode}):\n{text.strip()}")


if __name__ == "__main__":
    try:
        print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent.parent / "mindspore_impl" / "lib"))
    except (BuildError, OSError) as error:
        sys.exit(f"error: {error}")
