"""A distill stage: a store that no stage made, its default of cross-entropy, a teacher that knows nothing."""

from types import SimpleNamespace

import numpy as np
import pytest

from mindspore_impl.curriculum import runner
from mindspore_impl.curriculum.stages.capture import CaptureStage
from mindspore_impl.curriculum.stages.context import RunContext, prepare_tokenizer
from mindspore_impl.data.teacher_store import StoreHeader
from mindspore_impl.data.teacher_store_writer import StoreWriter
from mindspore_impl.errors import UserError
from tests.curriculum.conftest import changed, compose_quickly, plan, refusal

# The curriculum without its capture stage.
ORDER = ("order=[teacher,sft_reasoning,sft_fast,rollout_fast,distill_fast]", "compare=[]")


def write_store(folder, temperature=1.0, mode="top_k", first=3, vocab_size=160):
    writer = StoreWriter(folder, StoreHeader("t" * 64, "k" * 64, vocab_size, 2, temperature, mode))
    ids = np.array([1, first, 4])
    logp = np.log(np.array([[0.75, 0.25]], np.float32))
    writer.add(ids, np.array([False, False, True]), np.array([[5, 6]]), logp, np.array([-1e4], np.float32))
    writer.close()
    return folder


def given(store):
    return (*ORDER, f"stages.distill_fast.store={store}")


def test_a_path_stands_for_a_store(tmp_path):
    store = write_store(tmp_path / "store")
    planned = plan(*given(store))
    assert planned["distill_fast"].inputs["store"] == str(store)
    context = RunContext(compose_quickly(*given(store)), tmp_path / "run", planned)
    assert context.load(str(store), "store") == store


def test_another_store_at_the_path_is_another_fingerprint(tmp_path):
    a, b, c = (
        plan(*given(write_store(tmp_path / name, first=first)))["distill_fast"].fingerprint
        for name, first in (("a", 3), ("b", 3), ("c", 7))
    )
    assert a == b != c


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": 2.0}, "stages.distill_fast.objective.temperature: 1.0 2.0"),
        ({"mode": "sampled"}, "stages.distill_fast.objective.support: 'sampled'"),
        ({"vocab_size": 150}, "models.student.vocab_size: 160 150 stages.distill_fast.store="),
    ],
)
def test_trap_11_a_store_that_does_not_fit_is_refused(tmp_path, changes, words):
    message = refusal(*given(write_store(tmp_path / "store", **changes)))
    assert [word for word in words.split() if word not in message] == [], message


def test_a_store_of_another_tokenizer_is_refused_before_anything_runs(tmp_path, tokenizer):
    message = refusal(*given(write_store(tmp_path / "store")), f"tokenizer.path={tokenizer.path}")
    assert "stages.distill_fast.store: " in message and "k" * 64 in message and tokenizer.sha256 in message


@pytest.mark.parametrize(
    "overrides",
    [
        "models.teacher.vocab_size=512",  # padded: its store has the ids of the tokenizer
        "stages.capture_fast.capture={mode:sampled,top_k:200} stages.distill_fast.objective.support=sampled",
    ],
)
def test_what_makes_a_store_that_fits_is_taken(overrides):
    assert plan(*overrides.split())["distill_fast"].model == "student"


def test_a_missing_or_unfinished_store_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty"):
        message = refusal(*given(tmp_path / name))
        assert "stages.distill_fast.store: " in message and str(tmp_path / name) in message


CE = "stages.distill_fast.objective.ce_weight"
LABELS = ("stages.capture_fast.sets=[fast]", "stages.distill_fast.data.mixture={rollouts:0,fast:1}")
MIXED = (LABELS[0], "stages.distill_fast.data.mixture={rollouts:1,fast:1}")


@pytest.mark.parametrize(
    ("overrides", "weight"),
    [
        ((), 0.0),  # the student's own answers
        (("stages.rollout_fast.init=teacher",), 0.1),
        (LABELS, 0.1),
        (("stages.distill_fast.objective.kd_weight=1.5",), 0.0),
        ((*MIXED, f"{CE}=0.3"), 0.3),
        ((*MIXED, "stages.distill_fast.objective.kd_weight=1"), 0.0),
        ((f"{CE}=0.2",), 0.2),
    ],
)
def test_the_default_of_cross_entropy_depends_on_whose_answers_are_trained_on(overrides, weight):
    stage = plan(*overrides)["distill_fast"].stage
    assert stage.objective.ce_weight == pytest.approx(weight) and f"{weight:g} CE" in stage.work()


def test_rollouts_beside_labels_need_a_weight_of_cross_entropy():
    assert f"{CE}: " in refusal(*MIXED)


def test_the_resolved_weight_is_what_counts():
    assert changed(f"{CE}=0.0") == set() and "distill_fast" in changed(f"{CE}=0.1")


def test_the_hashes_in_a_file_of_rollouts_say_whose_they_are(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    path.write_text("{}")
    files = ("stages.capture_fast.rollouts", "stages.distill_fast.rollouts")
    stage = plan(*(f"{key}={path}" for key in files))["distill_fast"].stage
    assert stage.objective.ce_weight is None

    def weight(*hashes):
        rollouts = [SimpleNamespace(weights_sha256=digest) for digest in hashes]
        return stage.loss(SimpleNamespace(load=lambda *_: rollouts), "stages.kd", "mine").ce_weight

    assert (weight("mine", "mine"), weight("another"), weight(None)) == pytest.approx((0.0, 0.1, 0.1))
    with pytest.raises(UserError, match="stages.kd.objective.ce_weight: "):
        weight("mine", "another")


def test_a_store_of_a_teacher_that_knows_nothing_is_refused(tmp_path, ms_runtime, monkeypatch):
    """At the end of its capture, and by a stage that is given it."""
    small = ("data.sets.fast.count=8", "tokenizer.vocab_size=110", "tokenizer.train_on=[fast]", "order=[distill_fast]")
    context = RunContext(compose_quickly(*small, "compare=[]"), tmp_path / "other", {})
    context.tokenizer = tokenizer = prepare_tokenizer(context)
    writer = StoreWriter(tmp_path / "store", StoreHeader("t" * 64, tokenizer.sha256, 110, 2, 1.0, "top_k"))
    for sample in context.samples("fast"):
        count = np.count_nonzero(sample.supervised[1:])
        ids_SK, logp_SK = np.tile([3, 4], (count, 1)), np.full((count, 2), np.log(1 / 110))
        writer.add(sample.ids, sample.supervised, ids_SK, logp_SK, np.full(count, np.log(108 / 110)))
    writer.close()
    stage = {"store": tmp_path / "store", "init": "null", "rollouts": "null", "evaluate": "false"}
    given = (f"stages.distill_fast.{key}={value}" for key, value in stage.items())
    monkeypatch.setattr("mindspore_impl.training.trainer.train", lambda job: pytest.fail("trained"))
    with pytest.raises(UserError, match=f"{tmp_path / 'store'}: .* 4.70"):
        places = (f"run_dir={tmp_path / 'run'}", f"tokenizer.path={tokenizer.path}")
        runner.run(compose_quickly(*small, *given, LABELS[1], "compare=[]", *places))
    assert not (tmp_path / "run" / "stages").exists()
    context.build_model = lambda *_: (None, "a" * 64)
    monkeypatch.setattr("mindspore_impl.distill.capture.run_capture", lambda job: {"teacher_ce": 4.6})
    with pytest.raises(UserError, match=str(tmp_path / "store")):
        CaptureStage(teacher="t", sets=["fast"]).run(
            context, SimpleNamespace(name="capture", model="teacher", seed=0), tmp_path
        )
