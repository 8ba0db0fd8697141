"""Two real processes share rollout, capture and evaluation, and make what one makes alone."""

from pathlib import Path

import pytest

pytest.importorskip("mindspore")


@pytest.mark.slow
def test_two_ranks_make_what_one_makes(two_ranks, tmp_path):
    first, second = two_ranks(Path(__file__).parent / "rank_work.py", "share", tmp_path)
    for found in (first, second):
        assert found["alone"] == found["shared"] == first["shared"], "to the byte"
        assert found["alone_metrics"] == found["metrics"] == first["metrics"], "bit for bit, on every rank"
    assert len([name for name in first["shared"] if name.startswith("store/shard")]) > 2
    rollout, capture, evaluation = first["metrics"]
    assert rollout["generations"] == 24 and capture["sequences"] == 12 and evaluation["accuracy"]["s"]["total"] == 12
    assert evaluation["perplexity"]["s"]["loss"] > 0
    assert (first["agreed"], second["agreed"]) == (True, False), "rank 1 was told, rank 0 heard of it at their meeting"
    assert first["made"] == second["made"] == 4, "three parts of rank 0, one of rank 1"
    assert first["continued"] == first["shared"]["rollouts.jsonl"]
