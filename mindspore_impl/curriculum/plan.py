"""From a Config to an ordered list of stages with checked inputs and fingerprints.

A fingerprint covers everything that decides a stage's result: its options without logging, its model, its data (file
hashes included), its tokenizer, its seed and the fingerprints of its inputs. Equal fingerprint, equal result.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindspore_impl import files
from mindspore_impl.config import (
    CaptureStage,
    Config,
    DistillStage,
    EvaluateStage,
    RolloutStage,
    SftStage,
    Stage,
    nearest,
    to_plain,
)
from mindspore_impl.data.options import DatasetOptions
from mindspore_impl.errors import UserError
from mindspore_impl.model.options import ModelOptions

CODE_FORMAT = 1  # raise it when a change of code changes the results of equal options
ROLLOUTS = "rollouts"  # the mixture name that stands for a distill stage's rollout input

# Keys that change what is logged or kept, never what is computed.
_NOT_IN_FINGERPRINT = {
    "evaluate",
    "log_interval",
    "checkpoint_interval",
    "keep_checkpoints",
    "tensorboard",
    "prefetch",
    "samples_in_report",
    "positions_per_shard",
    "prompts_per_part",
}
_TRAINED = (SftStage, DistillStage)


@dataclass
class PlannedStage:
    """One stage of the run, ready to be executed."""

    index: int  # from 1, as in the folder name
    name: str
    stage: Stage
    model: str  # an entry of config.models; "" where none is needed
    inputs: dict[str, str] = field(default_factory=dict)  # role: stage name or path
    seed: int = 0
    fingerprint: str = ""

    @property
    def kind(self) -> str:
        """sft, distill, rollout, capture or evaluate."""
        return self.stage.kind

    @property
    def folder_name(self) -> str:
        """Such as 03_sft_fast."""
        return f"{self.index:02d}_{self.name}"


def make_plan(config: Config) -> list[PlannedStage]:
    """Check the curriculum and return its stages in order, evaluations included.

    Raises UserError that lists every problem: unknown or missing inputs, wrong kinds, cycles, impossible sizes.
    """
    problems = _check_order(config) or _check_inputs(config)
    problems = problems or _check_numbers(config)
    if problems:
        raise UserError("the curriculum cannot run:\n  " + "\n  ".join(problems))
    planned: dict[str, PlannedStage] = {}
    for name in config.order:
        _append(planned, config, name, config.stages[name])
        if isinstance(config.stages[name], _TRAINED) and config.stages[name].evaluate and measures(config.evaluation):
            _append(planned, config, f"eval_{name}", EvaluateStage(kind="evaluate", init=name))
    return list(planned.values())


def measures(options) -> bool:
    """Whether an evaluation would measure anything."""
    return bool(options.accuracy or options.perplexity)


def inputs_of(stage: Stage) -> dict[str, str]:
    """The stage's named inputs that are given: role -> stage name or path."""
    roles = ("init", "teacher", "store", "rollouts")
    return {role: value for role in roles if (value := getattr(stage, role, None))}


def sets_of(stage: Stage, config: Config) -> list[str]:
    """Names of the data sets a stage reads."""
    if isinstance(stage, _TRAINED):
        return [n for n, w in stage.data.mixture.items() if w and n != ROLLOUTS] + list(stage.data.validation)
    if isinstance(stage, RolloutStage):
        return list(stage.prompts)
    if isinstance(stage, CaptureStage):
        return list(stage.sets)
    options = stage.options or config.evaluation
    return list(dict.fromkeys(options.accuracy + options.perplexity))


def is_path(reference: str) -> bool:
    """A weights reference is a path when it has a separator or ends in .safetensors; else it names a stage."""
    return "/" in reference or reference.endswith(".safetensors")


