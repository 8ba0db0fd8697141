"""Compose conf/ with the user's overrides and YAML files through Hydra into plain data.

Hydra's own validation would let `+key=` typos pass and turn `true` into 'True' for a text field, so nothing is checked
here: the plain container is held against dataclasses by schema.py, one rule for YAML, `key=`, `+key=` and `++key=`.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.schema import nearest

_QUOTES = "'\""
_GLOBAL_GROUPS = ("experiment", "curriculum")  # their files set keys of the whole run
_GLOBAL = re.compile(r"(#.*\n)*#\s*@package\s+_global_\s*$", re.MULTILINE)
_KEY = re.compile(r"[+~]*[\w./@:-]+", re.ASCII)


def conf_folder() -> Path:
    """The folder of YAML files: beside the package in a clone, inside it in an installed wheel."""
    packaged = Path(__file__).resolve().with_name("conf")
    return packaged if packaged.is_dir() else packaged.parents[1] / "conf"


def compose(overrides: list[str], config_dir: Path | None = None) -> tuple[dict, list[Path]]:
    """The composed and resolved configuration as plain dicts and lists, and the folders of the user's own files.

    overrides: Hydra's syntax; the value of a group may also be the path of a YAML file (`experiment=mine.yaml`).
    config_dir: a folder with groups of the user's own (`experiment/mine.yaml`), in addition to conf/. Raises UserError
    for an override or a file that cannot be read, or a choice that does not exist.
    """
    from omegaconf import OmegaConf

    with _composed(overrides, config_dir) as (composed, sources):
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        for group in _GLOBAL_GROUPS:
            if group in plain:
                raise UserError(
                    f"{sources.files_without_package(group)}: this file sets keys below `{group}`; its first line must "
                    "be `# @package _global_`, so that they are keys of the whole run"
                )
    return plain, sources.folders


def compose_text(overrides: list[str], config_dir: Path | None = None, resolve: bool = False) -> str:
    """The composed configuration as YAML, with `${...}` resolved or not: Hydra's `--cfg job`."""
    from omegaconf import OmegaConf

    with _composed(overrides, config_dir) as (composed, _):
        return OmegaConf.to_yaml(composed, resolve=resolve)


