"""vLLM's prompt_logprobs as rows of our store: the shift, the dropped token, the tail, and parity with a capture."""

import json
import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mindspore_impl.data.teacher_store import StoreReader, sample_key
from mindspore_impl.errors import UserError
from mindspore_impl.integrations.vllm import topk
from mindspore_impl.integrations.vllm.answers import Answer, BadAnswer, parse_answer
from mindspore_impl.integrations.vllm.topk import TAIL_RESOLUTION, external_header, import_topk, teacher_rows
from mindspore_impl.ops.log_floor import LOG_FLOOR
from mindspore_impl.text.chat import Sample

VOCAB, TOP_K = 40, 4
HEADER = external_header("t" * 64, "k" * 64, VOCAB, TOP_K, 1.0)
SAMPLE = Sample(np.array([7, 3, 9, 3], np.int32), np.array([False, False, True, True]), "r", "fast")


def answer_of(*masses: dict[int, float], ids=(7, 3, 9, 3)) -> Answer:
    """An answer whose entries for tokens 1, 2, ... give `masses`; the prompt's own token is added where it lacks."""
    entries = [None] + [
        {str(token_id): {"logprob": math.log(mass)} for token_id, mass in {own: 1e-3, **given}.items()}
        for own, given in zip(ids[1:], masses, strict=True)
    ]
    return Answer(None, list(ids), entries, ())


PLAIN = {1: 0.4, 2: 0.3, 5: 0.1, 6: 0.05}


def test_trap_01_an_entry_is_the_distribution_that_predicted_its_own_token():
    """Rows of tokens 2 and 3 are entries 2 and 3, and entry 1 (an unsupervised token's) is nobody's."""
    second, third = {10: 0.4, 11: 0.3, 12: 0.1, 13: 0.05}, {20: 0.4, 21: 0.3, 22: 0.1, 23: 0.05}
    ids_SK, logp_SK, _ = teacher_rows(answer_of(PLAIN, second, third), SAMPLE, HEADER, Counter())
    np.testing.assert_array_equal(ids_SK, [[10, 11, 12, 13], [20, 21, 22, 23]])
    np.testing.assert_allclose(np.exp(logp_SK), [[0.4, 0.3, 0.1, 0.05]] * 2, rtol=1e-6)


ROWS = [  # masses at token 2 (the prompt's is 9), at token 3 (3); ids and tails of both
    ({9: 0.2, 1: 0.4, 5: 0.1, 6: 0.05}, PLAIN, [[1, 9, 5, 6], [1, 2, 5, 6]], [0.25, 0.15]),  # among K entries, or added
    (PLAIN, {30: 0.4, 31: 0.3, 32: 0.1, 33: 0.001}, [[1, 2, 5, 6], [30, 31, 32, 33]], [0.15, 0.199]),  # 3: equal
    (PLAIN, {5: 0.1, 8: 0.01, 1: 0.4, 6: 0.05, 2: 0.3}, [[1, 2, 5, 6]] * 2, [0.15, 0.15]),  # more than K, in any order
    ({1: 0.5, 2: 0.3, 5: 0.2 - 2e-6, 9: 1e-6}, PLAIN, [[1, 2, 5, 9], [1, 2, 5, 6]], [1e-6, 0.15]),  # float64
]


@pytest.mark.parametrize(("second", "third", "ids", "tails"), ROWS)
def test_rows_are_the_k_most_probable_and_the_tail_is_what_they_leave(second, third, ids, tails):
    ids_SK, _, tail_S = teacher_rows(answer_of(PLAIN, second, third), SAMPLE, HEADER, Counter())
    np.testing.assert_array_equal(ids_SK, ids)
    np.testing.assert_allclose(np.exp(tail_S), tails, rtol=1e-4)


def test_k_of_the_whole_vocabulary_leaves_no_tail():
    ids, whole = (0, 1, 2, 3), {0: 0.4, 1: 0.3, 2: 0.2, 3: 0.1}
    header, sample = external_header("t" * 64, "k" * 64, 4, 4, 1.0), replace(SAMPLE, ids=np.array(ids, np.int32))
    assert (teacher_rows(answer_of(whole, whole, whole, ids=ids), sample, header, Counter())[2] == LOG_FLOOR).all()


