"""One run on several processes, started here (`runtime.workers=N`) or by msrun; every rank runs one config and code.

<run>/logs/<time>_<nonce>/launch.json      the composed config, which the ranks read
                          worker_K.log     output of rank K; that of rank 0 is also shown
                          rank_K.json      its process, and how it ended
                          msrun.log, scheduler.log
"""

import dataclasses
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from mindspore_impl import files, runtime, schema
from mindspore_impl.curriculum import plugins
from mindspore_impl.curriculum.configuration import Config, validate
from mindspore_impl.distributed import processes, ranks
from mindspore_impl.errors import JobFailed, UserError

POLL_SECONDS = 0.2
_ALONE = re.compile(r"Launch kernel failed: .*(AllReduce|AllGather)")  # the CPU backend's limit of 30 s, not an option
_NOISE = ("[INFO] ", "[WARNING] ")  # MindSpore's own lines; they stay in the log file


def spawn(config: Config, overrides: list[str]) -> None:
    """Run `config` on `runtime.workers` processes of this machine, showing rank 0's output, until all have ended.

    Ctrl-C and SIGTERM let the ranks save and stop, and end all of them after a minute. Raises UserError when the ranks
    do, and JobFailed with the traceback, rank and log file of one that failed.
    """
    from mindspore_impl.curriculum.runner import check_run_dir

    run_dir, workers = Path(config.run_dir), config.runtime.workers
    check_run_dir(config, run_dir)
    port = config.runtime.port or processes.free_port()
    if processes.port_in_use(port):
        raise UserError(f"runtime.port={port}: something listens on this port already; choose another, or 0 for any")
    folder = run_dir / "logs" / f"{datetime.now():%Y%m%d-%H%M%S}_{secrets.token_hex(4)}"
    files.write_json(folder / "launch.json", {"config": schema.to_plain(config), "overrides": overrides})
    command = [_msrun(), f"--worker_num={workers}", f"--local_worker_num={workers}", f"--master_port={port}"]
    command += ["--join=True", f"--log_dir={folder}", f"--cluster_time_out={config.runtime.join_seconds}"]
    # msrun starts nothing but "python".
    command += processes.train_command("--launched", str(folder / "launch.json"), python="python")
    print(f"{workers} processes through msrun; their logs are in {folder}", flush=True)
    with open(folder / "msrun.log", "w", encoding="utf-8") as log, _stop_requests() as asked:
        process = processes.start(command, signal.SIGKILL, log, GLOG_v=os.environ.get("GLOG_v", "3"))  # noqa: SIM112
        _follow(process, folder, workers, asked)
    _judge(process, folder, workers, asked, config.runtime.hang_seconds)


def _msrun() -> str:
    """MindSpore's launcher, of this Python."""
    found = shutil.which("msrun", path=Path(sys.executable).parent) or shutil.which("msrun")
    if found is None:
        raise UserError("runtime.workers: MindSpore's launcher `msrun` is not beside this Python nor in PATH")
    return found


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that gets the number of each SIGINT or SIGTERM that comes meanwhile."""
    asked: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    earlier = {number: signal.signal(number, lambda got, _: asked.append(got)) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _follow(process: subprocess.Popen, folder: Path, workers: int, asked: list[int]) -> None:
    """Show rank 0's log until msrun ends; hand requests to stop on to the ranks, and end those that do not heed."""
    shown = _shown(folder / "worker_0.log")
    told, deadline = 0, None
    while process.poll() is None:
        next(shown)
        if len(asked) > told:
            told = len(asked)
            now = time.monotonic()
            deadline = now if told > 1 or not _tell(folder, workers, signal.SIGTERM) else now + ranks.GRACE_SECONDS + 5
        if deadline is not None and time.monotonic() >= deadline:
            _tell(folder, workers, signal.SIGKILL)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    next(shown)


def _shown(path: Path) -> Iterator[None]:
    """Show, at every step, what was appended to a log file meanwhile, without MindSpore's own lines."""
    while not path.exists():
        yield
    rest = b""
    with open(path, "rb") as file:
        while True:
            *lines, rest = (rest + file.read()).split(b"\n")
            texts = (line.decode(errors="replace") for line in lines)
            sys.stdout.write("".join(f"{text}\n" for text in texts if not text.startswith(_NOISE)))
            sys.stdout.flush()
            yield


def _tell(folder: Path, workers: int, number: int) -> bool:
    """Send the signal to every rank that has started; -> whether there was one."""
    told = False
    for rank in range(workers):
        note = _note(folder, rank)
        if note is not None and "exit_code" not in note:
            with suppress(ProcessLookupError):
                os.kill(note["pid"], number)
                told = True
    return told


def _note(folder: Path, rank: int) -> dict | None:
    path = folder / f"rank_{rank}.json"
    return files.read_json(path) if path.is_file() else None


