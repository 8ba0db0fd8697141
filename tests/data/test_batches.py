"""Batches: what is drawn, in which order, with which weights, and where the teacher rows are placed."""

import threading
from collections import Counter

import numpy as np
import pytest

from mindspore_impl.data.batches import BatchStream, PackedBatch, one_pass
from mindspore_impl.data.options import BatchOptions
from mindspore_impl.data.teacher_store import StoreHeader, StoreReader
from mindspore_impl.data.teacher_store_writer import StoreWriter
from mindspore_impl.errors import UserError
from mindspore_impl.ops.log_floor import LOG_FLOOR
from mindspore_impl.text.chat import Sample

LENGTH = 32
ARRAYS = [name for name in PackedBatch.__dataclass_fields__ if "_B" in name]


def make_samples(count, seed=0, shortest=6, longest=20, name="r"):
    """Samples whose first token names them (1000 + index), with a supervised end and one supervised token before it."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        ids = rng.integers(10, 900, int(rng.integers(shortest, longest + 1))).astype(np.int32)
        ids[0] = 1000 * (seed + 1) + index
        supervised = np.zeros(len(ids), bool)
        supervised[2] = True
        supervised[4:] = True
        made.append(Sample(ids, supervised, f"{name}{index}", "fast"))
    return made


def options(**changes):
    return BatchOptions(**({"sequence_length": LENGTH, "rows": 4, "prefetch": 0} | changes))


def stream_of(samples, seed=3, rank=0, world_size=1, teacher=None, **changes):
    return BatchStream({"only": samples}, options(**changes), seed, rank, world_size, teacher)


def first_tokens(batches):
    """The naming tokens of all documents, in order."""
    return [int(i) for b in batches for i in b.input_ids_BL[(b.position_ids_BL == 0) & (b.segment_ids_BL > 0)]]


def assert_equal(one, other):
    for name in ARRAYS:
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype and a.tobytes() == b.tobytes(), name


def global_array(steps, name):
    return np.concatenate([getattr(batch, name) for step in steps for batch in step])


def store_of(folder, samples, top_k=2):
    """A store whose r-th row holds the r-th supervised token and, by its probability, that token's place."""
    writer = StoreWriter(folder, StoreHeader("a" * 64, "b" * 64, 153376, top_k, 1.0, "top_k"), 64)
    for sample in samples:
        places = np.flatnonzero(sample.supervised)
        mass_S = 0.5 + places / 1000
        ids_SK = sample.ids[places][:, None] + np.arange(top_k) * 1000
        logp_SK = np.full(ids_SK.shape, -9.0)
        logp_SK[:, 0] = np.log(mass_S)
        writer.add(sample.ids, sample.supervised, ids_SK, logp_SK, np.log1p(-mass_S - np.exp(-9.0) * (top_k - 1)))
    writer.close()
    return StoreReader(folder)


def assert_teacher_is_aligned(batches):
    seen = 0
    for batch in batches:
        weighted_BL = batch.loss_weight_BL > 0
        np.testing.assert_array_equal(batch.teacher_ids_BLK[..., 0][weighted_BL], batch.target_ids_BL[weighted_BL])
        assert (batch.teacher_ids_BLK[~weighted_BL] == -1).all()
        assert (batch.teacher_logp_BLK[~weighted_BL] == LOG_FLOOR).all()
        assert (batch.teacher_tail_logp_BL[~weighted_BL] == 0).all()
        assert np.isfinite(batch.teacher_logp_BLK).all() and np.isfinite(batch.teacher_tail_logp_BL).all()
        seen += int(weighted_BL.sum())
    return seen


