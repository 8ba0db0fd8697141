"""The report of one run: report.html for people, metrics.json for programs, from the run directory's files alone."""

import subprocess
from importlib import import_module
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.report import calibration, difficulty, figures, samples, teacher_view
from mindspore_impl.report.diagram import STATUS, curriculum
from mindspore_impl.report.figures import count, duration
from mindspore_impl.report.page import esc, figure, page, table, tiles
from mindspore_impl.report.run_files import RunView, StageView, evaluation_of, read_run

SCHEMA = 1


def write_report(run_dir: str | Path) -> Path:
    """Write <run>/metrics.json and <run>/report.html; return the path of the page.

    A run that is under way or was killed gets a report of what is there; metrics.json lists finished stages only.
    Its final.accuracy maps each set to the share (0 to 1) that the last evaluated stage got right. Raises UserError
    when the folder is no run directory or one of its files is damaged.
    """
    run = read_run(run_dir)
    files.write_json(run.folder / "metrics.json", metrics_of(run))
    files.write_text(run.folder / "report.html", render_page(run))
    return run.folder / "report.html"


def current_commit() -> str:
    """The commit of this checkout, with a plus sign when tracked files differ from it; outside of one, the version."""
    root = Path(__file__).resolve().parents[2]
    version = import_module(__name__.partition(".")[0]).__version__

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed package may lie inside somebody else's checkout.
        if not (root / ".git").exists():
            return version
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return version


def metrics_of(run: RunView) -> dict:
    """The content of metrics.json."""
    last = run.last_evaluated
    stages = [
        {"name": s.name, "kind": s.kind, "seconds": s.seconds, "tokens": s.tokens, "metrics": s.metrics}
        for s in run.stages
        if s.status == "finished"
    ]
    environment = run.environment
    return files.jsonable(
        {
            "schema": SCHEMA,
            "commit": environment["commit"] or current_commit(),
            "device": environment["device"],
            "versions": environment["versions"],
            "stages": stages,
            "final": {"accuracy": {name: value["accuracy"] for name, value in last.accuracy.items()} if last else {}},
        }
    )


def render_page(run: RunView) -> str:
    """The whole page as HTML."""
    done = sum(stage.status == "finished" for stage in run.stages)
    state, word = STATUS["finished" if run.finished else "unfinished"]
    subtitle = (
        f'<p><span class="badge {state}">{word}</span> {done} of {len(run.stages)} stages · '
        f"started {esc(run.environment['started'])} · commit {esc(_short_commit(run))}</p>"
        f"<p>{esc(run.environment['device'])}</p>"
    )
    return page(
        f"Run {run.name}",
        subtitle,
        [
            ("summary", "Result", _summary(run)),
            ("curriculum", "Curriculum", curriculum(run)),
            ("accuracy", "Accuracy by stage", _accuracy(run)),
            ("loss", "Loss", _loss(run)),
            ("distillation", "Distillation", _distillation(run)),
            ("calibration", "Calibration", calibration.section(run)),
            ("difficulty", "Difficulty of what was trained on", difficulty.section(run)),
            ("cost", "Time and tokens", _cost(run)),
            ("stages", "Stages in numbers", _stage_table(run)),
            ("samples", "Sample outputs", samples.section(run)),
            ("teacher", "What the teacher said, token by token", teacher_view.section(run)),
            ("config", "Configuration", _config(run)),
            ("environment", "Hardware and versions", _environment(run)),
        ],
    )


def _summary(run: RunView) -> str:
    items = []
    for stage in _headline(run):
        for name, value in sorted(stage.accuracy.items()):
            interval = f"95 % interval {_percent(value['low'])} to {_percent(value['high'])}"
            note = f"{value['correct']} of {value['total']} right; {interval}"
            items.append((f"{name}, after {stage.measured}", _percent(value["accuracy"]), note))
    seconds = sum(stage.seconds or 0 for stage in run.stages)
    tokens = sum(stage.tokens or 0 for stage in run.stages)
    items.append(("time of all stages", duration(seconds), "finished stages only"))
    items.append(("tokens of all stages", count(tokens), "trained on, generated or scored"))
    return tiles(items)


def _headline(run: RunView) -> list[StageView]:
    """The evaluations whose numbers stand first: the two stages that the config compares, else the last one."""
    found = {stage.measured: stage for stage in run.stages if stage.accuracy}
    compared = [found[name] for name in run.config.get("compare") or [] if name in found]
    return compared or ([run.last_evaluated] if run.last_evaluated else [])


def _accuracy(run: RunView) -> str:
    found = [(stage.measured, name, value) for stage in run.stages for name, value in sorted(stage.accuracy.items())]
    told = [f"{stage} {name} {_percent(value['accuracy'])}" for stage, name, value in found]
    return figure(
        figures.accuracy_figure(run.stages),
        "Accuracy after each evaluated stage: " + "; ".join(told),
        "Greedy generation on held-out records, each set in its own thinking mode; bars are 95 % Wilson intervals. "
        "An answer that is cut, or that thinks in fast mode, counts as wrong.",
    )


