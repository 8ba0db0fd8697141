"""Plan a sweep: compose, validate and name every trial before the first one runs."""

import dataclasses
import functools
import itertools
import operator
import os
import re
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.curriculum.configuration import Config, compose
from mindspore_impl.curriculum.plan import make_plan
from mindspore_impl.curriculum.sweep.metric import check_metric
from mindspore_impl.curriculum.sweep.options import SweepOptions
from mindspore_impl.curriculum.sweep.space import Space, key_of, read_space
from mindspore_impl.errors import UserError
from mindspore_impl.report.sweep_files import FAILED, FILE, WAITING, Sweep, Trial, is_sweep, read_sweep
from mindspore_impl.schema import check_ranges, nearest

SEED = "seed"


@contextmanager
def _named(title: str) -> Iterator[None]:
    """Name the trial in a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"trial {title}: {error}") from error


@dataclass
class SweepPlan:
    """A sweep about to run: its record, with that of an earlier run, and the configurations of its trials."""

    folder: Path
    record: Sweep
    space: Space
    options: SweepOptions
    jobs: int = 1
    config_dir: Path | None = None  # of the user's own YAML groups
    wanted: list[Trial] = field(default_factory=list)  # by this command, in order; Optuna's are added while it runs
    configs: dict[int, Config] = field(default_factory=dict)  # trial number: its configuration

    @property
    def proposes(self) -> bool:
        """Whether Optuna proposes the trials one after the other."""
        return self.options.optuna is not None and self.options.optuna.sampler != "grid"

    def recorded(self) -> bytes | None:
        """The content of sweep.json; None when there is none."""
        path = self.folder / FILE
        return path.read_bytes() if path.is_file() else None

    def add(self, overrides: list[str], name: str | None = None, known: Trial | None = None) -> Trial:
        """Add the trial of these choices, called `name` where it has one; `known`: its earlier record.

        Raises UserError, which names the trial, when it cannot run.
        """
        title = self.space.title(overrides, name)
        config, fingerprint = self.planned(overrides, title)
        trial = known or self._new(overrides, title, name)
        if trial.config != fingerprint:  # new, or a file that decides its results has changed
            trial.config, trial.status = fingerprint, WAITING
        self.configs[trial.number] = dataclasses.replace(config, run_dir=str(self.folder / trial.folder))
        self.wanted.append(trial)
        return trial

    def planned(self, overrides: list[str], title: str) -> tuple[Config, str]:
        """The configuration of a trial but for its run_dir, and the hash of its stages' fingerprints; see `add`."""
        with _named(title):
            config = compose([*self.space.fixed, *overrides], self.config_dir)
            if config.seeds:
                raise UserError(
                    f"seeds: a sweep repeats by {SEED}={','.join(map(str, config.seeds))}; set seeds=[] too"
                )
            plan = make_plan(config)
            if self.options.metric is not None:
                check_metric(self.options.metric, config, plan)
        runtime = config.runtime
        if "runtime.cache" not in map(key_of, self.space.fixed):
            runtime = dataclasses.replace(runtime, cache=str(self.folder / "cache"))
        if self.jobs > 1 and runtime.threads == 0:
            share = (os.cpu_count() or 1) // (self.jobs * runtime.workers)
            runtime = dataclasses.replace(runtime, threads=max(1, share))
        fingerprint = files.sha256_json({planned.folder_name: planned.fingerprint for planned in plan})
        return dataclasses.replace(config, runtime=runtime, sweep=None), fingerprint

    def refuse(self, overrides: list[str], error: str, known: Trial | None) -> Trial:
        """Add a proposed trial that cannot run, as failed."""
        trial = known or self._new(overrides, self.space.title(overrides), None)
        trial.status, trial.error = FAILED, error
        self.wanted.append(trial)
        return trial

    def _new(self, overrides: list[str], title: str, name: str | None) -> Trial:
        number = len(self.record.trials) + 1
        group = self.space.title([text for text in overrides if not text.startswith(f"{SEED}=")], name)
        slug = re.sub(r"[^A-Za-z0-9._=+-]+", "-", title.replace(", ", "_"))[:60].strip("-._")
        trial = Trial(number, title, group, f"trials/{number:03d}_{slug}", overrides)
        self.record.trials.append(trial)
        return trial


def plan_sweep(overrides: list[str], jobs: int = 1, config_dir: Path | None = None) -> SweepPlan:
    """Read the command line and the chosen `sweep` of conf/, and make every trial that is known beforehand.

    Raises UserError for a key that does not exist, a value that cannot be, a metric that no stage produces, trials that
    cannot run or are the same run, or a folder that holds something else.
    """
    space = read_space(overrides, config_dir)
    with _named(space.title(space.sample())) if space.choices else nullcontext():
        base = compose([*space.fixed, *space.sample()], config_dir)
    options = base.sweep or SweepOptions()
    params = read_space([f"{key}={value}" for key, value in options.params.items()])
    params.choices |= {key_of(text): [text.partition("=")[2]] for text in params.fixed}  # a list of one value
    space.add(params)
    _check(space, options)
    record = Sweep(
        base.name,
        sorted(filter(_decides, space.fixed)),
        space.described(options.optuna is not None),
        options.metric,
        options.direction,
        options.compare,
        options.labels,
    )
    given = any(key_of(text) == "run_dir" for text in space.fixed)
    folder = Path(base.run_dir if given else f"{base.run_dir}_sweep")
    known = _earlier(folder, record)
    plan = SweepPlan(folder, record, space, options, jobs, config_dir)
    if plan.proposes:
        compose([*space.fixed, *space.sample()], config_dir)
        _refuse_idle_keys(plan)
        return plan
    by_choices = {tuple(trial.overrides): trial for trial in known}
    limit = options.optuna.n_trials if options.optuna else None
    for name, more in (options.trials or {None: []}).items():
        own = {*map(key_of, more)}  # a named trial's own keys do not vary
        for choices in Space(choices={k: v for k, v in space.choices.items() if k not in own}).combinations():
            if limit is None or len(plan.wanted) < limit:
                plan.add([*more, *choices], name, by_choices.get((*more, *choices)))
    _refuse_twins(plan)
    return plan