@pytest.mark.parametrize("accumulation", [1, 2])
def test_trap_01_teacher_rows_meet_the_targets_they_predict(tmp_path, accumulation):
    samples = make_samples(20)
    stream = stream_of(samples, teacher=store_of(tmp_path, samples), gradient_accumulation_steps=accumulation)
    batches = [batch for step in range(stream.steps_for_epochs(1)) for batch in stream.step(step)]
    assert assert_teacher_is_aligned(batches) >= stream.summary()["supervised"]
    for batch in batches:  # the probability tells the place of the target in its document
        weighted_BL = batch.loss_weight_BL > 0
        places = (np.exp(batch.teacher_logp_BLK[..., 0][weighted_BL]) - 0.5) * 1000
        np.testing.assert_allclose(places, batch.position_ids_BL[weighted_BL] + 1, atol=0.5)


def test_trap_01_teacher_rows_follow_the_pieces_of_a_split_sample(tmp_path):
    samples = make_samples(6, shortest=40, longest=90)
    stream = stream_of(samples, teacher=store_of(tmp_path, samples), overlong="split", rows=1)
    batches = [batch for step in range(stream.steps_for_epochs(1)) for batch in stream.step(step)]
    assert assert_teacher_is_aligned(batches) == sum(int(sample.supervised.sum()) for sample in samples)


def test_trap_02_no_document_supervises_its_neighbour():
    samples = make_samples(20)
    known = {int(sample.ids[0]): sample for sample in samples}
    for batch, _ in one_pass(samples, LENGTH, 4):
        for row in range(4):
            for segment in range(1, batch.segment_ids_BL[row].max() + 1):
                where = batch.segment_ids_BL[row] == segment
                sample = known[int(batch.input_ids_BL[row][where][0])]
                np.testing.assert_array_equal(batch.input_ids_BL[row][where], sample.ids)
                np.testing.assert_array_equal(batch.loss_weight_BL[row][where][:-1], sample.supervised[1:])
                assert batch.loss_weight_BL[row][where][-1] == 0 == batch.target_ids_BL[row][where][-1]
        assert (batch.target_ids_BL[batch.loss_weight_BL == 0] == 0).all() and batch.target_ids_BL.min() == 0


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 4), (2, 2), (4, 1)])
def test_trap_03_the_split_changes_neither_weights_nor_rows(world_size, accumulation):
    samples = make_samples(30)
    whole = stream_of(samples)
    ranks = [
        stream_of(samples, rank=r, world_size=world_size, gradient_accumulation_steps=accumulation)
        for r in range(world_size)
    ]
    for step in range(whole.steps_for_epochs(2)):
        (expected,) = whole.step(step)
        parts = [rank.step(step) for rank in ranks]
        assert all(len(part) == accumulation for part in parts)
        for name in ARRAYS[:5]:
            np.testing.assert_array_equal(global_array(parts, name), getattr(expected, name))
        weight = global_array(parts, "loss_weight_BL")
        assert weight.sum() == pytest.approx(1, abs=1e-6)
        assert set(np.unique(weight)) <= {np.float32(0), np.float32(1 / expected.supervised)}


def test_trap_04_a_step_without_supervision_weighs_nothing():
    samples = [Sample(np.arange(1, 9, dtype=np.int32), np.zeros(8, bool), "mute", "fast")]
    with np.errstate(all="raise"):
        (batch,) = stream_of(samples, rows=1).step(0)
    assert batch.tokens == 8 and batch.supervised == 0
    assert (batch.loss_weight_BL == 0).all()


@pytest.mark.parametrize("change", ["token", "mask"])
def test_trap_07_a_sample_that_was_not_captured_is_named(tmp_path, change):
    samples = make_samples(5)
    teacher = store_of(tmp_path, samples)
    samples[3] = Sample(samples[3].ids.copy(), samples[3].supervised.copy(), "the other", "fast")
    if change == "token":
        samples[3].ids[1] += 1
    else:
        samples[3].supervised[2:4] = samples[3].supervised[3:1:-1]
    with pytest.raises(UserError, match="record 'the other': .*teacher store"):
        stream_of(samples, teacher=teacher)
    with pytest.raises(UserError, match="record 'the other': .*teacher store"):
        list(one_pass(samples, LENGTH, 4, teacher=teacher))


