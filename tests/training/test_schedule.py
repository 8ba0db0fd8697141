"""Schedules against their formulas, held at the last step, and never at rate 0."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindspore_impl.training.options import OptimizerOptions
from mindspore_impl.training.schedule import learning_rate, make_schedule, warmup_steps

STEPS = 20
COSINE = {1: 0.125, 2: 0.25, 4: 0.5, 12: 0.275, 16: 0.05 + 0.45 * 0.5 * (1 + math.cos(0.75 * math.pi))}
CASES = [  # scheduler, warm-up, other settings, rate by number of the update
    ("cosine", 4, {"min_lr_ratio": 0.1}, COSINE),
    ("cosine", 0, {}, {10: 0.25, 20: 0.25 * (1 + math.cos(0.975 * math.pi))}),
    ("linear", 4, {"min_lr_ratio": 0.1}, {1: 0.125, 4: 0.5, 12: 0.275, 20: 0.05 + 0.45 / 32}),
    ("constant", 4, {}, {1: 0.125, 4: 0.5, 20: 0.5}),
    ("warmup_stable_decay", 4, {"decay_ratio": 0.25}, {3: 0.375, 4: 0.5, 15: 0.5, 16: 0.4, 19: 0.1, 20: 0.05}),
    ("warmup_stable_decay", 0, {"decay_ratio": 0.25, "min_lr_ratio": 0.2}, {1: 0.5, 15: 0.5, 20: 0.14}),
]


@pytest.mark.parametrize(("kind", "warmup", "more", "rates"), CASES)
def test_graph_and_log_follow_the_formula_also_beyond_the_last_step(kind, warmup, more, rates, ms_runtime):
    import mindspore as ms

    options = OptimizerOptions(learning_rate=0.5, lr_scheduler_type=kind, warmup_steps=warmup, **more)
    for update, rate in rates.items():
        assert learning_rate(options, STEPS, update) == pytest.approx(rate, abs=1e-12), update
    schedule = make_schedule(options, STEPS)
    for step in (0, 1, 3, 4, 10, 14, 15, 18, 19, STEPS, STEPS + 3, 10 * STEPS):
        found = float(schedule(ms.Tensor([step], ms.int32)).asnumpy().reshape(()))
        assert found == pytest.approx(learning_rate(options, STEPS, step + 1), rel=2e-6, abs=1e-7), step
    assert learning_rate(options, STEPS, 10 * STEPS) == learning_rate(options, STEPS, STEPS)


def test_float32_keeps_the_last_rate_of_a_long_cosine_above_0(ms_runtime):
    import mindspore as ms

    options, steps = OptimizerOptions(learning_rate=0.5), 100_000
    rate = float(make_schedule(options, steps)(ms.Tensor([steps - 1], ms.int32)).asnumpy().reshape(()))
    assert rate == pytest.approx(learning_rate(options, steps, steps), rel=1e-6)


def test_warm_up_is_a_share_of_the_steps_and_shorter_than_they_are():
    assert warmup_steps(OptimizerOptions(warmup_ratio=0.25), 20) == 5
    assert warmup_steps(OptimizerOptions(warmup_steps=100), 20) == 19


@given(
    kind=st.sampled_from(["cosine", "linear", "constant", "warmup_stable_decay"]),
    steps=st.integers(1, 200),
    warmup=st.none() | st.integers(0, 250),
    ratio=st.floats(0, 1),
    decay=st.floats(0, 1),
)
def test_every_update_has_a_rate_above_0_and_at_most_the_peak(kind, steps, warmup, ratio, decay):
    shape = {"lr_scheduler_type": kind, "warmup_steps": warmup, "warmup_ratio": ratio, "decay_ratio": decay}
    options = OptimizerOptions(learning_rate=1.0, **shape)
    rates = [learning_rate(options, steps, update) for update in range(1, steps + 1)]
    assert 0 < min(rates) <= max(rates) <= 1
    assert steps > 1 or rates[0] >= 0.5, "a single update moves the weights"
