"""Batches in order of difficulty: what comes first, what stays whole, and that shuffled is what it was."""

from collections import Counter

import numpy as np
import pytest

from mindspore_impl.data.batches import ORDERED_PARTS, ORDERED_STEPS, BatchStream
from mindspore_impl.data.difficulty import LOSS, PASS_RATE
from mindspore_impl.errors import UserError
from mindspore_impl.files import sha256_bytes
from tests.data.test_batches import LENGTH, first_tokens, global_array, make_samples, options, stream_of


def graded(count, field=LOSS, seed=0, levels=None):
    """Samples whose difficulty is drawn evenly; first token -> difficulty."""
    samples = make_samples(count, seed)
    values = np.random.default_rng(seed + 9).random(count)
    values = values if levels is None else np.floor(values * levels) / levels
    for sample, value in zip(samples, values, strict=True):
        sample.meta = {field: float(value)}
    return samples, {int(sample.ids[0]): float(value) for sample, value in zip(samples, values, strict=True)}


def epoch_of(stream, epoch=0):
    """The difficulties' keys (first tokens) of one epoch, in the order of its rows."""
    rows = stream._rows(epoch)
    return [int(stream._samples[stream._pieces.sample_P[piece]].ids[0]) for row in rows for piece in row]


@pytest.mark.parametrize(("order", "field", "sign"), [("hard_to_easy", LOSS, -1), ("easy_to_hard", PASS_RATE, -1)])
def test_an_epoch_goes_by_difficulty_and_loses_nothing(order, field, sign):
    samples, value_of = graded(120, field)
    stream = stream_of(samples, order=order, order_by=field)
    for epoch in (0, 1):
        tokens = epoch_of(stream, epoch)
        assert Counter(tokens) == Counter(list(value_of)), "each sample once an epoch"
        stretches = stream._stretches(np.arange(120), epoch)
        assert ORDERED_PARTS <= len(stretches) <= ORDERED_PARTS + 1
        sizes = np.cumsum([len(stretch) for stretch in stretches])
        values = [sign * np.array([value_of[t] for t in part]) for part in np.split(np.array(tokens), sizes[:-1])]
        assert all(a.max() <= b.min() for a, b in zip(values, values[1:], strict=False))


def test_a_stretch_is_short_however_long_the_epoch():
    samples, _ = graded(600)
    for rows, room in ((1, ORDERED_STEPS * LENGTH), (64, sum(len(s.ids) for s in samples) // ORDERED_PARTS)):
        stream = stream_of(samples, rows=rows, order="easy_to_hard")
        tokens = [stream._pieces.length_P[part].sum() for part in stream._stretches(np.arange(600), 0)]
        assert max(tokens) < room + 20 and np.mean(tokens[:-1]) > room - 20
    few = stream_of(samples[:9], rows=64, order="easy_to_hard")
    assert len(few._stretches(np.arange(9), 0)) > 1


def test_steps_follow_the_order_of_the_epoch():
    samples, value_of = graded(200)
    stream = stream_of(samples, order="easy_to_hard")
    steps = stream.steps_for_epochs(1)
    means = [np.mean([value_of[t] for t in first_tokens(stream.step(step))]) for step in range(steps - 1)]
    quarters = [np.mean(part) for part in np.array_split(means, 4)]
    assert quarters == sorted(quarters) and quarters[3] - quarters[0] > 0.5
    told = stream.summary()["order"]
    assert (told["order"], told["by"]) == ("easy_to_hard", LOSS)
    assert told["means"] == sorted(told["means"]) and len(told["means"]) == 10


def test_two_sets_are_sorted_together():
    (one, by_one), (two, by_two) = graded(60, seed=0), graded(60, seed=1)
    tokens = epoch_of(BatchStream({"a": one, "b": two}, options(order="easy_to_hard"), 3))
    values = np.array([(by_one | by_two)[t] for t in tokens])
    assert values[:40].mean() < values[-40:].mean() - 0.4 and {t // 1000 for t in tokens[:40]} == {1, 2}


def test_ordered_batches_do_not_depend_on_ranks_nor_on_where_a_run_resumes():
    samples, _ = graded(80, levels=4)
    order = {"order": "easy_to_hard"}
    alone = [stream_of(samples, **order).step(step) for step in range(12)]
    late = stream_of(samples, **order)
    assert (global_array([late.step(11)], "input_ids_BL") == global_array(alone[11:], "input_ids_BL")).all()
    ranks = [stream_of(samples, rank=rank, world_size=2, **order) for rank in range(2)]
    both = [batch for stream in ranks for batch in stream.step(7)]
    assert (global_array([both], "input_ids_BL") == global_array(alone[7:8], "input_ids_BL")).all()


def test_equally_hard_samples_change_places_between_epochs():
    samples, value_of = graded(80, levels=1)
    stream = stream_of(samples, order="hard_to_easy")
    assert set(value_of.values()) == {0.0} and epoch_of(stream, 0) != epoch_of(stream, 1)
    rows = [len(stream._rows(epoch)) for epoch in range(3)]
    assert [stream._epoch_start(epoch) for epoch in range(4)] == [0, *np.cumsum(rows)]


def test_shuffled_batches_are_what_they_always_were():
    """The bytes of 20 steps before there was any order; difficulty in meta changes nothing."""
    stream = stream_of(graded(60)[0])
    steps = [stream.step(step) for step in range(20)]
    digest = sha256_bytes(b"".join(batch.input_ids_BL.tobytes() for step in steps for batch in step))
    assert digest == "29a96767c1541598a52b76845568b85736860097ee93f51806d640c9da89a333"
    assert "order" not in stream.summary()


def test_a_sample_without_its_number_is_refused():
    samples, _ = graded(8)
    for meta in ({}, {LOSS: float("nan")}, {LOSS: "hard"}):
        samples[5].meta = meta
        with pytest.raises(UserError, match="data.order=easy_to_hard.*'r5'.*difficulty_loss"):
            stream_of(samples, order="easy_to_hard")
    stream_of(samples)
