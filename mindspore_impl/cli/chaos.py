"""Kill runs at random moments, and compare their results with those of an undisturbed run.

A chain is one run of conf/experiment/rehearsal.yaml that is killed with SIGKILL once in each of its stages and started
again with the same command each time. Half of the kills come at a random moment, the others while a file is written.
Some of the chains run on several ranks, where one of the processes is killed.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from mindspore_impl import checkpoint, files
from mindspore_impl.cli.command import command, make_parser
from mindspore_impl.distributed import processes
from mindspore_impl.errors import JobFailed, UserError

EXPERIMENT = "rehearsal"
POLL_SECONDS = 0.002  # a small file is written in milliseconds
LIMIT_SECONDS = 600  # for a stage to begin, or a killed job to be gone


@dataclass
class Kill:
    """One SIGKILL: the planned stage and moment, then the process and stage that it hit."""

    chain: int
    workers: int
    stage: str
    during: str  # moment | write
    victim: str = ""
    kind: str = ""  # of the stage that was running
    seconds: float = 0.0  # after the stage had begun
    identical: bool = False
    note: str = ""


@dataclass
class Reference:
    """Results and times of an undisturbed run."""

    digests: dict[str, dict[str, str]]  # by stage in their order, by file
    seconds: dict[str, float]
    kinds: dict[str, str]


@command
def main(arguments: list[str]) -> None:
    """Kill a small run in each of its stages, and verify that its results do not change."""
    parser = make_parser(
        "Kill a small run with SIGKILL in each of its stages, at random moments and in the middle of writes, start it\n"
        "again with the same command, and compare its results with those of an undisturbed run.\n"
        "The last line says how many of the kills changed nothing; exit code 1 unless all.",
        "python tools/chaos.py --kills 50",
    )
    parser.add_argument("--kills", type=int, default=16, metavar="N", help="at least this many (default 16)")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2], help="ranks of the runs in turn (default 1 2)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="for the runs and their logs; default: a new one in outputs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the run, as in train.py")
    options = parser.parse_intermixed_args(arguments)
    folder = options.folder or Path("outputs") / f"chaos_{time.strftime('%Y%m%d-%H%M%S')}"
    run(options.kills, options.workers, folder, options.seed, tuple(options.overrides))


def run(kills: int, workers: list[int], folder: Path, seed: int = 0, overrides: tuple[str, ...] = ()) -> list[Kill]:
    """Do at least `kills` kills in chains of runs; print a line for each and a summary.

    Args:
        kills: how many at least; each chain kills once a stage.
        workers: ranks of the chains, in turn.
        folder: new or empty; gets the runs, their logs and chaos.json.
        seed: of the moments and victims.
        overrides: of every run.

    Raises JobFailed unless every final result is identical to that of the undisturbed run.
    """
    if kills < 1 or min(workers) < 1:
        raise UserError("chaos: --kills and --workers must be 1 or more")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; choose another --folder, or remove it")
    source = random.Random(seed)
    references = {count: _undisturbed(folder / f"reference_{count}", count, overrides) for count in workers}
    done: list[Kill] = []
    chain = 0
    while len(done) < kills:
        count = workers[chain % len(workers)]
        stages = list(references[count].kinds)[: kills - len(done)]
        done += _chain(folder / f"chain_{chain:02d}", chain, count, stages, references[count], overrides, source)
        files.write_json(folder / "chaos.json", {"seed": seed, "kills": [asdict(kill) for kill in done]})
        chain += 1
    _summarise(done)
    return done


def _summarise(done: list[Kill]) -> None:
    kinds = Counter(kill.kind for kill in done)
    print("kills by kind of stage: " + ", ".join(f"{kind} {number}" for kind, number in sorted(kinds.items())))
    sizes = Counter(kill.workers for kill in done)
    print("kills by number of ranks: " + ", ".join(f"{count}: {number}" for count, number in sorted(sizes.items())))
    print(f"kills during a write: {sum(kill.during == 'write' for kill in done)}")
    same = sum(kill.identical for kill in done)
    print(f"{same} of {len(done)} identical", flush=True)
    if same < len(done):
        raise JobFailed("some results differ from those of the undisturbed run (see the lines above)")


def _command(run_dir: Path, workers: int, overrides: tuple[str, ...]) -> list[str]:
    settings = [f"experiment={EXPERIMENT}", f"run_dir={run_dir}", f"runtime.workers={workers}", "runtime.threads=1"]
    return processes.train_command(*settings, *overrides)


def _start(run_dir: Path, workers: int, overrides: tuple[str, ...]) -> subprocess.Popen:
    """Start the run; its output goes beside it."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{run_dir}.log", "ab") as log:
        return processes.start(_command(run_dir, workers, overrides), signal.SIGKILL, log)


