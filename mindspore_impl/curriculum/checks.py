"""What cannot work is said before anything heavy starts: every problem of a curriculum, each naming its key."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mindspore_impl.config import (
    CaptureStage,
    Config,
    DistillStage,
    EvaluateStage,
    ExportStage,
    RejectStage,
    RolloutStage,
    ScoreStage,
)
from mindspore_impl.curriculum.inputs import (
    RECORD_MAKERS,
    ROLLOUTS,
    TRAINED,
    check_weights,
    evaluated,
    inputs_of,
    is_path,
    kl_teacher,
    kl_teacher_model,
    maker_of,
    makers_of,
    measures,
    model_of,
    sets_of,
    sized_model,
)
from mindspore_impl.curriculum.stage_benchmarks import benchmark_problems
from mindspore_impl.errors import UserError
from mindspore_impl.schema import nearest, range_problems
from mindspore_impl.text.template import find_template

_STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def problems_of(config: Config) -> list[str]:
    """Every reason why the curriculum cannot run: names and inputs first; if those hold, numbers."""
    return _check_order(config) or _check_inputs(config) or list(dict.fromkeys(_check_numbers(config)))


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
    for name in config.order:
        if not _STAGE_NAME.fullmatch(name):
            problems.append(f"order: {name!r} cannot be a stage name; use letters, digits, _ and -")
        trained = name.removeprefix("eval_")
        if trained != name and trained in config.order:
            problems.append(f"order: {name!r} is the name of the evaluation after {trained!r}; rename it")
    if config.seeds and config.compare and (len(config.compare) != 2 or not set(config.compare) <= set(config.order)):
        problems.append(f"compare: {config.compare} must be empty, or two stages of order")
    return problems


_EXPECTED_KIND = {
    "init": TRAINED, "teacher": TRAINED, "store": (CaptureStage,), "rollouts": (RolloutStage,), "set": RECORD_MAKERS,
}  # fmt: skip
_REQUIRED = {
    DistillStage: "store", RolloutStage: "init", CaptureStage: "teacher", EvaluateStage: "init", ExportStage: "init",
    RejectStage: "rollouts",
}  # fmt: skip


def _check_inputs(config: Config) -> list[str]:
    problems, seen = [], set()
    for name in config.order:
        stage = config.stages[name]
        role = _REQUIRED.get(type(stage))
        if role and not getattr(stage, role):
            problems.append(f"stages.{name}.{role}: no input given; name a stage")
        if isinstance(stage, ScoreStage) and not stage.set:
            problems.append(f"stages.{name}.set: no data set is named")
        for role, value in inputs_of(stage).items():
            problems += _check_input(config, seen, f"stages.{name}.{role}", role, value, name)
        makers = makers_of(stage, config)
        if isinstance(stage, EvaluateStage):
            problems += _check_kl_teacher(config, seen, stage, name)
        if isinstance(stage, TRAINED) and stage.evaluate and measures(config.evaluation):
            after = EvaluateStage("evaluate", init=name)
            makers |= makers_of(after, config)
            problems += _check_kl_teacher(config, seen | {name}, after, name)
        for set_name, maker in makers.items():
            problems += _check_input(config, seen, f"data.sets.{set_name}.stage", "set", maker, name)
        seen.add(name)
    for key, set_name in _named_sets(config):
        if set_name not in config.data.sets:
            problems.append(f"{key}: no data set is named {set_name!r}{nearest(set_name, config.data.sets)}")
        elif key == "tokenizer.train_on" and (maker := maker_of(config.data.sets[set_name])):
            problems.append(f"{key}: {set_name!r} is made by stage {maker!r}, after the tokenizer; name other sets")
    return list(dict.fromkeys(problems))


def _check_kl_teacher(config: Config, seen: set[str], stage: EvaluateStage, name: str) -> list[str]:
    """What an evaluation compares with: there, a model, and before it."""
    key = f"stages.{name}.options" if stage.options else "evaluation"
    if not (stage.options or config.evaluation).teacher_kl:
        return []
    given = kl_teacher(stage, config)
    if not given:
        return [f"{key}.teacher: teacher_kl needs weights to compare with; name a stage or a path"]
    return _check_input(config, seen, f"{key}.teacher", "teacher", given["kl teacher"], name)


def _named_sets(config: Config) -> Iterator[tuple[str, str]]:
    """(key, set name) wherever a run that will happen names a data set."""
    for name in config.order:
        yield from ((f"stages.{name}", set_name) for set_name in sets_of(config.stages[name], config))
    yield from (("tokenizer.train_on", set_name) for set_name in config.tokenizer.train_on)
    if any(isinstance(config.stages[name], TRAINED) and config.stages[name].evaluate for name in config.order):
        for key in ("accuracy", "perplexity", "teacher_kl"):
            yield from ((f"evaluation.{key}", set_name) for set_name in getattr(config.evaluation, key))


def _check_input(config: Config, seen: set[str], key: str, role: str, value: str, name: str) -> list[str]:
    if is_path(value):
        return [] if Path(value).exists() else [f"{key}: {value}: no such file or folder"]
    expected = _EXPECTED_KIND[role]
    fitting = [n for n in config.order if isinstance(config.stages[n], expected) and n != name]
    if value not in config.stages:
        if Path(value).exists():
            return [f"{key}: no stage is named {value!r}; for the path, write ./{value}"]
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


def _check_numbers(config: Config) -> Iterator[str]:
    yield from range_problems(config)
    yield from _check_files(config)
    yield from benchmark_problems(config)
    models: list[str] = []
    for name in config.order:
        stage = config.stages[name]
        try:
            models.append(model_of(config, stage))
        except UserError as error:
            yield f"stages.{name}.{error}"
            continue
        yield from _check_hf_folders(config, name, stage, models[-1])
        if isinstance(stage, TRAINED):
            yield from _check_training(config, name, stage, models[-1])
        if isinstance(stage, DistillStage):
            yield from _check_distillation(config, name, stage, models[-1])
        if isinstance(stage, CaptureStage):
            yield from _check_capture(config, name, stage, models[-1])
        if isinstance(stage, RolloutStage) and not stage.prompts:
            yield f"stages.{name}.prompts: no data set is named"
        if isinstance(stage, EvaluateStage) or isinstance(stage, TRAINED) and stage.evaluate:
            yield from _check_kl_model(config, stage, name)
        if isinstance(stage, ScoreStage):
            yield from _check_score(config, name, stage, models[-1])
        if isinstance(stage, ExportStage):
            yield from _check_export(config, name, stage, models[-1])
    yield from _check_models(config, [model for model in dict.fromkeys(models) if model])


def _check_files(config: Config) -> Iterator[str]:
    from mindspore_impl.data.difficulty import check_keep
    from mindspore_impl.data.overlap import window_problems

    try:
        find_template(config.tokenizer.template)
    except UserError as error:
        yield str(error)
    if config.tokenizer.path is None and not config.tokenizer.train_on:
        yield "tokenizer.path: give a SentencePiece model or a tokenizer.json, or name data sets in tokenizer.train_on"
    elif config.tokenizer.path is None and config.tokenizer.template != "pangu":
        yield f"tokenizer.template: {config.tokenizer.template} needs tokenizer.path; a trained tokenizer has pangu's"
    elif config.tokenizer.path is not None and not Path(config.tokenizer.path).is_file():
        yield f"tokenizer.path: {config.tokenizer.path}: no such file"
    for name in dict.fromkeys(name for _, name in _named_sets(config)):
        options = config.data.sets[name]
        if (path := getattr(options, "path", None)) and not Path(path).is_file():
            hint = f"; the records of a stage are {{source: stage, stage: {path}}}" if path in config.stages else ""
            yield f"data.sets.{name}.path: {path}: no such file{hint}"
        if options.keep is not None:
            yield from _attempt(check_keep, options.keep, f"data.sets.{name}.keep")
    yield from window_problems(config.data.sets, *_trained_and_held_out(config))
    sets = config.data.sets.values()
    paths = [getattr(options, "path", "") for options in sets]
    for key in ("train", "validation", "test"):
        given = getattr(config.data, key)
        if given and not any(path.startswith(given) for path in paths):
            yield f"data.{key}: {given} is given, but no data set reads it; choose data=gsm8k or data=records"
    if config.data.holdout and not any(getattr(options, "holdout", 0) for options in sets):
        yield "data.holdout: given, but no data set holds records out; choose data=gsm8k or data=records"


def _trained_and_held_out(config: Config) -> tuple[dict[str, str], dict[str, str]]:
    """{data set: the key that names it} of the sets that are trained on, and of validation and test sets."""
    trained, held_out = {}, {}
    for name in config.order:
        stage, key = config.stages[name], f"stages.{name}"
        if isinstance(stage, TRAINED):
            trained |= {each: f"{key}.data.mixture" for each, w in stage.data.mixture.items() if w and each != ROLLOUTS}
            held_out |= dict.fromkeys(stage.data.validation, f"{key}.data.validation")
        if isinstance(stage, EvaluateStage) or getattr(stage, "evaluate", False):
            own = getattr(stage, "options", None)
            held_out |= dict.fromkeys(evaluated(own or config.evaluation), f"{key}.options" if own else "evaluation")
    return trained, held_out


def _check_hf_folders(config: Config, name: str, stage, model: str) -> Iterator[str]:
    """Hugging Face folders that a stage starts from: their headers, and whether they are of its model and tokenizer."""
    from mindspore_impl.model.weights import is_hf_folder, open_hf

    tokenizer = config.tokenizer.path
    if tokenizer is not None and not Path(tokenizer).is_file():
        return  # said elsewhere
    for role in ("init", "teacher"):
        path = inputs_of(stage).get(role)
        if path is None or not is_path(path) or not is_hf_folder(path):
            continue
        try:
            # The size of a tokenizer that is yet to be trained is not known.
            options = config.models[model] if tokenizer is None else sized_model(config, model)
            given = None if tokenizer is None else Path(tokenizer)
            check_weights(open_hf(path), Path(path), options, f"models.{model}", given)
        except UserError as error:
            yield f"stages.{name}.{role}: {error}"


def _check_models(config: Config, models: list[str]) -> Iterator[str]:
    """Sizes of the models in use, held against the tokenizer. Nothing is said before the tokenizer is known."""
    from mindspore_impl.model.pangu import check_options

    if config.tokenizer.path and not Path(config.tokenizer.path).is_file():
        return
    for name in models:
        yield from _attempt(check_options, sized_model(config, name), f"models.{name}")
        size = config.models[name].vocab_size
        if config.tokenizer.path is None and 0 < size < config.tokenizer.vocab_size:
            yield (
                f"models.{name}.vocab_size: {size} is smaller than tokenizer.vocab_size {config.tokenizer.vocab_size}; "
                "set it to 0 to follow the tokenizer"
            )


def _attempt(check: Callable, *arguments) -> Iterator[str]:
    try:
        check(*arguments)
    except UserError as error:
        yield str(error)


def _too_long(config: Config, key: str, length: int, model: str) -> Iterator[str]:
    longest = config.models[model].max_position_embeddings
    if length > longest:
        yield f"{key}: {length} exceeds models.{model}.max_position_embeddings {longest}"


def _check_training(config: Config, name: str, stage, model: str) -> Iterator[str]:
    train, data, key = stage.train, stage.data, f"stages.{name}"
    if (train.max_steps is None) == (train.num_train_epochs is None):
        yield f"{key}.train: give exactly one of max_steps and num_train_epochs"
    if train.select == "best" and not data.validation:
        yield f"{key}.train.select: best needs a validation set; name one in {key}.data.validation, or use last"
    share = max(1, config.runtime.workers) * max(1, data.gradient_accumulation_steps)
    if data.rows % share:
        yield (
            f"{key}.data.rows: {data.rows} rows do not divide by {config.runtime.workers} workers x "
            f"{data.gradient_accumulation_steps} micro-batches; nearest: {max(share, round(data.rows / share) * share)}"
        )
    yield from _too_long(config, f"{key}.data.sequence_length", data.sequence_length, model)
    if stage.evaluate and (config.evaluation.perplexity or config.evaluation.teacher_kl):
        yield from _too_long(config, "evaluation.sequence_length", config.evaluation.sequence_length, model)
    if not any(data.mixture.values()):
        yield f"{key}.data.mixture: no data set has a weight above 0"
    if data.mixture.get(ROLLOUTS) and not getattr(stage, "rollouts", None):
        yield f"{key}.rollouts: the mixture uses rollouts, but no rollout stage is named"
    if stage.lora is not None:
        from mindspore_impl.model.adapter_file import check_lora

        yield from _attempt(check_lora, stage.lora, f"{key}.lora")
        if stage.init is None:
            yield f"{key}.lora: adapters need weights below them; name a stage or path in {key}.init, or set lora=null"
    if stage.init in config.stages and (other := model_of(config, config.stages[stage.init])) != model:
        yield f"{key}.init: {stage.init!r} trains model {other!r}, this stage {model!r}"


def _check_distillation(config: Config, name: str, stage: DistillStage, model: str) -> Iterator[str]:
    from mindspore_impl.losses.oracle import check_objective

    key, source = f"stages.{name}", f"stages.{stage.store}"
    yield from _attempt(check_objective, stage.objective, f"{key}.objective")
    if is_path(stage.store):  # made outside of this curriculum: its samples are looked up when the stage starts
        from mindspore_impl.data.teacher_store import read_header

        try:
            header = read_header(stage.store)
        except UserError as error:
            yield f"{key}.store: {error}"
            return
        yield from _check_fit(key, stage, header.mode, header.temperature, stage.store)
        return
    capture = config.stages[stage.store]
    yield from _check_fit(key, stage, capture.capture.mode, capture.capture.temperature, f"{source}.capture")
    for set_name, weight in stage.data.mixture.items():
        if weight and set_name == ROLLOUTS and stage.rollouts != capture.rollouts:
            yield f"{key}.rollouts: {stage.rollouts!r} was not captured; {source}.rollouts is {capture.rollouts!r}"
        elif weight and set_name != ROLLOUTS and not _captured(config, set_name, capture):
            yield f"{key}.data.mixture.{set_name}: not captured; add it to {source}.sets"
    teacher = config.models[model_of(config, capture)].vocab_size
    if config.models[model].vocab_size != teacher:
        yield f"models.{model}.vocab_size: {config.models[model].vocab_size} differs from the teacher's {teacher}"


def _check_fit(key: str, stage: DistillStage, mode: str, temperature: float, source: str) -> Iterator[str]:
    """The objective against the mode and the temperature of its teacher store."""
    if (mode == "sampled") != (stage.objective.support == "sampled"):
        yield (
            f"{key}.objective.support: {stage.objective.support!r} does not fit the mode {mode!r} of {source}; "
            "sampled goes with sampled only"
        )
    if temperature != stage.objective.temperature:
        yield (
            f"{key}.objective.temperature: {stage.objective.temperature} differs from the temperature {temperature} of "
            f"{source}; a top-k store cannot be re-tempered"
        )


def _captured(config: Config, set_name: str, capture: CaptureStage) -> bool:
    """Whether the capture scores the set itself, or one with the same records."""
    return any(name == set_name or config.data.sets[name] == config.data.sets[set_name] for name in capture.sets)


def _check_export(config: Config, name: str, stage: ExportStage, model: str) -> Iterator[str]:
    from mindspore_impl.export.build import check_export

    yield from _attempt(check_export, stage.export, config.models[model], f"stages.{name}.export")


def _check_kl_model(config: Config, stage, name: str) -> Iterator[str]:
    """The model of the weights that an evaluation compares with."""
    own = getattr(stage, "options", None)
    if (own or config.evaluation).teacher_kl:
        key = f"stages.{name}.options.teacher_" if own else "evaluation.teacher_"
        try:
            kl_teacher_model(EvaluateStage("evaluate", options=own), config)
        except UserError as error:
            yield f"{key}{error}"


def _check_score(config: Config, name: str, stage: ScoreStage, model: str) -> Iterator[str]:
    key = f"stages.{name}"
    if stage.init is not None:
        yield from _too_long(config, f"{key}.sequence_length", stage.sequence_length, model)
    answered = config.stages.get(stage.rollouts)
    if answered is not None and not answered.rollout.keep_truncated:
        yield (
            f"{key}.rollouts: {stage.rollouts!r} leaves out its cut answers, which count as wrong in a pass rate; set "
            f"stages.{stage.rollouts}.rollout.keep_truncated=true"
        )


def _check_capture(config: Config, name: str, stage: CaptureStage, model: str) -> Iterator[str]:
    key = f"stages.{name}"
    vocabulary = config.models[model].vocab_size
    if not vocabulary and config.tokenizer.path is None:
        vocabulary = config.tokenizer.vocab_size
    if vocabulary and stage.capture.top_k > vocabulary:
        yield f"{key}.capture.top_k: {stage.capture.top_k} is above the vocabulary of {vocabulary}"
    if not stage.rollouts and not stage.sets:
        yield f"{key}: name a rollout stage in `rollouts`, or data sets in `sets`"
    yield from _too_long(config, f"{key}.sequence_length", stage.sequence_length, model)
