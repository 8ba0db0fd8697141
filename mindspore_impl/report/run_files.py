"""What a report needs of a run directory, read once: stages in order, their logs, samples, config and environment."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.schema import upgrade

TRAINING_KINDS = ("sft", "distill")


@dataclass
class StageView:
    """One stage as its files tell it. `status` is finished, unfinished (it has a folder) or not started."""

    number: int
    name: str
    kind: str
    status: str
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
    def measured(self) -> str:
        """The stage whose weights an evaluation measured: `sft` for the `eval_sft` that the runner put behind it."""
        init = self.inputs.get("init")
        return init if init and self.name == f"eval_{init}" else self.name

    @property
    def accuracy(self) -> dict[str, dict]:
        """{set: {"accuracy", "low", "high", ...}}, empty when nothing was evaluated."""
        return evaluation_of(self.metrics).get("accuracy", {})


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
        """Whether every stage of the run's order is finished."""
        return bool(self.stages) and all(stage.status == "finished" for stage in self.stages)

    @property
    def last_evaluated(self) -> StageView | None:
        """The last finished stage that has accuracies."""
        return next((s for s in reversed(self.stages) if s.status == "finished" and s.accuracy), None)


def read_run(folder: str | Path) -> RunView:
    """Read a run directory, finished or not. Raises UserError when it is none, or a file in it is damaged."""
    folder = Path(folder)
    config, text = read_config(folder)
    defined = config.get("stages") or {}
    folders = _stage_folders(folder)
    kinds = ("accuracy", "perplexity", "teacher_kl", "benchmarks")
    measures = any((config.get("evaluation") or {}).get(key) for key in kinds)
    order = []
    for name in map(str, config.get("order") or []):
        order.append(name)
        # The runner puts an evaluation behind each trained stage that asks for one.
        if (measures and (defined.get(name) or {}).get("evaluate")) or f"eval_{name}" in folders:
            order.append(f"eval_{name}")
    order += [name for name in folders if name not in order]
    stages = [_read_stage(i, name, folders.get(name), defined.get(name) or {}) for i, name in enumerate(order, start=1)]
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


def evaluation_of(metrics: dict) -> dict:
    """The harness's result inside a stage's metrics, whether they are it or hold it under "evaluation"."""
    return metrics if "accuracy" in metrics else metrics.get("evaluation") or {}


def _stage_folders(folder: Path) -> dict[str, Path]:
    """Stage name to folder, in the order of their numbers."""
    found = {}
    for path in sorted((folder / "stages").glob("*")):
        match = re.fullmatch(r"\d+_(.+)", path.name)
        if match and path.is_dir():
            found[match[1]] = path
    return found


def _read_stage(number: int, name: str, folder: Path | None, settings: dict) -> StageView:
    record = {}
    if folder and (folder / "stage.json").exists():
        record = files.read_json(folder / "stage.json")
        if not isinstance(record, dict):
            raise UserError(f"{folder / 'stage.json'}: expected one JSON object")
    finished = record.get("status") == "finished"
    stage = StageView(
        number=number,
        name=name,
        kind=str(record.get("kind") or settings.get("kind") or ("evaluate" if _implied(name) else "unknown")),
        status="finished" if finished else "unfinished" if folder else "not started",
        seconds=record.get("seconds") if finished else None,
        tokens=record.get("tokens") if finished else None,
        inputs=_inputs(record.get("inputs") or settings or _implied(name)),
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


def _implied(name: str) -> dict:
    """The input of an evaluation that has not run yet and stands in no config."""
    return {"init": name.removeprefix("eval_")} if name.startswith("eval_") else {}


def _inputs(source: dict) -> dict[str, str]:
    """The inputs by role, from stage.json or, before the stage has run, from its config."""
    found = {}
    for role in ("init", "teacher", "kl teacher", "rollouts", "store"):
        value = source.get(role)
        if isinstance(value, dict):
            value = value.get("stage") or value.get("name") or value.get("path")
        if value:
            found[role] = str(value)
    made = {role: str(value) for role, value in source.items() if str(role).startswith("set ")}  # sets that stages make
    return found | made


def _read_log(path: Path) -> list[dict]:
    """The lines of a JSON-lines log. A last line cut by a kill is left out; any other damage is a UserError."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    values = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise UserError(f"{path}:{number}: not valid JSON ({error.msg} at column {error.colno})") from error
    return values


def _environment(folder: Path) -> dict:
    """<run>/environment.json: device, versions, commit ("" when not recorded), started."""
    path = folder / "environment.json"
    value = files.read_json(path) if path.exists() else {}
    return {
        "device": value.get("device") or "not recorded",
        "versions": value.get("versions") or {},
        "commit": value.get("commit") or "",
        "started": value.get("started") or "not recorded",
    }
