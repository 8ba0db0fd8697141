"""Fixtures that several rooms share.

PYTEST_CPU=FILE writes the processor seconds of each test file. PYTEST_PASSED=FILE lists the tests that pass, a line
each, and leaves out those that it lists already.
"""

import collections
import contextlib
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WHOLE_ROOMS = ("data", "evaluation", "export", "generation", "kernels", "model", "report", "text", "training")
CPU_FILE = os.environ.get("PYTEST_CPU")
CPU_SECONDS = collections.Counter()
PASSED_FILE = os.environ.get("PYTEST_PASSED")
ENTRY = Path(__file__).parent / "rank_entry.py"


@contextlib.contextmanager
def _count_cpu(path: Path):
    start = sum(os.times()[:4])  # user and system, of this process and of the children it has waited for
    try:
        yield
    finally:
        CPU_SECONDS[str(path.relative_to(ENTRY.parent))] += sum(os.times()[:4]) - start


def pytest_collection_finish():
    """MindSpore collects garbage before each graph: what is imported by now, hundreds of thousands, is left out."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With -n: a file runs in one process, and so does a room whose files share costly fixtures."""
    from xdist.scheduler import LoadFileScheduling

    class ByRoom(LoadFileScheduling):
        def _split_scope(self, nodeid):
            room = nodeid.removeprefix("tests/").partition("/")[0]
            return room if room in WHOLE_ROOMS else super()._split_scope(nodeid)

    return ByRoom(config, log)


if CPU_FILE:

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(collector):
        with _count_cpu(collector.path) if isinstance(collector, pytest.Module) else contextlib.nullcontext():
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(item):
        with _count_cpu(item.path):
            return (yield)

    def pytest_sessionfinish():
        seconds = {name: round(value, 2) for name, value in CPU_SECONDS.most_common()}
        Path(CPU_FILE).write_text(json.dumps({"total": round(CPU_SECONDS.total(), 2)} | seconds, indent=1) + "\n")


if PASSED_FILE:

    def pytest_collection_modifyitems(config, items):
        os.environ.pop("PYTEST_PASSED", None)  # a pytest that a test starts runs everything it is asked for
        passed = set(Path(PASSED_FILE).read_text().splitlines()) if Path(PASSED_FILE).is_file() else set()
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
        items[:] = [item for item in items if item.nodeid not in passed]

    def pytest_runtest_logreport(report):
        if report.when == "call" and report.passed and "PYTEST_XDIST_WORKER" not in os.environ:
            with open(PASSED_FILE, "a") as stream:
                stream.write(f"{report.nodeid}\n")


@pytest.fixture(scope="session")
def native_operators():
    """For tests of the native CPU operators: skips where there is no C++ compiler, fails where the build does."""
    from mindspore_impl.ops import native

    if native.builder().compiler() is None:
        pytest.skip("no C++ compiler")
    assert native.library() is not None


@pytest.fixture(scope="session")
def ms_runtime():
    """MindSpore in graph mode on the CPU, seeded, with two threads."""
    from mindspore_impl import runtime

    runtime.setup(runtime.RuntimeOptions(device="CPU", threads=2), seed=0)
    return runtime


@pytest.fixture(scope="session", autouse=True)
def emulator_cache(tmp_path_factory):
    """Compiled kernels of the emulator are shared by all processes of the session, and leave the user's cache alone."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ.setdefault("EMULATOR_CACHE", str(base / "emulator"))


@pytest.fixture(scope="session")
def two_ranks():
    """run(script, function, folder) -> [JSON result of rank 0, of rank 1]: a function of a file, run by two processes.

    The function takes the folder, which both share, and returns a JSON value.
    """

    def run(script: Path, function: str, folder: Path) -> list:
        from mindspore_impl.distributed.processes import free_port

        port = free_port()
        command = ["msrun", "--worker_num=2", "--local_worker_num=2", f"--master_port={port}", "--join=True"]
        command += [f"--log_dir={folder / 'log'}", str(ENTRY), str(script), function, str(folder)]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "GLOG_v": "3"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        logs = "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(folder.glob("log/worker_*.log")))
        assert done.returncode == 0, f"{logs}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return [json.loads((folder / f"result_{rank}.json").read_text()) for rank in range(2)]

    return run


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own of 64 KB, and a function that remounts it with other options."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    yield disk, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)
    subprocess.run(["umount", "-l", str(disk)], check=True)
