"""Runs a plan inside a run directory: skips what is finished, resumes what was interrupted, reruns what changed."""

import dataclasses
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from datetime import datetime, timezone
from pathlib import Path

from mindspore_impl import files, runtime, schema
from mindspore_impl.curriculum import cache
from mindspore_impl.curriculum.configuration import Config, reopen, to_yaml
from mindspore_impl.curriculum.estimate import room_problem
from mindspore_impl.curriculum.plan import make_plan, refuse
from mindspore_impl.curriculum.stages import PlannedStage
from mindspore_impl.curriculum.stages.context import RunContext, known_tokenizer, load_tokenizer, prepare_tokenizer
from mindspore_impl.distributed import ranks
from mindspore_impl.errors import UserError, enough_memory

FINISHED, RUNNING = "finished", "running"


def run(config: Config) -> Path:
    """Run every stage that needs it, then write the report; return the run directory.

    With `config.seeds` the whole run is repeated once a seed, in folders of its own, and compared. Every rank of a
    launch calls this (see launch.py); rank 0 alone decides and writes what belongs to the run.
    """
    plan, run_dir = make_plan(config), Path(config.run_dir)
    with _claim(config, run_dir) if runtime.rank() == 0 else nullcontext():
        ranks.barrier()
        if config.seeds:
            _run_seeds(config, run_dir)
        else:
            _run_plan(config, plan, run_dir)
        ranks.barrier()
    print(f"{'comparison' if config.seeds else 'report'}: {run_dir / 'report.html'}")
    return run_dir


def _run_plan(config: Config, plan: list[PlannedStage], run_dir: Path) -> None:
    runtime.setup(config.runtime, config.seed)
    context = RunContext(config, run_dir, {planned.name: planned for planned in plan})
    context.tokenizer = prepare_tokenizer(context) if runtime.rank() == 0 else None
    ranks.barrier()  # the others find the tokenizer trained
    context.tokenizer = context.tokenizer or prepare_tokenizer(context)
    _add_tokenizer(plan, context.tokenizer.sha256)
    refuse(_data_problems(context))
    try:
        if runtime.rank() == 0:
            _write_plan(run_dir, plan)
        for planned in plan:
            if ranks.should_stop():
                raise ranks.Stopped(agreed=True)
            _run_stage(context, planned, len(plan))
    except BaseException:
        with suppress(Exception):  # what stopped the run matters more than its report
            _write_report(run_dir)
        raise
    _write_report(run_dir)


def _data_problems(context: RunContext) -> Iterator[str]:
    """What is wrong with the data of the stages that are left, or with the room for their results."""
    sizes = {}
    for planned in context.plan.values():
        if (state := status(context.run_dir, planned)) == "skip":
            continue
        found = _find_folder(context.run_dir, planned.name) if state == "resume" else None
        there = sum(path.stat().st_size for path in found.rglob("*") if path.is_file()) if found else 0
        try:
            yield from planned.stage.data_problems(f"stages.{planned.name}", context)
            sizes[planned.name] = max(0, planned.stage.disk(context) - there)
        except UserError as error:
            yield str(error)
    yield from ranks.on_rank_zero(lambda: list(room_problem(context.run_dir, sizes)))


def _add_tokenizer(plan: list[PlannedStage], sha256: str | None) -> None:
    """Make the tokenizer's file part of every fingerprint: the plan knows only how a run trains its own."""
    for planned in plan:
        planned.fingerprint = files.sha256_json([planned.fingerprint, sha256])


def _run_seeds(config: Config, run_dir: Path) -> None:
    from mindspore_impl.report.seeds_report import write_seeds_report

    folders = {seed: seed_folder(run_dir, seed) for seed in config.seeds}
    for number, (seed, folder) in enumerate(folders.items(), start=1):
        print(f"== seed {seed} ({number} of {len(folders)})", flush=True)
        run(dataclasses.replace(config, seed=seed, seeds=[], run_dir=str(folder)))
    if runtime.rank() == 0:
        write_seeds_report(folders, run_dir, compare=tuple(config.compare) or None)


def seed_folder(run_dir: Path, seed: int) -> Path:
    """Where the run of one of several seeds lives."""
    return run_dir / f"seed_{seed}"