def test_a_sum_above_1_by_rounding_is_scaled_and_beyond_it_refused():
    repairs: Counter = Counter()
    little = {1: 0.5, 2: 0.3, 5: 0.2, 6: topk.SUM_ABOVE * 0.9}
    _, logp_SK, tail_S = teacher_rows(answer_of(PLAIN, little, PLAIN), SAMPLE, HEADER, repairs)
    assert np.exp(logp_SK[0].astype(np.float64)).sum() == pytest.approx(1, abs=1e-6)
    assert tail_S[0] == pytest.approx(TAIL_RESOLUTION)  # not known, and not nothing
    assert repairs == {topk.SCALED: 1, topk.TAIL_UNKNOWN: 1}
    much = {1: 0.5, 2: 0.3, 5: 0.2, 6: topk.SUM_ABOVE * 1.2}
    with pytest.raises(BadAnswer, match="1.0012.* token 2"):
        teacher_rows(answer_of(PLAIN, much, PLAIN), SAMPLE, HEADER, Counter())


def test_no_mass_is_the_floor_and_bare_numbers_are_read():
    answer = answer_of(PLAIN, PLAIN, PLAIN)
    answer.prompt_logprobs[2] = {"1": 0.0, "9": -9999.0, "5": float("-inf"), "6": -20000}
    ids_SK, logp_SK, _ = teacher_rows(answer, SAMPLE, HEADER, Counter())
    assert ids_SK[0][0] == 1 and logp_SK[0][0] == 0 and (logp_SK[0][1:] <= -9999).all() and np.isfinite(logp_SK).all()


def test_a_null_entry_where_nothing_is_supervised_does_not_matter():
    answer = answer_of(PLAIN, PLAIN, PLAIN)
    answer.prompt_logprobs[1] = None
    assert len(teacher_rows(answer, SAMPLE, HEADER, Counter())[0]) == 2
    answer.prompt_logprobs[2] = None
    with pytest.raises(BadAnswer, match="token 2"):
        teacher_rows(answer, SAMPLE, HEADER, Counter())


def test_an_answer_shifted_by_one_is_seen():
    """Every entry names its own prompt token, so entries that were moved by one do not."""
    answer = answer_of(PLAIN, PLAIN, PLAIN)
    moved = [None, *answer.prompt_logprobs[2:], {}]
    with pytest.raises(BadAnswer, match="entry 1 .*token 3"):
        teacher_rows(replace(answer, prompt_ids=None, prompt_logprobs=moved), SAMPLE, HEADER, Counter())


def test_another_temperature_is_refused_and_explained():
    with pytest.raises(UserError, match="capture.temperature: 2.0.*=1"):
        external_header("t" * 64, "k" * 64, VOCAB, TOP_K, 2.0)
    with pytest.raises(UserError, match="capture.top_k: 41 .*40"):
        external_header("t" * 64, "k" * 64, VOCAB, 41, 1.0)


def test_the_three_forms_say_the_same():
    entries = [None, {"3": {"logprob": -1.0}}]
    offline = {"request_id": "0", "prompt_token_ids": [7, 3], "prompt_logprobs": entries,
               "outputs": [{"index": 0, "text": "x", "token_ids": [4], "finish_reason": "length"}]}  # fmt: skip
    body = {"choices": [{**offline["outputs"][0], "prompt_token_ids": [7, 3], "prompt_logprobs": entries}]}
    batch = {"id": "v-1", "custom_id": "q", "response": {"status_code": 200, "body": body}, "error": None}
    flat = {"custom_id": "q", "response": body}
    plain = parse_answer(offline)
    assert plain.prompt_ids == [7, 3] and plain.prompt_logprobs == entries and plain.outputs[0].ids == [4]
    assert parse_answer(body) == plain
    assert parse_answer(batch) == parse_answer(flat) == replace(plain, custom_id="q")


@pytest.mark.parametrize("value", [
    [], [{"choices": []}], "x", 3, None,
    {}, {"choices": []}, {"choices": [3]}, {"choices": [{}]}, {"outputs": {}}, {"response": {"body": 3}},
    {"choices": [{"text": "x", "token_ids": [1.5]}]}, {"choices": [{"text": "x", "token_ids": [2**40]}]},
    {"error": {"message": "no"}}, {"response": {"status_code": 500, "body": {}}}, {"response": None, "error": "x"},
])  # fmt: skip
def test_other_forms_are_refused(value):
    with pytest.raises(BadAnswer):
        parse_answer(value)


def offline(ids, entries) -> dict:
    return {"prompt_token_ids": ids, "prompt_logprobs": entries, "outputs": [{"text": "x", "token_ids": [1]}]}


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_file_of_another_tokenizer_is_refused(tmp_path):
    line = offline([7, 3, 9, 3], answer_of(PLAIN, PLAIN, PLAIN).prompt_logprobs)
    path = tmp_path / "offline.jsonl"
    write(path, line | {"tokenizer_sha256": "e" * 64})
    with pytest.raises(UserError, match="1 of 1 "):
        import_topk([path], [SAMPLE], HEADER, tmp_path / "store")
    path.write_text(json.dumps(line) + "\nnonsense\n")
    assert import_topk([path], [SAMPLE], HEADER, tmp_path / "store")["refused"] == {"not JSON": 1}
    assert StoreReader(tmp_path / "store", tokenizer_sha256="k" * 64).positions == 2