def test_trap_06_no_teacher_row_is_dropped_on_the_way(tmp_path):
    samples = make_samples(12)
    stream = stream_of(samples, teacher=store_of(tmp_path, samples, top_k=3), prefetch=2)
    for (batch,) in stream.steps(0, 5):
        mass_BL = np.exp(batch.teacher_logp_BLK).sum(-1) + np.exp(batch.teacher_tail_logp_BL)
        np.testing.assert_allclose(mass_BL, 1, atol=1e-6)
        np.testing.assert_array_equal((batch.teacher_ids_BLK >= 0).all(-1), batch.loss_weight_BL > 0)
        assert batch.supervised > 0


def test_trap_12_an_end_token_inside_a_document_starts_no_segment():
    samples = make_samples(8)
    for sample in samples:
        sample.ids[[3, 5, -1]] = 45892
    batches = [batch for batch, _ in one_pass(samples, LENGTH, 2)]
    assert sorted(first_tokens(batches)) == sorted(int(sample.ids[0]) for sample in samples)


MIXTURE = {"mixture": {"reasoning": 3.0, "fast": 1.0}}


@pytest.mark.parametrize("changes", [{}, MIXTURE])
def test_trap_14_starting_in_the_middle_is_bit_equal(tmp_path, changes):
    """Steps made on the spot by one stream equal steps prefetched by another one that starts later."""
    sets = {"reasoning": make_samples(9, 0), "fast": make_samples(14, 1)}
    teacher = store_of(tmp_path, sets["reasoning"] + sets["fast"])

    def fresh(seed=11, **more):
        return BatchStream(sets, options(gradient_accumulation_steps=2, **changes, **more), seed, 1, 2, teacher)

    stream = fresh()
    total = stream.steps_for_epochs(4)
    whole = list(stream.steps(0, total))
    for start in (1, stream.steps_for_epochs(1), total):
        for one, other in zip(whole[start:], fresh(prefetch=3).steps(start, total), strict=True):
            for a, b in zip(one, other, strict=True):
                assert_equal(a, b)
                assert (a.tokens, a.supervised) == (b.tokens, b.supervised)
    assert fresh(12).step(0)[0].input_ids_BL.tobytes() != whole[0][0].input_ids_BL.tobytes()


def test_order_neither_reads_nor_moves_the_global_generator():
    samples = make_samples(20)
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    (one,) = stream_of(samples).step(2)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.random.seed(2)
    assert_equal(one, stream_of(samples).step(2)[0])


def test_every_epoch_passes_a_single_set_once_and_loses_nothing():
    samples = make_samples(25)
    stream = stream_of(samples, rows=5)
    rows = stream.summary()["rows_per_epoch"]
    assert rows % 5, "the epoch must end inside a step to be a test"
    epochs = 4
    steps = [stream.step(step) for step in range(stream.steps_for_epochs(epochs))]
    arrays = {name: global_array(steps, name) for name in ARRAYS[:5]}
    orders = []
    for epoch in range(epochs):
        part = slice(epoch * rows, (epoch + 1) * rows)
        orders.append(first_tokens([PackedBatch(*(array[part] for array in arrays.values()))]))
        assert sorted(orders[-1]) == [1000 + i for i in range(25)]
    assert len({tuple(order) for order in orders}) == epochs
    assert sorted(orders[0]) != orders[0]


def test_rows_do_not_stay_in_the_order_of_packing():
    """One document a row: packed longest first, which training must not see."""
    stream = stream_of(make_samples(16, shortest=18, longest=32), rows=16)
    (batch,) = stream.step(0)
    lengths = np.count_nonzero(batch.segment_ids_BL, axis=1).tolist()
    assert len(lengths) == 16 and lengths != sorted(lengths, reverse=True)
    assert sorted(lengths) == sorted(np.count_nonzero(stream.step(1)[0].segment_ids_BL, axis=1).tolist())