def _check_order(config: Config) -> list[str]:
    if not config.order:
        return ["order: no stage is listed; give a list of stage names"]
    problems = [
        f"order: no stage is named {name!r}{nearest(name, config.stages)}"
        for name in config.order
        if name not in config.stages
    ]
    problems += [
        f"order: {n!r} is listed twice" for n in sorted({n for n in config.order if config.order.count(n) > 1})
    ]
    return problems


_EXPECTED_KIND = {"init": _TRAINED, "teacher": _TRAINED, "store": (CaptureStage,), "rollouts": (RolloutStage,)}


def _check_inputs(config: Config) -> list[str]:
    problems, seen = [], set()
    for name in config.order:
        stage = config.stages[name]
        required = {DistillStage: "store", RolloutStage: "init", CaptureStage: "teacher", EvaluateStage: "init"}
        role = required.get(type(stage))
        if role and not getattr(stage, role):
            problems.append(f"stages.{name}.{role}: no input given; name a stage")
        for role, value in inputs_of(stage).items():
            problems += _check_input(config, seen, f"stages.{name}.{role}", role, value, name)
        for set_name in sets_of(stage, config):
            if set_name not in config.data.sets:
                problems.append(
                    f"stages.{name}: no data set is named {set_name!r}{nearest(set_name, config.data.sets)}"
                )
        seen.add(name)
    for set_name in config.tokenizer.train_on:
        if set_name not in config.data.sets:
            problems.append(
                f"tokenizer.train_on: no data set is named {set_name!r}{nearest(set_name, config.data.sets)}"
            )
    return problems


def _check_input(config: Config, seen: set[str], key: str, role: str, value: str, name: str) -> list[str]:
    if role in ("init", "teacher") and is_path(value):
        return [] if Path(value).exists() else [f"{key}: {value}: no such file or folder"]
    expected = _EXPECTED_KIND[role]
    fitting = [n for n in config.order if isinstance(config.stages[n], expected) and n != name]
    if value not in config.stages:
        return [f"{key}: no stage is named {value!r}{nearest(value, fitting)}"]
    if not isinstance(config.stages[value], expected):
        kinds = " or ".join(sorted(k.__name__.removesuffix("Stage").lower() for k in expected))
        found = f"{value!r} is a {config.stages[value].kind} stage"
        return [f"{key}: {found}, a {kinds} stage is needed{nearest(value, fitting)}"]
    if value not in config.order:
        return [f"{key}: {value!r} is defined but not listed in order; add it before {name!r}"]
    if cycle := _cycle(config, name):
        return [f"{key}: the inputs form a cycle: {' -> '.join(cycle)}; break it"]
    if value not in seen:
        return [f"{key}: {value!r} runs after {name!r}; move it forward in order"]
    return []


def _cycle(config: Config, start: str) -> list[str] | None:
    """A path of inputs from `start` back to itself, if there is one."""

    def walk(name: str, path: list[str]) -> list[str] | None:
        for parent in inputs_of(config.stages[name]).values():
            if parent == start:
                return [*path, name, start]
            if parent in config.stages and parent not in path and (found := walk(parent, [*path, name])):
                return found
        return None

    return walk(start, [])


def _check_numbers(config: Config) -> list[str]:
    from mindspore_impl.losses.oracle import check_objective
    from mindspore_impl.model.pangu import check_options

    problems: list[str] = []

    def attempt(check, *arguments) -> None:
        try:
            check(*arguments)
        except UserError as error:
            problems.append(str(error))

    if config.tokenizer.path is None and not config.tokenizer.train_on:
        problems.append("tokenizer.path: give a SentencePiece model, or name data sets in tokenizer.train_on")
    elif config.tokenizer.path is not None and not Path(config.tokenizer.path).is_file():
        problems.append(f"tokenizer.path: {config.tokenizer.path}: no such file")
    for name, dataset in config.data.sets.items():
        if dataset.source != "list_programs" and dataset.path and not Path(dataset.path).is_file():
            problems.append(f"data.sets.{name}.path: {dataset.path}: no such file")
    models: dict[str, str] = {}
    for name in config.order:
        stage = config.stages[name]
        try:
            model = model_of(config, stage)
        except UserError as error:
            problems.append(f"stages.{name}.{error}")
            continue
        models[model] = f"models.{model}"
        if isinstance(stage, _TRAINED):
            problems += _check_training(config, name, stage, model)
        if isinstance(stage, DistillStage):
            attempt(check_objective, stage.objective, f"stages.{name}.objective")
            problems += _check_distillation(config, name, stage)
        if isinstance(stage, CaptureStage):
            problems += _check_capture(config, name, stage, model)
        if isinstance(stage, RolloutStage) and not stage.prompts:
            problems.append(f"stages.{name}.prompts: no data set is named")
    if not problems:  # sizes are only meaningful once the tokenizer is known to be there
        for model, key in models.items():
            attempt(check_options, sized_model(config, model), key)
    return problems