def open_run(run_dir: Path, plugin_names: Iterable[str] = ()) -> RunContext:
    """The context of an existing run directory, its tokenizer loaded and the runtime set up. Writes nothing."""
    config = reopen(run_dir, plugin_names)
    tokenizer = load_tokenizer(config, run_dir)
    plan = {planned.name: planned for planned in make_plan(config)}
    runtime.setup(config.runtime, config.seed)
    return RunContext(config, run_dir, plan, tokenizer)


def print_plan(config: Config) -> None:
    """Print what a run would do, with sizes and modelled memory, without doing anything."""
    from mindspore_impl.model.pangu import parameter_count

    plan, run_dir = make_plan(config), Path(config.run_dir)
    times = f", once for each seed of {config.seeds}" if config.seeds else ""
    print(f"{config.name}: {len(plan)} stages in {run_dir}{times}")
    for name in dict.fromkeys(planned.model for planned in plan if planned.model):
        options = config.sized_model(name)
        print(f"  model {name}: {parameter_count(options):,} parameters, vocabulary {options.vocab_size:,}")
    if config.seeds:
        run_dir = seed_folder(run_dir, config.seeds[0])
    _add_tokenizer(plan, known_tokenizer(config, run_dir))
    width = max(len(planned.folder_name) for planned in plan)
    for planned in plan:
        line = f"  {planned.folder_name:<{width}}  {status(run_dir, planned):<8} {planned.kind:<8} "
        line += planned.stage.work()
        if planned.inputs:
            line += "  <- " + ", ".join(f"{role} {value}" for role, value in planned.inputs.items())
        if memory := planned.stage.memory(config):
            line += f"  (about {memory / 2**30:.2f} GiB a device, modelled)"
        print(line)


def _write_plan(run_dir: Path, plan: list[PlannedStage]) -> None:
    """Write <run>/plan.json: the stages as the report shows them, whatever their kinds."""
    stages = []
    for planned in plan:
        stage = planned.stage
        shown = {"folder": planned.folder_name, "group": stage.group, "work": stage.work()}
        shown |= {key: getattr(planned, key) for key in ("index", "name", "kind", "inputs", "fingerprint")}
        stages.append(shown | {"measured": stage.measured(planned.name)})
    files.write_json(run_dir / "plan.json", {"schema": 1, "stages": stages})


def status(run_dir: Path, planned: PlannedStage) -> str:
    """What a run does with a stage: "skip", "resume", "rerun" or "run".

    skip: finished with this fingerprint and its results are there; resume: interrupted, or a result was removed or
    stage.json changed; rerun: something else changed.
    """
    found = _find_folder(run_dir, planned.name)
    if found is None or not (found / "stage.json").is_file():
        return "run"
    stage = files.read_json(found / "stage.json")
    if stage.get("fingerprint") != planned.fingerprint:
        return "rerun"
    finished = stage.get("status") == FINISHED and planned.stage.is_complete(found)
    return "skip" if finished and files.is_intact(stage) else "resume"


def _find_folder(run_dir: Path, name: str) -> Path | None:
    """The stage's folder, whatever number it carries (an edited `order` renumbers)."""
    candidates = (run_dir / "stages").glob(f"[0-9]*_{name}")
    return next((path for path in sorted(candidates) if path.name.split("_", 1)[1] == name), None)


