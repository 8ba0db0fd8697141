"""What two processes do in tests/test_ranks.py."""

import os
import signal

from mindspore_impl import ranks, runtime


def meetings(folder):
    rank = runtime.rank()
    gathered = ranks.gather({"rank": rank, "text": "é" * (rank + 1)})
    told = ranks.first(lambda: [rank, "said"])
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