def test_steps_for_epochs_covers_the_last_row():
    stream = stream_of(make_samples(25), rows=2)
    rows = stream.summary()["rows_per_epoch"]
    assert [stream.steps_for_epochs(e) for e in (0, 1, 3)] == [0, -(-rows // 2), -(-3 * rows // 2)]
    assert stream.steps_for_epochs(0.5) == -(-rows // 4)


@pytest.mark.parametrize("mixture", [{}, {"a": 3, "b": 1}])
def test_tokens_and_epochs_are_those_of_the_whole_step_on_every_rank(mixture):
    """With the mixture, epochs differ in their number of rows."""
    sets = {"a": make_samples(9), "b": make_samples(7, seed=1)}
    chosen = options(rows=6, mixture=mixture, gradient_accumulation_steps=3)
    streams = [BatchStream(sets, chosen, 3, rank, 2) for rank in range(2)]
    for step in (0, 1, 5):
        tokens = sum(batch.tokens for stream in streams for batch in stream.step(step))
        assert [stream.tokens(step) for stream in streams] == [tokens, tokens]
    first = streams[0].summary()["rows_per_epoch"]
    passed = [streams[1].epochs_at(step) for step in (0, 1, 24)]
    assert passed == pytest.approx([0, 6 / first, 144 / first], rel=0.2 if mixture else 1e-12)


def drawn(stream, steps):
    return Counter(token for step in range(steps) for token in first_tokens(stream.step(step)))


def test_a_mixture_gives_shares_of_the_samples_drawn():
    sets = {"fast": make_samples(30, 1), "reasoning": make_samples(10, 0), "unused": make_samples(5, 2)}
    stream = BatchStream(sets, options(rows=1, **MIXTURE), 0)
    assert stream.summary()["sets"] == {"fast": 10, "reasoning": 30}
    assert stream.summary()["samples"] == 40
    counts = drawn(stream, stream.steps_for_epochs(1))
    assert sum(counts.values()) == 40
    assert {token: n for token, n in counts.items() if token < 2000} == {1000 + i: 3 for i in range(10)}
    assert sorted(counts[token] for token in counts if token >= 2000) == [1] * 10
    # three epochs of 10 are one pass over the 30, without replacement
    counts = drawn(stream, stream.steps_for_epochs(3))
    assert {token: n for token, n in counts.items() if token >= 2000} == {2000 + i: 1 for i in range(30)}


def test_without_a_mixture_every_set_is_passed_once_in_any_order_of_the_sets():
    a, b = make_samples(7, 0), make_samples(12, 1)
    stream = BatchStream({"a": a, "b": b}, options(rows=1), 0)
    assert stream.summary()["sets"] == {"a": 7, "b": 12}
    assert set(drawn(stream, stream.steps_for_epochs(1)).values()) == {1}
    assert_equal(stream.step(1)[0], BatchStream({"b": b, "a": a}, options(rows=1), 0).step(1)[0])


def test_summary_counts_what_the_epoch_holds():
    samples = make_samples(25)
    summary = stream_of(samples).summary()
    tokens = sum(len(sample.ids) for sample in samples)
    assert summary["samples"] == 25 and summary["tokens"] == tokens and summary["dropped"] == 0
    assert summary["supervised"] == sum(int(sample.supervised[1:].sum()) for sample in samples)
    assert summary["efficiency"] == pytest.approx(tokens / (summary["rows_per_epoch"] * LENGTH))


def test_a_dropped_sample_needs_no_teacher(tmp_path):
    """A capture drops it by the same rule; a sample that is kept, whole or in pieces, still needs its rows."""
    samples = make_samples(10)
    teacher = store_of(tmp_path, samples)
    samples += make_samples(2, 1, shortest=40, longest=50, name="long")
    stream = stream_of(samples, teacher=teacher, overlong="drop", rows=1)
    assert stream.summary()["dropped"] == 2
    assert drawn(stream, stream.steps_for_epochs(1)) == {1000 + i: 1 for i in range(10)}
    batches = [batch for step in range(stream.steps_for_epochs(1)) for batch in stream.step(step)]
    assert assert_teacher_is_aligned(batches) == sum(int(sample.supervised.sum()) for sample in samples[:10])
    with pytest.raises(UserError, match="record 'long0': .*teacher store"):
        stream_of(samples, teacher=teacher, overlong="split")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 6, "gradient_accumulation_steps": 4}, r"data\.rows=6.*multiple of 4"),
        ({"gradient_accumulation_steps": 0}, r"data\.gradient_accumulation_steps: 0"),
        ({"sequence_length": 1}, r"data\.sequence_length"),
        ({"mixture": {"onyl": 1.0}}, r"data\.mixture\.onyl.*'only'"),
        ({"mixture": {"only": -1.0}}, r"data\.mixture\.only: -1\.0"),
        ({"mixture": {"only": 0.0}}, r"data\.mixture"),
        ({"mixture": {"empty": 1.0}}, r"data\.sets\.empty"),
        ({"mixture": {"only": 1.0, "more": 0.01}}, r"data\.mixture\.more=0\.01"),
        ({"sequence_length": 4, "mixture": {"only": 1.0}}, "record 'r0'"),
        ({"sequence_length": 4, "overlong": "drop", "mixture": {"only": 1.0}}, r"data\.sets\.only"),
    ],
)
def test_faults_name_their_key(changes, message):
    with pytest.raises(UserError, match=message):
        BatchStream({"only": make_samples(5), "more": make_samples(5, 1), "empty": []}, options(**changes), 0)


