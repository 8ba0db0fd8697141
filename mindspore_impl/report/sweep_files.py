"""The record sweep.json: what a sweep varies and the state of each trial. Written by the sweep, read by its report."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.schema import build, renamed, upgrade, versioned

FILE = "sweep.json"
FINAL = "final"  # in a metric: the stage that a run evaluated last, whatever its name
WAITING, RUNNING, FINISHED, FAILED = "waiting", "running", "finished", "failed"


@dataclass
class Trial:
    """One run of a sweep."""

    number: int  # from 1
    name: str  # a short form of its choices, such as "kd_weight=0.9, seed=1"
    group: str  # the same without its seed
    folder: str  # its run directory, below the sweep's
    overrides: list[str]  # its choices
    config: str = ""  # hash of its stages' fingerprints
    status: str = WAITING
    seconds: float = 0.0
    metric: float | None = None
    error: str | None = None  # one message


@dataclass
class Sweep:
    """The record of a sweep. `name`, `fixed` and `space` identify it."""

    name: str  # of the experiment
    fixed: list[str]  # overrides that all trials share, without run_dir and runtime
    space: dict[str, str]  # what is varied: key, and how ("list", or an interval)
    metric: str | None = None
    direction: str = "maximize"
    compare: dict[str, list[str]] = field(default_factory=dict)  # name: references, as in SweepOptions
    labels: dict[str, str] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)


def write_sweep(folder: str | Path, sweep: Sweep) -> None:
    """Write `folder`/sweep.json."""
    files.write_json(Path(folder) / FILE, versioned(files.jsonable(asdict(sweep))))


def is_sweep(folder: str | Path) -> bool:
    """Whether the folder holds a sweep."""
    return (Path(folder) / FILE).is_file()


def read_sweep(folder: str | Path) -> Sweep:
    """Read `folder`/sweep.json. Raises UserError when it is missing, damaged or of another version."""
    path = Path(folder) / FILE
    content = files.read_json(path)
    if not isinstance(content, dict) or "schema" not in content:
        raise UserError(f"{path}: not a sweep's record")
    old = content["schema"] == 1
    try:
        sweep = build(Sweep, upgrade(content), "")
    except UserError as error:
        raise UserError(f"{path}: damaged ({' '.join(str(error).split())})") from error
    if old:
        sweep.fixed, sweep.space = sorted(map(_renamed, sweep.fixed)), {_renamed(k): v for k, v in sweep.space.items()}
    for trial in sweep.trials:
        if old:
            trial.overrides = list(map(_renamed, trial.overrides))
        files.inside(folder, trial.folder)
    return sweep


def _renamed(override: str) -> str:
    """An override, or its key alone, in the keys of today."""
    signs = override[: len(override) - len(override.lstrip("+~"))]
    key, equals, value = override[len(signs) :].partition("=")
    return signs + (renamed(key) or key) + equals + value
