"""What a stage reads: its named inputs, its data sets, its model."""

import dataclasses
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.config import (
    CaptureStage,
    Config,
    DistillStage,
    EvaluateStage,
    ExportStage,
    RejectStage,
    RolloutStage,
    ScoreStage,
    SftStage,
    Stage,
)
from mindspore_impl.data.options import ROLLOUTS, DatasetOptions
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.options import EvaluationOptions
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.schema import nearest, references

TRAINED = (SftStage, DistillStage)
RECORD_MAKERS = (ScoreStage, RejectStage)
RECORDS = "records.jsonl"  # what they make
TOKENIZERS = ("tokenizer.json", "tokenizer.model")  # as they lie beside weights


def inputs_of(stage: Stage) -> dict[str, str]:
    """The stage's named inputs that are given: role -> stage name or path."""
    return {role: value for role, (value, _) in references(stage).items()}


def sets_of(stage: Stage, config: Config) -> list[str]:
    """Names of the data sets a stage reads."""
    if isinstance(stage, TRAINED):
        return [n for n, w in stage.data.mixture.items() if w and n != ROLLOUTS] + list(stage.data.validation)
    if isinstance(stage, RolloutStage | ExportStage):
        return list(stage.prompts)
    if isinstance(stage, CaptureStage):
        return list(stage.sets)
    if isinstance(stage, RECORD_MAKERS):
        return [stage.set] if getattr(stage, "set", "") else []
    return evaluated(stage.options or config.evaluation)


def evaluated(options: EvaluationOptions) -> list[str]:
    """Names of the data sets that an evaluation reads."""
    return list(dict.fromkeys(options.accuracy + options.perplexity + options.teacher_kl))


def kl_teacher(stage: EvaluateStage, config: Config) -> dict[str, str]:
    """The stage or path whose weights an evaluation compares with, as another of its inputs; {} where it does not."""
    options = stage.options or config.evaluation
    return {"kl teacher": options.teacher} if options.teacher_kl and options.teacher else {}


def kl_teacher_model(stage: EvaluateStage, config: Config) -> str:
    """The entry of `models` that these weights belong to."""
    options = stage.options or config.evaluation
    return _model_for(config, options.teacher_model, options.teacher)


def maker_of(options: DatasetOptions) -> str | None:
    """The stage that makes the records of a set; None where they come from a file or a generator."""
    return next((name for name, artifact in references(options).values() if artifact == "records"), None)


def makers_of(stage: Stage, config: Config) -> dict[str, str]:
    """set: the stage that makes it, of the sets a stage reads."""
    made = {name: maker_of(config.data.sets[name]) for name in sets_of(stage, config) if name in config.data.sets}
    return {name: maker for name, maker in made.items() if maker}


def is_path(reference: str) -> bool:
    """A reference is a path when it has a separator or ends like a weights or a record file; else it names a stage."""
    return "/" in reference or reference.endswith((".safetensors", ".jsonl"))


def model_of(config: Config, stage: Stage) -> str:
    """The entry of `models` that a stage uses: its own, or that of its weights; "" if it needs none."""
    name, source = getattr(stage, "model", None), getattr(stage, "init", None) or getattr(stage, "teacher", None)
    if name is None and source is None and isinstance(stage, RECORD_MAKERS):
        return ""
    return _model_for(config, name, source)


def _model_for(config: Config, name: str | None, source: str | None) -> str:
    """The entry `name` of `models`, or that of the stage `source`. Raises UserError when there is none."""
    if name is None:
        if source not in config.stages:
            raise UserError(f"model: weights from {source!r} need a model; name one of: {', '.join(config.models)}")
        return model_of(config, config.stages[source])
    if name not in config.models:
        raise UserError(f"model: no model is named {name!r}{nearest(name, config.models)}")
    return name


def sized_model(config: Config, name: str) -> ModelOptions:
    """The options of model `name`; a vocabulary of 0 is replaced by the tokenizer's size, as far as it is known."""
    options = config.models[name]
    if options.vocab_size:
        return options
    if config.tokenizer.path is None:
        return dataclasses.replace(options, vocab_size=config.tokenizer.vocab_size)
    from mindspore_impl.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(config.tokenizer.path, config.tokenizer.template)
    return dataclasses.replace(options, vocab_size=tokenizer.vocab_size)


def check_weights(source, folder: Path, options: ModelOptions, key: str, tokenizer: Path | None) -> None:
    """Refuse weights of another model than `options`, or that lie beside another tokenizer than the run's.

    folder: their path, for messages; key: the entry of the options, such as models.student; tokenizer: None when the
    run trains its own.

    Weights whose files do not say what model they are of are held against it by names and shapes, when they are loaded.
    Raises UserError that names the differing keys.
    """
    from mindspore_impl.model.hf_config import check_same

    if source.options is not None:
        check_same(source.options, options, str(source.path), key)
    beside = [path for name in TOKENIZERS if (path := folder / name).is_file()]
    digest = None if tokenizer is None or not beside else files.sha256_file(tokenizer)
    if beside and all(files.sha256_file(path) != digest for path in beside):
        raise UserError(
            f"{beside[0]}: it is not the run's tokenizer, so every id would mean something else; set "
            f"tokenizer.path={beside[0]}, or remove that file if these weights do belong to the run's tokenizer"
        )


def measures(options) -> bool:
    """Whether an evaluation would measure anything."""
    return bool(options.accuracy or options.perplexity or options.teacher_kl or options.benchmarks)
