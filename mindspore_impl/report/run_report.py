"""Write the report of one run: report.html for people and metrics.json for programs, from the run directory alone."""

import subprocess
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from markupsafe import Markup

from mindspore_impl import files
from mindspore_impl.data.teacher_store import read_header
from mindspore_impl.errors import UserError
from mindspore_impl.report import figures, teacher_view
from mindspore_impl.report.diagram import curriculum
from mindspore_impl.report.render import count, duration, figure, page, percent, render, table, tiles
from mindspore_impl.report.run_files import RunView, StageView, read_run

SCHEMA = 1
_CALIBRATED = 6  # reliability diagrams; all stages are in the table
_EMBEDDED_BYTES = 1_200_000  # of answers in a page, the newest stages first
_ANSWER_FIELDS = ("id", "set", "thinking", "prompt", "reasoning", "answer", "expected")


def write_report(run_dir: str | Path) -> Path:
    """Write <run>/metrics.json and <run>/report.html of a run, finished or not; return the path of the page.

    metrics.json lists finished stages; its final.accuracy maps each set to the share (0 to 1) that the last evaluated
    stage got right. Raises UserError when the folder is no run directory or one of its files is damaged.
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
    keys = ("name", "kind", "measured", "seconds", "tokens", "metrics")
    stages = [{key: getattr(s, key) for key in keys} for s in run.stages if s.status == "finished"]
    accuracy = {name: value["accuracy"] for name, value in last.accuracy.items()} if last else {}
    measured_on = {"commit": _commit(run), **{key: run.environment[key] for key in ("device", "versions")}}
    return files.jsonable({"schema": SCHEMA, **measured_on, "stages": stages, "final": {"accuracy": accuracy}})


def render_page(run: RunView) -> str:
    """The whole page as HTML."""
    commit = _commit(run)
    short = commit[:12] + ("+" if commit.endswith("+") and len(commit) > 12 else "")
    done = sum(stage.status == "finished" for stage in run.stages)
    return page(
        f"Run {run.name}",
        render("run_subtitle.html", run=run, done=done, commit=short),
        [
            ("summary", "Result", _summary(run)),
            ("curriculum", "Curriculum", curriculum(run)),
            ("accuracy", "Accuracy by stage", _accuracy(run)),
            ("loss", "Loss", _loss(run)),
            ("distillation", "Distillation", _distillation(run)),
            ("generated", "Generated answers", _generated(run)),
            ("calibration", "Calibration", _calibration(run)),
            ("difficulty", "Difficulty of the training data", difficulty_section(run)),
            ("cost", "Time and tokens", _cost(run)),
            ("stages", "Stages in numbers", _stage_table(run)),
            ("samples", "Sample outputs", samples_section(run)),
            ("teacher", "Teacher probabilities, token by token", teacher_view.section(run)),
            ("config", "Configuration", render("config.html", text=run.config_text)),
            ("environment", "Hardware and versions", _environment(run)),
        ],
    )


def _commit(run: RunView) -> str:
    return run.environment["commit"] or current_commit()


def _summary(run: RunView) -> Markup:
    items, last = [], run.last_measured
    for (_, name, measure), number in last.numbers.items() if last and not last.accuracy else ():
        items.append((f"{measure} {name}, after {last.subject}", "–" if number is None else f"{number:.4g}", ""))
    for stage in run.compared:
        for name, value in sorted(stage.accuracy.items()):
            interval = f"95 % interval {percent(value['low'])} % to {percent(value['high'])} %"
            note = f"{value['correct']} of {value['total']} right; {interval}"
            items.append((f"{name}, after {stage.subject}", f"{percent(value['accuracy'])} %", note))
    seconds = sum(stage.seconds or 0 for stage in run.stages)
    tokens = sum(stage.tokens or 0 for stage in run.stages)
    items.append(("time of all stages", duration(seconds), "finished stages only"))
    items.append(("tokens of all stages", count(tokens), "trained on, generated or scored"))
    return tiles(items)


def _accuracy(run: RunView) -> Markup:
    found = [(stage.subject, name, value) for stage in run.stages for name, value in sorted(stage.accuracy.items())]
    values = "; ".join(f"{stage} {name} {percent(value['accuracy'])} %" for stage, name, value in found)
    return figure(
        figures.accuracy_figure(run.stages),
        f"Accuracy after each evaluated stage: {values}",
        "Greedy generation on held-out records, each set in its own thinking mode; bars are 95 % Wilson intervals. "
        "An answer that is cut, or that thinks in fast mode, counts as wrong.",
    )


def _loss(run: RunView) -> Markup:
    losses = [(s.name, [line["loss"] for line in s.log if line.get("loss") is not None]) for s in run.stages]
    values = "; ".join(f"{name} from {found[0]:.3f} to {found[-1]:.3f}" for name, found in losses if found)
    return figure(
        figures.loss_figure(run.stages),
        f"Training loss by step over all training stages: {values or 'no training line yet'}",
        "Each stage's own objective, so levels compare within a stage; the dashed line is the cross-entropy part of a "
        "distillation loss. Markers are the cross-entropy on validation sets, dashed vertical lines borders of stages.",
    )


def _distillation(run: RunView) -> Markup:
    stages = [stage for stage in run.stages if stage.logged("kd")]
    supports = _supports(run, stages)
    values = []
    for stage in stages:
        last = next(line for line in reversed(stage.log) if "kd" in line)
        values += [f"{stage.name} ends at {key} {last[key]:.3f}" for key in ("ce", "kd", "agreement") if last.get(key)]
    return figure(
        figures.distill_figure(stages, supports),
        "Distillation diagnostics by step. " + "; ".join(values),
        f"Means over supervised tokens. Support: {'; '.join(supports)}. Mass is the share of the distribution on the "
        "stored teacher ids; agreement counts positions where student and teacher put the same id first.",
    )


def _supports(run: RunView, stages: list[StageView]) -> list[str]:
    """The support and K of each distilled stage; one entry when all are alike."""
    found = {}
    for stage in stages:
        support = str((stage.settings.get("objective") or {}).get("support", "not recorded"))
        found[stage.name] = support
        if "store" in stage.inputs:
            with suppress(UserError):  # the store may be gone
                found[stage.name] += f", K = {read_header(teacher_view.store_of(run, stage)).top_k}"
    if len(set(found.values())) == 1:
        return [next(iter(found.values()))]
    return [f"{name} {text}" for name, text in found.items()]


def _generated(run: RunView) -> Markup:
    """What is wrong with the answers of each rollout stage, whatever they say; empty where no stage counted it."""
    rows, names = [], {}
    for stage in run.stages:
        if flaws := stage.metrics.get("flaws"):
            names, made = flaws, stage.metrics["generations"]
            shares = (f"{number:,} ({percent(number / made)} %)" for number in flaws.values())
            rows.append([f"{stage.number} {stage.name}", f"{made:,}", *shares])
    note = "Cut by the token limit; without text; ending in one repeated n-gram; left out for NaN logits; equal to"
    return table(["stage", "answers", *names], rows, f"{note} another answer to the same prompt.")


def _calibration(run: RunView) -> Markup:
    """A reliability diagram for each evaluated stage and a table of all; empty where nothing was measured."""
    measured = []
    for stage in run.stages:
        values = sorted((stage.evaluation.get("calibration") or {}).items())
        if found := {name: value for name, value in values if value.get("ece") is not None}:
            measured.append((stage.subject, found))
    rows = []
    for subject, name, value in ((subject, *item) for subject, found in measured for item in found.items()):
        sums = [sum(each["tokens"] * each[key] for each in value["bins"]) for key in ("confidence", "accuracy")]
        means = [f"{100 * each / value['tokens']:.1f}" for each in sums]  # over the bins, by their tokens
        rows.append([subject, name, f"{100 * value['ece']:.2f}", *means, f"{value['tokens']:,}"])
    values = "; ".join(f"{row[0]} {row[1]} ECE {row[2]} %" for row in rows)
    return figure(
        figures.calibration_figure(measured[-_CALIBRATED:]),
        f"Calibration by stage: {values}",
        "Teacher-forced on held-out text: the accuracy of the most probable token against its probability, in bins of "
        "equal width; the area of a mark is the share of tokens in its bin. Below the diagonal a model is too sure.",
    ) + table(
        ["after", "set", "ECE %", "mean confidence %", "top-1 accuracy %", "tokens"],
        rows,
        "Expected calibration error: the distance of confidence and accuracy, averaged over the bins by their tokens.",
        text_columns=2,
    )


def difficulty_section(run: RunView) -> Markup:
    """Difficulty bands and orders: histograms, lines and a table; empty where no finished stage has either."""
    data = {stage.name: stage.metrics.get("data") or {} for stage in run.stages}
    orders = {name: one["order"] for name, one in data.items() if one.get("order")}
    changes = [(name, *item) for name, one in data.items() for item in (one.get("selection") or {}).items()]
    rows = []
    for stage, set_name, change in changes:
        before, after = change["before"], change["after"]
        means = [f"{change[key]:.4g}" for key in ("mean_before", "mean_after")]
        order = orders[stage]["order"] if stage in orders else "shuffled"
        counts = [f"{number:,}" for number in (before, after, before - after)]
        rows.append([stage, set_name, order, change["field"], *counts, *means])
    bands = [(f"{name}: {each}", change) for name, each, change in changes if change["before"] != change["after"]]
    lines = [(f"{name}: {order['order']}", order) for name, order in orders.items()]
    values = [f"{row[0]} keeps {row[5]} of {row[4]} records of {row[1]} by {row[3]}" for row in rows]
    values += [f"{name} goes {order['order']} by {order['by']}" for name, order in orders.items()]
    return figure(
        figures.difficulty_figure(bands, lines),
        "Difficulty of the data by stage: " + "; ".join(values),
        "Outline: all records of the set; filled: those inside the stage's band. For a stage with an order: the mean "
        "over successive parts of its first epoch.",
    ) + table(
        ["stage", "set", "order", "number", "records", "kept", "dropped", "mean before", "mean kept"],
        rows,
        "One row for each set with a band or an order.",
        text_columns=4,
    )


def _cost(run: RunView) -> Markup:
    done = [stage for stage in run.stages if stage.seconds is not None]
    values = [f"{stage.name} {duration(stage.seconds)}, {count(stage.tokens or 0)} tokens" for stage in done]
    return figure(
        figures.cost_figure(run.stages),
        "Time and tokens by stage: " + "; ".join(values),
        "Wall-clock time of each finished stage, compilation included, and tokens trained on, generated or scored.",
    )


def _stage_table(run: RunView) -> Markup:
    sets = sorted({name for stage in run.stages for name in stage.accuracy})
    columns = sorted({column for stage in run.stages for column in stage.numbers})
    head = ["stage", "kind", "status", "time", "tokens", "tokens/s", *sets]
    head += [f"{measure} {name}" for _, name, measure in columns]
    rows = []
    for stage in run.stages:
        numbers = [stage.numbers.get(column) for column in columns]
        rate = stage.metrics.get("tokens_per_second")
        row = [f"{stage.number} {stage.name}", stage.kind, stage.status]
        row.append("–" if stage.seconds is None else duration(stage.seconds))
        row += ["–" if number is None else count(number) for number in (stage.tokens, rate)]
        row += [f"{percent(stage.accuracy[n]['accuracy'])} %" if n in stage.accuracy else "–" for n in sets]
        rows.append(row + ["–" if number is None else f"{number:.4g}" for number in numbers])
    return table(head, rows, "One row a stage; a dash means that nothing was measured.", text_columns=3)


def samples_section(run: RunView) -> Markup:
    """The browser of evaluated answers: the first of each stage as HTML, many more as data for the page's script."""
    stages, embedded, left_out, room = [], [], 0, _EMBEDDED_BYTES
    for stage in reversed([stage for stage in run.stages if stage.samples]):
        answers = [_answer(sample) for sample in stage.samples]
        shown = [answer for answer, sample in zip(answers, stage.samples, strict=True) if sample.get("shown", True)]
        stages.append({"name": stage.subject, "shown": shown, "total": len(answers)})
        taken = []
        for answer in answers:
            size = 20 + sum(len(answer[key].encode()) + 4 for key in _ANSWER_FIELDS)
            if size > room:
                left_out += 1
                continue
            room -= size
            taken.append(list(answer.values()))
        if taken:
            embedded.append({"stage": stage.subject, "samples": taken})
    return render("samples.html", stages=stages, embedded=embedded, left_out=left_out) if stages else Markup()


def _answer(sample: dict) -> dict:
    """A line of samples.jsonl with every field; the order of its values is the one that page.js expects."""
    texts = {key: str(sample.get(key) or "") for key in _ANSWER_FIELDS}
    return texts | {"correct": bool(sample.get("correct")), "finished": bool(sample.get("finished", True))}


def _environment(run: RunView) -> Markup:
    rows = [["device", run.environment["device"]], ["started", run.environment["started"]], ["commit", _commit(run)]]
    rows += [[name, value] for name, value in sorted(run.environment["versions"].items())]
    return table(["what", "value"], rows, "Where the numbers above were measured.", text_columns=2)
