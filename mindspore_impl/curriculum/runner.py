"""Runs a plan inside a run directory: skips what is finished, resumes what was interrupted, reruns what changed."""

import dataclasses
import os
import shutil
import time
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from mindspore_impl import files, runtime
from mindspore_impl.config import Config, to_yaml
from mindspore_impl.curriculum import cache, estimate
from mindspore_impl.curriculum.inputs import maker_of, sized_model
from mindspore_impl.curriculum.kinds import RUNNERS, Context, describe, less_memory, outputs_present
from mindspore_impl.curriculum.plan import PlannedStage, make_plan, tokenizer_fingerprint
from mindspore_impl.distributed import ranks
from mindspore_impl.errors import UserError, enough_memory

FINISHED, RUNNING = "finished", "running"


def run(config: Config) -> Path:
    """Run every stage that needs it, then write the report; return the run directory.

    With `config.seeds` the whole run is repeated once a seed, in folders of its own, and compared. Every rank of a
    launch calls this (see launch.py); rank 0 alone decides and writes what belongs to the run.
    """
    if config.seeds:
        return _run_seeds(config)
    plan = make_plan(config)
    run_dir = Path(config.run_dir)
    with _opened(config, run_dir):
        runtime.setup(config.runtime, config.seed)
        context = Context(config, run_dir, {planned.name: planned for planned in plan})
        context.tokenizer = _shared_tokenizer(context)
        _check_evaluations(context)
        try:
            for planned in plan:
                if ranks.should_stop():
                    raise ranks.Stopped(agreed=True)
                _run_stage(context, planned, len(plan))
        except BaseException:
            with suppress(Exception):  # what stopped the run matters more than its report
                _write_report(run_dir)
            raise
        _write_report(run_dir)
        ranks.barrier()
    print(f"report: {run_dir / 'report.html'}")
    return run_dir


def _shared_tokenizer(context: Context):
    """The tokenizer, which rank 0 alone may train; the others find it finished."""
    found = prepare_tokenizer(context) if runtime.rank() == 0 else None
    ranks.barrier()
    return found or prepare_tokenizer(context)


def _check_evaluations(context: Context) -> None:
    """Refuse a record that no evaluation could score now, not after the first stage has trained."""
    from mindspore_impl.curriculum.stage_benchmarks import check_lengths
    from mindspore_impl.evaluation.harness import check_records

    for planned in context.plan.values():
        if planned.kind == "evaluate" and status(context.run_dir, planned) != "skip":
            options = planned.stage.options or context.config.evaluation
            there = [name for name in options.accuracy if maker_of(context.config.data.sets[name]) is None]
            options = dataclasses.replace(options, accuracy=there)
            check_records({name: context.records(name) for name in there}, options, context.tokenizer)
            key = f"stages.{planned.name}.options" if planned.stage.options else "evaluation"
            limit = context.config.models[planned.model].max_position_embeddings
            check_lengths(key, options, context.tokenizer, limit)


def _run_seeds(config: Config) -> Path:
    from mindspore_impl.report.seeds_report import write_seeds_report

    run_dir = Path(config.run_dir)
    make_plan(config)
    folders = {}
    with _opened(config, run_dir):
        for number, seed in enumerate(config.seeds, start=1):
            print(f"== seed {seed} ({number} of {len(config.seeds)})", flush=True)
            single = dataclasses.replace(config, seed=seed, seeds=[], run_dir=str(seed_folder(run_dir, seed)))
            folders[seed] = run(single)
        if runtime.rank() == 0:
            write_seeds_report(folders, run_dir, compare=tuple(config.compare) or None)
        ranks.barrier()
    print(f"comparison: {run_dir / 'summary.md'}")
    return run_dir


def seed_folder(run_dir: Path, seed: int) -> Path:
    """Where the run of one of several seeds lives."""
    return run_dir / f"seed_{seed}"


