"""Recipes: YAML files with data sets, steps and an output. An unknown key is refused with the nearest valid name."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mindspore_impl.config import as_user_errors, conf_folder
from mindspore_impl.data.options import DataOptions
from mindspore_impl.data.selection import duplicates, judged, mixture, rules  # noqa: F401  (register their steps)
from mindspore_impl.data.selection.stream import STEPS, Run
from mindspore_impl.data.sources import set_kinds
from mindspore_impl.errors import UserError
from mindspore_impl.schema import build, check_ranges, nearest, option, references


@dataclass
class RecipeOptions:
    """A recipe without its steps."""

    output: str  # a folder: selected.jsonl, report.md, report.json, selection.json
    select: list[str]  # sets of data.sets whose records go through the steps, in this order
    data: DataOptions = field(default_factory=DataOptions)
    seed: int = 0  # of the bundled generator
    unreadable: Literal["error", "drop"] = "error"  # a line that is not a record: stop, or count it and continue
    dropped: bool = False  # write the dropped records and the reasons to dropped.jsonl
    examples: int = option(5, low=0)  # ids shown in the report for each reason


@dataclass
class PlannedStep:
    """One line of `steps`."""

    name: str
    where: str  # steps[2].near_duplicates
    options: Any
    run: Run


@dataclass
class Recipe:
    """A validated recipe."""

    options: RecipeOptions
    steps: list[PlannedStep]

    def plain(self) -> dict:
        """The options that determine the selection, without those of the output and the report."""
        plain = asdict(self.options)
        for key in ("output", "dropped", "examples"):
            del plain[key]
        return plain | {"steps": [{planned.name: asdict(planned.options)} for planned in self.steps]}

    def sets(self) -> list[str]:
        """Every set that is read: those selected from, then those that steps compare with."""
        names = [name for names in self._read("set") for name in names]
        return list(dict.fromkeys(self.options.select + names))

    def files(self) -> list[str]:
        """Every other file that a step reads."""
        return list(dict.fromkeys(self._read("file")))

    def _read(self, artifact: str) -> list[Any]:
        found = [pair for planned in self.steps for pair in references(planned.options).values()]
        return [value for value, kind in found if kind == artifact]


def load(name: str, overrides: list[str]) -> Recipe:
    """The recipe conf/selection/<name>.yaml, or a file of that path, with `key=value` overrides (Hydra's syntax).

    Raises UserError for a missing file or value, an unknown step, set or key, or a wrong type.
    """
    plain = _resolved(_path_of(name), overrides)
    steps = plain.pop("steps", None)
    options = build(RecipeOptions, plain, "", set_kinds())
    if not isinstance(steps, list) or not steps:
        raise UserError(f"{name}: steps: expected a list of `name: {{option: value}}`, found {steps!r}")
    recipe = Recipe(options, [planned(entry, f"steps[{index}]") for index, entry in enumerate(steps)])
    if not options.select:
        raise UserError(f"{name}: select: name at least one set of data.sets")
    check_ranges(options, "")
    for set_name in recipe.sets():
        if set_name not in options.data.sets:
            raise UserError(f"{name}: no set {set_name!r} in data.sets{nearest(set_name, options.data.sets)}")
    return recipe


def planned(entry: Any, where: str) -> PlannedStep:
    """An entry of `steps`: `name: {options}`, `name:` or the bare name. Raises UserError naming the option."""
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise UserError(f"{where}: expected `name: {{option: value}}`, found {entry!r}")
    ((name, plain),) = entry.items()
    if name not in STEPS:
        raise UserError(f"{where}: unknown step {name!r}{nearest(name, STEPS)}")
    where = f"{where}.{name}"
    try:
        options = build(STEPS[name].options, {} if plain is None else plain, where)
    except ValueError as error:  # of __post_init__
        raise UserError(f"{where}: {error}") from error
    check_ranges(options, where)
    return PlannedStep(name, where, options, STEPS[name].run)


def _path_of(name: str) -> Path:
    folder = conf_folder() / "selection"
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        raise UserError(f"{name}: no such recipe{nearest(name, known)} (or the path of a .yaml file)")
    return path


def _resolved(path: Path, overrides: list[str]) -> dict:
    """The file with overrides applied and interpolations resolved, as plain containers."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import DictConfig, OmegaConf

    with as_user_errors(str(path)):
        config = OmegaConf.load(path)
        if not isinstance(config, DictConfig):
            raise UserError(f"{path}: expected a mapping with data, select, steps and output")
        for override in OverridesParser.create().parse_overrides(overrides):
            if override.is_sweep_override() or override.package is not None:
                raise UserError(f"{override.input_line}: a recipe takes key=value and ~key only, one value per key")
            key = override.key_or_group
            try:
                if override.is_delete():
                    _remove(config, key)
                else:
                    OmegaConf.update(config, key, override.value(), force_add=True)
            except TypeError as error:  # a list index that is not a number
                raise UserError(f"{override.input_line}: {error}; steps are numbered: steps.0.NAME.OPTION") from error
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def _remove(config, key: str) -> None:
    from omegaconf import OmegaConf

    parent, _, name = key.rpartition(".")
    holder = OmegaConf.select(config, parent) if parent else config
    if holder is None or name not in holder:
        raise UserError(f"~{key}: the recipe has no such key")
    del holder[name]
