"""One run on several processes. A stand-in for msrun plays every way a job can end; slow tests use the real one."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from mindspore_impl import runtime
from mindspore_impl.curriculum import configuration, launch
from mindspore_impl.distributed import processes, ranks
from mindspore_impl.errors import JobFailed, UserError
from tests.curriculum.conftest import compose_quickly

ROOT = Path(__file__).resolve().parents[2]

# What a stand-in for msrun begins with: the launch folder and helpers for the notes that ranks leave.
PRELUDE = """
import json, os, signal, sys, time
from pathlib import Path
folder = Path(next(a for a in sys.argv if a.startswith("--log_dir=")).split("=", 1)[1])
def log(rank, text): (folder / f"worker_{rank}.log").write_text(text)
def note(rank, **more): (folder / f"rank_{rank}.json").write_text(json.dumps({"pid": os.getpid()} | more))
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """job(source): launch.spawn with a stand-in for msrun that runs `source`; -> nothing, or what spawn raises."""

    def run(source: str, *overrides: str) -> None:
        script = tmp_path / "msrun"
        script.write_text(f"#!{sys.executable}\n{PRELUDE}\n{textwrap.dedent(source)}")
        script.chmod(0o755)
        monkeypatch.setattr(launch, "_msrun", lambda: script)
        settings = [f"run_dir={tmp_path / 'run'}", "experiment=rehearsal", "runtime.workers=2", *overrides]
        launch.spawn(compose_quickly(*settings), settings)

    return run


def test_a_job_that_ends_well_shows_what_rank_0_says(job, capfd, tmp_path):
    job("""
        log(0, "[WARNING] DISTRIBUTED noise\\nstage done\\nhalf a li")
        note(0)
        time.sleep(0.5)
        with open(folder / "worker_0.log", "a") as file: file.write("ne\\n")
        time.sleep(0.5)
    """)
    shown = capfd.readouterr().out
    assert "stage done\nhalf a line\n" in shown and "noise" not in shown
    (written,) = (tmp_path / "run/logs").glob("*/launch.json")
    plain = json.loads(written.read_text())["config"]
    assert configuration.validate(plain).runtime.workers == 2, "the ranks read what was composed once"


def test_the_command_of_msrun(job, tmp_path):
    job('(folder / "seen.json").write_text(json.dumps(sys.argv[1:]))', "runtime.join_seconds=17")
    (seen,) = (tmp_path / "run/logs").glob("*/seen.json")
    command = json.loads(seen.read_text())
    assert command[:2] == ["--worker_num=2", "--local_worker_num=2"]
    assert re.fullmatch(r"--master_port=\d+", command[2])
    assert "--join=True" in command and "--cluster_time_out=17" in command
    assert command[-2:] == ["--launched", str(seen.parent / "launch.json")]


def test_a_traceback_is_shown_with_rank_and_log(job):
    with pytest.raises(JobFailed, match="rank 1 .*worker_1.log:\nTraceback: boom"):
        job("""
            note(0); note(1, exit_code=1, error="Traceback: boom", ended=1.0)
            sys.exit(1)
        """)


def test_the_first_to_fail_is_named(job):
    with pytest.raises(JobFailed, match="rank 1 .*\ncause"):
        job("""
            note(0, exit_code=1, error="consequence", ended=2.0); note(1, exit_code=1, error="cause", ended=1.0)
            sys.exit(1)
        """)


def test_a_fault_of_the_user_stays_one(job):
    with pytest.raises(UserError, match=r"store: no such file .*rank 0.*worker_0.log"):
        job('note(0, exit_code=2, error="store: no such file", ended=1.0); sys.exit(1)')


def test_a_rank_killed_from_outside(job):
    with pytest.raises(JobFailed, match="(?s)killed.*last words"):
        job('log(0, "last words\\n"); note(0); note(1); sys.exit(1)')


def test_no_rank_has_started(job):
    with pytest.raises(JobFailed, match="(?s)msrun.log:\n.*no such option"):
        job('print("no such option"); sys.exit(3)')


def test_a_rank_that_hangs(job):
    with pytest.raises(JobFailed, match="(?s)7 s .*runtime.hang_seconds.* rank 1.*in stuck"):
        job(
            'note(0); note(1); log(1, "Timeout (0:00:07)!\\n  File x in stuck\\n"); sys.exit(1)',
            "runtime.hang_seconds=7",
        )


def test_a_rank_that_others_wait_for_in_vain(job):
    with pytest.raises(JobFailed, match="rank 0 .*worker_1.log") as caught:
        job("""
            note(1); log(1, "at work\\n")
            note(0, exit_code=1, error="Traceback: Launch kernel failed: Default/AllReduce-op0", ended=1.0)
            sys.exit(1)
        """)
    assert "Traceback" not in str(caught.value) and "worker_0.log" not in str(caught.value)


