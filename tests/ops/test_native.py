"""Where the native CPU operators come from: built in a clone, rebuilt when a source changes, composed without them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mindspore_impl.ops import native

ROOT = Path(__file__).resolve().parent.parent.parent
needs_compiler = pytest.mark.skipif(native.builder().compiler() is None, reason="no C++ compiler here")
PRINT_LIBRARY = (
    "from mindspore_impl.ops import native; print(native.library()); native.library(); print(native.operator('X'))"
)


OPERATORS = 'extern "C" __attribute__((visibility("default"))) void SetThreads(int) {}\n'


@pytest.fixture
def clone(tmp_path) -> Path:
    """The few files of a clone that this needs, with no library built."""
    for name in ("mindspore_impl/__init__.py", "mindspore_impl/errors.py", "mindspore_impl/runtime.py",
                 "mindspore_impl/ops/__init__.py", "mindspore_impl/ops/native.py"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(
        ROOT / "kernels" / "cpu", tmp_path / "kernels" / "cpu", ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path


def run(clone: Path, code: str = PRINT_LIBRARY, **variables: str) -> tuple[list[str], str]:
    environment = {**os.environ, "PYTHONPATH": str(clone), "RANK_ID": "0", **variables}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=True)
    return result.stdout.split("\n")[:-1], result.stderr


def use_tiny_sources(clone: Path) -> None:
    """Sources that compile at once: what is tested here is when they are built."""
    folder = clone / "kernels" / "cpu"
    for path in folder.glob("*.h"):
        path.unlink()
    for path in folder.glob("*.cpp"):
        path.write_text("")
    (folder / "operators.cpp").write_text(OPERATORS)


@needs_compiler
def test_built_once_and_again_when_a_source_changes(clone):
    use_tiny_sources(clone)
    library = clone / "mindspore_impl" / "lib" / "libpangu_cpu.so"
    (path, operator), said = run(clone)
    assert path == str(library) and operator == f"{library}:X"
    assert said.count("\n") == 1 and "building" in said
    first = library.stat().st_ino
    assert run(clone)[1] == "" and library.stat().st_ino == first
    (clone / "kernels" / "cpu" / "operators.cpp").write_text(OPERATORS + "int something;")
    assert "building" in run(clone)[1] and library.stat().st_ino != first
    assert sorted(p.name for p in library.parent.iterdir()) == [".lock", library.name, f"{library.name}.sha256"]


@needs_compiler
def test_processes_that_start_together_build_once(clone):
    use_tiny_sources(clone)
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    command = [sys.executable, "-c", PRINT_LIBRARY]
    running = [
        subprocess.Popen(command, env=environment, cwd=clone, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    results = [process.communicate() for process in running]
    assert all("libpangu_cpu.so:X" in out for out, _ in results)
    assert sum("building" in said for _, said in results) == 1


def test_without_a_compiler_composed_operators_are_named_once(clone):
    (path, operator), said = run(clone, CXX="no-such-compiler")
    assert path == operator == "None"
    assert said.count("\n") == 1 and "composed ones are used" in said and "g++" in said
    assert run(clone, CXX="no-such-compiler", RANK_ID="1")[1] == ""


@needs_compiler
def test_a_compiler_that_fails_is_quoted(clone):
    use_tiny_sources(clone)
    (clone / "kernels" / "cpu" / "operators.cpp").write_text("#error not today\n")
    (path, _), said = run(clone)
    assert path == "None" and "not today" in said and "composed ones are used" in said
    assert not (clone / "mindspore_impl" / "lib" / "libpangu_cpu.so").exists()


def test_an_installed_package_without_the_library_says_so(clone):
    shutil.rmtree(clone / "kernels")
    (path, _), said = run(clone)
    assert path == "None" and "installed without it" in said


@needs_compiler
def test_the_builder_runs_alone(tmp_path):
    """As a command, and with Python's standard library only."""
    clone = tmp_path / "cpu"
    shutil.copytree(ROOT / "kernels" / "cpu", clone, ignore=shutil.ignore_patterns("__pycache__"))
    for path in clone.glob("*.cpp"):
        path.write_text("")
    command = [sys.executable, "-I", "-S", str(clone / "build.py"), str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert Path(result.stdout.strip()) == tmp_path / "out" / "libpangu_cpu.so"
    (clone / "operators.cpp").write_text("#error not today\n")
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.startswith("error:") and "not today" in result.stderr
