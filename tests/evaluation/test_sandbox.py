"""Hostile programs cannot leave their layers, stall the evaluator, or pass without passing their tests."""

import os
import resource
import socket
import tempfile
import textwrap
from pathlib import Path

import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.sandbox import layers
from mindspore_impl.evaluation.sandbox.run import (
    Isolation,
    Limits,
    Program,
    Result,
    isolation,
    run_many,
    run_program,
)

pytestmark = pytest.mark.usefixtures("nothing_left")
NAMESPACES = {"process namespace", "own root", "network namespace"}


def without_namespaces() -> Isolation:
    """The isolation of a machine without namespaces."""
    found = isolation()
    kept = [name for name in found.layers if name not in NAMESPACES]
    if "own user" in found.layers and not _everyone_can_enter(Path(os.path.realpath(os.sys.base_prefix))):
        kept = [name for name in kept if name not in {"own user", "process limit"}]
    return Isolation(tuple(kept), found.reasons, tuple(layers.missing_promises(kept)))


def _everyone_can_enter(folder: Path) -> bool:
    return all(path.stat().st_mode & 0o001 for path in [folder, *folder.parents])


@pytest.fixture(params=["all layers", "no namespaces"])
def around(request) -> Isolation:
    found = isolation() if request.param == "all layers" else without_namespaces()
    needed = set(layers.PROMISES) - {"limits"}
    if missing := needed & set(found.missing):
        pytest.skip(f"this machine cannot promise {sorted(missing)}: {found.reasons}")
    return found


def isolation_with(layer: str) -> Isolation:
    """This machine's isolation; skips where it lacks `layer`."""
    if layer not in isolation().layers:
        pytest.skip(isolation().reasons[layer])
    return isolation()


def run(around: Isolation, source: str, checks: str = "", names=(), **limits) -> Result:
    limits = Limits(**{"seconds": 20.0, "require_isolation": False} | limits)
    return run_program(Program(textwrap.dedent(source), textwrap.dedent(checks), names), limits, around)


def attempt(code: str) -> str:
    """A program that prints what an attempt gave it, or that it was refused."""
    return f"try:\n    print('GOT', {code})\nexcept OSError as error:\n    print('REFUSED', error)\n"


def test_a_program_passes_or_fails_by_its_tests(around):
    source = "def double(x):\n    return 2 * x\nprint('loaded')"
    right = run(around, source, "assert double(4) == 8", ["double"])
    wrong = run(around, source, "assert double(4) == 9", ["double"])
    assert (right.status, right.stdout, right.isolation) == ("passed", "loaded\n", around.layers), right
    assert (wrong.status, wrong.error) == ("failed", "AssertionError at: assert double(4) == 9")


def test_number_of_processes_and_threads():
    found = isolation_with("process limit")
    source = """
        import threading
        count = 0
        try:
            for count in range(100):
                threading.Thread(target=threading.Event().wait, daemon=True).start()
        except RuntimeError:
            print(count)
    """
    assert int(run(found, source, processes=5).stdout) == 4


def test_endless_output_is_cut_and_memory_stays_flat():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = run(isolation(), "while True:\n    print('x' * 1000)", output_kb=64)
    assert result.status == "output" and len(result.stdout) == 64 << 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


@pytest.mark.parametrize(
    ("source", "limits", "status"),
    [
        ("x = bytearray(1 << 30)", {"memory_mb": 256}, "memory"),
        ("import time\ntime.sleep(1000)", {"seconds": 0.5}, "timeout"),
        ("def f():\n    while True: pass\n", {"seconds": 0.5}, "timeout"),
        ("while True: pass", {"cpu_seconds": 1, "seconds": 60.0}, "timeout"),
        ("def f():\n    x = []\n    while True:\n        x.append(bytes(1 << 20))", {"memory_mb": 128}, "memory"),
    ],
)
def test_limits_end_a_program(source, limits, status):
    """While it is loaded, and within a call of the tests."""
    result = run(isolation(), source, *(("f()", ["f"]) if "def f" in source else ()), **limits)
    assert result.status == status and result.seconds < 30, result
    assert "cpu_seconds" not in limits or result.error == "the limit on CPU time"