def test_ranks_that_were_stopped(job):
    with pytest.raises(ranks.Stopped):
        job("note(0, exit_code=143, ended=1.0); sys.exit(1)")


HEEDS = """
    def stop(*_):
        note(0, exit_code=143, ended=1.0)
        sys.exit(1)
    signal.signal(signal.SIGTERM, stop)
    note(0)
    log(0, "up\\n")
    time.sleep(30)
"""


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, ranks.Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_a_request_to_stop_goes_to_the_ranks(job, number, expected, tmp_path):
    def ask():
        while not list((tmp_path / "run").glob("logs/*/worker_0.log")):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=ask)
    thread.start()
    with pytest.raises(expected):
        job(HEEDS)
    thread.join()
    (note,) = (tmp_path / "run").glob("logs/*/rank_0.json")
    assert json.loads(note.read_text())["exit_code"] == 143, "the rank itself was told"


def test_ranks_that_do_not_heed_are_ended(job, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "GRACE_SECONDS", -4)
    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(ranks.Stopped):
        job("""
            if os.fork() == 0:
                os.setsid()  # as msrun does with its workers
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                note(0)
                time.sleep(20)
                os._exit(0)
            time.sleep(20)
        """)
    (note,) = (tmp_path / "run").glob("logs/*/rank_0.json")
    process = json.loads(note.read_text())["pid"]
    deadline = time.monotonic() + 5
    while processes.is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes.is_alive(process)


def test_a_port_in_use_is_refused(job, tmp_path):
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"runtime.port={port}: "):
            job("", f"runtime.port={port}")
    assert not (tmp_path / "run").exists()