def _undisturbed(run_dir: Path, workers: int, overrides: tuple[str, ...]) -> Reference:
    print(f"the undisturbed run on {workers} rank{'s' * (workers > 1)} ...", flush=True)
    started = time.monotonic()
    code = _start(run_dir, workers, overrides).wait()
    if code:
        raise JobFailed(f"the undisturbed run failed with exit code {code}; see {run_dir}.log")
    stages = _stages(run_dir)
    names = ", ".join(stage["name"] for stage in stages.values())
    print(f"  {len(stages)} stages in {time.monotonic() - started:.0f} s: {names}", flush=True)
    return Reference(
        {stage["name"]: digests(path) for path, stage in stages.items()},
        {stage["name"]: stage["seconds"] for stage in stages.values()},
        {stage["name"]: stage["kind"] for stage in stages.values()},
    )


def _stages(run_dir: Path) -> dict[Path, dict]:
    """stage.json of each stage that has begun, by folder, in order."""
    return {path.parent: files.read_json(path) for path in sorted(run_dir.glob("stages/*/stage.json"))}


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every result of a stage, without times.

    An export counts by its weights and by what its graphs compute: MindSpore names a graph's nodes by what its process
    has compiled before, so equal graphs are unequal files.
    """
    found = {}
    if (folder / "checkpoints").is_dir():
        last = checkpoint.selected(folder / "checkpoints", "last")
        found = {"weights": files.sha256_file(last.weights_path), "optimizer": files.sha256_file(last.optimizer_path)}
    names = ("rollouts.jsonl", "samples.jsonl", "store/*", "package/weights.safetensors", "package/tokenizer.model")
    for name in names:
        for path in sorted(folder.glob(name)):
            if not path.name.startswith("."):
                found[str(path.relative_to(folder))] = files.sha256_file(path)
    if (folder / "metrics.jsonl").is_file():
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        for line in lines:
            line.pop("tokens_per_second", None)
        found["metrics.jsonl"] = files.sha256_json(lines)
    if (folder / "package/parity.json").is_file():
        measured = files.read_json(folder / "package/parity.json")["packages"]
        times = ("seconds", "process_memory_bytes", "bytes")
        computed = {name: {k: v for k, v in each.items() if k not in times} for name, each in measured.items()}
        found["package/parity.json"] = files.sha256_json(computed)
    if not found:
        raise JobFailed(f"{folder}: holds no result")
    return found


def _chain(
    run_dir: Path,
    chain: int,
    workers: int,
    stages: list[str],
    reference: Reference,
    overrides: tuple[str, ...],
    source: random.Random,
) -> list[Kill]:
    """One run, killed once in each of `stages`, which then runs to its end."""
    kills = []
    for number, stage in enumerate(stages):
        kill = Kill(chain, workers, stage, "write" if (number + chain) % 2 else "moment")
        process = _start(run_dir, workers, overrides)
        try:
            _strike(process, run_dir, kill, reference, source)
        finally:
            _wait_until_gone(process, run_dir)
        if kill.victim:
            kills.append(kill)
        elif process.returncode:
            kill.note = f"the run failed by itself with exit code {process.returncode}; see {run_dir}.log"
            print(f"chain {chain}: {kill.note}", flush=True)
            return [*kills, kill]
    code = _start(run_dir, workers, overrides).wait()
    found = {stage["name"]: path for path, stage in _stages(run_dir).items() if stage["status"] == "finished"}
    same = {name: name in found and digests(found[name]) == reference.digests[name] for name in reference.kinds}
    whole = code == 0 and all(same.values()) and not (left := _leftovers(run_dir))
    for kill in kills:
        kill.identical = whole
        if not whole:
            differing = [name for name, equal in same.items() if not equal]
            kill.note = f"exit code {code}; stages that differ: {', '.join(differing) or 'none'}"
            kill.note += f"; files left over: {', '.join(left)}" if code == 0 and not differing else ""
        print(
            f"chain {chain} ({workers} rank{'s' * (workers > 1)}): {kill.victim} killed in {kill.kind} {kill.stage} "
            f"after {kill.seconds:.2f} s ({kill.during}): {'identical' if kill.identical else 'DIFFERS, ' + kill.note}",
            flush=True,
        )
    return kills


def _strike(process: subprocess.Popen, run_dir: Path, kill: Kill, reference: Reference, source: random.Random) -> None:
    """Wait for the stage and the moment, then kill; record the victim in `kill`, unless the run had ended."""
    wanted, deadline = kill.stage, time.monotonic() + LIMIT_SECONDS
    while (folder := _running(run_dir, wanted)) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            return
        time.sleep(0.02)
    begun = time.monotonic()
    if kill.during == "moment":
        delay = source.uniform(0, reference.seconds[wanted])
        while time.monotonic() < begun + delay and process.poll() is None:
            time.sleep(0.01)
    else:
        for _ in range(source.randint(1, 4)):
            _await_write(process, folder, begun + 2 * reference.seconds[wanted])
    kill.seconds = time.monotonic() - begun
    kill.victim = _hit(process, run_dir, kill.workers, source)
    now = [stage for stage in _stages(run_dir).values() if stage["status"] == "running"]
    kill.stage = now[-1]["name"] if now else wanted
    kill.kind = reference.kinds[kill.stage]


def _running(run_dir: Path, name: str) -> Path | None:
    """The stage's folder while it runs."""
    for path in run_dir.glob(f"stages/*_{name}/stage.json"):
        with contextlib.suppress(UserError):
            stage = files.read_json(path)
            if stage["name"] == name and stage["status"] == "running":
                return path.parent
    return None


