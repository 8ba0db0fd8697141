"""A distill stage may name a teacher store that no stage of its curriculum made."""

import numpy as np
import pytest

from mindspore_impl import files
from mindspore_impl.curriculum.stages.context import RunContext
from mindspore_impl.data.teacher_store import StoreHeader
from mindspore_impl.data.teacher_store_writer import StoreWriter
from tests.curriculum.conftest import compose_quickly, plan, refusal

# The curriculum without its capture stage.
ORDER = ("order=[teacher,sft_reasoning,sft_fast,rollout_fast,distill_fast]", "compare=[]")


def write_store(folder, temperature=1.0, mode="top_k", first=3):
    writer = StoreWriter(folder, StoreHeader("t" * 64, "k" * 64, 160, 2, temperature, mode))
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
    ],
)
def test_a_store_that_does_not_fit_the_objective_is_refused(tmp_path, changes, words):
    message = refusal(*given(write_store(tmp_path / "store", **changes)))
    assert [word for word in words.split() if word not in message] == [], message


def test_a_store_of_another_tokenizer_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"pieces")
    message = refusal(*given(write_store(tmp_path / "store")), f"tokenizer.path={tmp_path}/tokenizer.model",
                      "models.student.vocab_size=160", "models.teacher.vocab_size=160")  # fmt: skip
    assert "stages.distill_fast.store: " in message and "k" * 64 in message
    assert files.sha256_file(tmp_path / "tokenizer.model") in message


def test_a_missing_or_unfinished_store_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty"):
        message = refusal(*given(tmp_path / name))
        assert "stages.distill_fast.store: " in message and str(tmp_path / name) in message