def _identity(config: Config, fingerprint: str) -> Hashable:
    """Equal for trials that are the same run; how they execute counts where it changes results or nothing is shared."""
    runtime = config.runtime
    return fingerprint, dataclasses.astuple(runtime) if runtime.cache is None else (runtime.device, runtime.precision)


def _refuse_twins(plan: SweepPlan) -> None:
    """Raise UserError when two trials are the same run, naming the keys in which they differ."""
    found: dict[Hashable, Trial] = {}
    for trial in plan.wanted:
        config = plan.configs[trial.number]
        twin = found.setdefault(_identity(config, trial.config), trial)
        if twin is not trial:
            keys = sorted({key_of(text) for text in {*trial.overrides} ^ {*twin.overrides}})
            same = dataclasses.replace(plan.configs[twin.number], run_dir=config.run_dir) == config
            why = "they mean the same configuration" if same else _why(keys, config)
            trials = f"the trials {twin.name!r} and {trial.name!r}"
            raise UserError(f"{', '.join(keys) or 'sweep.trials'}: {trials} are the same run, as {why}")


def _refuse_idle_keys(plan: SweepPlan) -> None:
    """Raise UserError for keys that change no proposed run: neither alone, nor with another value of another key."""
    space = plan.space
    values = space.choices | {key: [repr(one.low), repr(one.high)] for key, one in space.intervals.items()}

    @functools.cache
    def run_of(*overrides: str) -> Hashable:
        try:
            return _identity(*plan.planned(list(overrides), space.title(list(overrides))))
        except UserError:
            return object()  # a proposal that cannot run is like no other

    base, idle = {key: some[0] for key, some in values.items()}, []
    for key, (first, *rest) in values.items():
        others = [{}, *({other: value} for other in values if other != key for value in values[other][1:])]
        pairs = (({**base, **more, key: first}, {**base, **more, key: each}) for more in others for each in rest)
        if rest and all(operator.eq(*(run_of(*map("=".join, point.items())) for point in pair)) for pair in pairs):
            idle.append(key)
    if idle:
        config, _ = plan.planned(space.sample(), idle[0])
        raise UserError(f"{', '.join(idle)}: every value gives the same run, as {_why(idle, config)}")


def _why(keys: Iterable[str], config: Config) -> str:
    """Why keys have no effect on a run."""
    stages = [name for key in keys for name in re.findall(r"stages\.([\w-]+)", key) if name not in config.order]
    return f"stage {stages[0]!r} is not in `order`" if stages else "no result of a stage depends on it"


def _check(space: Space, options: SweepOptions) -> None:
    optuna = options.optuna
    if space.intervals and (optuna is None or optuna.sampler == "grid"):
        key, interval = next(iter(space.intervals.items()))
        raise UserError(
            f"{key}={interval}: only Optuna draws from an interval; list values, or set sweep.optuna.sampler=tpe"
        )
    compared = [*options.compare, *itertools.chain.from_iterable(options.compare.values())]
    for key, names in (("compare", compared), ("labels", options.labels)):
        for name in names:
            if name not in options.trials:
                raise UserError(f"sweep.{key}: sweep.trials has no {name!r}{nearest(name, options.trials)}")
    if optuna is None:
        return
    check_ranges(optuna, "sweep.optuna")
    if options.metric is None:
        raise UserError("sweep.metric: Optuna needs the number to judge a trial by, such as STAGE.accuracy.SET")
    if options.trials:
        raise UserError("sweep.trials: named trials and Optuna exclude each other; remove one of them")
    if not (space.choices or space.intervals):
        raise UserError("sweep.params: Optuna has nothing to choose; name at least one key")


def _decides(override: str) -> bool:
    """Whether an override identifies the sweep: not its folder, how it runs, or how many trials it has."""
    key = key_of(override)
    return key != "run_dir" and key.split(".")[0] not in ("runtime", "sweep") or key == "sweep"


def _earlier(folder: Path, record: Sweep) -> list[Trial]:
    """Load the trials of an earlier run of this sweep into `record`. Raises UserError for any other folder."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run_dir: {folder} is not a folder")
    if not is_sweep(folder):
        if folder.is_dir() and any(entry.name != ".lock" for entry in folder.iterdir()):
            raise UserError(f"run_dir: {folder} is not empty and holds no {FILE}; choose a new or empty folder")
        return []
    found = read_sweep(folder)
    for what, theirs, ours in (
        ("experiment", found.name, record.name),
        ("settings", found.fixed, record.fixed),
        ("choices over", found.space, record.space),
        ("metric", [found.metric, found.direction], [record.metric, record.direction]),
    ):
        if theirs != ours:
            raise UserError(f"run_dir: {folder} holds another sweep, with {what} {theirs}, not {ours}; choose another")
    record.trials = found.trials
    return found.trials
