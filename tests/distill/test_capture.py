"""Capture end to end: what is stored, where it is read, and how a killed capture resumes."""

import functools
import shutil
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from mindspore import Tensor

from mindspore_impl.data.batches import SequentialBatches, one_pass
from mindspore_impl.data.packing import shift
from mindspore_impl.data.teacher_store import StoreHeader, StoreReader, sample_key, verify_store
from mindspore_impl.distill import capture
from mindspore_impl.distill.capture import TeacherScorer, counted, rescore, run_capture
from mindspore_impl.distill.jobs import CaptureJob
from mindspore_impl.distill.options import CaptureOptions
from mindspore_impl.distributed import ranks, resumable
from mindspore_impl.errors import UserError
from mindspore_impl.losses.objective import METRICS, LossNetwork
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.text.chat import Sample
from tests.distill.small import small_model

pytestmark = pytest.mark.usefixtures("ms_runtime")
VOCAB, LENGTH, ROWS, TOP_K = 40, 32, 4, 5
TOKENIZER = SimpleNamespace(sha256="k" * 64, vocab_size=VOCAB)
HEADER = StoreHeader("t" * 64, "k" * 64, VOCAB, TOP_K, 2.0, "top_k")
OPTIONS = CaptureOptions("top_k", TOP_K, 2.0, rows_per_batch=ROWS, positions_per_shard=20)
SAMPLED = CaptureOptions("sampled", TOP_K, 2.0, rows_per_batch=ROWS, positions_per_shard=20)


@pytest.fixture(scope="module")
def model(ms_runtime):
    return small_model(VOCAB)


@pytest.fixture(scope="module", autouse=True)
def shared_graphs():
    """Compile the graphs of a teacher once for the whole module."""
    make = functools.cache(TeacherScorer)

    def scorer(model, header, seed=0):
        shared = make(model, header)
        shared.seed = seed
        return shared

    with pytest.MonkeyPatch.context() as patch:
        for name in ("HiddenStates", "LogprobsAt", "ProjectedRows"):
            patch.setattr(capture, name, functools.cache(getattr(capture, name)))
        patch.setattr(capture, "TeacherScorer", scorer)
        yield


@contextmanager
def weights(model, changed: dict):
    """The model with these arrays in place of its parameters."""
    parameters = {parameter.name: parameter for parameter in model.get_parameters()}
    before = {name: parameters[name].asnumpy().copy() for name in changed}
    for name, array in changed.items():
        parameters[name].set_data(Tensor(array))
    try:
        yield
    finally:
        for name, array in before.items():
            parameters[name].set_data(Tensor(array))


def arrays_of(model) -> dict:
    return {parameter.name: parameter.asnumpy() for parameter in model.get_parameters()}


