"""Read a run directory: its stages in order (of plan.json, or of the stage folders), configuration and environment."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.schema import upgrade

PLAN = "plan.json"
PLAN_SCHEMA = 1


@dataclass
class StageView:
    """One stage as its files describe it. `status` is finished, unfinished (it has a folder) or not started."""

    number: int
    name: str
    kind: str  # for display only
    group: str  # training, generation, scoring, selection, evaluation, deployment or other
    status: str
    subject: str  # what its accuracies describe: the stage that it measured, or itself
    measured: str = ""  # the stage whose weights an evaluation measured
    work: str = ""  # the planned work in words
    seconds: float | None = None
    tokens: int | None = None
    inputs: dict[str, str] = field(default_factory=dict)  # role: stage name or path
    metrics: dict = field(default_factory=dict)
    log: list[dict] = field(default_factory=list)  # metrics.jsonl lines of training steps
    validations: list[tuple[int, dict]] = field(default_factory=list)  # (step, {set: {"loss", ...}})
    samples: list[dict] = field(default_factory=list)
    settings: dict = field(default_factory=dict)  # the stage's part of config.yaml
    cached: bool = False  # taken from the results of another run
    folder: Path | None = None  # None: it has not begun

    @property
    def evaluation(self) -> dict:
        """The evaluation among its metrics, whether they are one or hold it under "evaluation"."""
        return self.metrics if "accuracy" in self.metrics else self.metrics.get("evaluation") or {}

    @property
    def accuracy(self) -> dict[str, dict]:
        """{set: {"accuracy", "low", "high", ...}}, empty when nothing was evaluated."""
        return self.evaluation.get("accuracy", {})

    @property
    def numbers(self) -> dict[tuple[int, str, str], float | None]:
        """{(place, set or benchmark, measure): number}: perplexities, KL, and the quoted metric of benchmarks."""
        found, parts = {}, (("perplexity", "perplexity", "perplexity"), ("teacher_kl", "kl", "KL of the teacher"))
        for place, (part, key, measure) in enumerate(parts):
            for name, row in self.evaluation.get(part, {}).items():
                found[place, name, measure] = row.get(key)
        for name, row in self.evaluation.get("benchmarks", {}).items():
            metric = next(iter(row["stderr"]))  # the first one
            found[len(parts), name, metric] = row[metric]
        return found

    @property
    def trained(self) -> bool:
        """Whether it trains weights."""
        return self.group == "training" or self.logged("loss") or bool(self.validations)

    def logged(self, metric: str) -> bool:
        """Whether a line of its training log holds `metric`."""
        return any(metric in line for line in self.log)


@dataclass
class RunView:
    """A whole run directory."""

    folder: Path
    name: str
    config: dict
    config_text: str
    stages: list[StageView]
    environment: dict  # device, versions, commit, started

    @property
    def finished(self) -> bool:
        """Whether every stage of the run is finished."""
        return bool(self.stages) and all(stage.status == "finished" for stage in self.stages)

    @property
    def last_evaluated(self) -> StageView | None:
        """The last finished stage that has accuracies."""
        return next((s for s in reversed(self.stages) if s.status == "finished" and s.accuracy), None)

    @property
    def last_measured(self) -> StageView | None:
        """The last finished stage that has any result."""
        return next((s for s in reversed(self.stages) if s.status == "finished" and (s.accuracy or s.numbers)), None)

    @property
    def compared(self) -> list[StageView]:
        """The last evaluation, then those of the stages that the configuration compares."""
        found = {name: stage for stage in self.stages if stage.accuracy for name in (stage.name, stage.subject)}
        compared = [found[name] for name in self.config.get("compare") or [] if name in found]
        last = [stage for stage in [self.last_evaluated] if stage]
        return last + [stage for stage in compared if stage not in last]

    def input_path(self, stage: StageView, role: str) -> Path:
        """The folder of the stage that `stage` reads as `role`, or the path that stands in its place."""
        name = stage.inputs[role]
        return next((each.folder for each in self.stages if each.name == name and each.folder), Path(name))


def read_run(folder: str | Path) -> RunView:
    """Read the run directory `folder`, finished or not. Raises UserError when it is none, or a file is damaged."""
    folder = Path(folder)
    config, text = read_config(folder)
    settings = config.get("stages") or {}
    order = [str(name) for name in config.get("order") or []]
    entries = enumerate(_entries(folder, order), start=1)
    stages = [_read_stage(folder, number, entry, settings.get(entry["name"]) or {}) for number, entry in entries]
    taken: set[str] = set()
    for stage in stages:
        if stage.measured and stage.measured not in taken:
            stage.subject = stage.measured
            taken.add(stage.measured)
    return RunView(folder, str(config.get("name") or folder.name), config, text, stages, _environment(folder))


def read_config(folder: str | Path) -> tuple[dict, str]:
    """<run>/config.yaml as a mapping and as its text. Raises UserError when it is missing or damaged."""
    import yaml

    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: not a run directory (it has no config.yaml); give the folder that training printed")
    try:
        text = path.read_text(encoding="utf-8")
        value = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a mapping, found {type(value).__name__}")
    try:
        return upgrade(value), text
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _entries(folder: Path, order: list[str]) -> Iterator[dict]:
    """The stages of plan.json, not those of an earlier `order`; without it, stage folders, then the rest of `order`."""
    names = set()
    for entry in (planned := _read_plan(folder)):
        names.add(entry["name"])
        yield entry
    for path in () if planned else sorted((folder / "stages").glob("[0-9]*_*")):
        name = path.name.partition("_")[2]
        if name not in names and path.is_dir():
            names.add(name)
            yield {"name": name, "folder": path.name}
    for name in order:
        if name not in names:
            yield {"name": name}


def _read_plan(folder: Path) -> list[dict]:
    """The stages of <run>/plan.json; none where an older run has no such file."""
    path = folder / PLAN
    if not path.is_file():
        return []
    plan = files.read_json(path)
    stages = plan.get("stages") if isinstance(plan, dict) and plan.get("schema") == PLAN_SCHEMA else None
    if not isinstance(stages, list) or not all(isinstance(entry, dict) and "name" in entry for entry in stages):
        raise UserError(f"{path}: not a plan of schema {PLAN_SCHEMA}; start the run again to write it anew")
    return stages


def _read_stage(run: Path, number: int, entry: dict, settings: dict) -> StageView:
    folder = files.inside(run / "stages", entry["folder"]) if "folder" in entry else None
    folder = folder if folder and folder.is_dir() else None
    record = {}
    if folder and (folder / "stage.json").exists():
        record = files.read_json(folder / "stage.json")
        if not isinstance(record, dict):
            raise UserError(f"{folder / 'stage.json'}: expected one JSON object")
        if entry.get("fingerprint") and record.get("fingerprint", entry["fingerprint"]) != entry["fingerprint"]:
            folder, record = None, {}  # of an earlier configuration; it runs again
    finished = record.get("status") == "finished"
    inputs = {role: str(value) for role, value in (entry.get("inputs") or record.get("inputs") or {}).items()}
    init = inputs.get("init", "")  # without plan.json an evaluation of stage X is called eval_X and reads X
    stage = StageView(
        number=number,
        name=entry["name"],
        kind=str(entry.get("kind") or record.get("kind") or settings.get("kind") or "unknown"),
        group=entry.get("group", "other"),
        status="finished" if finished else "unfinished" if folder else "not started",
        subject=entry["name"],
        measured=entry.get("measured", init if entry["name"] == f"eval_{init}" else ""),
        work=entry.get("work", ""),
        seconds=record.get("seconds") if finished else None,
        tokens=record.get("tokens") if finished else None,
        inputs=inputs,
        metrics=record.get("metrics") or {},
        settings=settings,
        cached=finished and "cache" in record,
        folder=folder,
    )
    if folder:
        for line in _read_log(folder / "metrics.jsonl"):
            if "validation" in line:
                stage.validations.append((line["step"], line["validation"]))
            else:
                stage.log.append(line)
        for path in [folder / "samples.jsonl", *sorted(folder.glob("*/samples.jsonl"))]:
            stage.samples += _read_log(path)
    return stage


def _read_log(path: Path) -> list[dict]:
    """The lines of a JSON-lines log. A last line cut by a kill is left out; any other damage is a UserError."""
    values = [value for _, _, value in files.scan_jsonl(path)] if path.exists() else []
    faults = [value for value in values if isinstance(value, UserError)]
    if faults and (len(faults) > 1 or values[-1] is not faults[0]):
        raise faults[0]
    return [value for value in values if not isinstance(value, UserError)]


def _environment(folder: Path) -> dict:
    """<run>/environment.json: device, versions, commit ("" when not recorded), started."""
    path = folder / "environment.json"
    value = files.read_json(path) if path.exists() else {}
    absent = {"device": "not recorded", "versions": {}, "commit": "", "started": "not recorded"}
    return {key: value.get(key) or default for key, default in absent.items()}
