"""The scheduler process of an msrun launch: it brings the ranks together, and ends when they have ended.

MindSpore's scheduler notices a dead rank only after half a minute, and msrun waits for it that long. A child of the
scheduler watches the workers, its siblings, instead (a thread would starve: init() holds the GIL).
"""

import os
import signal
import sys
import time

from mindspore_impl.distributed import processes


def serve() -> None:
    """Serve as MindSpore's scheduler until the job has ended. Exits with code 2 when its port is in use."""
    processes.die_with_parent(signal.SIGKILL)
    launcher, scheduler = os.getppid(), os.getpid()
    port = int(os.environ.get("MS_SCHED_PORT", "0"))
    if processes.port_in_use(port):  # MindSpore's ranks would wait for minutes
        print(f"Error: port {port} is in use; give msrun another --master_port", file=sys.stderr, flush=True)
        _kill_workers(launcher, scheduler)
        sys.exit(2)
    if os.fork() == 0:
        processes.die_with_parent(signal.SIGKILL)
        _watch_workers(launcher, scheduler)
    import mindspore as ms
    from mindspore.communication import init

    ms.set_device("CPU")
    init()  # returns when the job has ended


def _kill_workers(launcher: int, scheduler: int) -> None:
    """Kill the workers, which msrun starts after the scheduler."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        for child in processes.python_children(launcher):
            if child != scheduler:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.1)


def _watch_workers(launcher: int, scheduler: int) -> None:
    """Kill the scheduler once a worker of `launcher` has failed and msrun has ended the others, then exit.

    Workers run Python; msrun's other children only show their logs.
    """
    failed = False
    while processes.is_alive(scheduler):
        time.sleep(0.1)
        workers = [child for child in processes.python_children(launcher) if child != scheduler]
        failed = failed or any(processes.has_failed(child) for child in workers)
        if failed and not any(map(processes.is_alive, workers)):
            os.kill(scheduler, signal.SIGKILL)
    os._exit(0)