def test_an_import_takes_the_place_of_an_earlier_one(tmp_path):
    """What a server says now is what the store holds, though it holds the same sequences already."""
    path, folder = tmp_path / "offline.jsonl", tmp_path / "store"

    def import_of(masses):
        write(path, offline([7, 3, 9, 3], answer_of(PLAIN, PLAIN, masses).prompt_logprobs))
        import_topk([path], [SAMPLE], HEADER, folder)
        return StoreReader(folder).lookup(SAMPLE.ids, SAMPLE.supervised)[0][1].tolist()

    (tmp_path / ".store.k1lled_x.tmp").mkdir()
    assert import_of(PLAIN) == [1, 2, 5, 6]
    assert import_of({30: 0.4, 31: 0.3, 32: 0.1, 33: 0.05}) == [30, 31, 32, 33]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["offline.jsonl", "store"]
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    path.write_text("nonsense\n")
    with pytest.raises(UserError, match="1 of 1 "):
        import_topk([path], [SAMPLE], HEADER, folder)
    with pytest.raises(UserError, match="top_k=4 .*2"):
        import_topk([path], [SAMPLE], external_header("t" * 64, "k" * 64, VOCAB, 2, 1.0), folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    for name in ("notes.txt", "shard-00000.safetensors"):  # a folder of one's own, a capture that was stopped
        there = tmp_path / f"with {name}"
        there.mkdir()
        (there / name).write_text("mine")
        with pytest.raises(UserError, match=there.name):
            import_topk([path], [SAMPLE], HEADER, there)
        assert list(there.iterdir())


def test_the_numbers_of_a_capture_imported_give_the_same_store(ms_runtime, tmp_path, monkeypatch):
    """Fed with the float32 log-probabilities of a capture, ids and log-probabilities are bit for bit those of its
    store. The tail is not: a capture sums it over the ids outside, an import has only 1 minus the sum of K float32
    masses, which is off by their rounding, 1e-6 at most."""
    from mindspore_impl.distill.capture import TeacherScorer, run_capture
    from mindspore_impl.distill.jobs import CaptureJob
    from mindspore_impl.distill.options import CaptureOptions
    from tests.distill.small import small_model
    from tests.distill.test_capture import make_samples

    rows, score, samples = {}, TeacherScorer.score, make_samples(10)

    def remembered(*arguments):
        for sample, scored in score(*arguments):
            rows[sample_key(sample.ids)] = scored
            yield sample, scored

    monkeypatch.setattr(TeacherScorer, "score", remembered)
    tokenizer = SimpleNamespace(sha256="k" * 64, vocab_size=VOCAB)
    options = CaptureOptions("top_k", TOP_K, 1.0, rows_per_batch=4)
    run_capture(CaptureJob(tokenizer, samples, options, tmp_path, 0, 32, "t" * 64, small_model(VOCAB)))

    def entries_of(sample):
        entries = [None] + [{str(token_id): {"logprob": -1.0}} for token_id in sample.ids[1:].tolist()]
        targets = [t for t in range(1, len(sample.ids)) if sample.supervised[t]]
        for t, ids_K, logp_K in zip(targets, *rows[sample_key(sample.ids)][:2], strict=True):
            own = {str(sample.ids[t]): {"logprob": float(logp_K[-1]) - 0.5}}
            entries[t] = own | {str(i): {"logprob": float(logp)} for i, logp in zip(ids_K, logp_K, strict=True)}
        return entries

    write(tmp_path / "offline.jsonl", *(offline(sample.ids.tolist(), entries_of(sample)) for sample in samples))
    metrics = import_topk([tmp_path / "offline.jsonl"], samples, HEADER, tmp_path / "imported")
    captured, imported = (StoreReader(tmp_path / name) for name in ("store", "imported"))
    assert imported.header == captured.header and metrics["positions"] == captured.positions
    for sample in samples:
        found = []
        for store in (captured, imported):
            number, first, runs = store.check(sample.ids, sample.supervised)
            found.append(store.rows(number, first, int(runs[:, 1].sum())))  # as on disk
        (ids, logp, tail), (ids_2, logp_2, tail_2) = found
        np.testing.assert_array_equal(ids, ids_2)
        np.testing.assert_array_equal(logp.view(np.int32), logp_2.view(np.int32))
        np.testing.assert_allclose(np.exp(tail), np.exp(tail_2), atol=1e-6 + 1e-3 * np.exp(tail).max())