def make_samples(count=16, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        length = int(rng.integers(5, 17))
        supervised = rng.random(length) < 0.5
        supervised[-1] = True
        made.append(Sample(rng.integers(0, VOCAB, length).astype(np.int32), supervised, f"r{number}", "fast"))
    return made


@pytest.fixture(scope="module")
def captured(model, tmp_path_factory):
    """(folder, metrics, samples) of one capture; other tests read it only."""
    folder, samples = tmp_path_factory.mktemp("captured"), make_samples()
    return folder, captured_in(folder, model, samples), samples


def captured_in(folder, model, samples, options=OPTIONS, length=LENGTH, seed=0, tokenizer=TOKENIZER):
    """The metrics of a capture."""
    return run_capture(CaptureJob(tokenizer, samples, options, folder, seed, length, "t" * 64, model))


def teacher_log_p(model, sample):
    """float64 log-softmax at T = 2 of the model's logits on one sample alone, [L, V]."""
    batch, _ = next(one_pass([sample], LENGTH, ROWS))
    logits = model(*(Tensor(a) for a in (batch.input_ids_BL, batch.position_ids_BL, batch.segment_ids_BL))).asnumpy()
    x_LV = logits[0, : len(sample.ids)].astype(np.float64) / 2
    return x_LV - np.log(np.exp(x_LV).sum(1, keepdims=True))


def test_trap_01_rows_are_read_at_the_position_before_the_token(model, captured):
    """Row r of a stored sample is the teacher's distribution at the position before its r-th supervised token."""
    folder, _, samples = captured
    reader = StoreReader(folder / "store")
    for sample in samples[:6]:
        ids_SK, logp_SK, tail_S = reader.lookup(sample.ids, sample.supervised)
        before = [t - 1 for t in range(1, len(sample.ids)) if sample.supervised[t]]
        expected_SV = teacher_log_p(model, sample)[before]
        np.testing.assert_array_equal(ids_SK, np.argsort(-expected_SV, axis=1)[:, :TOP_K])
        np.testing.assert_allclose(logp_SK, np.take_along_axis(expected_SV, ids_SK, 1), atol=3e-3)  # float16
        np.testing.assert_allclose(np.exp(tail_S), 1 - np.exp(logp_SK).sum(1), atol=1e-5)


def test_trap_01_the_teacher_as_its_own_student_has_no_kd_until_shifted(model, captured):
    """KD of a model with its own capture is 0 to float16 storage; off by one in either direction it is large."""
    folder, _, samples = captured
    network = LossNetwork(model, ObjectiveOptions(1.0, temperature=2.0), True)
    batch, _ = next(one_pass(samples, LENGTH, 8, StoreReader(folder / "store")))

    def kd(shift_by):
        teacher = (batch.teacher_ids_BLK, batch.teacher_logp_BLK, batch.teacher_tail_logp_BL)
        arrays = [batch.input_ids_BL, batch.target_ids_BL, batch.loss_weight_BL, batch.segment_ids_BL]
        arrays += [batch.position_ids_BL, *(np.roll(array, shift_by, axis=1) for array in teacher)]
        metrics_M = network(*map(Tensor, arrays))[1].asnumpy()
        return metrics_M[METRICS.index("kd")] / metrics_M[METRICS.index("tokens")], metrics_M

    aligned, metrics_M = kd(0)
    assert abs(aligned) < 1e-5
    tokens = metrics_M[METRICS.index("tokens")]
    assert metrics_M[METRICS.index("agreement")] == tokens == batch.supervised
    teacher_mass, student_mass = (metrics_M[METRICS.index(name)] for name in ("teacher_mass", "student_mass"))
    np.testing.assert_allclose(teacher_mass, student_mass, rtol=1e-3)
    assert min(kd(1)[0], kd(-1)[0]) > 1e-2


def test_metrics_describe_the_whole_store(captured):
    folder, metrics, samples = captured
    files = list((folder / "store").iterdir())
    assert metrics["positions"] == sum(int(s.supervised[1:].sum()) for s in samples)
    assert metrics["sequences"] == len(samples)
    assert metrics["bytes"] == sum(f.stat().st_size for f in files)
    assert metrics["bytes_per_position"] == pytest.approx(metrics["bytes"] / metrics["positions"])
    assert metrics["teacher_mass"] + metrics["tail"] == pytest.approx(1, abs=1e-6)
    assert 0 < metrics["teacher_mass"] < 1 and 0 < metrics["teacher_entropy"] < np.log(TOP_K + 1)
    assert metrics["tokens"] == sum(len(s.ids) for s in samples) and metrics["tokens_per_second"] > 0
    assert len(files) == 3  # the manifest and two shards


def content(folder):
    return {path.name: path.read_bytes() for path in (folder / "store").iterdir()}


@pytest.mark.parametrize("options", [OPTIONS, pytest.param(SAMPLED, marks=pytest.mark.slow)], ids=["top_k", "sampled"])
def test_trap_14_a_killed_capture_goes_on_and_stores_the_same(model, options, tmp_path, monkeypatch):
    """Killed in the middle, started again: only what is missing is scored, and the store is the same to the byte."""
    samples = make_samples(24, seed=5)
    captured_in(tmp_path / "whole", model, samples, options, seed=7)
    score, scored = TeacherScorer.score, []

    def counting(self, *arguments):
        for found in score(self, *arguments):
            if len(scored) == 20:
                raise KeyboardInterrupt
            scored.append(found)
            yield found

    monkeypatch.setattr(TeacherScorer, "score", counting)
    with pytest.raises(KeyboardInterrupt):
        captured_in(tmp_path / "killed", model, samples, options, seed=7)
    monkeypatch.setattr(TeacherScorer, "score", score)
    assert not (tmp_path / "killed" / "store" / "manifest.json").exists()
    metrics = captured_in(tmp_path / "killed", model, samples, options, seed=7)
    assert 0 < metrics["tokens"] < sum(len(s.ids) for s in samples)
    assert content(tmp_path / "killed") == content(tmp_path / "whole") and len(content(tmp_path / "whole")) == 4
    again = captured_in(tmp_path / "killed", model, samples, options, seed=7)
    assert again["tokens"] == 0 and again["positions"] == metrics["positions"]
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_lost_shard_alone_is_captured_again(model, captured, tmp_path, capsys):
    folder, metrics, samples = captured
    shutil.copytree(folder / "store", tmp_path / "store")
    lost = tmp_path / "store" / "shard-00001.safetensors"
    for fault in ("missing", "damaged"):
        lost.unlink() if fault == "missing" else lost.write_bytes(lost.read_bytes()[:-1] + b"x")
        again = captured_in(tmp_path, model, samples)
        assert f"shard-00001.safetensors: {fault}" in capsys.readouterr().err
        assert 0 < again["tokens"] < metrics["tokens"] and content(tmp_path) == content(folder)


def test_a_store_of_other_samples_is_captured_anew(model, captured, tmp_path):
    """Also when the ids are the same and only a mask differs."""
    folder, metrics, samples = captured
    shutil.copytree(folder / "store", tmp_path / "store")
    short = min(range(len(samples)), key=lambda index: len(samples[index].ids))
    mask = samples[short].supervised.copy()
    mask[1] ^= True
    changed = [*samples[:short], replace(samples[short], supervised=mask), *samples[short + 1 :]]
    again = captured_in(tmp_path, model, changed)
    assert 0 < again["tokens"] < metrics["tokens"]
    StoreReader(tmp_path / "store").check(samples[short].ids, mask)
    captured_in(tmp_path, model, samples[:4])
    assert verify_store(tmp_path / "store")["sequences"] == 4
    captured_in(tmp_path / "new", model, samples[:4])
    assert content(tmp_path) == content(tmp_path / "new")


def test_a_sample_is_stored_alike_whatever_it_was_packed_with(model, captured):
    """Attention, positions and teacher rows of a packed sample are those of the sample alone."""
    _, _, samples = captured
    scorer = capture.TeacherScorer(model, HEADER)
    packed = {s.record_id: rows for s, rows in scorer.score(samples, one_pass(samples, LENGTH, ROWS))}
    for sample in samples[:4]:
        ((_, alone),) = scorer.score([sample], one_pass([sample], LENGTH, ROWS))
        np.testing.assert_array_equal(packed[sample.record_id][0], alone[0])
        np.testing.assert_allclose(packed[sample.record_id][1], alone[1], atol=1e-5)


def test_trap_07_equal_sequences_are_scored_once_and_others_by_their_hash(model, tmp_path):
    """Two samples of equal counts and other ids are two entries; a repeated one is one."""
    ids = np.arange(8, dtype=np.int32)
    supervised = np.arange(8) > 3
    samples = [Sample(array, supervised, name, "fast") for array, name in ((ids, "a"), (ids + 1, "b"), (+ids, "c"))]
    metrics = captured_in(tmp_path, model, samples)
    assert metrics["sequences"] == 2 and metrics["positions"] == 8 and metrics["tokens"] == 16
    reader = StoreReader(tmp_path / "store")
    with pytest.raises(UserError, match=sample_key(ids + 2)[:16]):
        reader.lookup(ids + 2, supervised)
    assert not np.array_equal(reader.lookup(ids, supervised)[1], reader.lookup(ids + 1, supervised)[1])


def test_sampled_rows_are_counts_of_draws_from_the_teacher(model, tmp_path):
    """Masses are multiples of 1 / K that sum to 1, the seed alone decides, and the mean follows the teacher."""
    samples, many = make_samples(4, seed=3), replace(SAMPLED, top_k=400)
    captured_in(tmp_path / "a", model, samples, many, seed=1)
    reader = StoreReader(tmp_path / "a" / "store")
    assert reader.header.mode == "sampled" and reader.top_k == 400
    for sample in samples:
        ids_SK, logp_SK, tail_S = reader.lookup(sample.ids, sample.supervised)
        expected_LV = np.exp(teacher_log_p(model, sample))[shift(sample.ids, sample.supervised)[1]]
        for row in range(len(ids_SK)):
            real = ids_SK[row] >= 0
            assert np.exp(logp_SK[row, real]).sum() == pytest.approx(1, abs=1e-5) and np.exp(tail_S[row]) == 0
            share_V = np.zeros(VOCAB)
            share_V[ids_SK[row, real]] = np.exp(logp_SK[row, real])
            assert np.abs(share_V - expected_LV[row]).max() < 5 * np.sqrt(0.25 / 400)
    scorer = capture.TeacherScorer(model, replace(HEADER, mode="sampled", top_k=400))
    results = []
    for scorer.seed in (1, 1, 2):
        results.append(next(iter(scorer.score(samples[:1], one_pass(samples[:1], LENGTH, ROWS))))[1][0])
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_counted_merges_equal_draws():
    ids_SK, logp_SK, tail_S = counted(np.array([[7, 3, 7, 7], [1, 2, 3, 4]]))
    np.testing.assert_array_equal(ids_SK, [[7, 3, -1, -1], [1, 2, 3, 4]])
    np.testing.assert_allclose(np.exp(logp_SK), [[0.75, 0.25, 0, 0], [0.25] * 4], atol=1e-6)
    assert (tail_S == -1e4).all()


def test_rescoring_tells_the_teacher_from_another(model, captured):
    folder, _, samples = captured
    reader = StoreReader(folder / "store")
    same = rescore(model, reader, samples, LENGTH, ROWS)
    assert same["max_abs_logp_difference"] < 3e-3 and same["id_agreement"] == 1
    assert same["positions"] == reader.positions
    with weights(model, arrays_of(small_model(VOCAB, seed=2))):
        other = rescore(model, reader, samples, LENGTH, ROWS)
    assert other["max_abs_logp_difference"] > 0.2 and other["id_agreement"] < 0.7
    assert other["mean_abs_logp_difference"] > 10 * same["mean_abs_logp_difference"]


@pytest.mark.slow
def test_rescoring_a_store_of_draws(model, tmp_path):
    samples = make_samples(16, seed=4)
    options = replace(SAMPLED, top_k=32)
    captured_in(tmp_path, model, samples, options)
    reader = StoreReader(tmp_path / "store")
    assert rescore(model, reader, samples, LENGTH, ROWS)["max_abs_logp_difference"] == 0
    with weights(model, arrays_of(small_model(VOCAB, seed=2))):
        assert rescore(model, reader, samples, LENGTH, ROWS)["max_abs_logp_difference"] > 0.05


def test_projection_in_chunks_gives_the_same(model, captured, monkeypatch):
    """Three positions at a time, the last chunk filled up: as all at once."""
    _, _, samples = captured
    batches = SequentialBatches(samples, LENGTH, ROWS)
    whole = {s.record_id: rows for s, rows in capture.TeacherScorer(model, HEADER).score(samples, batches)}
    monkeypatch.setattr(capture.runtime, "logits_elements", lambda: 3 * VOCAB)
    for sample, rows in TeacherScorer(model, HEADER).score(samples, batches):
        np.testing.assert_array_equal(rows[0], whole[sample.record_id][0])
        np.testing.assert_allclose(rows[1], whole[sample.record_id][1], atol=1e-5)


def test_trap_11_padded_vocabulary_gets_no_mass(model, tmp_path):
    """The last rows of a padded lm_head, however large their logits, are neither stored nor part of the normaliser."""
    samples, padded, arrays = make_samples(3, seed=6), small_model(VOCAB + 8), arrays_of(model)
    for parameter in padded.get_parameters():
        fill = np.full((parameter.shape[0] - len(arrays[parameter.name]), *parameter.shape[1:]), 3, np.float32)
        parameter.set_data(Tensor(np.concatenate([arrays[parameter.name], fill])))
    assert padded.lm_head_weight.shape[0] == VOCAB + 8
    batches = SequentialBatches(samples, LENGTH, ROWS)
    one, two = ([rows for _, rows in capture.TeacherScorer(m, HEADER).score(samples, batches)] for m in (padded, model))
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first[0], second[0])
        np.testing.assert_allclose(first[2], second[2], atol=1e-5)