def test_a_run_directory_of_another_experiment_is_refused_before_anything_starts(job, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("name: other\n")
    with pytest.raises(UserError, match="run_dir: .*'other'"):
        job("")
    assert not (tmp_path / "run/logs").exists()


def test_ranks_with_other_overrides_or_code_are_named():
    with pytest.raises(UserError, match="rank 0 .*seed=1.*rank 2 .*seed=2"):
        launch._agree("the command line", [["seed=1"], ["seed=1"], ["seed=2"]], show=" ".join)
    launch._agree("the code", ["a", "a"], show=str)


def test_a_missing_rank(monkeypatch):
    def fail(device):
        raise RuntimeError("Failed to build the cluster.\nmore")

    monkeypatch.setattr(ranks, "join", fail)
    monkeypatch.setenv("MS_WORKER_NUM", "4")
    monkeypatch.setenv("MS_TOPO_TIMEOUT", "9")
    with pytest.raises(UserError, match="4 ranks .*9 s.*--master_addr.*Failed to buil"):
        launch.join(compose_quickly("experiment=rehearsal"), [])


def test_another_number_of_ranks_than_configured(monkeypatch):
    monkeypatch.setattr(ranks, "join", lambda device: None)
    monkeypatch.setattr(runtime, "watch", lambda seconds: None)
    overrides = ["experiment=rehearsal", "runtime.workers=3"]
    with pytest.raises(UserError, match="runtime.workers=3.* 1 "):
        launch.join(compose_quickly(*overrides), overrides)


def test_msrun_decides_where_only_a_group_names_a_number(monkeypatch):
    monkeypatch.setattr(ranks, "join", lambda device: None)
    monkeypatch.setattr(runtime, "watch", lambda seconds: None)
    composed = compose_quickly("experiment=rehearsal", "runtime=ascend")
    assert composed.runtime.workers == 8 and launch.join(composed, ["runtime=ascend"]).runtime.workers == 1


def test_how_a_rank_ended_is_noted(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK_ID", "5")
    launched, note = tmp_path / "launch.json", tmp_path / "rank_5.json"
    for error, code, text in (
        (None, 0, ""),
        (UserError("no file"), 2, "no file"),
        (ranks.Stopped(True), 143, ""),
        (ValueError("x"), 1, "ValueError: x"),
    ):
        try:
            with launch.recorded(launched):
                assert "exit_code" not in json.loads(note.read_text())
                if error:
                    raise error
        except BaseException as raised:
            assert raised is error
        found = json.loads(note.read_text())
        assert found["exit_code"] == code and text in found["error"] and found["pid"] == os.getpid()
    with launch.recorded(None):
        pass


# --- the real msrun ---

TINY = [
    "experiment=rehearsal",
    "order=[teacher]",
    "compare=[]",
    "stages.teacher.train.max_steps=30",
    "stages.teacher.train.eval_steps=0",
    "stages.teacher.train.logging_steps=1",
    "runtime.device=CPU",
]


def command_of(folder: Path, *overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "tools/train.py"), *TINY, f"run_dir={folder}", *overrides]


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    return subprocess.run(command_of(folder, *overrides), capture_output=True, text=True, timeout=240, cwd=ROOT)


def losses(folder: Path) -> list[float]:
    (path,) = folder.glob("stages/*teacher/metrics.jsonl")
    return [line["loss"] for line in map(json.loads, path.read_text().splitlines()) if "loss" in line]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    done = train(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_two_ranks_train_what_one_does(alone, tmp_path):
    done = train(tmp_path / "run", "runtime.workers=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[1/1] teacher (sft): done" in done.stdout
    two, one = losses(tmp_path / "run"), losses(alone)
    assert len(two) == len(one) == 30
    assert max(abs(a - b) for a, b in zip(two, one, strict=True)) < 1e-3


def started(folder: Path, *overrides: str) -> tuple[subprocess.Popen, dict[int, int]]:
    """A run on two ranks that has written metrics; -> it, and the processes of its ranks."""
    command = command_of(folder, "runtime.workers=2", *overrides)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        metrics = list(folder.glob("stages/*teacher/metrics.jsonl"))
        if metrics and '"loss"' in metrics[0].read_text():
            break
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()[1]
    (logs,) = folder.glob("logs/*")
    return process, {rank: json.loads((logs / f"rank_{rank}.json").read_text())["pid"] for rank in range(2)}


LONG = "stages.teacher.train.max_steps=100000"


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_within_seconds(tmp_path):
    process, pids = started(tmp_path / "run", LONG)
    os.kill(pids[1], signal.SIGKILL)
    start = time.monotonic()
    _, errors = process.communicate(timeout=240)
    assert time.monotonic() - start < 60, "MindSpore alone needs its cluster's time limit"
    assert process.returncode == 1 and "ended from outside" in errors
    assert not processes.is_alive(pids[0])


@pytest.mark.slow
def test_a_stopped_rank_is_noticed_by_the_others(tmp_path):
    """By our limit, or by that of MindSpore's AllReduce (30 s or more), whichever ends first."""
    process, pids = started(tmp_path / "run", LONG, "runtime.hang_seconds=45")
    os.kill(pids[1], signal.SIGSTOP)
    _, errors = process.communicate(timeout=240)
    ours, theirs = r"45 s \(runtime.hang_seconds\) at rank 0", "rank 0 waited in vain.*worker_1.log"
    assert process.returncode == 1 and re.search(f"{ours}|{theirs}", errors), errors
    assert not processes.is_alive(pids[1])


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(alone, tmp_path):
    slow = ["stages.teacher.train.max_steps=30", "stages.teacher.train.save_steps=0"]
    process, pids = started(tmp_path / "run", *slow)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == ranks.STOPPED and "stopped by SIGTERM" in errors
    assert list((tmp_path / "run").glob("stages/*teacher/checkpoints/LATEST"))
    done = train(tmp_path / "run", "runtime.workers=2", *slow)
    assert done.returncode == 0 and "resumes" in done.stdout
    whole = train(tmp_path / "whole", "runtime.workers=2", *slow)
    assert whole.returncode == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_nothing_outlives_a_killed_launcher(tmp_path):
    process, pids = started(tmp_path / "run", LONG)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + ranks.GRACE_SECONDS + 5
    while any(map(processes.is_alive, pids.values())):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def msrun(folder: Path, *arguments: str, local: int = 2) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["msrun", "--worker_num=2", f"--local_worker_num={local}", f"--master_port={processes.free_port()}"]
    command += ["--join=True", f"--log_dir={folder / 'log'}", *arguments]
    environment = os.environ | {"PATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT)


@pytest.mark.slow
def test_msrun_itself_starts_the_ranks(alone, tmp_path):
    done = msrun(tmp_path, "tools/train.py", *TINY, f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert max(abs(a - b) for a, b in zip(losses(tmp_path / "run"), losses(alone), strict=True)) < 1e-3


@pytest.mark.slow
def test_ranks_started_with_different_overrides(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from mindspore_impl.cli.train import main as train\n"
        "sys.exit(train(sys.argv[1:] + ['seed=' + os.environ.get('RANK_ID', '0')]))\n"
    )
    done = msrun(tmp_path, str(script), *TINY, f"run_dir={tmp_path / 'run'}")
    assert done.returncode != 0
    said = (tmp_path / "log/worker_0.log").read_text() + (tmp_path / "log/worker_1.log").read_text()
    assert "error: the command line differs between the ranks" in said and "seed=1" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_rank_that_never_comes(tmp_path):
    started_short = ["--node_rank=0", "--cluster_time_out=10", "tools/train.py", *TINY, f"run_dir={tmp_path / 'run'}"]
    done = msrun(tmp_path, *started_short, local=1)
    assert done.returncode != 0
    assert "not all of the 2 ranks have met within 10 s" in (tmp_path / "log/worker_0.log").read_text()
