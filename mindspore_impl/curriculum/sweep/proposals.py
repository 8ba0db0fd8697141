"""Trials proposed by Optuna through its ask-and-tell interface.

sweep.json is the study: trial n of it is told to Optuna again with its result, and proposal n is drawn by a sampler
with a seed of its own. So a stopped sweep continues exactly as it would have, whatever was repeated meanwhile.
"""

from collections.abc import Iterator

from mindspore_impl.curriculum.sweep.space import Space
from mindspore_impl.curriculum.sweep.trials import SweepPlan
from mindspore_impl.errors import UserError
from mindspore_impl.report.sweep_files import FINISHED, Trial


def proposals(plan: SweepPlan) -> Iterator[list[Trial]]:
    """Batches of at most plan.jobs trials until there are n_trials; what is drawn next depends on how the last went.

    A trial that cannot be composed is recorded as failed and not part of its batch.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("sweep.optuna: Optuna is not installed; pip install -e '.[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    options = plan.options.optuna
    recorded = list(plan.record.trials)
    study = optuna.create_study(direction=plan.options.direction)
    number = 0
    while number < options.n_trials:
        batch = []
        for _ in range(min(plan.jobs, options.n_trials - number)):
            known = recorded[number] if number < len(recorded) else None
            study.sampler = samplers[options.sampler](seed=options.seed + number)
            if known is not None:
                study.enqueue_trial(_read(plan.space, known.overrides))
            asked = study.ask()
            overrides = _draw(plan.space, asked)
            try:
                batch.append((asked, plan.add(overrides, known=known)))
            except UserError as error:
                batch.append((asked, plan.refuse(overrides, str(error), known)))
            number += 1
        yield [trial for _, trial in batch if trial.number in plan.configs]
        for asked, trial in batch:
            if trial.status == FINISHED:
                study.tell(asked, trial.metric)
            else:
                study.tell(asked, state=optuna.trial.TrialState.FAIL)


def _draw(space: Space, asked) -> list[str]:
    """A value of every key, as overrides."""
    values = {key: asked.suggest_categorical(key, choices) for key, choices in space.choices.items()}
    for key, interval in space.intervals.items():
        suggest = asked.suggest_int if interval.whole else asked.suggest_float
        values[key] = repr(suggest(key, interval.low, interval.high, log=interval.log))
    return [f"{key}={value}" for key, value in values.items()]


def _read(space: Space, overrides: list[str]) -> dict:
    """The values of recorded overrides: the inverse of `_draw`."""
    values = {key: value for key, _, value in (text.partition("=") for text in overrides)}
    for key, interval in space.intervals.items():
        values[key] = int(values[key]) if interval.whole else float(values[key])
    return values
