"""Modules from outside the repository that register stage kinds, divergences, data sources, verifiers or templates.

`plugins: [my_lab.my_stage]` in an experiment names them. They are looked for beside the experiment file and in the
working directory, and their source is part of every fingerprint, with that of the modules beside it they import.
"""

import importlib
import modulefinder
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.errors import UserError

_loaded: dict[str, str] = {}  # module: SHA-256 of its source


def load(names: Iterable[str], folders: Iterable[Path] = ()) -> None:
    """Import the modules `names`, found in `folders`, in the working directory or where Python looks anyway."""
    names = [name for name in names if name not in _loaded]
    for folder in dict.fromkeys(str(path.resolve()) for path in (*map(Path, folders), Path.cwd()) if names):
        if folder not in sys.path:
            sys.path.append(folder)
            # Ranks and trials are processes of their own and must find the same module.
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), folder]))
    for name in names:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"plugins: {name}: {error}; plugins are looked for beside the experiment file, in the working "
                "directory and among the installed packages"
            ) from error
        except Exception as error:
            raise UserError(f"plugins: {name}: cannot be imported ({type(error).__name__}: {error})") from error
        _loaded[name] = _source_hash(name, Path(module.__file__))


def _source_hash(name: str, path: Path) -> str:
    """SHA-256 of a module's file and of those beside it that it imports; in a package, of all its Python files."""
    package = sys.modules[name.partition(".")[0]]
    if hasattr(package, "__path__"):
        folder = Path(next(iter(package.__path__)))
        sources = folder.rglob("*.py")
    else:
        folder, finder = path.parent, modulefinder.ModuleFinder([str(path.parent)], excludes=["mindspore_impl"])
        finder.run_script(str(path))
        sources = (Path(each.__file__) for each in finder.modules.values() if each.__file__)
    return files.sha256_json({str(each.relative_to(folder)): files.sha256_file(each) for each in sorted(sources)})


def loaded() -> dict[str, str]:
    """{module: SHA-256 of its source} of the plugins in use."""
    return dict(_loaded)


def check_loaded(names: Iterable[str]) -> None:
    """Refuse a configuration whose plugins are not imported. Reading a run imports nothing by itself."""
    if missing := [name for name in names if name not in _loaded]:
        raise UserError(
            f"plugins: this run uses {', '.join(missing)}; add --plugins {' '.join(missing)} to import "
            f"{'them' if len(missing) > 1 else 'it'} (their code runs with your rights)"
        )
