"""Run the trials of a sweep, record each one, continue when one fails, and write the report."""

import time
from contextlib import suppress
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.curriculum.configuration import to_yaml
from mindspore_impl.curriculum.sweep.metric import metric_of
from mindspore_impl.curriculum.sweep.proposals import proposals
from mindspore_impl.curriculum.sweep.trial_process import LOG, TrialProcess, stop_all
from mindspore_impl.curriculum.sweep.trials import SweepPlan, plan_sweep
from mindspore_impl.distributed import ranks
from mindspore_impl.errors import JobFailed, UserError
from mindspore_impl.report.render import duration
from mindspore_impl.report.sweep_files import FAILED, FINISHED, RUNNING, Trial, write_sweep

_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = ranks.GRACE_SECONDS - 5  # after it this process would be ended itself


def run_sweep(overrides: list[str], jobs: int = 1, dry_run: bool = False, config_dir: Path | None = None) -> None:
    """Run every unfinished trial, `jobs` at a time; with `dry_run` only print the plan.

    Raises UserError as `plan_sweep` does, before anything runs; JobFailed at the end when a trial has failed.
    """
    if ranks.is_worker():
        raise UserError("--multirun: start a sweep without msrun; runtime.workers=N gives each trial its processes")
    if jobs < 1:
        raise UserError(f"--jobs: {jobs} is not at least 1")
    plan = plan_sweep(overrides, jobs, config_dir)
    found = plan.recorded()
    if dry_run:
        optuna = plan.options.optuna
        count = f"{optuna.n_trials} trials, chosen by Optuna," if plan.proposes else f"{len(plan.wanted)} trials"
        print(f"{plan.record.name}: {count} in {plan.folder}, over {', '.join(plan.record.space) or 'nothing'}")
        for trial in plan.wanted:
            print(f"  {trial.status:<8}  {trial.folder}  {' '.join(trial.overrides)}")
        return
    lock = files.try_lock(plan.folder / ".lock")
    if lock is None:
        raise UserError(f"run_dir: another process runs the sweep in {plan.folder}")
    with lock:
        if plan.recorded() != found:  # by a process that had it until now
            plan = plan_sweep(overrides, jobs, config_dir)
        write_sweep(plan.folder, plan.record)
        try:
            for batch in proposals(plan) if plan.proposes else [plan.wanted]:
                write_sweep(plan.folder, plan.record)
                _run(plan, [trial for trial in batch if trial.status != FINISHED])
        except BaseException:
            with suppress(Exception):  # what stopped the sweep matters more than its report
                _report(plan)
            raise
        _report(plan)
    failed = [trial for trial in plan.wanted if trial.status == FAILED]
    print(f"sweep: {len(plan.wanted) - len(failed)} of {len(plan.wanted)} trials finished; ", end="")
    print(f"report: {plan.folder / 'report.html'}", flush=True)
    if failed:
        names = "".join(f"\n  {trial.folder}: {trial.error}" for trial in failed)
        raise JobFailed(f"{len(failed)} trials failed; the same command runs them again{names}")


def _run(plan: SweepPlan, waiting: list[Trial]) -> None:
    """Run these trials, at most plan.jobs of them at once."""
    running: list[tuple[Trial, TrialProcess]] = []
    try:
        while waiting or running:
            ranks.check_stop()
            while waiting and len(running) < plan.jobs:
                trial = waiting.pop(0)
                running.append((trial, _start(plan, trial)))
            time.sleep(_POLL_SECONDS)
            for trial, process in [*running]:
                if process.ended:
                    running.remove((trial, process))
                    _finish(plan, trial, process)
    except BaseException:
        stop_all([process for _, process in running], _PATIENCE_SECONDS)
        for trial, process in running:
            _record(plan, trial, FAILED, process.seconds, error="stopped before its end")
        raise


def _start(plan: SweepPlan, trial: Trial) -> TrialProcess:
    folder = plan.folder / trial.folder
    files.write_text(folder / "config.yaml", to_yaml(plan.configs[trial.number]))
    print(f"[{_place(plan, trial)}] {trial.name}: starts; {folder / LOG}", flush=True)
    _record(plan, trial, RUNNING, 0.0)
    return TrialProcess(folder, plan.configs[trial.number].plugins)


def _finish(plan: SweepPlan, trial: Trial, process: TrialProcess) -> None:
    error, metric = process.fault(), None
    if error is None and plan.options.metric is not None:
        try:
            metric = metric_of(files.read_json(process.folder / "metrics.json"), plan.options.metric)
        except UserError as fault:
            error = str(fault)
    _record(plan, trial, FINISHED if error is None else FAILED, process.seconds, metric, error)
    result = f"FAILED: {error}" if error else "finished" if metric is None else f"{plan.options.metric} {metric:.4g}"
    print(f"[{_place(plan, trial)}] {trial.name}: {result} in {duration(process.seconds)}", flush=True)


def _record(plan: SweepPlan, trial: Trial, status: str, seconds: float, metric=None, error: str | None = None) -> None:
    trial.status, trial.seconds, trial.metric, trial.error = status, round(seconds, 3), metric, error
    write_sweep(plan.folder, plan.record)


def _place(plan: SweepPlan, trial: Trial) -> str:
    total = plan.options.optuna.n_trials if plan.proposes else len(plan.wanted)
    return f"{plan.wanted.index(trial) + 1}/{total}"


def _report(plan: SweepPlan) -> None:
    from mindspore_impl.report.sweep_report import write_sweep_report

    write_sweep_report(plan.folder)