def test_huge_file(around):
    source = """
        with open('big', 'wb') as file:
            try:
                while True:
                    file.write(bytes(1 << 20))
                    file.flush()
            except OSError as error:
                print(file.tell() >> 20, error.errno)
    """
    result = run(around, source, file_mb=3)
    assert result.stdout == "3 27\n", result


def test_many_files_fill_the_private_folder_alone():
    found = isolation_with("own root")
    source = """
        try:
            for i in range(100000):
                open(str(i), 'w').close()
        except OSError as error:
            print(i, error.errno)
    """
    count, code = run(found, source, disk_mb=1).stdout.split()
    assert int(count) < 300 and int(code) == 28


@pytest.fixture
def secret():
    handle, name = tempfile.mkstemp(prefix="a_secret_")
    os.write(handle, b"do not tell")
    os.close(handle)
    os.chmod(name, 0o644)
    yield name
    os.unlink(name)


def test_nothing_outside_can_be_reached(around, secret):
    """Files, folders and the parent in /proc cannot be read, nor sockets connected to."""
    folders = ("/", "/root", "/home", "/etc", "/proc", tempfile.gettempdir())
    parent = [f"/proc/{os.getpid()}/{name}" for name in ("environ", "mem", "cmdline", "fd/0")]
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(f"\0program {os.getpid()}")
        local.listen()
        attempts = [f"open({path!r}, 'rb').read(10)" for path in [secret, *parent]]
        attempts += [f"os.listdir({folder!r})" for folder in folders]
        attempts += [f"socket.create_connection({server.getsockname()!r}, 2)"]
        attempts += [f"socket.socket(socket.AF_UNIX).connect('\\0program {os.getpid()}')"]
        result = run(around, "import os, socket\n" + "".join(map(attempt, attempts)))
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    for code, line in zip(attempts, result.stdout.splitlines(), strict=True):
        # With a new root /tmp is the private folder.
        assert line.startswith("REFUSED") or (code, line) == ("os.listdir('/tmp')", "GOT []"), (code, line)


def test_the_home_folder_cannot_be_read(around, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / ".token").write_text("do not tell")
    monkeypatch.setenv("HOME", str(home))
    source = attempt(f"open({str(home / '.token')!r}).read()")
    source += "import os\nprint(os.path.expanduser('~'), os.getcwd() == os.environ['HOME'], sorted(os.environ))"
    refused, rest = run(around, source).stdout.splitlines()
    assert refused.startswith("REFUSED")
    assert str(home) not in rest and rest.endswith(" True ['HOME', 'LANG', 'PATH', 'TMPDIR']")


def test_nothing_outside_can_be_written(around, secret, tmp_path):
    targets = (f"{tempfile.gettempdir()}/program_left_this", str(tmp_path / "x"), "/usr/lib/program_left_this", secret)
    result = run(around, "".join(attempt(f"open({target!r}, 'w').write('x')") for target in targets))
    assert not any(Path(target).exists() for target in targets[:-1]), result
    assert Path(secret).read_text() == "do not tell", result
    assert "own root" in around.layers or "GOT" not in result.stdout, result
    assert result.stdout.splitlines()[2].startswith("REFUSED"), result


def test_others_cannot_be_killed(around):
    source = """
        import os, signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for target in (PARENT, os.getppid(), -1):
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.kill(target, number)
                except OSError:
                    pass
        def f(): return 1
    """.replace("PARENT", str(os.getpid()))
    result = run(around, source, "assert f() == 2", ["f"])
    assert result.status in ("failed", "killed"), result


def test_a_daemon_that_ignores_sigterm_does_not_outlive_its_run(around):
    source = """
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
                time.sleep(1000)
            os._exit(0)
        def f(): return 1
    """
    assert run(around, source, "assert f() == 1", ["f"]).status == "passed"


def test_a_program_that_frees_itself_from_its_parents_end(around):
    source = "import ctypes, time\nctypes.CDLL(None).prctl(1, 0)\ntime.sleep(1000)"
    assert run(around, source, seconds=0.5).status == "timeout"