def test_rows_must_divide_over_the_ranks():
    with pytest.raises(UserError, match="data.rows.* 3 ranks.*multiple of 3"):
        stream_of(make_samples(5), world_size=3)


def test_a_fault_while_prefetching_reaches_the_caller_as_it_is(tmp_path):
    samples = make_samples(12)
    stream = stream_of(samples, teacher=store_of(tmp_path, samples), prefetch=2)
    for shard in tmp_path.glob("shard-*"):
        shard.unlink()
    with pytest.raises(UserError, match=r"^record 'r\d+': .*shard-"):
        list(stream.steps(0, 3))


def test_a_consumer_may_leave_early():
    stream = stream_of(make_samples(12), prefetch=2)

    def threads():
        return sum(thread.name.startswith("prefetch") for thread in threading.enumerate())

    steps = stream.steps(0, 10_000)
    next(steps)
    assert threads() == 1
    with pytest.raises(KeyError) as held:  # its traceback keeps everything inside the stream alive
        steps.throw(KeyError("in the training loop"))
    assert held and threads() == 0
    assert_equal(next(stream.steps(1, 3))[0], stream.step(1)[0])


def test_one_pass_sees_every_sample_once_and_says_where():
    samples = make_samples(11)
    seen = []
    for batch, placements in one_pass(samples, LENGTH, 3):
        assert batch.input_ids_BL.shape == (3, LENGTH) and len(placements) == 3
        assert set(np.unique(batch.loss_weight_BL)) <= {0.0, 1.0}
        for row, placed in enumerate(placements):
            for index, start in placed:
                length = len(samples[index].ids)
                np.testing.assert_array_equal(batch.input_ids_BL[row, start : start + length], samples[index].ids)
                seen.append(index)
    assert sorted(seen) == list(range(11))


def test_one_pass_fills_the_last_batch_with_empty_rows(tmp_path):
    samples = make_samples(3)
    ((batch, placements),) = one_pass(samples, LENGTH, 8, teacher=store_of(tmp_path, samples), loss_weight=0.5)
    assert placements[-1] == [] and batch.tokens == sum(len(sample.ids) for sample in samples)
    assert batch.supervised == sum(int(sample.supervised.sum()) for sample in samples)
    assert set(np.unique(batch.loss_weight_BL)) == {0.0, 0.5}
    assert (batch.segment_ids_BL[-1] == 0).all() and (batch.teacher_ids_BLK[-1] == -1).all()
    assert_teacher_is_aligned([batch])
    assert list(one_pass([], LENGTH, 8)) == []
