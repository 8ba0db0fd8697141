"""The evaluation benchmark compares equal work: the same texts, the same log-probabilities."""

import dataclasses

import pytest

from mindspore_impl import speed
from mindspore_impl.speed import evaluate

SMALL = dataclasses.replace(evaluate.STUDENT, vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                            num_attention_heads=4, num_key_value_heads=2)  # fmt: skip


@pytest.mark.slow
def test_both_sides_do_the_same_work(ms_runtime, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "NEW", 3)
    rows = speed.run("evaluate", sizes={"small": SMALL})
    assert [row.unit for row in rows] == ["tokens/s", "s"] and all(row.ratio > 0 for row in rows)
    assert (tmp_path / "outputs" / "benchmarks.csv").is_file()


def test_different_log_probabilities_are_refused():
    evaluate.check_agreement([[-1.0, -2.0]], [[-1.000001, -2.0]])
    with pytest.raises(ValueError, match="would not be fair"):
        evaluate.check_agreement([[-1.0, -2.0]], [[-1.001, -2.0]])