def test_trap_11_what_cannot_be_captured_is_refused(model, tmp_path):
    samples = make_samples(2)
    ids = samples[1].ids.copy()
    ids[2] = VOCAB
    wrong = [samples[0], replace(samples[1], ids=ids)]
    larger = SimpleNamespace(sha256="k" * 64, vocab_size=64)
    for given, options, words in (
        (wrong, {}, f"record 'r1' .*{VOCAB}"),
        (samples, {"options": replace(OPTIONS, top_k=41)}, "capture.top_k=41 .*40"),
        (samples, {"length": 4}, "record 'r0' .*sequence_length"),
        (samples, {"tokenizer": larger}, "lm_head .*40 .*64"),
        ([], {}, "no sample"),
    ):
        with pytest.raises(UserError, match=words):
            captured_in(tmp_path, model, given, **options)
    assert not (tmp_path / "store").exists()


def test_an_overlong_sample_is_an_error_or_is_dropped_and_counted(model, tmp_path, capsys):
    samples = make_samples(3, seed=8)
    ids, supervised = np.arange(LENGTH + 1, dtype=np.int32), np.arange(LENGTH + 1) > 3
    mixed = [samples[0], Sample(ids, supervised, "long", "fast"), *samples[1:]]
    with pytest.raises(UserError, match="record 'long' .*33 .*capture.overlong=drop"):
        captured_in(tmp_path, model, mixed)
    assert not (tmp_path / "store").exists()
    dropping = replace(OPTIONS, overlong="drop")
    metrics = captured_in(tmp_path, model, mixed, dropping)
    assert metrics["dropped"] == 1 and metrics["sequences"] == 3
    assert "1 of 4 samples" in capsys.readouterr().out
    reader = StoreReader(tmp_path / "store")
    with pytest.raises(UserError, match=sample_key(ids)[:16]):
        reader.check(ids, supervised)
    result = rescore(model, reader, mixed, LENGTH, ROWS)
    assert result["dropped"] == 1 and result["positions"] == reader.positions
    with pytest.raises(UserError, match="each of the 1 samples.* 32 "):
        captured_in(tmp_path / "none", model, mixed[1:2], dropping)


