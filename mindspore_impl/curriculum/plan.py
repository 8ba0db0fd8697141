"""From a Config to an ordered list of stages with checked inputs and fingerprints.

A fingerprint covers everything that decides a stage's result: its options without logging, its model, its data (file
hashes included), its tokenizer, its seed, the plugins and the fingerprints of its inputs. Equal fingerprint, equal
result.
"""

import re
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter

from mindspore_impl import files, schema
from mindspore_impl.curriculum import configuration, plugins
from mindspore_impl.curriculum.configuration import Config
from mindspore_impl.curriculum.resolve import artifact_hash, open_weights
from mindspore_impl.curriculum.stages import PlannedStage, Stage
from mindspore_impl.curriculum.stages.context import CODE_FORMAT, set_content, tokenizer_fingerprint
from mindspore_impl.curriculum.stages.inputs import Input, absolute, reference_problem
from mindspore_impl.errors import UserError
from mindspore_impl.schema import nearest

_STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def make_plan(config: Config) -> list[PlannedStage]:
    """Validate the whole curriculum and return its stages in order, the ones that follow by themselves included.

    Raises UserError that lists every problem: unknown or missing inputs, wrong kinds, cycles, impossible sizes.
    """
    refuse(_order_problems(config))
    stages: dict[str, Stage] = {}
    for name in config.order:
        stages |= {name: config.stages[name]} | config.stages[name].followers(name, config)
    inputs = {name: _inputs(config, name, stage) for name, stage in stages.items()}
    sets = [pair for name, stage in stages.items() for pair in stage.data_sets(f"stages.{name}", config)]
    sets += [("tokenizer.train_on", name) for name in config.tokenizer.train_on]
    refuse([*_input_problems(config, stages, inputs), *_set_problems(config, sets)])
    refuse(_stage_problems(config, stages, sets))
    planned: dict[str, PlannedStage] = {}
    for name, stage in stages.items():
        entry = PlannedStage(len(planned) + 1, name, stage.resolved(config), stage.model_name(config))
        entry.inputs = {given.role: absolute(given.reference) for given in inputs[name]}
        entry.seed = config.seed if stage.seed is None else stage.seed
        entry.fingerprint = _fingerprint(config, entry, inputs[name], planned)
        planned[name] = entry
    return list(planned.values())


def refuse(problems: Iterable[str]) -> None:
    """Raise UserError that lists the problems, each once, if there are any."""
    if found := list(dict.fromkeys(problems)):
        raise UserError("the curriculum cannot run:\n  " + "\n  ".join(found))


def _order_problems(config: Config) -> Iterator[str]:
    """What is wrong with the names in `order` and `compare`."""
    order = config.order
    if not order:
        yield "order: no stage is listed; give a list of stage names"
    for name in order:
        if name not in config.stages:
            yield f"order: no stage is named {name!r}{nearest(name, config.stages)}"
        elif not _STAGE_NAME.fullmatch(name):
            yield f"order: {name!r} cannot be a stage name; use letters, digits, _ and -"
        else:
            followers = config.stages[name].followers(name, config)
            yield from (f"order: {each!r} is made by stage {name!r}; rename it" for each in followers if each in order)
        if order.count(name) > 1:
            yield f"order: {name!r} is listed twice"
    if config.compare and (len(config.compare) != 2 or not set(config.compare) <= set(order)):
        yield f"compare: {config.compare} must be empty ([]), or two stages of order"


def _inputs(config: Config, name: str, stage: Stage) -> list[Input]:
    """The named inputs of a stage, then the stages that make the data sets it reads."""
    key = f"stages.{name}"
    made = {each: config.maker_of(each) for _, each in stage.data_sets(key, config)}
    return stage.inputs(key, config) + [
        Input(f"set {each}", maker, "records", f"data.sets.{each}.stage") for each, maker in made.items() if maker
    ]


def _input_problems(config: Config, stages: dict[str, Stage], inputs: dict[str, list[Input]]) -> Iterator[str]:
    """Missing, unknown and circular inputs."""
    cycle, names = [], list(stages)
    try:
        TopologicalSorter({name: [given.reference for given in inputs[name]] for name in names}).prepare()
    except CycleError as error:
        cycle = error.args[1][::-1]  # each reads the next
    for number, (name, stage) in enumerate(stages.items()):
        yield from (f"stages.{name}.{r}: no input given; name a stage or a path" for r in stage.missing_inputs())
        for given in inputs[name]:
            if problem := reference_problem(given, name, config.stages, config.order):
                yield problem
            elif {name, given.reference} <= {*cycle}:
                yield f"{given.key}: the inputs form a cycle: {' -> '.join(cycle)}; break it"
            elif given.reference in names[number:]:
                yield f"{given.key}: {given.reference!r} runs after {name!r}; move it forward in order"


def _set_problems(config: Config, sets: list[tuple[str, str]]) -> Iterator[str]:
    """Data sets that do not exist, or not in time. sets: (configuration key, data set)."""
    for key, name in sets:
        if name not in config.data.sets:
            yield f"{key}: no data set is named {name!r}{nearest(name, config.data.sets)}"
        elif key == "tokenizer.train_on" and (maker := config.maker_of(name)):
            yield f"{key}: {name!r} is made by stage {maker!r}, after the tokenizer; name other sets"


def _stage_problems(config: Config, stages: dict[str, Stage], sets: list[tuple[str, str]]) -> Iterator[str]:
    """Numbers, files and models that cannot work, once every input and set is known to exist."""
    models, unknown = [], []
    for name, stage in stages.items():
        try:
            models.append(stage.model_name(config))
        except UserError as error:
            unknown.append(f"stages.{name}.{error}")
    # Without these files or models the rest cannot be asked.
    if missing := [*unknown, *configuration.file_problems(config)]:
        yield from missing
        return
    for name, stage in stages.items():
        yield from stage.problems(f"stages.{name}", config)
    yield from configuration.problems(config, sets, filter(None, dict.fromkeys(models)))


def _fingerprint(config: Config, entry: PlannedStage, inputs: list[Input], planned: dict[str, PlannedStage]) -> str:
    model = config.models.get(entry.model)
    content = {
        "format": CODE_FORMAT,
        "stage": entry.stage.content(config),
        "model": None if model is None else schema.fingerprint_content(model),
        "seed": entry.seed,
        "data": {
            "tokenizer": tokenizer_fingerprint(config),
            "sets": {name: set_content(config, name) for _, name in entry.stage.data_sets("", config)},
        },
        "inputs": {
            given.role: planned[given.reference].fingerprint
            if given.reference in planned
            else artifact_hash(given.reference, open_weights(given.reference) if given.artifact == "weights" else None)
            for given in inputs
        },
        "plugins": {name: plugins.loaded()[name] for name in config.plugins},
    }
    return files.sha256_json(content)
