"""What two processes do in tests/distributed/test_ranks.py and tests/training/test_parallel.py."""

import os
import signal
import time

from mindspore_impl import runtime
from mindspore_impl.distributed import ranks


def meetings(folder):
    rank = runtime.rank()
    gathered = ranks.gather({"rank": rank, "text": "é" * (rank + 1)})
    told = ranks.on_rank_zero(lambda: [rank, "said"])
    nobody = ranks.should_stop()
    ranks.stop_on_sigterm()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    try:
        ranks.barrier()
        stopped = None
    except ranks.Stopped as stop:
        stopped = stop.agreed
    somebody = ranks.should_stop()
    ranks.forget_stop()
    return {"gathered": gathered, "told": told, "before": nobody, "stopped": stopped, "after": somebody}


def late(folder):
    """Rank 0 waits for rank 1 for longer than MindSpore's CPU backend would."""
    started = time.monotonic()
    if runtime.rank() == 1:
        time.sleep(45)
    gathered = ranks.gather(runtime.rank())
    return {"gathered": gathered, "waited": time.monotonic() - started}