def test_a_teacher_whose_logits_are_not_finite_is_refused(model, captured, tmp_path):
    """One NaN in the output weights: counts of draws would be finite, and a maximum of differences 0."""
    folder, _, samples = captured
    weights_VD = model.lm_head_weight.asnumpy().copy()
    weights_VD[3, 2] = np.nan
    with weights(model, {model.lm_head_weight.name: weights_VD}):
        for options in (replace(SAMPLED, top_k=400), OPTIONS):
            with pytest.raises(UserError, match="logits are not finite"):
                captured_in(tmp_path / options.mode, model, samples[:3], options)
        with pytest.raises(UserError, match="logits are not finite"):
            rescore(model, StoreReader(folder / "store"), samples, LENGTH, ROWS)


def test_trap_07_equal_ids_under_two_masks_are_refused_before_scoring(model, captured, tmp_path, monkeypatch):
    folder, _, samples = captured
    other = Sample(samples[1].ids, ~samples[1].supervised, "the other", "fast")
    monkeypatch.setattr(TeacherScorer, "score", lambda *_: pytest.fail("the teacher was run"))
    with pytest.raises(UserError, match="'r1' and 'the other'"):
        captured_in(tmp_path, model, [*samples[:4], other])
    assert not (tmp_path / "store").exists()