def print_plan(config: Config) -> None:
    """Say what a run would do, with sizes and modelled memory, without doing anything."""
    from mindspore_impl.model.pangu import parameter_count

    plan, run_dir = make_plan(config), Path(config.run_dir)
    times = f", once for each seed of {config.seeds}" if config.seeds else ""
    print(f"{config.name}: {len(plan)} stages in {run_dir}{times}")
    for name in dict.fromkeys(planned.model for planned in plan if planned.model):
        options = sized_model(config, name)
        print(f"  model {name}: {parameter_count(options):,} parameters, vocabulary {options.vocab_size:,}")
    if config.seeds:
        run_dir = seed_folder(run_dir, config.seeds[0])
    width = max(len(planned.folder_name) for planned in plan)
    for planned in plan:
        line = f"  {planned.folder_name:<{width}}  {status(run_dir, planned):<8} {planned.kind:<8} "
        line += estimate.describe_work(planned.stage)
        if planned.inputs:
            line += "  <- " + ", ".join(f"{role} {value}" for role, value in planned.inputs.items())
        if planned.model:
            line += f"  (about {_modelled_bytes(config, planned) / 2**30:.2f} GiB a device, modelled)"
        print(line)


def _modelled_bytes(config: Config, planned: PlannedStage) -> int:
    model = sized_model(config, planned.model)
    if hasattr(planned.stage, "train"):
        return estimate.training_estimate(model, planned.stage, config.runtime)["bytes"]
    return estimate.inference_estimate(model, planned.stage, config.evaluation, config.runtime)["bytes"]


def status(run_dir: Path, planned: PlannedStage) -> str:
    """What is to be done with a stage: skip, resume, rerun or run.

    skip: finished with this fingerprint and its results exist; resume: interrupted, or a result was removed; rerun: its
    fingerprint changed; run: never started.
    """
    found = _find_folder(run_dir, planned.name)
    if found is None or not (found / "stage.json").is_file():
        return "run"
    stage = files.read_json(found / "stage.json")
    if stage.get("fingerprint") != planned.fingerprint:
        return "rerun"
    return "skip" if stage.get("status") == FINISHED and outputs_present(planned.kind, found) else "resume"


def _find_folder(run_dir: Path, name: str) -> Path | None:
    """The stage's folder, whatever number it carries (an edited `order` renumbers)."""
    candidates = (run_dir / "stages").glob(f"[0-9]*_{name}")
    return next((path for path in sorted(candidates) if path.name.split("_", 1)[1] == name), None)


def _run_stage(context: Context, planned: PlannedStage, total: int) -> None:
    label = f"[{planned.index}/{total}] {planned.name} ({planned.kind})"
    state, folder = ranks.on_rank_zero(lambda: _place_folder(context, planned)), context.folder(planned.name)
    if state == "skip":
        print(f"{label}: finished before, skipped", flush=True)
        return
    print(f"{label}: {'resumes' if state == 'resume' else 'starts'}", flush=True)
    record = ranks.on_rank_zero(lambda: _begin(context, planned, folder, state))
    runtime.set_seed(planned.seed)
    start = time.perf_counter()

    def write(entries: dict) -> float:
        seconds = round(record["seconds"] + time.perf_counter() - start, 3)
        if runtime.rank() == 0:
            files.write_json(folder / "stage.json", record | entries | {"seconds": seconds})
        return seconds

    options = context.config.runtime
    with cache.entry(options.cache, planned.fingerprint, int(options.cache_gb * 1e9)) as cached:
        if note := ranks.on_rank_zero(lambda: cached.take(folder)):
            write(note["result"] | {"cache": {"seconds": note["seconds"]}})
            print(f"{label}: taken from the cache, where it took {note['seconds']:.1f} s", flush=True)
            return
        try:
            with enough_memory(label, less_memory(planned)):
                metrics = RUNNERS[planned.kind](context, planned, folder)
            ranks.barrier()  # what another rank writes belongs to the stage
        except BaseException:
            with suppress(UserError):  # a full disk must not hide what stopped the stage
                write({})
            raise
        result = {"status": FINISHED, "tokens": int(metrics.get("tokens", 0)), "metrics": metrics}
        seconds = write(result)
        if runtime.rank() == 0:
            cached.keep(folder, {"result": result, "seconds": seconds})
    print(f"{label}: done in {seconds:.1f} s {summarise(metrics)}", flush=True)