@contextmanager
def override_parser(config_dir: Path | None = None) -> Iterator:
    """Hydra's parser of one override, `parse(text)`, whose glob() looks into conf/ and `config_dir`."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with _initialised(conf_folder(), [config_dir] if config_dir else []):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        yield lambda text: parser.parse_overrides([_quoted(parser, text)])[0]


@dataclass
class _Sources:
    """The overrides as Hydra takes them, and the user's own files behind them."""

    overlay: Path  # a temporary folder of groups; it wins over conf/
    overrides: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    files: dict[Path, Path] = field(default_factory=dict)  # file in the overlay: the user's file

    def add_file(self, path: Path, group: str) -> str:
        """Make the YAML file at `path` and those beside it choices of `group`; -> the name of its choice."""
        if not path.is_file():
            raise UserError(f"{group}={path}: no such file")
        target = self.overlay / group
        for beside in sorted(path.parent.glob("*.y*ml")):
            if not beside.samefile(path):
                self._copy(beside, target / f"{beside.stem}.yaml")
        name = f"from_file_{len(self.files)}"
        self._copy(path, target / f"{name}.yaml")
        self.folders.append(path.parent)
        return name

    def _copy(self, path: Path, target: Path) -> None:
        try:
            files.write_text(target, path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error
        self.files[target] = path

    def files_without_package(self, group: str) -> str:
        """The user's files of a global group that do not say so in their first lines."""
        own = [path for copied, path in self.files.items() if copied.parent.name == group]
        own += [path for folder in self.folders for path in sorted((folder / group).glob("*.yaml"))]
        return ", ".join(str(path) for path in own if not _GLOBAL.match(path.read_text(encoding="utf-8"))) or group

    def renamed(self, message: str) -> str:
        """A message of Hydra with the user's files in place of their copies."""
        for copied, path in self.files.items():
            message = message.replace(str(copied), str(path)).replace(f"{copied.parent.name}/{copied.stem}", str(path))
        return message


@contextmanager
def _composed(overrides: list[str], config_dir: Path | None) -> Iterator:
    from hydra import compose as hydra_compose

    with tempfile.TemporaryDirectory() as overlay:
        sources = _Sources(Path(overlay))
        search = [Path(config_dir)] if config_dir else []
        for own in search:
            if not own.is_dir():
                raise UserError(f"--config-dir: {own}: no such folder")
            for ours in conf_folder().glob("*/*.yaml"):
                file = own / ours.parent.name / ours.name
                if file.is_file() and not file.samefile(ours):
                    raise UserError(f"--config-dir: {file}: conf/ has a file of this name; rename yours")
        sources.folders += [folder for own in search for folder in (own, own / "experiment")]
        _read(overrides, [conf_folder(), *search], sources)
        primary = conf_folder()
        if sources.files:
            shutil.copyfile(primary / "config.yaml", sources.overlay / "config.yaml")
            primary, search = sources.overlay, [primary, *search]
        try:
            with as_user_errors("configuration"), _initialised(primary, search) as searched:
                yield hydra_compose("config", [*searched, *sources.overrides]), sources
        except UserError as error:
            raise UserError(sources.renamed(str(error))) from error


@contextmanager
def _initialised(primary: Path, search: list[Path]) -> Iterator[list[str]]:
    """Hydra with `primary` as its folder; yields the override that makes it look into the folders `search` too."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    quoted = ["'file://" + re.sub(r"(\\*')", r"\\\1", str(folder.resolve())) + "'" for folder in search]
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(primary)):
        yield [f"hydra.searchpath=[{','.join(quoted)}]"] if quoted else []


def _read(overrides: list[str], groups: list[Path], sources: _Sources) -> None:
    """Add overrides as Hydra takes them to `sources`, so that every form of a key reaches our own check.

    `key=value` becomes `++key=value` unless it chooses a group; a YAML file as a choice goes into the overlay.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    for text in overrides:
        key, equals, value = text.partition("=")
        bare = key.lstrip("+~").split("@")[0]
        if not equals and not text.startswith("~"):
            raise UserError(f"{text!r}: expected key=value (see --help)")
        if re.match(r"hydra\b", bare):
            raise UserError(f"{text}: Hydra's own settings have no effect here; use run_dir=, --multirun and --jobs")
        is_group = "@" in key or any((folder / bare).is_dir() for folder in groups)
        if is_group and value.strip(_QUOTES).endswith((".yaml", ".yml")):
            text = f"{key}={sources.add_file(Path(value.strip(_QUOTES)), bare)}"
        elif equals:
            text = _quoted(parser, text)
        sources.overrides.append(text if is_group or key.startswith("~") else "++" + text.lstrip("+"))


def _quoted(parser, text: str) -> str:
    """`text`, its value in quotes where Hydra's grammar needs them for a plain word (`=`, `#`, Chinese, apostrophe).

    Raises UserError for an override that Hydra cannot read.
    """
    from hydra.errors import HydraException

    key, _, value = text.partition("=")
    if not _KEY.fullmatch(key):
        raise UserError(f"{text}: a key on the command line has ASCII letters, digits and _ . / @ : - only")
    quote = '"' if "'" in value else "'"
    forms = [text] if set(value) & set('[]{}(),"') else [text, f"{key}={quote}{value}{quote}"]
    for form in forms:
        try:
            parser.parse_override(form)
            return form
        except HydraException as error:
            problem = error
    raise UserError(
        f"{text}: not an override as Hydra writes them; put words with special characters in quotes of their own, such "
        f"as {key}=\"'a,b'\" ({_readable(str(problem))})"
    ) from problem


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