def _loss(run: RunView) -> str:
    trained = [s for s in run.stages if any("loss" in line for line in s.log)]
    losses = [(s.name, [line["loss"] for line in s.log if line.get("loss") is not None]) for s in trained]
    told = "; ".join(f"{name} from {values[0]:.3f} to {values[-1]:.3f}" for name, values in losses if values)
    return figure(
        figures.loss_figure(run.stages),
        f"Training loss by step over all training stages: {told or 'no training line yet'}",
        "Each stage's own objective, so levels compare within a stage; the dashed line is the cross-entropy part of a "
        "distillation loss. Markers are the cross-entropy on validation sets, dashed vertical lines borders of stages.",
    )


def _distillation(run: RunView) -> str:
    stages = [stage for stage in run.stages if stage.kind == "distill" and stage.log]
    supports = _supports(run, stages)
    told = []
    for stage in stages:
        last = next((line for line in reversed(stage.log) if "kd" in line), {})
        told += [f"{stage.name} ends at {key} {last[key]:.3f}" for key in ("ce", "kd", "agreement") if last.get(key)]
    return figure(
        figures.distill_figure(run.stages, supports),
        "Distillation diagnostics by step. " + "; ".join(told),
        f"Means over supervised tokens. Support: {'; '.join(supports)}. Mass is the share of the distribution on the "
        "stored teacher ids; agreement counts positions where student and teacher put the same id first.",
    )


def _supports(run: RunView, stages: list[StageView]) -> list[str]:
    """The divergence, support and K of the distill stages in words; one entry when all are alike."""
    by_name = {stage.name: stage for stage in run.stages}
    found = {}
    for stage in stages:
        objective = stage.settings.get("objective") or {}
        store = by_name.get(stage.inputs.get("store", ""))
        top_k = ((store.settings if store else {}).get("capture") or {}).get("top_k")
        text = str(objective.get("support", "not recorded"))
        found[stage.name] = text + (f", K = {top_k}" if top_k else "")
    if len(set(found.values())) == 1:
        return [next(iter(found.values()))]
    return [f"{name} {text}" for name, text in found.items()]


def _cost(run: RunView) -> str:
    done = [stage for stage in run.stages if stage.seconds is not None]
    told = [f"{stage.name} {duration(stage.seconds)}, {count(stage.tokens or 0)} tokens" for stage in done]
    return figure(
        figures.cost_figure(run.stages),
        "Time and tokens by stage: " + "; ".join(told),
        "Wall-clock time of each finished stage, compilation included, and tokens trained on, generated or scored.",
    )


def _stage_table(run: RunView) -> str:
    sets = sorted({name for stage in run.stages for name in stage.accuracy})
    kinds = (("perplexity", "perplexity", "perplexity"), ("teacher_kl", "kl", "KL of the teacher"))
    held = [
        (kind, key, title, name)
        for kind, key, title in kinds
        for name in sorted({name for s in run.stages for name in evaluation_of(s.metrics).get(kind, {})})
    ]
    quoted = {(name, next(iter(value["stderr"]))) for s in run.stages
              for name, value in evaluation_of(s.metrics).get("benchmarks", {}).items()}  # fmt: skip
    held += [("benchmarks", metric, metric, name) for name, metric in sorted(quoted)]
    head = ["stage", "kind", "status", "time", "tokens", "tokens/s", *sets, *(f"{each[2]} {each[3]}" for each in held)]
    rows = []
    for stage in run.stages:
        found = evaluation_of(stage.metrics)
        numbers = [found.get(kind, {}).get(name, {}).get(key) for kind, key, _, name in held]
        rate = stage.metrics.get("tokens_per_second")
        rows.append(
            [
                f"{stage.number} {stage.name}",
                stage.kind,
                stage.status,
                "–" if stage.seconds is None else duration(stage.seconds),
                "–" if stage.tokens is None else count(stage.tokens),
                "–" if rate is None else count(rate),
                *(_percent(stage.accuracy[name]["accuracy"]) if name in stage.accuracy else "–" for name in sets),
                *("–" if number is None else f"{number:.4g}" for number in numbers),
            ]
        )
    return table(head, rows, "One row a stage; a dash means that nothing was measured.", text_columns=3)


def _config(run: RunView) -> str:
    text = esc(run.config_text)
    return f"<details><summary>config.yaml, as resolved for this run</summary><pre>{text}</pre></details>"


def _environment(run: RunView) -> str:
    environment = run.environment
    rows = [["device", environment["device"]], ["started", environment["started"]]]
    rows += [["commit", environment["commit"] or current_commit()]]
    rows += [[name, value] for name, value in sorted(environment["versions"].items())]
    return table(["what", "value"], rows, "Where the numbers above were measured.", text_columns=2)


def _short_commit(run: RunView) -> str:
    commit = run.environment["commit"] or current_commit()
    return commit[:12] + ("+" if commit.endswith("+") and len(commit) > 12 else "")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
