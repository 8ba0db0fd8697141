"""The step benchmark compares equal work: equal sizes, a batch that is really packed, losses that start alike."""

import math

import numpy as np
import pytest

from mindspore_impl.speed import train_step


def test_the_batch_holds_two_documents_a_row(ms_runtime):
    batch = train_step.packed_batch()
    assert batch.tokens == train_step.ROWS * train_step.LENGTH
    assert batch.loss_weight_BL.sum() == pytest.approx(1.0)
    assert set(np.unique(batch.segment_ids_BL)) == {1, 2}
    half = train_step.LENGTH // 2
    assert (batch.position_ids_BL[:, half] == 0).all() and (batch.loss_weight_BL[:, half - 1] == 0).all()
    assert (batch.target_ids_BL[:, 0] == batch.input_ids_BL[:, 1]).all()


@pytest.mark.slow
def test_both_train_the_same_amount(ms_runtime, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours, theirs = train_step.ours(), train_step.mindformers_llama()  # each refuses another number of parameters
    for run in (ours, theirs):
        first = run()
        assert first == pytest.approx(math.log(train_step.SIZES.vocab_size), abs=0.4)
        for _ in range(20):
            last = run()
        assert last < first
    assert not list(tmp_path.iterdir())
