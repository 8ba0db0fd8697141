"""Communication between the ranks of a run outside compiled graphs: join, gather, barrier, and a common stop.

Built on AllGather of float32 alone, which both backends have (the CPU backend has no barrier). In a run of one process
every function returns at once.
"""

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from mindspore_impl import runtime
from mindspore_impl.distributed import processes

GRACE_SECONDS = 60  # between SIGTERM and the end of a process that has not stopped by itself
STOPPED = 143  # exit code of a run that SIGTERM stopped: 128 + 15, as shells count

T = TypeVar("T")


class Stopped(BaseException):
    """SIGTERM arrived and all state is saved. Not an Exception, so that no handler on the way catches it.

    `agreed`: every rank raises it now.
    """

    def __init__(self, agreed: bool):
        super().__init__("stopped by SIGTERM; the same command continues")
        self.agreed = agreed


_state: dict[str, Any] = {"gather": None, "lines": [], "stop": False, "timer": None}


def joined() -> bool:
    """Whether this process has joined others."""
    return _state["gather"] is not None


def is_scheduler() -> bool:
    """Whether msrun started this process as the scheduler, which computes nothing."""
    return os.environ.get("MS_ROLE") == "MS_SCHED"


def is_worker() -> bool:
    """Whether msrun started this process as one of the ranks."""
    return os.environ.get("MS_ROLE") == "MS_WORKER"


def join(device: str) -> None:
    """Join the other processes of this msrun launch; return when all have joined. device: as in RuntimeOptions.

    From then on this process receives SIGTERM when its parent ends, so that no rank is left behind.
    """
    import mindspore as ms
    from mindspore.communication import get_group_size, get_rank, init

    processes.die_with_parent(signal.SIGTERM)
    runtime.choose_device(device)
    init()
    os.environ["RANK_ID"], os.environ["RANK_SIZE"] = str(get_rank()), str(get_group_size())
    _state["gather"] = ms.ops.AllGather()
    _state["lines"] = _connect()


def gather(value: Any) -> list[Any]:
    """The JSON `value` of every rank, in rank order. Raises Stopped on all ranks when one has received SIGTERM."""
    if not joined():
        return [value]
    return [json.loads(text) for text in _meet(json.dumps(value).encode())]


def gather_array(values: np.ndarray) -> np.ndarray:
    """float32 [n] of each rank -> [ranks, n] in rank order. SIGTERM does not interrupt it."""
    return _collect(values) if joined() else values[None]


def barrier() -> None:
    """Return when every rank has called this. Raises Stopped as `gather` does."""
    if joined():
        _meet(b"")


def on_rank_zero(function: Callable[[], T]) -> T:
    """Run `function` on rank 0 and return its result (a JSON value) on every rank. An error on rank 0 ends the job."""
    if not joined():
        return function()
    return gather(function() if runtime.rank() == 0 else None)[0]


def should_stop() -> bool:
    """Whether any rank has received SIGTERM; the same answer on all. Collective: every rank must call it."""
    return bool(_collect(np.array([_state["stop"]], np.float32)).any()) if joined() else _state["stop"]


def check_stop() -> None:
    """Raise Stopped after SIGTERM, in places where a rank works alone and nothing is half done."""
    if _state["stop"]:
        raise Stopped(agreed=not joined())


def settle(stop: Stopped) -> None:
    """Wait for all ranks before the first exits: msrun kills those that still save when one has exited."""
    if not joined():
        return
    if not stop.agreed:
        with contextlib.suppress(Stopped):
            _meet(b"")  # tells the others, at whatever meeting they come to next
    _collect(np.zeros(1, np.float32))


def _meet(data: bytes) -> list[bytes]:
    head = _collect(np.array([_state["stop"], len(data)], np.float32))
    if head[:, 0].any():
        raise Stopped(agreed=True)
    lengths = head[:, 1].astype(int)
    if not lengths.max():
        return [b""] * len(lengths)
    padded = np.zeros(lengths.max(), np.float32)  # one byte a number: no bit pattern that a backend could change
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = _collect(padded).astype(np.uint8)
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


def _collect(values: np.ndarray) -> np.ndarray:
    """float32 [n] of each rank -> [ranks, n]."""
    runtime.reset_watchdog()
    _arrive()
    found = _all_gather(values)
    runtime.reset_watchdog()
    return found


def _all_gather(values: np.ndarray) -> np.ndarray:
    import mindspore as ms

    return _state["gather"](ms.Tensor(values)).asnumpy().reshape(runtime.world_size(), -1)


def _connect() -> list[socket.socket]:
    """Connections for `_arrive`: on rank 0 one to each other rank, in rank order; elsewhere the one to rank 0."""
    rank, size = runtime.rank(), runtime.world_size()
    with socket.socket() as server:
        told = np.zeros(21, np.float32)  # address, port and a secret that identifies ranks, as bytes
        if rank == 0:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # sends nothing: finds our own address
                probe.connect((os.environ.get("MS_SCHED_HOST", "127.0.0.1"), 9))
                server.bind((probe.getsockname()[0], 0))
            server.listen(size)
            host, port = server.getsockname()
            told[:] = [*socket.inet_aton(host), port, *os.urandom(16)]
        told = _all_gather(told)[0]
        secret = told[5:].astype(np.uint8).tobytes()
        if rank == 0:
            return _accept(server, secret, size)
        line = socket.create_connection((socket.inet_ntoa(told[:4].astype(np.uint8).tobytes()), int(told[4])), 60)
        line.sendall(secret + rank.to_bytes(4, "little"))
        return [_patient(line)]


def _accept(server: socket.socket, secret: bytes, size: int) -> list[socket.socket]:
    lines: dict[int, socket.socket] = {}
    server.settimeout(60)
    while len(lines) < size - 1:
        line, _ = server.accept()
        line.settimeout(60)
        greeting = b""
        while len(greeting) < 20 and (more := line.recv(20 - len(greeting))):
            greeting += more
        if greeting[:16] == secret:
            lines[int.from_bytes(greeting[16:], "little")] = _patient(line)
        else:
            line.close()
    return [lines[rank] for rank in sorted(lines)]


def _patient(line: socket.socket) -> socket.socket:
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return line


def _arrive() -> None:
    """Wait for every rank without a time limit. Raises RuntimeError when a rank is gone.

    MindSpore's CPU backend aborts a collective, and with it the job, when a rank is 30 s late; no option changes that.
    """
    for turn in ("recv", "sendall") if runtime.rank() == 0 else ("sendall", "recv"):
        for line in _state["lines"]:
            heard = b""
            with contextlib.suppress(OSError):
                heard = line.recv(1) if turn == "recv" else line.sendall(b".") or b"."
            if not heard:
                raise RuntimeError("another rank of this job is gone; its log says why")


def stop_on_sigterm() -> None:
    """Handle SIGTERM as a request for a clean stop; a second one, or GRACE_SECONDS without a stop, ends the process."""

    def ask(*_) -> None:
        if _state["stop"]:
            os._exit(STOPPED)
        _state["stop"] = True
        _state["timer"] = timer = threading.Timer(GRACE_SECONDS, os._exit, (STOPPED,))
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGTERM, ask)


def forget_stop() -> None:
    """Clear an earlier SIGTERM, for processes that continue (tests)."""
    if (timer := _state["timer"]) is not None:
        timer.cancel()
    _state.update(stop=False, timer=None)
