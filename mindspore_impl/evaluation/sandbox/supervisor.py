"""Run one program, or probe the layers: `python -I -S -B supervisor.py` with a job on stdin and JSON on stdout.

Starts one process for the program and one for the tests, each inside its own layers, passes on the job, reads the
program's output up to a limit, enforces the time limit, and leaves neither a process nor a file behind.
"""

import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from mindspore_impl.evaluation.sandbox import layers, syscalls  # noqa: E402
from mindspore_impl.evaluation.sandbox.exchange import Channel, Ended  # noqa: E402
from mindspore_impl.evaluation.sandbox.program import judge, serve  # noqa: E402

_TICK = 0.5  # seconds between checks that the parent is alive


def main() -> None:
    """Read a job, run it, write its result."""
    syscalls.adopt_orphans()
    syscalls.hide_memory()
    stdin, stdout = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)
    channel = Channel(stdin, stdout)
    job = channel.receive()
    sys.path.pop(0)  # the program imports the standard library alone
    folders = [Path(job["folder"], f"program_{os.urandom(12).hex()}") for _ in range(2)]
    for folder in folders:
        folder.mkdir(0o700)
    try:
        result = layers.probe(folders[0]) if job["do"] == "probe" else _run(job, folders, os.getppid())
    finally:
        layers.kill_descendants()
        for folder in folders:
            layers.remove_tree(folder)
    channel.send(result)


def _run(job: dict, folders: list[Path], parent: int) -> dict:
    """Start both sides and wait for a verdict or a reason to stop."""
    limits = job["limits"]
    inner, outer = socket.socketpair()  # program and tests
    post, ours = socket.socketpair()  # tests and this process
    out, program_out = os.pipe()
    err, program_err = os.pipe()
    blank = os.open(os.devnull, os.O_RDWR)
    try:
        inside = [blank, program_out, program_err, inner.fileno()]
        program = layers.spawn(job, folders[0], inside, lambda: serve(3))
        inside = [blank, blank, blank, post.fileno(), outer.fileno()]
        layers.spawn(job, folders[1], inside, lambda: judge(3, 4))
    except OSError as error:
        return {"status": "refused", "error": f"a layer of isolation failed: {error}"}
    for end in (inner, outer, post):
        end.close()
    os.close(program_out)
    os.close(program_err)
    token = os.urandom(16).hex()
    started = time.monotonic()
    channel = Channel(ours.fileno(), ours.fileno())
    channel.send({key: job[key] for key in ("source", "checks", "names")} | {"token": token})
    streams = {out: bytearray(), err: bytearray()}
    verdict = _watch(channel, streams, started + limits["seconds"], limits["output"], parent)
    seconds = time.monotonic() - started
    if verdict["status"] == "ended":
        verdict = _how_it_ended(program, verdict["error"])
    elif verdict.pop("token", token) != token:
        verdict = {"status": "failed", "error": "the verdict does not come from the tests"}
    if "own user" in job["layers"]:
        layers.kill_user_of(program)
    layers.kill_descendants()
    for handle, data in streams.items():  # every writer is dead, so this ends
        while len(data) < limits["output"] and (block := os.read(handle, 1 << 16)):
            data += block[: limits["output"] - len(data)]
    printed, complained = (bytes(data).decode(errors="replace") for data in streams.values())
    return verdict | {"stdout": printed, "stderr": complained, "seconds": seconds}


def _watch(channel: Channel, streams: dict[int, bytearray], deadline: float, limit: int, parent: int) -> dict:
    """Read the program's output until the tests post a verdict, time is up, or the output exceeds `limit` bytes."""
    with selectors.DefaultSelector() as selector:
        for handle in (*streams, channel.read):
            selector.register(handle, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if os.getppid() != parent:
                return {"status": "killed", "error": "the calling process is gone"}
            for key, _ in selector.select(min(left, _TICK)):
                if key.fd == channel.read:
                    try:
                        return channel.receive()
                    except Ended:
                        return {"status": "killed", "error": "the process of the tests was killed"}
                block = os.read(key.fd, 1 << 16)
                if not block:
                    selector.unregister(key.fd)
                streams[key.fd] += block[: limit - len(streams[key.fd])]
                if len(block) and len(streams[key.fd]) >= limit:
                    return {"status": "output", "error": f"the program printed {limit} bytes or more"}
    return {"status": "timeout", "error": "the time limit"}


def _how_it_ended(program: int, reason: str) -> dict:
    """The verdict that the exit code of the program's process gives."""
    deadline = time.monotonic() + 2.0
    while (done := os.waitpid(program, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.005)
    code = os.waitstatus_to_exitcode(done[1]) if done[0] else 0
    number = code - 128 if code > 128 else 0
    if number == signal.SIGXCPU:
        return {"status": "timeout", "error": "the limit on CPU time"}
    if number in set(signal.Signals):
        return {"status": "killed", "error": f"ended by {signal.Signals(number).name}: {reason}"}
    return {"status": "failed", "error": f"{reason} (exit code {code})" if done[0] else reason}


if __name__ == "__main__":
    main()
