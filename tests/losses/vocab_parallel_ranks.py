"""What two processes do in tests/losses/test_vocab_parallel.py."""

import json

from mindspore_impl import runtime
from mindspore_impl.losses.vocab_parallel import Shard
from tests.losses.sharded_cases import Setting, derivative_of_all_reduce, network_results, shared_errors
from tests.losses.teacher_cases import PAIRS

NETWORK = Setting("jsd", temperature=2.0, count=6, borders=(0, 9, 23), top_k=4, own_rows=True)


def network(folder):
    shard = Shard(NETWORK.borders, runtime.rank())
    return {"parts": network_results(NETWORK, 0, shard), "derivative": derivative_of_all_reduce()}


def grid(folder):
    """Three graphs of the pair that `folder`/pair names; all else that can vary turns at its own speed."""
    chosen, number, found = json.loads((folder / "pair").read_text()), 0, {}
    for divergence, support in PAIRS:
        for top_k in (1, 5, 10):
            number += 1
            own_rows = number % 2 == 0
            setting = Setting(
                divergence, support, (1.0, 2.0)[number % 3 == 0], 22 if own_rows else 23,
                ((0, 212, 423), (0, 5, 423), (0, 53, 53), (0, 27, 53))[number % 4], top_k,
                pad=0 if own_rows else min(top_k - 1, 3), own_rows=own_rows, rows_at_once=(12, 13, 100)[number % 3],
            )  # fmt: skip
            if [divergence, support] == chosen:
                found[str(setting)] = shared_errors(setting, (1.0, 8.0, 30.0), range(2))
    return found
