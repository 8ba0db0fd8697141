"""The configuration of a whole run: composed from conf/ by config.py, held against the dataclasses, and checked."""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mindspore_impl import config, schema
from mindspore_impl.curriculum import plugins
from mindspore_impl.curriculum.stages import KINDS, Shared, Stage
from mindspore_impl.curriculum.stages.base import problem_of
from mindspore_impl.curriculum.sweep.options import SweepOptions
from mindspore_impl.schema import Kinds, nearest, option

_STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(kw_only=True)
class Config(Shared):
    """A whole run."""

    name: str  # of the experiment; a run directory belongs to one
    run_dir: str
    order: list[str]  # stage names, in the order they run
    seeds: list[int] = option(default_factory=list, low=0)  # not empty: the run is repeated once a seed and compared
    compare: list[str] = field(default_factory=list)  # two stages of order whose difference the report tests
    plugins: list[str] = field(default_factory=list)  # modules that register kinds, divergences, sources and so on
    sweep: SweepOptions | None = None  # many runs (tools/train.py --multirun); null in each of them


def compose(overrides: list[str], config_dir: Path | None = None) -> Config:
    """Compose conf/config.yaml with command-line `overrides` (Hydra's syntax), import its plugins, and validate it.

    config_dir: a folder of the user's own YAML groups, beside conf/. Raises UserError for a typo, a wrong type, a
    missing value or an unknown choice, naming the key and the nearest valid one.
    """
    plain, folders = config.compose(overrides, config_dir)
    plugins.load(plain.get("plugins") or [], folders)
    return validate(plain)


def validate(plain: dict) -> Config:
    """Build a Config from plain containers. Raises UserError that lists every wrong key, type and missing value."""
    named = plain.get("plugins")
    plugins.check_loaded(named if isinstance(named, list) else [])
    kinds = {Stage: Kinds("kind", KINDS)}
    return schema.build(Config, plain, "", kinds)


def to_yaml(config: Config) -> str:
    """The content of config.yaml: the resolved configuration with its schema number."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(schema.versioned(schema.to_plain(config))))


def reopen(run_dir: Path, plugin_names: Iterable[str] = ()) -> Config:
    """The configuration in `run_dir`, wherever that lies now. Plugins are imported only if they are named here."""
    from mindspore_impl.report.run_files import read_config

    plugins.load(list(plugin_names))
    return dataclasses.replace(validate(read_config(run_dir)[0]), run_dir=str(run_dir))


def order_problems(config: Config) -> Iterator[str]:
    """What is wrong with the names in `order` and `compare`."""
    if not config.order:
        yield "order: no stage is listed; give a list of stage names"
    for name in dict.fromkeys(config.order):
        if name not in config.stages:
            yield f"order: no stage is named {name!r}{nearest(name, config.stages)}"
        elif not _STAGE_NAME.fullmatch(name):
            yield f"order: {name!r} cannot be a stage name; use letters, digits, _ and -"
        if config.order.count(name) > 1:
            yield f"order: {name!r} is listed twice"
    if config.compare and (len(config.compare) != 2 or not set(config.compare) <= set(config.order)):
        yield f"compare: {config.compare} must be empty ([]), or two stages of order"


def setting_problems(config: Config, set_keys: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Numbers out of range, files that are missing, data sets that do not exist.

    set_keys: (configuration key, data set) of every set that a stage reads.
    """
    from mindspore_impl.text.template import find_template

    yield from schema.range_problems(config)
    options = config.tokenizer
    yield from problem_of(find_template, options.template)
    if options.path is None and not options.train_on:
        yield "tokenizer.path: give a SentencePiece model or a tokenizer.json, or name data sets in tokenizer.train_on"
    elif options.path is None and options.template != "pangu":
        yield f"tokenizer.template: {options.template} needs tokenizer.path; a trained tokenizer has pangu's"
    elif options.path is not None and not Path(options.path).is_file():
        yield f"tokenizer.path: {options.path}: no such file"
    for name in dict.fromkeys(name for _, name in set_keys):
        yield from _set_problems(config, name)
    paths = [getattr(dataset, "path", None) or "" for dataset in config.data.sets.values()]
    for key in ("train", "validation", "test"):
        given = getattr(config.data, key)
        if given and not any(path.startswith(given) for path in paths):
            yield f"data.{key}: {given} is given, but no data set reads it; choose data=gsm8k or data=records"


def _set_problems(config: Config, name: str) -> Iterator[str]:
    from mindspore_impl.data.difficulty import check_keep

    options = config.data.sets[name]
    path = getattr(options, "path", None)
    if path and not Path(path).is_file():
        yield f"data.sets.{name}.path: {path}: no such file"
    if options.keep is not None:
        yield from problem_of(check_keep, options.keep, f"data.sets.{name}.keep")


def model_problems(config: Config, names: Iterable[str]) -> Iterator[str]:
    """Sizes of the models in use, held against the tokenizer. Nothing is said before the tokenizer is known."""
    from mindspore_impl.model.pangu import check_options

    if config.tokenizer.path and not Path(config.tokenizer.path).is_file():
        return
    for name in names:
        yield from problem_of(check_options, config.sized_model(name), f"models.{name}")
        size = config.models[name].vocab_size
        if config.tokenizer.path is None and 0 < size < config.tokenizer.vocab_size:
            yield (
                f"models.{name}.vocab_size: {size} is smaller than tokenizer.vocab_size {config.tokenizer.vocab_size}; "
                "set it to 0 to follow the tokenizer"
            )
