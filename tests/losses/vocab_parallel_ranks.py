"""What two processes do in tests/losses/test_vocab_parallel.py."""

from mindspore_impl import runtime
from mindspore_impl.losses.vocab_parallel import Shard
from tests.losses.sharded_cases import Setting, derivative_of_all_reduce, network_results, shared_errors
from tests.losses.teacher_cases import PAIRS

SAME_ROWS = Setting("jsd", temperature=2.0, pad=2, rows_at_once=4)  # uneven borders, padding, two chunks
OWN_ROWS = Setting(borders=(0, 3, 11), top_k=10, count=6, own_rows=True)  # more ids than a rank holds


def quick(folder):
    shard = Shard(OWN_ROWS.borders, runtime.rank())
    return {
        "errors": shared_errors(SAME_ROWS, (1.0, 30.0), range(2), composed=False),
        "network": network_results(OWN_ROWS, 0, shard),
        "differentiated": derivative_of_all_reduce(),
    }


def grid(folder):
    """Three graphs a pair of divergence and support; what else can vary turns at different speeds."""
    number, found = 0, {}
    for divergence, support in PAIRS:
        for top_k in (1, 5, 10):
            own_rows = number % 2 == 1
            setting = Setting(
                divergence, support, (1.0, 2.0)[number % 3 == 0], 22 if own_rows else 23,
                ((0, 212, 423), (0, 5, 423), (0, 53, 53), (0, 27, 53))[number % 4], top_k,
                pad=0 if own_rows else min(top_k - 1, 3), own_rows=own_rows, rows_at_once=(8, 13, 100)[number % 3],
            )  # fmt: skip
            found[str(setting)] = shared_errors(setting, (1.0, 8.0, 30.0), range(2), composed=True)
            number += 1
    return found
