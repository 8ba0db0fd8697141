"""Run a set of hostile programs and count those that escape or stall.

`python -m pytest tests/evaluation/test_hostile.py` prints "0 of N escape or stall".
"""

import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from mindspore_impl.evaluation.sandbox.run import Limits, Program, run_many

LIMITS = Limits(seconds=1.0, cpu_seconds=1, memory_mb=256)
CHECKS, NAMES = "assert f(3) == 9", ("f",)  # which no program here passes honestly
SECRET = "a-secret-of-the-machine"
# {secret}: a file that others can read; {outside}: a folder that others can write to; {victim}: a process of the
# parent's user; {parent}: the process that evaluates; {port}: a server on this machine.
PROGRAMS = {
    "fork bomb": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
    "bomb of threads": "import threading, time\nwhile True:\n    try:\n        threading.Thread(target=time.sleep, "
    "args=(99,)).start()\n    except RuntimeError:\n        pass",
    "endless output": "while True:\n    print('x' * 9999)",
    "endless complaints": "import sys\nwhile True:\n    sys.stderr.write('x' * 9999)",
    "sleep": "import time\ntime.sleep(9999)",
    "busy loop": "while True:\n    pass",
    "busy loop that hears no signal": "import signal\nfor number in range(1, 65):\n    try:\n        "
    "signal.signal(number, signal.SIG_IGN)\n    except (OSError, ValueError):\n        pass\nwhile True:\n    pass",
    "a pattern that never ends": "import re\nre.match('(a+)+$', 'a' * 64 + 'b')",
    "a sum that never ends": "9 ** 9 ** 9",
    "memory at once": "x = bytearray(1 << 40)",
    "memory by and by": "x = []\nwhile True:\n    x.append(bytearray(1 << 20))",
    "memory outside of any process": "import os\nwhile True:\n    handle = os.memfd_create('x')\n    os.write(handle, "
    "bytes(1 << 20))",
    "endless recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef g():\n    g()\ng()",
    "a value that contains itself": "x = []\nx.append(x)\ndef f(n):\n    return x",
    "a value of gigabytes": "def f(n):\n    return 'x' * (100 << 20)",
    "a huge file": "with open('/tmp/x', 'wb') as file:\n    while True:\n        file.write(bytes(1 << 20))",
    "many files": "number = 0\nwhile True:\n    open(f'/tmp/{{number}}', 'w').close()\n    number += 1",
    "many open files": "x = []\nwhile True:\n    x.append(open('/dev/null'))",
    "a folder deeper than any path": "import os\nos.chdir('/tmp')\nwhile True:\n    os.mkdir('x' * 200)\n    "
    "os.chdir('x' * 200)",
    "reads a file": "print(open('{secret}').read())",
    "reads a file through a link": "import os\nos.symlink('{secret}', '/tmp/x')\nprint(open('/tmp/x').read())",
    "reads the parent": "print(open('/proc/{parent}/environ').read(), open('/proc/{parent}/cmdline').read())",
    "writes outside": "open('{outside}/left', 'w').write('x')",
    "removes what is outside": "import shutil\nshutil.rmtree('{outside}', ignore_errors=True)",
    "kills the parent": "import os\nfor number in (15, 9):\n    os.kill({parent}, number)",
    "kills its own parents": "import os\nwhile True:\n    try:\n        os.kill(os.getppid(), 9)\n    except OSError:\n"
    "        pass",
    "kills everything": "import os\nos.kill(-1, 9)",
    "kills a process of the machine": "import os\nos.kill({victim}, 9)",
    "stops itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "a daemon that stays": "import os, signal, time\nif os.fork() == 0:\n    os.setsid()\n    "
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    if os.fork() == 0:\n        while True:\n            "
    "time.sleep(1)\n    os._exit(0)",
    "holds the output open": "import os, time\nif os.fork() == 0:\n    time.sleep(9999)\nos._exit(0)",
    "calls home": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 2).sendall(b'x')",
    "starts a shell": "import os\nos.system('cat {secret}; touch {outside}/left; kill -9 {victim}')",
    "mounts": "import ctypes\nprint(ctypes.CDLL(None).mount(b'/', b'/tmp', b'', 4096, b''))\n"
    "print(open('/tmp{secret}').read())",
    "becomes root": "import os\nos.setuid(0)\nprint(open('{secret}').read())",
    "leaves before its tests": "import os\nos._exit(0)",
    "says that it passed": 'print(\'{{"status": "passed", "error": "", "token": ""}}\')\ndef f(n):\n    return 0',
    "equals everything": "class Equal:\n    def __eq__(self, other):\n        return True\ndef f(n):\n    "
    "return Equal()",
}


@pytest.fixture
def place():
    """A folder that everybody can enter, which pytest's own are not: the sandbox alone keeps programs out of it."""
    with tempfile.TemporaryDirectory(prefix="a_place_") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.usefixtures("isolated", "nothing_left")
def test_hostile_programs_are_contained(place, capsys):
    secret, outside = place / "secret", place / "outside"
    secret.write_text(SECRET)
    secret.chmod(0o644)
    outside.mkdir()
    outside.chmod(0o777)
    (outside / "kept").write_text("kept")
    calls = []
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_count, args=(server, calls), daemon=True).start()
        facts = {"secret": secret, "outside": outside, "victim": victim.pid, "parent": os.getpid(),
                 "port": server.getsockname()[1]}  # fmt: skip
        programs = [Program(text.format(**facts), CHECKS, NAMES) for text in PROGRAMS.values()]
        results = dict(zip(PROGRAMS, run_many(programs, LIMITS), strict=True))
    escaped = {
        name: (result.status, result.error)
        for name, result in results.items()
        if result.status == "passed"
        or SECRET in result.stdout + result.stderr
        or str(os.environ.get("HOME")) + "\0" in result.stdout
        or result.error.startswith("the supervisor")  # it gave no answer, or was killed
        or result.seconds > LIMITS.seconds + 10  # the clock is looked at twice a second, on a busy machine
    }
    alive = victim.poll() is None
    victim.kill()
    victim.wait()
    with capsys.disabled():
        print(f"\n{len(escaped)} of {len(PROGRAMS)} escape or stall")
    assert not escaped
    assert alive, "a process of the machine was killed"
    assert not calls, "the network was reached"
    assert [path.name for path in outside.iterdir()] == ["kept"]


def _count(server: socket.socket, calls: list) -> None:
    while True:
        try:
            calls.append(server.accept()[1])
        except OSError:
            return
