"""The teacher store: what is written is read back, and anything else is refused by name."""

import json
import os
import resource
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspore_impl.data.teacher_store import (
    StoreHeader,
    StoreReader,
    own_cross_entropy,
    pack_ids,
    refuse_ignorance,
    sample_key,
    target_runs,
    unpack_ids,
    verify_store,
)
from mindspore_impl.data.teacher_store_writer import StoreWriter
from mindspore_impl.errors import UserError
from mindspore_impl.files import sha256_file
from mindspore_impl.ops.log_floor import LOG_FLOOR

VOCABULARY = 153376
RIGHT, WRONG = "sure of the targets", "sure of other ids"


def header(top_k=10, mode="top_k", **changes):
    values = {"teacher_sha256": "a" * 64, "tokenizer_sha256": "b" * 64, "vocab_size": VOCABULARY, "temperature": 1.0}
    return StoreHeader(**(values | {"top_k": top_k, "mode": mode} | changes))


def sequence(rng, prompt=20, answer=10):
    supervised = np.zeros(prompt + answer, bool)
    supervised[prompt:] = True
    return rng.integers(0, VOCABULARY, prompt + answer).astype(np.int32), supervised


def teacher_rows(rng, targets, top_k):
    """Ids, log-probabilities in falling order and tail log-mass; the K+1 masses sum to 1."""
    ids_SK = rng.integers(0, VOCABULARY // top_k, (targets, top_k)) + np.arange(top_k) * (VOCABULARY // top_k)
    logits_SK = -np.sort(-3 * rng.normal(size=(targets, top_k)), axis=1)
    tail_S = rng.normal(size=targets)
    total_S = np.log(np.exp(logits_SK).sum(1) + np.exp(tail_S))
    return ids_SK, (logits_SK - total_S[:, None]).astype(np.float32), (tail_S - total_S).astype(np.float32)


def write(folder, count=8, top_k=10, positions_per_shard=30, seed=0, answer=10, writer=None):
    rng = np.random.default_rng(seed)
    writer = writer or StoreWriter(folder, header(top_k), positions_per_shard)
    stored = []
    for _ in range(count):
        ids, supervised = sequence(rng, answer=answer)
        stored.append((ids, supervised, *teacher_rows(rng, answer, top_k)))
        writer.add(*stored[-1])
    return writer, stored


def assert_holds(reader, stored):
    for ids, supervised, ids_SK, logp_SK, tail_S in stored:
        found_ids, found_logp, found_tail = reader.lookup(ids, supervised)
        assert found_ids.dtype == np.int32 and found_logp.dtype == found_tail.dtype == np.float32
        np.testing.assert_array_equal(found_ids, ids_SK)
        np.testing.assert_allclose(found_logp, logp_SK, rtol=1e-3, atol=2e-3)
        np.testing.assert_allclose(found_tail, tail_S, rtol=1e-3, atol=2e-3)
        total_S = np.exp(found_logp.astype(np.float64)).sum(1) + np.exp(found_tail.astype(np.float64))
        np.testing.assert_allclose(total_S, 1, atol=1e-6)  # renormalised: float16 alone is off by up to 4e-3


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """(folder, stored) of a published store, for tests that only read it or copy it."""
    folder = tmp_path_factory.mktemp("store")
    writer, stored = write(folder)
    writer.close()
    return folder, stored


@pytest.fixture
def copied(store, tmp_path):
    """A copy of the store to damage."""
    return shutil.copytree(store[0], tmp_path / "copy")


@pytest.mark.parametrize("top_k", [1, 10, 128])
def test_round_trip(tmp_path, top_k):
    writer, stored = write(tmp_path, top_k=top_k, answer=7)
    writer.close()
    reader = StoreReader(tmp_path, tokenizer_sha256="b" * 64)
    assert (reader.sequences, reader.positions, len(reader.shards)) == (8, 56, 2)
    assert reader.header == header(top_k) and reader.top_k == top_k
    assert_holds(reader, stored[::-1])


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 7), st.integers(1, 9), st.data())
def test_ids_of_eighteen_bits_round_trip(positions, top_k, data):
    values = data.draw(st.lists(st.integers(-1, 2**18 - 2), min_size=positions * top_k, max_size=positions * top_k))
    ids_PK = np.array(values).reshape(positions, top_k)
    low_PK, high = pack_ids(ids_PK)
    assert len(high) == -(-positions * top_k // 4)
    np.testing.assert_array_equal(unpack_ids(low_PK, high, 0), ids_PK)
    first = data.draw(st.integers(0, positions - 1))  # a lookup starts anywhere
    part = unpack_ids(low_PK[first:], high[first * top_k // 4 :], first * top_k % 4)
    np.testing.assert_array_equal(part, ids_PK[first:])


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_runs_describe_exactly_the_targets(mask):
    found = [first + i for first, length in target_runs(np.array(mask)).tolist() for i in range(length)]
    assert found == [i for i, bit in enumerate(mask) if bit and i > 0]


@pytest.mark.parametrize(("top_k", "limit"), [(10, 46), (64, 276)])
def test_bytes_per_position(tmp_path, top_k, limit):
    rng = np.random.default_rng(0)
    writer = StoreWriter(tmp_path, header(top_k), 65536)
    for answer in (6, 130) * 60:
        writer.add(*sequence(rng, answer=answer), *teacher_rows(rng, answer, top_k))
    writer.close()
    reader = StoreReader(tmp_path)
    assert reader.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert reader.bytes / reader.positions <= limit


def test_trap_01_rows_come_back_in_order_of_the_targets(tmp_path):
    """Several runs of supervised tokens; row r carries the id of the r-th supervised token."""
    ids = np.arange(100, 112, dtype=np.int32)
    supervised = np.array([0, 0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0], bool)
    writer = StoreWriter(tmp_path, header(1))
    half_S = np.full(6, np.log(0.5), np.float32)
    writer.add(ids, supervised, ids[supervised][:, None], half_S[:, None], half_S)
    writer.close()
    assert StoreReader(tmp_path).lookup(ids, supervised)[0].ravel().tolist() == [102, 103, 106, 108, 109, 110]


def test_trap_05_padding_is_finite(tmp_path):
    ids, supervised = sequence(np.random.default_rng(0), answer=1)
    writer = StoreWriter(tmp_path, header(4, mode="sampled"))
    counts = np.array([[np.log(0.75), np.log(0.25), -np.inf, -np.inf]])
    writer.add(ids, supervised, np.array([[9, 7, -1, -1]]), counts, np.array([LOG_FLOOR]))
    writer.close()
    found_ids, found_logp, found_tail = StoreReader(tmp_path).lookup(ids, supervised)
    assert found_ids.tolist() == [[9, 7, -1, -1]]
    np.testing.assert_allclose(found_logp[0, :2], np.log([0.75, 0.25]), atol=1e-3)
    assert found_logp[0, 2:].tolist() == [LOG_FLOOR] * 2 and found_tail.tolist() == [LOG_FLOOR]
    assert np.exp(found_logp[0, 2:]).sum() == 0 and np.isfinite(found_logp).all()


def test_trap_07_a_sequence_of_the_same_length_is_refused(store):
    ids, supervised = store[1][3][0].copy(), store[1][3][1]
    ids[5] += 1
    with pytest.raises(UserError, match=sample_key(ids)[:16]):
        StoreReader(store[0]).lookup(ids, supervised)


def test_trap_07_a_mask_with_the_same_count_is_refused(store):
    ids, supervised = store[1][3][:2]
    with pytest.raises(UserError, match="supervised"):
        StoreReader(store[0]).check(ids, np.roll(supervised, -1))


def test_trap_07_the_writer_refuses_known_ids_under_another_mask(tmp_path):
    writer, stored = write(tmp_path)
    ids, supervised, *rows = stored[0]
    with pytest.raises(UserError, match="mask"):
        writer.add(ids, np.roll(supervised, -1), *rows)


def test_trap_07_the_writer_knows_a_sequence_by_its_mask_too(tmp_path):
    writer, stored = write(tmp_path, count=3)
    ids, supervised = stored[0][:2]
    assert writer.has(sample_key(ids), target_runs(supervised)) and writer.has(sample_key(ids))
    assert not writer.has("0" * 64, target_runs(supervised))
    with pytest.raises(UserError, match=sample_key(ids)[:16]):
        writer.has(sample_key(ids), target_runs(np.roll(supervised, -1)))
    assert writer.add(*stored[0]) is False, "equal sequences are stored once"


def test_a_full_disk_is_one_error_and_the_capture_goes_on(tmp_path):
    """A limit on the size of a file stands for the disk."""
    writer, stored = write(tmp_path, positions_per_shard=1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        with pytest.raises(UserError, match=r"shard-00000\.safetensors: .*cannot be written"):
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
    writer.close()
    assert_holds(StoreReader(tmp_path), stored)


def test_trap_11_an_id_outside_the_vocabulary_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    ids, supervised = sequence(rng)
    ids_SK, logp_SK, tail_S = teacher_rows(rng, 10, 10)
    ids_SK[4, 9] = VOCABULARY
    with pytest.raises(UserError, match="row 4: .*153376"):
        StoreWriter(tmp_path, header()).add(ids, supervised, ids_SK, logp_SK, tail_S)


def test_trap_15_a_tail_too_small_for_subtraction_survives(tmp_path):
    ids, supervised = sequence(np.random.default_rng(0), answer=1)
    writer = StoreWriter(tmp_path, header(1))
    writer.add(ids, supervised, np.array([[3]]), np.array([[0.0]], np.float32), np.array([-30.5], np.float32))
    writer.close()
    _, found_logp, found_tail = StoreReader(tmp_path).lookup(ids, supervised)
    assert found_tail.tolist() == [-30.5] and found_logp.tolist() == [[0.0]]


def test_trap_16_a_key_is_the_same_in_every_process():
    code = "from mindspore_impl.data.teacher_store import sample_key; print(sample_key(range(5)))"
    keys = {sample_key(np.arange(5, dtype=np.int64)), sample_key(np.arange(5, dtype=">i4"))}
    for salt in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": salt, "PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        keys.add(run.stdout.strip())
    # sha256 of 00000000 01000000 02000000 03000000 04000000
    assert keys == {"e528f4309e1413e6bc35aea5d8db8519384d2fcc33f9dd5d1126d73f104cf92a"}


def bad_rows(change):
    ids_SK, logp_SK, tail_S = teacher_rows(np.random.default_rng(1), 10, 10)
    return change(ids_SK, logp_SK, tail_S) or (ids_SK, logp_SK, tail_S)


def assign(array, where, value):
    array[where] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, p, t: assign(i, (2, 3), i[2, 4]), "row 2: an id occurs twice"),
        (lambda i, p, t: assign(i, (2, 3), -1), "row 2: an id follows padding"),
        (lambda i, p, t: assign(i, (2, 3), -2), "row 2: an id is outside"),
        (lambda i, p, t: (i[:, ::-1], p[:, ::-1], t), "row 0: the ids are not in order"),
        (lambda i, p, t: assign(p, (3, 9), -np.inf), "row 3: a log-probability is not finite"),
        (lambda i, p, t: assign(t, 3, np.nan), "row 3: a log-probability is not finite"),
        (lambda i, p, t: assign(p, (3, 0), 0.1), "row 3: a log-probability is above 0"),
        (lambda i, p, t: assign(t, 5, -0.01), "row 5: its masses, the tail included, do not sum to 1"),
        (lambda i, p, t: (i, p - 1, t), "do not sum to 1"),
        (lambda i, p, t: (i[:9], p[:9], t[:9]), "9 teacher rows for 10 targets"),
        (lambda i, p, t: (i[:, :9], p[:, :9], t), "top_k=10"),
    ],
)
def test_the_writer_refuses_rows_that_are_no_distribution(tmp_path, change, message):
    writer = StoreWriter(tmp_path, header())
    ids, supervised = sequence(np.random.default_rng(0))
    with pytest.raises(UserError, match=message):
        writer.add(ids, supervised, *bad_rows(change))
    assert not writer.has(sample_key(ids))


def test_the_writer_refuses_a_sequence_without_target(tmp_path):
    ids_SK, logp_SK, tail_S = teacher_rows(np.random.default_rng(1), 0, 10)
    with pytest.raises(UserError, match="0 targets"):
        StoreWriter(tmp_path, header()).add(np.arange(4), np.array([1, 0, 0, 0], bool), ids_SK, logp_SK, tail_S)


def test_a_header_that_cannot_be_stored_is_refused(tmp_path):
    for key, value in (("mode", "best"), ("vocab_size", 2**18 - 1), ("vocab_size", 0), ("top_k", 0),
                       ("temperature", 0.0)):  # fmt: skip
        with pytest.raises(UserError, match=f"{key}.*{value}"):
            StoreWriter(tmp_path, header(**{key: value}))


def test_a_tampered_shard_is_named(copied):
    path = copied / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for open_it in (StoreReader, verify_store):
        with pytest.raises(UserError, match="shard-00001.safetensors: its SHA-256"):
            open_it(copied)
    with pytest.raises(UserError, match="tokenizer"):
        StoreReader(copied, tokenizer_sha256="c" * 64)


def test_another_header_is_refused_by_the_field_that_differs(tmp_path):
    write(tmp_path)  # not closed: only the records of the shards name the header
    for field, value in (("top_k", 64), ("temperature", 2.0), ("teacher_sha256", "d" * 64)):
        with pytest.raises(UserError, match=f"{field}="):
            StoreWriter(tmp_path, header(**{field: value}))


def test_an_unfinished_store_cannot_be_read(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match=r"manifest\.json"):
        StoreReader(tmp_path)


def test_a_damaged_manifest_is_a_user_error(copied):
    path = copied / "manifest.json"
    for change in (
        lambda m: m.pop("shards"),
        lambda m: m["header"].pop("mode"),
        lambda m: m["header"].update(top_k="many"),
        lambda m: m["shards"][0].pop("sha256"),
        lambda m: m["shards"][0].update(file="../elsewhere.safetensors"),
        lambda m: m["shards"][0].update(positions=7),
        lambda m: m["counts"].update(positions=7),
        lambda m: m.update(schema=99),
    ):
        whole = path.read_text()
        manifest = json.loads(whole)
        change(manifest)
        path.write_text(json.dumps(manifest))
        with pytest.raises(UserError, match="copy"):
            StoreReader(copied)
        path.write_text(whole)


def test_a_killed_writer_continues_after_its_last_full_shard(tmp_path):
    _, stored = write(tmp_path / "killed", count=7)  # 2 shards of 3 sequences; the seventh was only in memory
    (tmp_path / "killed" / ".shard-00002.safetensors.x.tmp").write_bytes(b"half")
    writer = StoreWriter(tmp_path / "killed", header(), 30)
    assert [writer.has(sample_key(item[0])) for item in stored] == [True] * 6 + [False]
    assert [writer.add(*item) for item in stored] == [False] * 6 + [True]
    writer.close()
    whole, _ = write(tmp_path / "whole", count=7)
    whole.close()
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == names
    assert all(sha256_file(tmp_path / "killed" / name) == sha256_file(tmp_path / "whole" / name) for name in names)


def test_the_sequences_of_a_deleted_shard_are_captured_again(tmp_path, capsys):
    writer, stored = write(tmp_path, count=6)
    writer.close()
    (tmp_path / "shard-00000.safetensors").unlink()
    with pytest.raises(UserError, match="shard-00000"):
        StoreReader(tmp_path)
    writer = StoreWriter(tmp_path, header(), 30)
    assert "shard-00000.safetensors: missing" in capsys.readouterr().err
    assert [writer.add(*item) for item in stored] == [True] * 3 + [False] * 3
    writer.close()
    assert capsys.readouterr().err == ""
    assert_holds(StoreReader(tmp_path), stored)


def test_verify_counts_and_measures(store):
    folder, stored = store
    summary = verify_store(folder)
    assert (summary["shards"], summary["sequences"], summary["positions"], summary["top_k"]) == (3, 8, 80, 10)
    assert summary["bytes_per_position"] == summary["bytes"] / 80
    mass = np.mean([np.exp(item[3]).sum(1) for item in stored])
    assert summary["teacher_mass"] == pytest.approx(mass, abs=1e-3)


@pytest.mark.parametrize(
    ("mode", "vocab", "top_k", "teacher"),
    [
        ("top_k", 160, 10, "random"), ("top_k", 3000, 1, "random"), ("sampled", 500, 20, "random"),
        ("top_k", 160, 10, WRONG), ("top_k", 160, 10, RIGHT), ("top_k", 3000, 1, RIGHT), ("sampled", 500, 20, RIGHT),
    ],
)  # fmt: skip
def test_a_teacher_that_knows_nothing_of_its_sequences_is_refused(tmp_path, mode, vocab, top_k, teacher):
    rng, count = np.random.default_rng(0), 1500
    ids = rng.integers(0, vocab, count + 1).astype(np.int32)
    supervised = np.arange(count + 1) > 0
    logits_SV = 0.3 * rng.normal(size=(count, vocab))
    if teacher != "random":
        favoured_S = ids[1:] if teacher == RIGHT else rng.integers(0, vocab, count)
        logits_SV[np.arange(count), favoured_S] += np.log(vocab)
    p_SV = np.exp(logits_SV) / np.exp(logits_SV).sum(1, keepdims=True)
    stored_SV = rng.multinomial(top_k, p_SV) / top_k if mode == "sampled" else p_SV
    order_SK = np.argsort(-stored_SV, axis=1, kind="stable")[:, :top_k]
    mass_SK = np.take_along_axis(stored_SV, order_SK, axis=1)
    writer = StoreWriter(tmp_path, header(top_k, mode, vocab_size=vocab))
    with np.errstate(divide="ignore"):
        logp_SK, tail_S = (np.maximum(np.log(m), LOG_FLOOR) for m in (mass_SK, (1 - mass_SK.sum(1)).clip(0)))
    writer.add(ids, supervised, np.where(mass_SK > 0, order_SK, -1), logp_SK, tail_S)
    writer.close()
    found = own_cross_entropy(StoreReader(tmp_path), [SimpleNamespace(ids=ids, supervised=supervised)])
    if teacher == RIGHT:
        p_S = p_SV[np.arange(count), ids[1:]]
        exact = -np.log(p_S).mean() if mode == "top_k" else -np.log(p_S.mean())
        assert found == pytest.approx(exact, rel=0.05 if mode == "sampled" else 0.01)
        refuse_ignorance(found, vocab, "here")
    else:
        assert teacher == WRONG or found == pytest.approx(np.log(vocab), rel=0.03)
        with pytest.raises(UserError, match="^here: "):
            refuse_ignorance(found, vocab, "here")
