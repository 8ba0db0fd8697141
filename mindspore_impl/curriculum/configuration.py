"""The configuration of a whole run: composed from conf/ by config.py, held against the dataclasses, and checked."""

import dataclasses
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindspore_impl import config, schema
from mindspore_impl.curriculum import plugins
from mindspore_impl.curriculum.stages import KINDS, Shared, Stage
from mindspore_impl.curriculum.stages.base import problem_of
from mindspore_impl.curriculum.stages.inputs import absolute
from mindspore_impl.curriculum.sweep.options import SweepOptions
from mindspore_impl.data.overlap import window_problems
from mindspore_impl.data.sources import set_kinds
from mindspore_impl.schema import Kinds, option


@dataclass(kw_only=True)
class Config(Shared):
    """A whole run."""

    name: str  # of the experiment; a run directory belongs to one
    run_dir: str = option(artifact="file")  # where the run is written
    order: list[str]  # stage names, in the order they run
    seeds: list[int] = option(default_factory=list, low=0)  # not empty: the run is repeated once a seed and compared
    compare: list[str] = field(default_factory=list)  # two stages of order whose difference the report tests
    plugins: list[str] = field(default_factory=list)  # modules that register kinds, divergences, sources and so on
    plugin_folders: list[str] = field(default_factory=list)  # where they are looked for too; filled in by the run
    sweep: SweepOptions | None = None  # many runs (tools/train.py --multirun); null in each of them


def compose(overrides: list[str], config_dir: Path | None = None) -> Config:
    """Compose conf/config.yaml with `overrides` (["experiment=quickstart", ...]), import its plugins, and validate it.

    config_dir: a folder of the user's own YAML groups, beside conf/. Raises UserError for a typo, a wrong type, a
    missing value or an unknown choice; it names the key and the nearest valid one.
    """
    plain, folders = config.compose(overrides, config_dir)
    given = plain.get("plugin_folders") or []
    if named := plain.get("plugins") or []:
        plain["plugin_folders"] = [os.path.abspath(each) for each in (*given, *folders, ".")]
    plugins.load(named, map(Path, plain.get("plugin_folders") or []))
    return validate(plain)


def validate(plain: dict) -> Config:
    """Build a Config from plain containers. Raises UserError that lists every wrong key, type and missing value."""
    named = plain.get("plugins")
    plugins.check_loaded(named if isinstance(named, list) else [])
    return schema.build(Config, plain, "", tagged_unions())


def tagged_unions() -> dict[type, Kinds]:
    """The kinds of stages and the sources of data sets, those of plugins included."""
    return {Stage: Kinds("kind", KINDS)} | set_kinds()


def to_yaml(config: Config) -> str:
    """The content of config.yaml: the resolved configuration with its schema number, paths from the root."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(schema.versioned(schema.to_plain(_absolute(config)))))


def _absolute(value: Any) -> Any:
    """A copy of a dataclass, or of a dict of them, whose paths do not depend on the working directory."""
    if isinstance(value, dict):
        return {key: _absolute(entry) for key, entry in value.items()}
    if not dataclasses.is_dataclass(value):
        return value
    found = {}
    for spec in dataclasses.fields(value):
        entry, artifact = getattr(value, spec.name), schema.rule_of(spec).artifact
        if isinstance(entry, str) and entry and artifact:
            entry = os.path.abspath(entry) if artifact == "file" else absolute(entry)
        found[spec.name] = _absolute(entry)
    return dataclasses.replace(value, **found)


def reopen(run_dir: Path, plugin_names: Iterable[str] = ()) -> Config:
    """The configuration in `run_dir`, wherever that lies now. Plugins are imported only if they are named here."""
    from mindspore_impl.report.run_files import read_config

    plain = read_config(run_dir)[0]
    plugins.load(list(plugin_names), [Path.cwd(), *map(Path, plain.get("plugin_folders") or [])])
    return dataclasses.replace(validate(plain), run_dir=str(run_dir))


def problems(config: Config, set_keys: Iterable[tuple[str, str]], models: Iterable[str]) -> Iterator[str]:
    """Numbers out of range, missing files, and options that have no meaning, each naming its key.

    set_keys: (configuration key, data set) of every set that is read; models: entries of `models` that are used.
    """
    from mindspore_impl.data.difficulty import check_keep
    from mindspore_impl.text.template import find_template

    checks = [(find_template, config.tokenizer.template)]
    for name in dict.fromkeys(name for _, name in set_keys):
        dataset = config.data.sets[name]
        path = getattr(dataset, "path", None)
        if path and not Path(path).is_file():
            hint = f"; the records of a stage are {{source: stage, stage: {path}}}" if path in config.stages else ""
            yield f"data.sets.{name}.path: {path}: no such file{hint}"
        if dataset.keep is not None:
            checks.append((check_keep, dataset.keep, f"data.sets.{name}.keep"))
    checks += [(config.check_model, name) for name in models]
    for check, *arguments in checks:
        yield from problem_of(check, *arguments)
    trained, held_out = {}, {}  # {data set: the first key that names it}
    for key, name in set_keys:
        if key.endswith(".data.mixture"):
            trained.setdefault(name, key)
        elif key.endswith(".data.validation") or ".options." in key or key.startswith("evaluation."):
            held_out.setdefault(name, key)
    yield from window_problems(config.data.sets, trained, held_out)
    yield from schema.range_problems(config)


def file_problems(config: Config) -> Iterator[str]:
    """Files that are named for the whole run: the tokenizer's, and data.train, data.validation, data.test."""
    options = config.tokenizer
    if options.path is None and not options.train_on:
        yield "tokenizer.path: give a SentencePiece model or a tokenizer.json, or name data sets in tokenizer.train_on"
    elif options.path is None and options.template != "pangu":
        yield f"tokenizer.template: {options.template} needs tokenizer.path; a trained tokenizer has pangu's"
    elif options.path is not None and not Path(options.path).is_file():
        yield f"tokenizer.path: {options.path}: no such file"
    sets = config.data.sets.values()
    paths = [getattr(dataset, "path", "") for dataset in sets]
    for key in ("train", "validation", "test"):
        given = getattr(config.data, key)
        if given and not any(path.startswith(given) for path in paths):
            yield f"data.{key}: {given} is given, but no data set reads it; choose data=gsm8k or data=records"
    if config.data.holdout and not any(getattr(dataset, "holdout", 0) for dataset in sets):
        yield "data.holdout: given, but no data set holds records out; choose data=gsm8k or data=records"
