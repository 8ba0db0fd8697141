"""Schedules against their formulas, and held at the last step."""

import math

import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.training.options import OptimizerOptions
from mindspore_impl.training.schedule import learning_rate, make_schedule, warmup_steps

STEPS = 20
CASES = {
    "cosine": OptimizerOptions(learning_rate=0.5, lr_scheduler_type="cosine", warmup_steps=4, min_lr_ratio=0.1),
    "cosine without warm-up": OptimizerOptions(learning_rate=0.5, lr_scheduler_type="cosine", warmup_steps=0),
    "linear": OptimizerOptions(learning_rate=0.5, lr_scheduler_type="linear", warmup_steps=4, min_lr_ratio=0.1),
    "constant": OptimizerOptions(learning_rate=0.5, lr_scheduler_type="constant", warmup_steps=4),
    "stable": OptimizerOptions(
        learning_rate=0.5, lr_scheduler_type="warmup_stable_decay", warmup_steps=4, decay_ratio=0.25
    ),
    "stable without warm-up": OptimizerOptions(
        learning_rate=0.5, lr_scheduler_type="warmup_stable_decay", warmup_steps=0, decay_ratio=0.25, min_lr_ratio=0.2
    ),
}
EXPECTED = {  # update number: rate
    "cosine": {1: 0.125, 2: 0.25, 4: 0.5, 12: 0.275, 20: 0.05, 16: 0.05 + 0.45 * 0.5 * (1 + math.cos(0.75 * math.pi))},
    "cosine without warm-up": {10: 0.25, 20: 0.0},
    "linear": {1: 0.125, 4: 0.5, 12: 0.275, 20: 0.05},
    "constant": {1: 0.125, 4: 0.5, 20: 0.5},
    "stable": {3: 0.375, 4: 0.5, 15: 0.5, 16: 0.4, 19: 0.1, 20: 0.0},
    "stable without warm-up": {1: 0.5, 15: 0.5, 20: 0.1},
}


@pytest.mark.parametrize("name", CASES)
def test_rate_follows_its_formula(name):
    for update, rate in EXPECTED[name].items():
        assert learning_rate(CASES[name], STEPS, update) == pytest.approx(rate, abs=1e-12), update


@pytest.mark.parametrize("name", CASES)
def test_graph_and_log_agree_also_beyond_the_last_step(name, ms_runtime):
    import mindspore as ms

    schedule = make_schedule(CASES[name], STEPS)
    for step in (0, 1, 3, 4, 10, 14, 15, 18, 19, STEPS, STEPS + 3, 10 * STEPS):
        found = float(schedule(ms.Tensor([step], ms.int32)).asnumpy().reshape(()))
        assert found == pytest.approx(learning_rate(CASES[name], STEPS, step + 1), rel=2e-6, abs=1e-7), step
    assert learning_rate(CASES[name], STEPS, 10 * STEPS) == learning_rate(CASES[name], STEPS, STEPS)


def test_warm_up_is_a_share_of_the_steps_and_shorter_than_they_are():
    assert warmup_steps(OptimizerOptions(warmup_ratio=0.25), 20) == 5
    assert warmup_steps(OptimizerOptions(warmup_steps=100), 20) == 19
    assert learning_rate(OptimizerOptions(learning_rate=1.0), 1, 1) == 0.0


@pytest.mark.parametrize(
    "bad", [{"warmup_steps": -1}, {"warmup_ratio": 1.5}, {"learning_rate": 0.0}, {"min_lr_ratio": 2.0}]
)
def test_nonsense_is_refused(bad, ms_runtime):
    with pytest.raises(UserError, match="optimizer"):
        make_schedule(OptimizerOptions(**bad), STEPS)
