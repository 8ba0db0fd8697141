"""Trials that Optuna proposes: told how each went, continued after a stop, not thrown by a failure."""

import importlib.util
import random
import sys
from types import SimpleNamespace

import pytest

from mindspore_impl.errors import JobFailed, UserError
from tests.curriculum.sweep.conftest import WEIGHT

SPACE = [f"{WEIGHT}=interval(0.1,1.0)", "seed=1,2", "stages.distill_fast.train.max_steps=int(interval(1,9))"]


def optuna(n_trials: int, sampler: str = "tpe") -> list[str]:
    return [f"sweep.optuna.{text}" for text in (f"n_trials={n_trials}", f"sampler={sampler}", "seed=3")]


class StandIn:
    """As much of Optuna as is used: its sampler draws from its seed and from how many results it has been told."""

    def __init__(self):
        self.told, self.queued, self.salt = [], [], 0
        self.logging = SimpleNamespace(WARNING=30, set_verbosity=lambda _: None)
        self.samplers = SimpleNamespace(TPESampler=self._sampler, RandomSampler=self._sampler)
        self.trial = SimpleNamespace(TrialState=SimpleNamespace(FAIL="fail"))

    def _sampler(self, seed):
        return random.Random(seed)

    def create_study(self, direction):
        assert direction == "maximize"
        return SimpleNamespace(sampler=None, enqueue_trial=self.queued.append, ask=self._ask, tell=self._tell)

    def _ask(self):
        fixed = self.queued.pop() if self.queued else {}
        draw = random.Random(repr((self.salt, self.told)))
        return SimpleNamespace(
            suggest_categorical=lambda key, choices: fixed.get(key, draw.choice(choices)),
            suggest_float=lambda key, low, high, log: fixed.get(key, draw.uniform(low, high)),
            suggest_int=lambda key, low, high, log: fixed.get(key, draw.randint(low, high)),
        )

    def _tell(self, asked, value=None, state=None):
        self.told.append(state or value)


@pytest.fixture
def stand_in(monkeypatch):
    study = StandIn()
    monkeypatch.setitem(sys.modules, "optuna", study)
    return study


def test_every_result_is_told_before_the_next_proposal(sweep, stand_in):
    trials = sweep(*SPACE, *optuna(4))
    assert stand_in.told == [trial["metric"] for trial in trials] and len(trials) == 4
    assert len({tuple(trial["overrides"]) for trial in trials}) == 4
    assert all(text.split("=")[1] in "123456789" for trial in trials for text in trial["overrides"] if "steps" in text)


def test_a_longer_sweep_goes_on_as_if_it_had_been_one(sweep, stand_in, tmp_path):
    whole = sweep(*SPACE, *optuna(6))
    sweep.folder.rename(tmp_path / "whole")
    stand_in.told.clear()
    sweep(*SPACE, *optuna(3))
    stand_in.told.clear()
    sweep.calls()
    parts = sweep(*SPACE, *optuna(6))
    assert len(sweep.calls()) == 3
    assert [trial["overrides"] for trial in parts] == [trial["overrides"] for trial in whole]


def test_failed_trial_is_told_as_failed_and_tried_again_with_its_values(sweep, stand_in):
    sweep.folder.mkdir()
    (sweep.folder / ".lock").touch()
    with pytest.MonkeyPatch.context() as patch:
        from mindspore_impl.curriculum.sweep import runner

        write = runner.write_sweep
        patch.setattr(runner, "write_sweep", lambda *a: (write(*a), (sweep.folder / "broken").touch()))
        with pytest.raises(JobFailed):
            sweep(f"{WEIGHT}=interval(0.88,0.95)", *optuna(2))
    assert stand_in.told == ["fail", "fail"]
    before = [trial["overrides"] for trial in sweep.record()["trials"]]
    (sweep.folder / "broken").unlink()
    stand_in.told.clear()
    stand_in.salt = 1  # what is recorded is not drawn again
    trials = sweep(f"{WEIGHT}=interval(0.88,0.95)", *optuna(2))
    assert [trial["overrides"] for trial in trials] == before
    weights = [float(trial["overrides"][0].split("=")[1]) for trial in trials]
    ran = [trial["metric"] for trial in trials]
    assert ran == pytest.approx([0.99 - (weight - 0.6) ** 2 for weight in weights], abs=1e-5)
    assert stand_in.told == [trial["metric"] for trial in trials]


def test_proposal_that_cannot_run_is_recorded_and_costs_nothing(sweep, stand_in):
    with pytest.raises(JobFailed, match="trial max_steps=-"):
        sweep("stages.distill_fast.train.max_steps=int(interval(-9,-1))", *optuna(2))
    assert sweep.calls() == []
    assert [trial["status"] for trial in sweep.record()["trials"]] == ["failed"] * 2


def test_another_space_is_another_sweep(sweep, stand_in):
    sweep(*SPACE, *optuna(1))
    with pytest.raises(UserError, match=f"run_dir: .*{WEIGHT}"):
        sweep(SPACE[0].replace("1.0", "0.9"), *SPACE[1:], *optuna(1))


def test_without_optuna_its_extra_is_named(sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"sweep\.optuna: .*\[sweep\]"):
        sweep(*SPACE, *optuna(2))


needs_optuna = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="the extra `sweep` is not installed"
)


@pytest.mark.slow
@needs_optuna
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_optuna_itself_goes_on_as_if_it_had_been_one(sweep, tmp_path, sampler):
    whole = sweep(*SPACE, *optuna(14, sampler))
    sweep.folder.rename(tmp_path / "whole")
    sweep(*SPACE, *optuna(12, sampler))
    parts = sweep(*SPACE, *optuna(14, sampler))
    assert [trial["overrides"] for trial in parts] == [trial["overrides"] for trial in whole]


@pytest.mark.slow
@needs_optuna
def test_optuna_itself_finds_the_best_weight(sweep):
    trials = sweep(f"{WEIGHT}=interval(0.1,1.0)", *optuna(25))
    best = max(trials, key=lambda trial: trial["metric"])
    assert abs(float(best["overrides"][0].split("=")[1]) - 0.6) < 0.05