def _run_stage(context: RunContext, planned: PlannedStage, total: int) -> None:
    label = f"[{planned.index}/{total}] {planned.name} ({planned.kind})"
    folder = context.folder(planned.name)
    runtime.set_seed(planned.seed)
    state, record = ranks.on_rank_zero(lambda: _begin(context, planned, folder))
    if state == "skip":
        print(f"{label}: finished before, skipped", flush=True)
        return
    print(f"{label}: {'resumes' if state == 'resume' else 'starts'}", flush=True)
    start = time.perf_counter()

    def write(entries: dict) -> float:
        seconds = round(record["seconds"] + time.perf_counter() - start, 3)
        if runtime.rank() == 0:
            files.write_sealed(folder / "stage.json", record | entries | {"seconds": seconds})
        return seconds

    options = context.config.runtime
    advice = planned.stage.less_memory.format(f"stages.{planned.name}") + " or runtime.logits_mb"
    with cache.entry(options.cache, planned.fingerprint, int(options.cache_gb * 1e9)) as cached:
        if note := ranks.on_rank_zero(lambda: cached.take(folder)):
            write(note["result"] | {"cache": {"seconds": note["seconds"]}})
            print(f"{label}: taken from the cache, where it took {note['seconds']:.1f} s", flush=True)
            return
        try:
            with enough_memory(label, advice):
                metrics = planned.stage.run(context, planned, folder)
            ranks.barrier()  # what another rank writes belongs to the stage
        except BaseException:
            with suppress(UserError):  # a full disk must not hide what stopped the stage
                write({})
            raise
        result = {"status": FINISHED, "tokens": int(metrics.get("tokens", 0)), "metrics": metrics}
        result |= {"artifacts": ranks.on_rank_zero(lambda: planned.stage.artifacts(folder, context))}
        seconds = write(result)
        if runtime.rank() == 0:
            cached.keep(folder, {"result": result, "seconds": seconds})
    print(f"{label}: done in {seconds:.1f} s {planned.stage.summary(metrics)}", flush=True)


def _begin(context: RunContext, planned: PlannedStage, folder: Path) -> tuple[str, dict]:
    """Make the stage's folder, under its present number, and write that it is running; -> its `status` and its record.

    The record holds the seconds that an interrupted run has spent on the stage.
    """
    from mindspore_impl.report.run_report import current_commit

    run_dir, state = context.run_dir, status(context.run_dir, planned)
    found = _find_folder(run_dir, planned.name)
    if state == "rerun":  # an outdated folder is never deleted
        old = files.read_json(found / "stage.json").get("fingerprint", "unknown")[:8]
        target = run_dir / "replaced" / f"{planned.name}-{old}-{int(time.time())}"
        target.parent.mkdir(exist_ok=True)
        shutil.move(found, target)
        print(f"  {planned.name} changed: the earlier result is in {target}")
    elif found is not None and found != folder:
        os.rename(found, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if state == "skip":
        return state, {}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    environment = {"commit": current_commit(), "device": runtime.device_description(), "versions": runtime.versions()}
    files.write_json(run_dir / "environment.json", environment | {"started": now})
    path = folder / "stage.json"
    earlier = files.read_json(path).get("seconds", 0.0) if state == "resume" else 0.0
    record = {key: getattr(planned, key) for key in ("name", "kind", "fingerprint", "inputs", "model", "seed")}
    record |= {"options": schema.to_plain(planned.stage), "started": now, "status": RUNNING, "seconds": earlier}
    files.write_sealed(path, record)
    return state, record


def check_run_dir(config: Config, run_dir: Path) -> None:
    """Raise UserError when `run_dir` is of another experiment, no folder, or holds files of something else."""
    from mindspore_impl.report.run_files import read_config

    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"run_dir: {run_dir} is not a folder")
    if (run_dir / "config.yaml").is_file():
        earlier = read_config(run_dir)[0].get("name")
        if earlier != config.name:
            raise UserError(
                f"run_dir: {run_dir} holds experiment {earlier!r}, not {config.name!r}; choose another run_dir"
            )
    elif run_dir.is_dir() and any(entry.name not in (".lock", "logs") for entry in run_dir.iterdir()):
        raise UserError(f"run_dir: {run_dir} is not empty and holds no config.yaml; choose a new or empty folder")


def _claim(config: Config, run_dir: Path):
    """Refuse a run directory of another experiment or of a living process, then write config.yaml; -> the lock."""
    check_run_dir(config, run_dir)
    # Ranks whose launcher was killed may still be saving.
    deadline = time.monotonic() + (ranks.GRACE_SECONDS + 5 if ranks.joined() else 0)
    while (lock := files.try_lock(run_dir / ".lock")) is None:
        if time.monotonic() >= deadline:
            raise UserError(f"run_dir: another process is running in {run_dir}")
        time.sleep(0.5)
    files.remove_leftovers(run_dir)  # the lock says that nobody writes here
    files.write_text(run_dir / "config.yaml", to_yaml(config))
    return lock


def _write_report(run_dir: Path) -> None:
    from mindspore_impl.report.run_report import write_report

    if runtime.rank() == 0:
        write_report(run_dir)