def _begin(context: Context, planned: PlannedStage, folder: Path, state: str) -> dict:
    """Write that the stage is running; -> its record, with the seconds that an interrupted run has spent on it."""
    _write_environment(context.run_dir)
    path = folder / "stage.json"
    earlier = files.read_json(path).get("seconds", 0.0) if state == "resume" else 0.0
    record = {"name": planned.name, "kind": planned.kind, "fingerprint": planned.fingerprint, **describe(planned)}
    record |= {"started": _now(), "status": RUNNING, "seconds": earlier}
    files.write_json(path, record)
    return record


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def summarise(metrics: dict) -> str:
    """The numbers of a stage worth a line on the terminal."""
    parts = [f"{name} {value['accuracy']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
             for name, value in metrics.get("accuracy", {}).items()]  # fmt: skip
    parts += [
        f"{name} perplexity {'not finite' if value['perplexity'] is None else format(value['perplexity'], '.3f')}"
        for name, value in metrics.get("perplexity", {}).items()
    ]
    parts += [
        f"{name} KL to the teacher {'not finite' if value['kl'] is None else format(value['kl'], '.4f')}"
        for name, value in metrics.get("teacher_kl", {}).items()
    ]
    parts += [
        f"{name} {next((f'{m} {v:.3f}' for m, v in value.items() if m in value['stderr']), '')}"
        for name, value in metrics.get("benchmarks", {}).items()
    ]
    if metrics.get("tokens_per_second"):
        parts.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
    return "; ".join(parts)


def _place_folder(context: Context, planned: PlannedStage) -> str:
    """Place the stage's folder under its present number; return the stage's `status`.

    An outdated folder is moved to <run>/replaced/, never deleted.
    """
    state = status(context.run_dir, planned)
    folder, found = context.folder(planned.name), _find_folder(context.run_dir, planned.name)
    if state == "rerun":
        old = files.read_json(found / "stage.json").get("fingerprint", "unknown")[:8]
        target = context.run_dir / "replaced" / f"{planned.name}-{old}-{int(time.time())}"
        target.parent.mkdir(exist_ok=True)
        shutil.move(found, target)
        print(f"  {planned.name} changed: the earlier result is in {target}")
    elif found is not None and found != folder:
        os.rename(found, folder)
    folder.mkdir(parents=True, exist_ok=True)
    return state


@contextmanager
def _opened(config: Config, run_dir: Path):
    """Claim the run directory for this process and its ranks until the end, and write config.yaml."""
    lock = _claim(config, run_dir) if runtime.rank() == 0 else None
    ranks.barrier()
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


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


def prepare_tokenizer(context: Context):
    """Load the configured tokenizer, or train the run's own once and keep it in <run>/tokenizer/."""
    from mindspore_impl.text.chat import segments
    from mindspore_impl.text.tokenizer import Tokenizer, train_tokenizer

    options, folder = context.config.tokenizer, context.run_dir / "tokenizer"
    if options.path is not None:
        return Tokenizer.load(options.path, options.template)
    fingerprint, note = tokenizer_fingerprint(context.config), folder / "fingerprint.json"
    if note.is_file() and files.read_json(note)["fingerprint"] == fingerprint:
        return Tokenizer.load(folder / "tokenizer.model")
    texts = (text for name in options.train_on for record in context.records(name) for text in segments(record))
    tokenizer = train_tokenizer(texts, folder / "tokenizer.model", options.vocab_size, options.character_coverage)
    files.write_json(note, {"fingerprint": fingerprint, "sha256": tokenizer.sha256})
    print(f"tokenizer: {tokenizer.vocab_size} pieces trained on {', '.join(options.train_on)}")
    return tokenizer


def _write_environment(run_dir: Path) -> None:
    from mindspore_impl.report.run_report import current_commit

    files.write_json(
        run_dir / "environment.json",
        {
            "commit": current_commit(),
            "device": runtime.device_description(),
            "versions": runtime.versions(),
            "started": _now(),
        },
    )


def _write_report(run_dir: Path) -> None:
    from mindspore_impl.report.run_report import write_report

    if runtime.rank() == 0:
        write_report(run_dir)
