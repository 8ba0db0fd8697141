"""What a sweep says of its own report: pairs of trials to hold against each other, and printed names."""

import pytest

from mindspore_impl.curriculum.sweep.trials import plan_sweep
from mindspore_impl.errors import UserError
from mindspore_impl.report.sweep_files import read_sweep, write_sweep
from tests.curriculum.sweep.conftest import WEIGHT


def planned(tmp_path, *more):
    """Two named trials over two seeds."""
    trials = f"+sweep.trials={{one:['{WEIGHT}=0.5'],two:['{WEIGHT}=0.9']}}"
    base = ["sweep=optuna_example", "sweep.metric=null", "sweep.optuna=null", "~sweep.params", "+sweep.params={}"]
    chosen = [*base, trials, "seed=1,2"]
    return plan_sweep([*chosen, f"run_dir={tmp_path / 'sweep'}", *more])


def test_pairs_and_names_are_recorded_and_may_change(tmp_path):
    plan = planned(tmp_path, "sweep.compare={two:[one]}", "sweep.labels={two:Two}")
    (tmp_path / "sweep").mkdir()
    write_sweep(tmp_path / "sweep", plan.record)
    found = read_sweep(tmp_path / "sweep")
    assert (found.compare, found.labels) == ({"two": ["one"]}, {"two": "Two"})
    again = planned(tmp_path)
    assert again.record.compare == again.record.labels == {} and len(again.record.trials) == 4, "the same sweep"


@pytest.mark.parametrize("key", ["compare={tow:[one]}", "compare={one:[two,tow]}", "labels={tow:x}"])
def test_a_trial_that_is_not_there(tmp_path, key):
    with pytest.raises(UserError, match=f"sweep.{key.split('=')[0]}: .*'tow'.*'two'"):
        planned(tmp_path, f"sweep.{key}")
