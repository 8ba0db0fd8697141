"""Composes conf/ with the user's overrides and YAML files through Hydra, and returns plain data.

Hydra's own validation would let `+key=` typos pass and turn `true` into 'True' for a text field, so nothing is checked
here: the plain container is held against dataclasses by schema.py, one rule for YAML, `key=`, `+key=` and `++key=`.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mindspore_impl.errors import UserError
from mindspore_impl.schema import nearest

_NEEDS_QUOTES = set("[]{}(),'\"")
_GLOBAL_GROUPS = ("experiment", "curriculum")  # their files set keys of the whole run


def conf_folder() -> Path:
    """The folder of YAML files: beside the package in a clone, inside it in an installed wheel."""
    package = Path(__file__).resolve().parent
    packaged = package / "conf"
    return packaged if packaged.is_dir() else package.parent / "conf"


def compose(overrides: list[str], config_dir: Path | None = None) -> tuple[dict, list[Path]]:
    """The composed and resolved configuration as plain dicts and lists, and the folders of the user's own files.

    overrides: Hydra's syntax; the value of a group may also be the path of a YAML file (`experiment=mine.yaml`).
    config_dir: a folder with groups of the user's own (`experiment/mine.yaml`), in addition to conf/. Raises UserError
    for an override or a file that cannot be read, or a choice that does not exist.
    """
    from omegaconf import OmegaConf

    with _composed(overrides, config_dir) as (composed, folders), as_user_errors("configuration"):
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    for group in _GLOBAL_GROUPS:
        if group in plain:
            raise UserError(
                f"{group}: the file of this group sets keys below `{group}`; its first line must be "
                "`# @package _global_`, so that they are keys of the whole run"
            )
    return plain, folders


def compose_text(overrides: list[str], config_dir: Path | None = None, resolve: bool = False) -> str:
    """The composed configuration as YAML, with `${...}` resolved or not: Hydra's `--cfg job`."""
    from omegaconf import OmegaConf

    with _composed(overrides, config_dir) as (composed, _), as_user_errors("configuration"):
        return OmegaConf.to_yaml(composed, resolve=resolve)


@contextmanager
def override_parser(config_dir: Path | None = None) -> Iterator:
    """Hydra's parser of one override, `parse(text)`, whose glob() looks into conf/ and `config_dir`."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with _initialised(_search_path([config_dir] if config_dir else [])):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        yield lambda text: _parsed(parser, text)


@dataclass
class _Sources:
    """Where Hydra looks beside conf/, and the overrides that choose there."""

    overrides: list[str] = field(default_factory=list)
    search: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)  # of the user's files


@contextmanager
def _composed(overrides: list[str], config_dir: Path | None) -> Iterator:
    from hydra import compose as hydra_compose

    if config_dir is not None and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir: {config_dir}: no such folder")
    with tempfile.TemporaryDirectory() as overlay:
        sources = _sources(overrides, config_dir, Path(overlay))
        search = _search_path(sources.search)
        with as_user_errors("configuration"), _initialised(search):
            composed = hydra_compose(config_name="config", overrides=[*search, *sources.overrides])
        yield composed, sources.folders


def _search_path(folders: list[Path]) -> list[str]:
    found = ",".join(f"'file://{folder.resolve()}'" for folder in folders)
    return [f"hydra.searchpath=[{found}]"] if found else []


@contextmanager
def _initialised(search: list[str]) -> Iterator[None]:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
        yield


def _sources(overrides: list[str], config_dir: Path | None, overlay: Path) -> _Sources:
    """Overrides as Hydra takes them, so that every form of a key reaches our own check.

    `key=value` becomes `++key=value` unless it chooses a group; a YAML file as a choice is put into `overlay`.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    found, parser = _Sources(), OverridesParser.create()
    if config_dir is not None:
        found.search.append(Path(config_dir))
        found.folders += [Path(config_dir), Path(config_dir) / "experiment"]
    groups = [conf_folder(), *found.search]
    for text in overrides:
        key, equals, value = text.partition("=")
        bare = key.lstrip("+~").split("@")[0]
        if not equals and not text.startswith("~"):
            raise UserError(f"{text!r}: expected key=value (see --help)")
        if bare == "hydra" or bare.startswith("hydra."):
            raise UserError(f"{text}: Hydra's own settings have no effect here; use run_dir=, --multirun and --jobs")
        is_group = "@" in key or any((folder / bare).is_dir() for folder in groups)
        if is_group and value.strip("'\"").endswith((".yaml", ".yml")):
            path = Path(value.strip("'\""))
            text = f"{key}={_overlaid(path, bare, overlay)}"
            found.folders.append(path.parent)
        elif equals:
            text = _quoted(parser, text)
        found.overrides.append(text if is_group or key.startswith("~") else "++" + text.lstrip("+"))
    if any(overlay.iterdir()):
        found.search.append(overlay)
    return found


def _overlaid(path: Path, group: str, overlay: Path) -> str:
    """Make the YAML file at `path`, and those beside it, choices of `group`; -> the name of its choice."""
    if not path.is_file():
        raise UserError(f"{group}={path}: no such file")
    target = overlay / group
    target.mkdir(parents=True, exist_ok=True)
    for beside in sorted(path.parent.glob("*.y*ml")):
        shutil.copyfile(beside, target / f"{beside.stem}.yaml")
    ours = (conf_folder() / group / f"{path.stem}.yaml").is_file()
    name = f"{path.stem}_from_file" if ours or not path.stem.isascii() else path.stem
    shutil.copyfile(path, target / f"{name}.yaml")
    return name


def _quoted(parser, text: str) -> str:
    """`text`, its value in quotes where Hydra's grammar needs them for a plain word (`=`, `#`, Chinese)."""
    from hydra.errors import HydraException

    try:
        parser.parse_overrides([text])
    except HydraException:
        key, _, value = text.partition("=")
        if not _NEEDS_QUOTES & set(value):
            return f"{key}='{value}'"
    return text


def _parsed(parser, text: str):
    """One override in Hydra's form. Raises UserError when its grammar has no meaning for it."""
    from hydra.errors import HydraException

    try:
        return parser.parse_overrides([_quoted(parser, text)])[0]
    except HydraException as error:
        key = text.partition("=")[0]
        raise UserError(
            f"{text}: not an override as Hydra writes them; put words with special characters in quotes of their own, "
            f"such as {key}=\"'a,b'\" ({_readable(str(error))})"
        ) from error


@contextmanager
def as_user_errors(where: str) -> Iterator[None]:
    """Turn what Hydra, OmegaConf and the YAML reader raise into a UserError about `where`."""
    from hydra.errors import HydraException
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
    from yaml import YAMLError

    try:
        yield
    except MissingMandatoryValue as error:
        key = getattr(error, "full_key", None) or "a value"
        raise UserError(f"{key}: no value given; add {key}=VALUE to the command line") from error
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise UserError(f"{where}: {_readable(str(error))}") from error


def _readable(text: str) -> str:
    """Hydra's message without its search path and internals, with the nearest choice where it lists some."""
    noise = ("full_key:", "object_type=", "Set the env", "Config search path", "provider=", "See https://")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(noise)]
    if len(lines) > 2 and lines[1].startswith("Available options in"):
        choices = [line for line in lines[2:] if not line.startswith("_")]
        lines = [lines[0] + nearest(lines[0].split("'")[-2].split("/")[-1], choices)]
    return "\n  ".join(lines)