def test_ranks_share_the_shards(model, tmp_path, monkeypatch):
    """Rank 1 of 2 scores every second shard and is killed with rank 0, which had none; one process does the rest."""
    samples = [sample for sample in make_samples(20, seed=9) for _ in range(2)]
    captured_in(tmp_path / "one", model, samples)

    with monkeypatch.context() as patch:
        patch.setenv("RANK_ID", "1")
        patch.setenv("RANK_SIZE", "2")
        patch.setattr(resumable.ranks, "gather", Mock(side_effect=KeyboardInterrupt))  # rank 0 has not come so far
        with pytest.raises(KeyboardInterrupt):
            captured_in(tmp_path / "two", model, samples)
    made = {path.name for path in (tmp_path / "two" / "store").iterdir()}
    assert made == {"shard-00001.json", "shard-00001.safetensors"}
    metrics = captured_in(tmp_path / "two", model, samples)
    assert 0 < metrics["tokens"] < sum(len(sample.ids) for sample in samples) / 2
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert verify_store(tmp_path / "two" / "store")["sequences"] == len({sample_key(s.ids) for s in samples}) == 20


def test_shards_hold_whole_batches(model):
    samples = make_samples(80, seed=2)
    packed = SequentialBatches(samples, LENGTH, 2)
    plan = capture.plan_shards(packed, 60)
    assert [number for batches in plan for number in batches] == list(range(len(packed))) and len(plan) > 3
    targets = [
        [sum(int(samples[i].supervised[1:].sum()) for i in packed.members(number)) for number in batches]
        for batches in plan
    ]
    assert all(sum(of_shard) >= 60 > sum(of_shard[:-1]) for of_shard in targets[:-1])
    assert sorted(i for number in range(len(packed)) for i in packed.members(number)) == list(range(80))


def test_sigterm_stops_a_capture_between_two_batches(model, captured, tmp_path, monkeypatch):
    folder, _, samples = captured
    told = Mock(side_effect=[None, None, ranks.Stopped(agreed=True)])  # before shard 0, its batch, shard 1
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "check_stop", told)
        with pytest.raises(ranks.Stopped):
            captured_in(tmp_path, model, samples)
    assert {path.name for path in (tmp_path / "store").iterdir()} == {"shard-00000.json", "shard-00000.safetensors"}
    captured_in(tmp_path, model, samples)
    assert content(tmp_path) == content(folder)