def test_removal_of_a_hostile_folder(around, secret):
    source = f"""
        import os
        for i in range(200):
            open(str(i), 'w').close()
        os.symlink({secret!r}, 'link')
        os.symlink({os.path.dirname(secret)!r}, 'folder_link')
        os.makedirs('closed/inner')
        open('closed/inner/file', 'w').close()
        os.chmod('closed/inner', 0)
        os.chmod('closed', 0)
        for _ in range(150):
            os.mkdir('deep')
            os.chdir('deep')
        os.mkfifo('fifo')
        os.chmod(os.environ['HOME'], 0)
    """
    assert run(around, source, disk_mb=64).status == "passed"
    assert Path(secret).read_text() == "do not tell"


def test_removal_of_a_folder_deeper_than_any_path(tmp_path):
    shared = Path("/dev/shm")
    top = Path(tempfile.mkdtemp(dir=shared if os.access(shared, os.W_OK) else tmp_path))
    here = os.open(top, os.O_RDONLY)
    for _ in range(1050):
        os.mkdir("deep", dir_fd=here)
        os.mkdir("side", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    layers.remove_tree(top)
    assert not top.exists()


@pytest.mark.parametrize(
    "layer", sorted(NAMESPACES | {"landlock", "landlock signals", "system call filter", "own user"})
)
def test_each_layer_does_its_part_alone(layer, secret):
    """The layers repeat each other: every one of them is seen to work with none of its doubles around it."""
    isolation_with(layer)
    with socket.create_server(("127.0.0.1", 0)) as server:
        attempts = {
            "process namespace": "os.kill(HOST, 0)",
            "own root": "open('/..' + SECRET).read()",  # the old root would be found there
            "landlock": "open(SECRET).read()",
            "landlock signals": "os.kill(HOST, 0)",
            "network namespace": "socket.create_connection(('127.0.0.1', PORT), 2)",
            "system call filter": "socket.socket()",
            "own user": "os.kill(HOST, 0)",
        }
        code = attempts[layer].replace("SECRET", repr(secret)).replace("PORT", str(server.getsockname()[1]))
        source = "import os, socket\n" + attempt(code.replace("HOST", str(os.getpid())))
        alone = ["limits", "no new privileges", layer]
        if layer == "landlock signals":
            alone.append("landlock")
        if layer == "own user" and not _everyone_can_enter(Path(os.path.realpath(os.sys.base_prefix))):
            alone.append("own root")
        assert run(Isolation(tuple(alone)), source).stdout.startswith("REFUSED")
        assert run(Isolation(("limits", "no new privileges")), source).stdout.startswith("GOT") or layer == "own user"


def test_no_capability_is_left(around):
    source = "import ctypes\nd=(ctypes.c_uint*6)()\nh=(ctypes.c_uint*2)(0x20080522,0)\n"
    source += "print(ctypes.CDLL(None).capget(h,d), list(d))"
    assert run(around, source).stdout == "0 [0, 0, 0, 0, 0, 0]\n"


def test_require_isolation_refuses_and_says_why():
    poor = Isolation(("limits",), {"landlock": "not in this kernel"}, ("files", "network"))
    result = run_program(Program("print(1)"), Limits(), poor)
    assert result.status == "refused" and result.stdout == ""
    assert "files, network" in result.error and "landlock: not in this kernel" in result.error
    allowed = Limits(require_isolation=False)
    assert run_program(Program("print(1)"), allowed, Isolation(("limits",))).stdout == "1\n"


def test_a_layer_that_fails_after_all_stops_the_run():
    found = isolation_with("own root")
    result = run(found, "print(1)", disk_mb=0.5)  # no whole number of bytes: such a /tmp cannot be mounted
    assert (result.status, result.stdout) == ("refused", "") and "a layer of isolation failed" in result.error


def test_promises():
    assert layers.missing_promises(list(layers.LAYERS)) == []
    assert layers.missing_promises([]) == list(layers.PROMISES)
    assert layers.missing_promises(["landlock", "system call filter", "landlock signals"]) == ["limits"]
    assert "processes" in layers.missing_promises(["landlock", "landlock signals"])


def test_run_many_keeps_the_order():
    jobs = [Program(f"print({number})") for number in range(6)]
    assert [result.stdout for result in run_many(jobs)] == [f"{number}\n" for number in range(6)]


def test_limits_are_positive():
    with pytest.raises(UserError, match="seconds=0"):
        Limits(seconds=0)