def _judge(process: subprocess.Popen, folder: Path, workers: int, asked: list[int], hang_seconds: int) -> None:
    """Raise what the end of the job amounts to; return when it ended well."""
    if asked:
        if asked[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise ranks.Stopped(agreed=True)
    if process.returncode == 0:
        return
    notes = [_note(folder, rank) or {} for rank in range(workers)]
    logs = [folder / f"worker_{rank}.log" for rank in range(workers)]
    if any(note.get("exit_code") == ranks.STOPPED for note in notes):
        raise ranks.Stopped(agreed=True)
    ended = [(note.get("ended", float("inf")), rank) for rank, note in enumerate(notes) if note.get("exit_code")]
    hung = [rank for rank, log in enumerate(logs) if "Timeout (" in _last(log, 200)]
    if ended:  # the first to fail; msrun ends the others, which then leave no note of their end
        rank = min(ended)[1]
        if notes[rank]["exit_code"] == 2:
            raise UserError(f"{notes[rank]['error']} (rank {rank}; its log: {logs[rank]})")
        silent = [str(log) for log, note in zip(logs, notes, strict=True) if not note.get("exit_code")]
        if silent and _ALONE.search(notes[rank]["error"]):
            raise JobFailed(
                f"rank {rank} waited in vain for another rank within a step; the others hang, were stopped, or are "
                f"over 30 s late: {', '.join(silent)}; the same command continues where it stopped"
            )
        raise JobFailed(f"rank {rank} failed; {logs[rank]}:\n{notes[rank]['error']}")
    if hung:
        raise JobFailed(
            f"no progress for {hang_seconds} s (runtime.hang_seconds) at rank {', '.join(map(str, hung))}; each log "
            f"ends with where its rank stood; {logs[hung[0]]}:\n{_last(logs[hung[0]], 30)}"
        )
    if not any(notes):
        raise JobFailed(f"no rank has started; {folder / 'msrun.log'}:\n{_last(folder / 'msrun.log', 20)}")
    ends = "".join(f"\n{log}:\n{_last(log, 8)}" for log, note in zip(logs, notes, strict=True) if note)
    raise JobFailed(
        "a rank was ended from outside (killed, or the machine ran out of memory: see `dmesg`); the same command "
        f"continues where it stopped{ends}"
    )


def _last(path: Path, count: int) -> str:
    """The last lines of a log, without MindSpore's own."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join([line for line in lines if not line.startswith(_NOISE)][-count:])


def join(config: Config, overrides: list[str]) -> Config:
    """Join the other ranks of an msrun launch; -> the config of rank 0, which all of them run.

    As many as msrun started count, whatever the `runtime` group says. Raises UserError when the ranks were started with
    other overrides or run other code, when one is missing, or when the overrides name another number of them.
    """
    try:
        ranks.join(config.runtime.device)
    except RuntimeError as error:
        expected, seconds = (os.environ.get(name, "?") for name in ("MS_WORKER_NUM", "MS_TOPO_TIMEOUT"))
        raise UserError(
            f"not all of the {expected} ranks have met within {seconds} s: start as many on all nodes "
            f"with the same --master_addr and a free --master_port ({str(error).strip().splitlines()[0]})"
        ) from error
    runtime.watch(config.runtime.hang_seconds)
    _agree("the command line", ranks.gather(overrides), show=shlex.join)
    _agree("the code of mindspore_impl and of the plugins", ranks.gather([code_hash(), plugins.loaded()]), show=str)
    agreed = validate(ranks.on_rank_zero(lambda: schema.to_plain(config)))
    world = runtime.world_size()
    if agreed.runtime.workers != world and any(text.lstrip("+").startswith("runtime.workers=") for text in overrides):
        raise UserError(f"runtime.workers={agreed.runtime.workers}, but msrun started {world} ranks; leave it out")
    return dataclasses.replace(agreed, runtime=dataclasses.replace(agreed.runtime, workers=world))


def _agree(what: str, found: list, show) -> None:
    odd = [rank for rank, value in enumerate(found) if value != found[0]]
    if odd:
        raise UserError(
            f"{what} differs between the ranks: rank 0 has {show(found[0])}, rank {odd[0]} has {show(found[odd[0]])}; "
            "start all of them with the same command, from the same version of the project"
        )


def code_hash() -> str:
    """SHA-256 over the package's Python files and their names."""
    sources = sorted(processes.PACKAGE.rglob("*.py"))
    return files.sha256_json({str(path.relative_to(processes.PACKAGE)): files.sha256_file(path) for path in sources})


@contextmanager
def recorded(launched: Path | None) -> Iterator[None]:
    """Leave a note of this rank's process, and of how it ended, beside launch.json for the process that launched it."""
    if launched is None:
        yield
        return
    path = launched.parent / f"rank_{os.environ.get('RANK_ID', '0')}.json"
    note = {"pid": os.getpid(), "host": socket.gethostname(), "command": shlex.join(sys.argv)}
    files.write_json(path, note)

    code, text = 1, ""
    try:
        yield
        code = 0
    except UserError as error:
        code, text = 2, str(error)
        raise
    except ranks.Stopped:
        code = ranks.STOPPED
        raise
    except BaseException:
        text = traceback.format_exc()
        raise
    finally:
        files.write_json(path, note | {"exit_code": code, "error": text, "ended": time.time()})