def sized_model(config: Config, name: str) -> ModelOptions:
    """The options of model `name`; a vocabulary of 0 is replaced by the tokenizer's size, as far as it is known."""
    options = config.models[name]
    if options.vocab_size:
        return options
    if config.tokenizer.path is None:
        return dataclasses.replace(options, vocab_size=config.tokenizer.vocab_size)
    from mindspore_impl.text.tokenizer import Tokenizer

    return dataclasses.replace(options, vocab_size=Tokenizer.load(config.tokenizer.path).vocab_size)


def _check_training(config: Config, name: str, stage, model: str) -> list[str]:
    problems, train, data = [], stage.train, stage.data
    if (train.steps is None) == (train.epochs is None):
        problems.append(f"stages.{name}.train: give exactly one of steps and epochs")
    for key in ("steps", "epochs"):
        if getattr(train, key) is not None and getattr(train, key) <= 0:
            problems.append(f"stages.{name}.train.{key}: {getattr(train, key)} is not above 0")
    share = config.runtime.workers * data.accumulation
    if data.rows <= 0 or data.accumulation <= 0 or data.rows % share:
        problems.append(
            f"stages.{name}.data.rows: {data.rows} rows do not divide by {config.runtime.workers} workers x "
            f"{data.accumulation} micro-batches; nearest: {max(share, round(data.rows / max(share, 1)) * share)}"
        )
    longest = config.models[model].max_position_embeddings
    if data.sequence_length > longest:
        problems.append(
            f"stages.{name}.data.sequence_length: {data.sequence_length} exceeds "
            f"models.{model}.max_position_embeddings {longest}"
        )
    if not any(data.mixture.values()):
        problems.append(f"stages.{name}.data.mixture: no data set has a weight above 0")
    if any(weight < 0 for weight in data.mixture.values()):
        problems.append(f"stages.{name}.data.mixture: a weight is negative")
    uses_rollouts = bool(data.mixture.get(ROLLOUTS))
    if uses_rollouts and not getattr(stage, "rollouts", None):
        problems.append(f"stages.{name}.rollouts: the mixture uses rollouts, but no rollout stage is named")
    start = stage.init
    if start in config.stages and (other := model_of(config, config.stages[start])) != model:
        problems.append(f"stages.{name}.init: {start!r} trains model {other!r}, this stage {model!r}")
    return problems


def _check_distillation(config: Config, name: str, stage: DistillStage) -> list[str]:
    capture = config.stages[stage.store]
    problems = []
    if (capture.capture.mode == "sampled") != (stage.objective.support == "sampled"):
        problems.append(
            f"stages.{name}.objective.support: {stage.objective.support!r} does not fit "
            f"stages.{stage.store}.capture.mode {capture.capture.mode!r}; sampled goes with sampled only"
        )
    if capture.capture.temperature != stage.objective.temperature:
        problems.append(
            f"stages.{name}.objective.temperature: {stage.objective.temperature} differs from stages.{stage.store}."
            f"capture.temperature {capture.capture.temperature}; a top-k store cannot be re-tempered"
        )
    return problems


