"""Packing: first-fit-decreasing, the shift, over-long samples, and rows that keep documents apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspore_impl.data.packing import cut, fill, pack_lengths, shift
from mindspore_impl.errors import UserError
from mindspore_impl.text.chat import Sample

EOS = 45892


def sample(ids, supervised, record_id="r"):
    return Sample(np.array(ids, np.int32), np.array(supervised, bool), record_id, "fast")


def naive_first_fit_decreasing(lengths, capacity):
    rows, free = [], []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, room in enumerate(free) if room >= lengths[item]), None)
        if row is None:
            rows.append([])
            free.append(capacity)
            row = len(rows) - 1
        rows[row].append(item)
        free[row] -= lengths[item]
    return rows


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 30), max_size=60), st.integers(30, 70))
def test_packs_exactly_as_first_fit_decreasing(lengths, capacity):
    assert pack_lengths(lengths, capacity) == naive_first_fit_decreasing(lengths, capacity)


def test_packs_many_samples_well():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.3, 0.5, 5000), 8, 1024).astype(int)
    rows = pack_lengths(lengths, 1024)
    assert sorted(item for row in rows for item in row) == list(range(5000))
    assert max(lengths[row].sum() for row in map(np.array, rows)) <= 1024
    assert lengths.sum() / (len(rows) * 1024) > 0.97
    assert pack_lengths([], 10) == []
    for length in (0, 11):
        with pytest.raises(ValueError, match="1..10"):
            pack_lengths([5, length], 10)


def test_trap_01_a_position_predicts_the_token_after_it():
    target_ids, target_supervised = shift(np.array([1, 50, 51, 52, 53]), np.array([0, 0, 1, 1, 0], bool))
    assert target_ids.tolist() == [0, 51, 52, 0, 0]
    assert target_supervised.tolist() == [False, True, True, False, False]


def test_trap_02_the_last_token_of_a_document_predicts_nothing():
    documents = [sample([1, 10, 11], [0, 1, 1]), sample([1, 20, 21, 22], [0, 0, 1, 1])]
    filled = fill([[0, 1]], cut(documents, 9, "error"), documents, 9)
    assert filled.input_ids_RL.tolist() == [[1, 10, 11, 1, 20, 21, 22, 0, 0]]
    assert filled.target_ids_RL.tolist() == [[10, 11, 0, 0, 21, 22, 0, 0, 0]]
    assert filled.target_supervised_RL.tolist() == [[1, 1, 0, 0, 1, 1, 0, 0, 0]]
    assert filled.segment_ids_RL.tolist() == [[1, 1, 1, 2, 2, 2, 2, 0, 0]]
    assert filled.position_ids_RL.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 0]]
    assert filled.placements == [[(0, 0), (1, 3)]]


def test_a_document_supervised_from_its_first_token_leaks_into_no_neighbour():
    documents = [sample([7, 8], [1, 1]), sample([9, 6], [1, 1])]
    filled = fill([[0, 1]], cut(documents, 4, "error"), documents, 4)
    assert filled.target_supervised_RL.tolist() == [[1, 0, 1, 0]]


def test_trap_12_segments_follow_the_documents_and_not_the_end_token():
    documents = [sample([1, EOS, 5, EOS, 6], [0, 1, 0, 1, 1]), sample([1, 7, 8], [0, 1, 1])]
    filled = fill([[0, 1]], cut(documents, 8, "error"), documents, 8)
    assert filled.segment_ids_RL.tolist() == [[1] * 5 + [2] * 3]
    assert filled.position_ids_RL.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]


def test_an_empty_row_is_padding_and_an_overfull_one_is_refused():
    documents = [sample([1, 2, 3], [0, 1, 1])]
    pieces = cut(documents, 4, "error")
    assert not fill([[]], pieces, documents, 4).segment_ids_RL.any()
    with pytest.raises(ValueError, match="more than 4"):
        fill([[0, 0]], pieces, documents, 4)


def test_an_overlong_sample_is_an_error_or_is_dropped_and_counted():
    samples = [sample([1] * 12, [0, 1] * 6, "long one"), sample([1] * 10, [0, 1] * 5)]
    with pytest.raises(UserError, match=r"'long one' .*12 .*10.*data\.overlong=drop"):
        cut(samples, 10, "error")
    pieces = cut(samples, 10, "drop")
    assert pieces.sample_P.tolist() == [1] and pieces.dropped_samples == 1 and pieces.dropped_pieces == 0


@settings(deadline=None, max_examples=60)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(2, 12))
def test_splitting_loses_no_supervised_target(mask, capacity):
    document = sample(np.arange(len(mask)) + 100, mask)
    pieces = cut([document], capacity, "split")
    rows = [[piece] for piece in range(len(pieces.sample_P))]
    filled = fill(rows, pieces, [document], capacity)
    targets = filled.target_ids_RL[filled.target_supervised_RL]
    assert targets.tolist() == (100 + np.flatnonzero(mask)[np.flatnonzero(mask) > 0]).tolist()
    assert pieces.length_P.max(initial=0) <= capacity
    assert (filled.input_ids_RL[filled.target_supervised_RL] == targets - 1).all()


def test_a_piece_without_a_target_is_dropped_and_counted():
    pieces = cut([sample(np.arange(10), [0] * 7 + [1] * 3)], 4, "split")
    assert list(zip(pieces.start_P, pieces.stop_P, strict=True)) == [(6, 10)]
    assert pieces.dropped_pieces == 2 and pieces.dropped_samples == 0
