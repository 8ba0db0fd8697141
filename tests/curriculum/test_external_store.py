"""A distill stage may name a teacher store that no stage of its curriculum made."""

import numpy as np
import pytest

from mindspore_impl.curriculum import configuration
from mindspore_impl.curriculum.plan import make_plan
from mindspore_impl.curriculum.stages.context import RunContext
from mindspore_impl.data.teacher_store import StoreHeader
from mindspore_impl.data.teacher_store_writer import StoreWriter
from mindspore_impl.errors import UserError

# The curriculum without its capture stage.
ORDER = ("order=[teacher,sft_reasoning,sft_fast,rollout_fast,distill_fast]", "compare=[]")


def write_store(folder, temperature=1.0, mode="top_k", first=3):
    writer = StoreWriter(folder, StoreHeader("t" * 64, "k" * 64, 160, 2, temperature, mode))
    ids = np.array([1, first, 4])
    logp = np.log(np.array([[0.75, 0.25]], np.float32))
    writer.add(ids, np.array([False, False, True]), np.array([[5, 6]]), logp, np.array([-1e4], np.float32))
    writer.close()
    return folder


def compose(store, *more):
    return configuration.compose([*ORDER, f"stages.distill_fast.store={store}", *more])


def test_a_path_stands_for_a_store(tmp_path):
    store = write_store(tmp_path / "store")
    settings = compose(store)
    plan = {planned.name: planned for planned in make_plan(settings)}
    assert plan["distill_fast"].inputs["store"] == str(store)
    context = RunContext(settings, tmp_path / "run", plan)
    assert context.load(str(store), "store") == store


def test_another_store_at_the_path_is_another_fingerprint(tmp_path):
    def fingerprint(name, first):
        plan = make_plan(compose(write_store(tmp_path / name, first=first)))
        return next(planned.fingerprint for planned in plan if planned.name == "distill_fast")

    assert fingerprint("a", 3) == fingerprint("b", 3) != fingerprint("c", 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 2.0}, "objective.temperature: 1.0 differs from the temperature 2.0 of"),
        ({"mode": "sampled"}, "does not fit the mode 'sampled' of"),
    ],
)
def test_a_store_that_does_not_fit_the_objective_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        make_plan(compose(write_store(tmp_path / "store", **changes)))


def test_a_missing_or_unfinished_store_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        make_plan(compose(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no finished teacher store"):
        make_plan(compose(tmp_path / "empty"))