def _await_write(process: subprocess.Popen, folder: Path, deadline: float) -> None:
    """Return when a temporary file or folder appears below `folder` that was not there before, or at the deadline."""
    before = set(_temporary(folder))
    while process.poll() is None and time.monotonic() < deadline:
        if set(_temporary(folder)) - before:
            return
        time.sleep(POLL_SECONDS)


def _temporary(folder: Path) -> list[str]:
    found = []
    for path, folders, names in os.walk(folder):
        found += [os.path.join(path, name) for name in (*folders, *names) if name.endswith(".tmp")]
    return found


def _leftovers(run_dir: Path) -> list[str]:
    return [os.path.relpath(path, run_dir) for path in _temporary(run_dir)]


def _hit(process: subprocess.Popen, run_dir: Path, workers: int, source: random.Random) -> str:
    """Kill one of the run's processes; return its name, or "" when it had ended."""
    victims = {"the process" if workers == 1 else "the launcher": process.pid}
    if workers > 1:
        victims |= _rank_processes(run_dir)
    name = source.choice(sorted(victims))
    if process.poll() is not None:
        return ""
    with contextlib.suppress(ProcessLookupError):
        os.kill(victims[name], signal.SIGKILL)
        return name
    return ""


def _rank_processes(run_dir: Path) -> dict[str, int]:
    """Pids of the live ranks of the newest launch, and of the msrun above them."""
    launches = sorted((run_dir / "logs").glob("*/launch.json"), key=lambda path: path.stat().st_mtime)
    found: dict[str, int] = {}
    for path in sorted(launches[-1].parent.glob("rank_*.json")) if launches else ():
        note = files.read_json(path)
        if "exit_code" not in note:
            found[path.stem.replace("_", " ")] = note["pid"]
            with contextlib.suppress(psutil.NoSuchProcess):
                found["msrun"] = psutil.Process(note["pid"]).ppid()
    return {name: process for name, process in found.items() if process > 1}


def _wait_until_gone(process: subprocess.Popen, run_dir: Path) -> None:
    """Wait until every process of the run has ended: ranks whose launcher was killed save first."""
    deadline = time.monotonic() + LIMIT_SECONDS
    process.wait(LIMIT_SECONDS)
    while any(processes.is_alive(number) for number in _rank_processes(run_dir).values()):
        if time.monotonic() > deadline:
            raise JobFailed(f"{run_dir}: a rank outlives its launcher")
        time.sleep(0.05)