def _check_capture(config: Config, name: str, stage: CaptureStage, model: str) -> list[str]:
    problems = []
    vocabulary = config.models[model].vocab_size or (
        config.tokenizer.vocab_size if config.tokenizer.path is None else 0
    )
    if stage.capture.top_k < 1 or (vocabulary and stage.capture.top_k > vocabulary):
        problems.append(
            f"stages.{name}.capture.top_k: {stage.capture.top_k} is not between 1 and the vocabulary of {vocabulary}"
        )
    if not stage.rollouts and not stage.sets:
        problems.append(f"stages.{name}: name a rollout stage in `rollouts`, or data sets in `sets`")
    if stage.capture.temperature <= 0:
        problems.append(f"stages.{name}.capture.temperature: {stage.capture.temperature} is not above 0")
    return problems


def model_of(config: Config, stage: Stage) -> str:
    """The entry of `models` a stage uses: its own `model`, or that of the stage its weights come from."""
    name = stage.model
    if name is None:
        source = getattr(stage, "init", None) or getattr(stage, "teacher", None)
        if source not in config.stages:
            raise UserError(f"model: weights from {source!r} need a model; name one of: {', '.join(config.models)}")
        return model_of(config, config.stages[source])
    if name not in config.models:
        raise UserError(f"model: no model is named {name!r}{nearest(name, config.models)}")
    return name


def _append(planned: dict[str, PlannedStage], config: Config, name: str, stage: Stage) -> None:
    seed = config.seed if stage.seed is None else stage.seed
    entry = PlannedStage(len(planned) + 1, name, stage, model_of(config, stage), inputs_of(stage), seed)
    entry.fingerprint = _fingerprint(config, entry, planned)
    planned[name] = entry


def _fingerprint(config: Config, entry: PlannedStage, planned: dict[str, PlannedStage]) -> str:
    stage = entry.stage
    options = to_plain(stage)
    if isinstance(stage, EvaluateStage):
        options["options"] = to_plain(stage.options or config.evaluation)
    inputs = {
        role: planned[value].fingerprint if value in planned else _path_hash(value)
        for role, value in entry.inputs.items()
    }
    content = {
        "format": CODE_FORMAT,
        "stage": _without_logging(options),
        "model": to_plain(config.models[entry.model]),
        "seed": entry.seed,
        "tokenizer": tokenizer_fingerprint(config),
        "sets": {name: _set_content(config, config.data.sets[name]) for name in sets_of(stage, config)},
        "inputs": inputs,
    }
    return files.sha256_json(content)


def tokenizer_fingerprint(config: Config) -> str:
    """Decides whether a run's own tokenizer must be trained anew."""
    options = config.tokenizer
    if options.path is not None:
        return files.sha256_file(options.path)
    sets = {name: _set_content(config, config.data.sets[name]) for name in options.train_on}
    return files.sha256_json({"format": CODE_FORMAT, "options": to_plain(options), "sets": sets})


def _without_logging(value: Any) -> Any:
    """Options without what only concerns logging, and without the names of inputs (their fingerprints count)."""
    dropped = _NOT_IN_FINGERPRINT | {"init", "teacher", "store", "rollouts"}
    if isinstance(value, dict):
        # The mixture may hold a set called like an input, so its keys are kept whole.
        return {k: v if k == "mixture" else _without_logging(v) for k, v in value.items() if k not in dropped}
    return value


def _set_content(config: Config, options: DatasetOptions) -> dict:
    content = dataclasses.asdict(options)
    if options.source == "list_programs":
        return content | {"seed": config.seed}
    return content | {"path": files.sha256_file(options.path) if options.path else None}


def _path_hash(path: str) -> str:
    """Hash of a weights file, or of the names and hashes of the weight files in a folder."""
    target = Path(path)
    if target.is_file():
        return files.sha256_file(target)
    found = sorted(target.rglob("*.safetensors"))
    return files.sha256_json({str(f.relative_to(target)): files.sha256_file(f) for f in found})
