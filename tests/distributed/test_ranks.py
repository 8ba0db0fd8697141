"""Processes that work together: stopping, and the watchdog. training/test_parallel.py has the meetings of two."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mindspore_impl.distributed import ranks

CASES = Path(__file__).parent / "rank_cases.py"


@pytest.mark.slow
def test_a_rank_that_comes_late_is_waited_for(two_ranks, tmp_path):
    found = two_ranks(CASES, "late", tmp_path)
    assert [result["gathered"] for result in found] == [[0, 1], [0, 1]]
    assert found[0]["waited"] > 40


def test_alone_every_meeting_is_a_plain_call():
    assert ranks.gather(3) == [3]
    assert ranks.on_rank_zero(lambda: "x") == "x"
    ranks.barrier()
    assert not ranks.should_stop()
    ranks.check_stop()


@pytest.fixture
def sigterm():
    earlier = signal.getsignal(signal.SIGTERM)
    ranks.stop_on_sigterm()
    yield
    ranks.forget_stop()
    signal.signal(signal.SIGTERM, earlier)


def test_sigterm_asks_for_a_stop(sigterm):
    os.kill(os.getpid(), signal.SIGTERM)
    assert ranks.should_stop()
    with pytest.raises(ranks.Stopped) as caught:
        ranks.check_stop()
    assert caught.value.agreed
    ranks.settle(caught.value)


def python(source: str) -> subprocess.CompletedProcess:
    root = str(Path(__file__).resolve().parents[2])
    source = f"import sys; sys.path.insert(0, {root!r})\n" + textwrap.dedent(source)
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)


def test_a_process_that_hangs_ends_with_its_tracebacks():
    done = python("""
        import time
        from mindspore_impl import runtime
        runtime.watch(1)
        def stuck():
            time.sleep(30)
        stuck()
    """)
    assert done.returncode == 1 and "Timeout" in done.stderr and "in stuck" in done.stderr


def test_a_process_that_gets_on_lives():
    done = python("""
        import time
        from mindspore_impl import runtime
        runtime.watch(1)
        for _ in range(8):
            time.sleep(0.25)
            runtime.reset_watchdog()
        runtime.watch(0)
        time.sleep(1.5)
        print("done")
    """)
    assert done.returncode == 0 and done.stdout == "done\n"


def test_a_process_ends_with_its_parent(tmp_path):
    note = tmp_path / "pid"
    python(f"""
        import os, signal, subprocess, time
        child = '''
        import os, signal, time
        from mindspore_impl.distributed import processes
        processes.die_with_parent(signal.SIGTERM)
        open({str(note)!r}, "w").write(str(os.getpid()))
        time.sleep(60)
        '''
        child = "\\n".join(line.strip() for line in child.splitlines())
        subprocess.Popen([sys.executable, "-c", f"import sys; sys.path.insert(0, {{sys.path[0]!r}})\\n" + child])
        while not os.path.exists({str(note)!r}):
            time.sleep(0.05)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    pid = int(note.read_text())
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text():
            return
        signal.sigtimedwait([], 0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the child outlived its parent")
