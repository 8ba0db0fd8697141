"""From a Config to an ordered list of stages with checked inputs and fingerprints.

A fingerprint covers everything that decides a stage's result: its options without logging, its model, its data (file
hashes included), its tokenizer, its seed, the plugins and the fingerprints of its inputs. Equal fingerprint, equal
result.
"""

from collections.abc import Iterator
from pathlib import Path

from mindspore_impl import files, schema
from mindspore_impl.curriculum import plugins
from mindspore_impl.curriculum.configuration import Config, model_problems, order_problems, setting_problems
from mindspore_impl.curriculum.stages import PlannedStage, Stage
from mindspore_impl.curriculum.stages.content import CODE_FORMAT, set_content, tokenizer_fingerprint
from mindspore_impl.curriculum.stages.inputs import (
    Input,
    find_cycle,
    hf_folder_problems,
    is_path,
    path_hash,
    reference_problem,
)
from mindspore_impl.errors import UserError
from mindspore_impl.schema import nearest


def make_plan(config: Config) -> list[PlannedStage]:
    """Validate the whole curriculum and return its stages in order, the ones that follow by themselves included.

    Raises UserError that lists every problem: unknown or missing inputs, wrong kinds, cycles, impossible sizes.
    """
    stages: dict[str, Stage] = {}
    problems = list(order_problems(config))
    if not problems:
        stages = _with_followers(config)
        problems = list(_input_problems(config, stages)) or list(_stage_problems(config, stages))
    if problems:
        raise UserError("the curriculum cannot run:\n  " + "\n  ".join(dict.fromkeys(problems)))
    planned: dict[str, PlannedStage] = {}
    for name, stage in stages.items():
        entry = PlannedStage(len(planned) + 1, name, stage, stage.model_name(config))
        entry.inputs = {given.role: given.reference for given in _inputs(config, name, stage)}
        entry.seed = config.seed if stage.seed is None else stage.seed
        entry.fingerprint = _fingerprint(config, entry, planned)
        planned[name] = entry
    return list(planned.values())


def _with_followers(config: Config) -> dict[str, Stage]:
    stages = {}
    for name in config.order:
        stages[name] = config.stages[name]
        for follower, stage in stages[name].followers(name, config).items():
            if follower in config.order:
                raise UserError(f"order: {follower!r} is the name of the stage that follows {name!r}; rename it")
            stages[follower] = stage
    return stages


def _inputs(config: Config, name: str, stage: Stage) -> list[Input]:
    """The named inputs of a stage, then the stages that make the data sets it reads."""
    key = f"stages.{name}"
    found = stage.inputs(key, config)
    for set_name in dict.fromkeys(each for _, each in stage.data_sets(key, config)):
        if maker := config.maker_of(set_name):
            found.append(Input(f"set {set_name}", maker, "records", f"data.sets.{set_name}.stage"))
    return found


def _input_problems(config: Config, stages: dict[str, Stage]) -> Iterator[str]:
    """Missing, unknown and circular inputs, and unknown data sets."""
    seen: set[str] = set()
    parents = {name: [given.reference for given in _inputs(config, name, stage)] for name, stage in stages.items()}
    for name, stage in stages.items():
        for role in stage.missing_inputs():
            yield f"stages.{name}.{role}: no input given; name a stage or a path"
        for given in _inputs(config, name, stage):
            problem = reference_problem(given, name, config.stages, config.order)
            if problem is None and not is_path(given.reference) and given.reference not in seen:
                if cycle := find_cycle(name, parents):
                    problem = f"{given.key}: the inputs form a cycle: {' -> '.join(cycle)}; break it"
                else:
                    problem = f"{given.key}: {given.reference!r} runs after {name!r}; move it forward in order"
            if problem:
                yield problem
        seen.add(name)
    for key, set_name in _set_keys(config, stages):
        if set_name not in config.data.sets:
            yield f"{key}: no data set is named {set_name!r}{nearest(set_name, config.data.sets)}"
        elif key == "tokenizer.train_on" and (maker := config.maker_of(set_name)):
            yield f"{key}: {set_name!r} is made by stage {maker!r}, after the tokenizer; name other sets"


def _set_keys(config: Config, stages: dict[str, Stage]) -> Iterator[tuple[str, str]]:
    """(configuration key, data set) wherever a set is read."""
    for name, stage in stages.items():
        yield from stage.data_sets(f"stages.{name}", config)
    yield from (("tokenizer.train_on", name) for name in config.tokenizer.train_on)


def _stage_problems(config: Config, stages: dict[str, Stage]) -> Iterator[str]:
    """Numbers, files and models that cannot work, once every input and set is known to exist."""
    yield from setting_problems(config, _set_keys(config, stages))
    tokenizer = None if config.tokenizer.path is None else Path(config.tokenizer.path)
    models: list[str] = []
    for name, stage in stages.items():
        key = f"stages.{name}"
        try:
            model = stage.model_name(config)
        except UserError as error:
            yield f"{key}.{error}"
            continue
        if model and (tokenizer is None or tokenizer.is_file()):
            models.append(model)
            # The size of a tokenizer that is yet to be trained is not known.
            options = config.models[model] if tokenizer is None else config.sized_model(model)
            for given in stage.inputs(key, config)[:1]:
                yield from hf_folder_problems(given, options, f"models.{model}", tokenizer)
        yield from stage.problems(key, config)
    yield from model_problems(config, dict.fromkeys(models))


def _fingerprint(config: Config, entry: PlannedStage, planned: dict[str, PlannedStage]) -> str:
    stage, model = entry.stage, config.models.get(entry.model)
    names = dict.fromkeys(name for _, name in stage.data_sets("", config))
    content = {
        "format": CODE_FORMAT,
        "stage": stage.content(config),
        "model": None if model is None else schema.fingerprint_content(model),
        "seed": entry.seed,
        "tokenizer": tokenizer_fingerprint(config),
        "sets": {name: set_content(config, name) for name in names},
        "inputs": {
            role: planned[value].fingerprint if value in planned else path_hash(value)
            for role, value in entry.inputs.items()
        },
        "plugins": plugins.loaded() if config.plugins else {},
    }
    return files.sha256_json(content)
