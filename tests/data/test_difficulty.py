"""Bands over a set by difficulty: what is kept, in which order, and what is said when nothing can be."""

import pytest

from mindspore_impl.data import difficulty
from mindspore_impl.data.options import FileSet, KeepOptions
from mindspore_impl.data.sources import load_set, load_whole
from mindspore_impl.errors import UserError
from mindspore_impl.files import write_jsonl
from mindspore_impl.text.records import Message, Record, record_to_json

LOSSES = [0.5, 0.1, 0.9, 0.3, 0.7, 0.3, 2.0, 0.2]


def records_of(values, field=difficulty.LOSS):
    turns = (Message("user", "a"), Message("assistant", "b"))
    return [Record(f"r{i}", turns, "fast", {field: value}) for i, value in enumerate(values)]


def ids(records):
    return [record.id for record in records]


def kept(records, **band):
    return ids(difficulty.kept(records, KeepOptions(**band), "k"))


def test_a_band_of_values_keeps_its_ends_unless_told_otherwise():
    records = records_of(LOSSES)
    assert kept(records, low=0.3, high=0.7) == ["r0", "r3", "r4", "r5"]
    assert kept(records, low=0.3, high=0.7, ends="excluded") == ["r0"]
    assert kept(records, high=0.2) == ["r1", "r7"] and kept(records, low=0.9) == ["r2", "r6"]
    rates = records_of([0.0, 0.25, 1.0, 0.75, 0, 1], difficulty.PASS_RATE)  # right sometimes
    assert kept(rates, field=difficulty.PASS_RATE, low=0, high=1, ends="excluded") == ["r1", "r3"]


def test_buckets_share_a_set_out_easy_first():
    records = records_of(LOSSES)
    shares = [kept(records, bucket=name) for name in difficulty.BUCKETS]
    assert shares == [["r1", "r3", "r7"], ["r0", "r5"], ["r2", "r4", "r6"]]  # r3 and r5 are equal: in their order
    halves = [kept(records, by="quantile", high=0.5), kept(records, by="quantile", low=0.5)]
    assert halves == [["r1", "r3", "r5", "r7"], ["r0", "r2", "r4", "r6"]]


def test_a_high_pass_rate_is_easy():
    records = records_of([0.0, 0.5, 1.0], difficulty.PASS_RATE)
    assert kept(records, field=difficulty.PASS_RATE, bucket="easy") == ["r2"]
    assert kept(records, field=difficulty.PASS_RATE, bucket="hard") == ["r0"]


@pytest.mark.parametrize(
    ("band", "words"),
    [
        ({}, "bucket"),
        ({"bucket": "easy", "low": 0.1}, "bucket"),
        ({"low": 2.0, "high": 1.0}, "low=2.0 .*high=1.0"),
        ({"low": 1.0, "high": 1.0, "ends": "excluded"}, "low=1.0"),
        ({"low": float("nan")}, "low=nan"),
        ({"by": "quantile", "high": 1.5}, "high=1.5"),
        ({"bucket": "easy", "ends": "excluded"}, "k.ends"),
        ({"low": 7.0}, "k: .*none of 8 records, .*difficulty_loss is from 0.1 to 2"),
        ({"by": "quantile", "low": 0.5, "high": 0.51}, "none of 8 records"),
        ({"field": "difficulty_length", "low": 1.0}, "k: record 'r0': .*difficulty_length"),
    ],
)
def test_a_band_that_cannot_be_is_refused(band, words):
    with pytest.raises(UserError, match=words):
        kept(records_of(LOSSES), **band)


def test_a_value_that_is_not_a_number_is_refused_by_name():
    for value in (float("nan"), float("inf"), "0.3", True, [1]):
        with pytest.raises(UserError, match="record 'r1': meta.difficulty_loss"):
            kept(records_of([0.1, value]), low=0.0)


def test_a_set_is_cut_to_its_band_after_first_and_count(tmp_path):
    write_jsonl(tmp_path / "r.jsonl", map(record_to_json, records_of(LOSSES)))
    options = FileSet(source="records", path=str(tmp_path / "r.jsonl"), skip=1, count=6, keep=KeepOptions(high=0.3))
    assert ids(load_set("mine", options, 0)) == ["r1", "r3", "r5"]
    assert ids(load_whole("mine", options, 0)) == ["r1", "r2", "r3", "r4", "r5", "r6"]
    options.keep.low = 5.0
    with pytest.raises(UserError, match="data.sets.mine.keep"):
        load_set("mine", options, 0)


def test_the_change_of_a_set_is_counted_over_the_same_bins():
    before = records_of(LOSSES)
    change = difficulty.change(before, before[:4], difficulty.LOSS, "set")
    assert (change["before"], change["after"]) == (8, 4) and change["mean_after"] == pytest.approx(0.45)
    assert len(change["edges"]) == difficulty.BINS + 1
    assert sum(change["counts_before"]) == 8 and sum(change["counts_after"]) == 4
    assert all(a <= b for a, b in zip(change["counts_after"], change["counts_before"], strict=True))
    equal = records_of([1.0, 1.0])
    assert sum(difficulty.change(equal, equal, difficulty.LOSS, "set")["counts_after"]) == 2
