"""Kill runs at random moments, and compare their results with those of an undisturbed run.

A chain is one run of conf/experiment/rehearsal.yaml that is killed with SIGKILL once in each of its stages, at a random
moment or while a file is written, and started again with the same command; some run on several ranks.
"""

import contextlib
import itertools
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
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="ranks of the runs, in turn (1 2)")
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
    references = {count: Run(folder / f"reference_{count}", count, overrides) for count in workers}
    for reference in references.values():
        reference.undisturbed()
    done: list[Kill] = []
    for chain in itertools.count():
        reference = references[workers[chain % len(workers)]]
        victim = Run(folder / f"chain_{chain:02d}", reference.workers, overrides)
        done += _chain(chain, victim, reference.stages(), kills - len(done), source)
        files.write_json(folder / "chaos.json", {"seed": seed, "kills": [asdict(kill) for kill in done]})
        if len(done) >= kills:
            break
    kinds = Counter(kill.kind for kill in done)
    print("kills by kind of stage: " + ", ".join(f"{kind} {number}" for kind, number in sorted(kinds.items())))
    sizes = Counter(kill.workers for kill in done)
    print("kills by number of ranks: " + ", ".join(f"{count}: {number}" for count, number in sorted(sizes.items())))
    print(f"kills during a write: {sum(kill.during == 'write' for kill in done)}")
    same = sum(kill.identical for kill in done)
    print(f"{same} of {len(done)} identical", flush=True)
    if same < len(done):
        raise JobFailed("some results differ from those of the undisturbed run (see the lines above)")
    return done


@dataclass
class Run:
    """One run directory, which the same command starts again and again."""

    folder: Path
    workers: int
    overrides: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.workers} rank{'s' * (self.workers > 1)}"

    def start(self) -> subprocess.Popen:
        """Start the run; its output goes beside it."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        settings = [f"run_dir={self.folder}", f"runtime.workers={self.workers}", "runtime.threads=1", *self.overrides]
        command = processes.train_command(f"experiment={EXPERIMENT}", *settings)
        with open(f"{self.folder}.log", "ab") as log:
            return processes.start(command, signal.SIGKILL, log)

    def undisturbed(self) -> None:
        """Run to the end. Raises JobFailed when it fails by itself."""
        print(f"the undisturbed run on {self} ...", flush=True)
        started = time.monotonic()
        if code := self.start().wait():
            raise JobFailed(f"the undisturbed run failed with exit code {code}; see {self.folder}.log")
        names = list(self.stages())
        print(f"  {len(names)} stages in {time.monotonic() - started:.0f} s: {', '.join(names)}", flush=True)

    def stages(self) -> dict[str, dict]:
        """stage.json of each stage that has begun, and its `folder`, by name in order."""
        found = {}
        for path in sorted(self.folder.glob("stages/*/stage.json")):
            with contextlib.suppress(UserError):  # it is being written
                stage = files.read_json(path)
                found[stage["name"]] = stage | {"folder": path.parent}
        return found

    def temporary(self, folder: Path | None = None) -> set[str]:
        """The temporary files and folders below `folder` (default: the run directory)."""
        return {
            os.path.relpath(os.path.join(path, name), self.folder)
            for path, folders, names in os.walk(folder or self.folder)
            for name in (*folders, *names)
            if name.endswith(".tmp")
        }

    def ranks(self) -> dict[str, int]:
        """Pids of the live ranks of the newest launch, and of the msrun above them."""
        launches = sorted((self.folder / "logs").glob("*/launch.json"), key=lambda path: path.stat().st_mtime)
        found: dict[str, int] = {}
        for path in sorted(launches[-1].parent.glob("rank_*.json")) if launches else ():
            note = files.read_json(path)
            if "exit_code" not in note:
                found[path.stem.replace("_", " ")] = note["pid"]
                with contextlib.suppress(psutil.NoSuchProcess):
                    found["msrun"] = psutil.Process(note["pid"]).ppid()
        return {name: process for name, process in found.items() if process > 1}

    def wait_until_gone(self, process: subprocess.Popen) -> None:
        """Wait until every process of the run has ended: ranks whose launcher was killed save first."""
        deadline = time.monotonic() + LIMIT_SECONDS
        process.wait(LIMIT_SECONDS)
        while any(processes.is_alive(number) for number in self.ranks().values()):
            if time.monotonic() > deadline:
                raise JobFailed(f"{self.folder}: a rank outlives its launcher")
            time.sleep(0.05)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every result of a stage, without times.

    Of an export, its weights and what its graphs compute: MindSpore writes equal graphs as unequal files.
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
        lines = [line | {"tokens_per_second": None} for _, line in files.read_jsonl(folder / "metrics.jsonl")]
        found["metrics.jsonl"] = files.sha256_json(lines)
    if (folder / "package/parity.json").is_file():
        measured = files.read_json(folder / "package/parity.json")["packages"]
        times = ("seconds", "process_memory_bytes", "bytes")
        computed = {name: {k: v for k, v in each.items() if k not in times} for name, each in measured.items()}
        found["package/parity.json"] = files.sha256_json(computed)
    if not found:
        raise JobFailed(f"{folder}: holds no result")
    return found


def _chain(chain: int, run: Run, wanted: dict[str, dict], most: int, source: random.Random) -> list[Kill]:
    """One run, killed once in each of the first `most` stages of `wanted`, an undisturbed one, and then finished."""
    kills = []
    for number, stage in enumerate(list(wanted)[:most]):
        kill = Kill(chain, run.workers, stage, "write" if (number + chain) % 2 else "moment")
        process = run.start()
        try:
            _strike(process, run, kill, wanted, source)
        finally:
            run.wait_until_gone(process)
        if kill.victim:
            kills.append(kill)
        elif process.returncode:
            kill.note = f"the run failed by itself with exit code {process.returncode}; see {run.folder}.log"
            print(f"chain {chain}: {kill.note}", flush=True)
            return [*kills, kill]
    code, left = run.start().wait(), sorted(run.temporary())
    found = {name: stage["folder"] for name, stage in run.stages().items() if stage["status"] == "finished"}
    differing = [
        name for name, stage in wanted.items() if name not in found or digests(found[name]) != digests(stage["folder"])
    ]
    for kill in kills:
        kill.identical = not (code or differing or left)
        if not kill.identical:
            kill.note = f"exit code {code}; stages that differ: {', '.join(differing) or 'none'}"
            kill.note += f"; files left over: {', '.join(left)}" if left else ""
        print(
            f"chain {chain} ({run}): {kill.victim} killed in {kill.kind} {kill.stage} "
            f"after {kill.seconds:.2f} s ({kill.during}): {'identical' if kill.identical else 'DIFFERS, ' + kill.note}",
            flush=True,
        )
    return kills


def _strike(process: subprocess.Popen, run: Run, kill: Kill, wanted: dict[str, dict], source: random.Random) -> None:
    """Wait for the stage and the moment, then kill; record the victim in `kill`, unless the run had ended."""
    seconds, deadline = wanted[kill.stage]["seconds"], time.monotonic() + LIMIT_SECONDS
    while (stage := run.stages().get(kill.stage, {})).get("status") != "running":
        if process.poll() is not None or time.monotonic() > deadline:
            return
        time.sleep(0.02)
    begun = time.monotonic()
    if kill.during == "moment":
        moment = begun + source.uniform(0, seconds)
        while time.monotonic() < moment and process.poll() is None:
            time.sleep(0.01)
    else:
        for _ in range(source.randint(1, 4)):  # so many writes: a temporary name that was not there before
            before = run.temporary(stage["folder"])
            while process.poll() is None and time.monotonic() < begun + 2 * seconds:
                if run.temporary(stage["folder"]) - before:
                    break
                time.sleep(POLL_SECONDS)
    kill.seconds = time.monotonic() - begun
    victims = {"the process": process.pid} if run.workers == 1 else {"the launcher": process.pid, **run.ranks()}
    victim = source.choice(sorted(victims))
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victims[victim], signal.SIGKILL)
            kill.victim = victim
    kill.stage = next((name for name, now in reversed(run.stages().items()) if now["status"] == "running"), kill.stage)
    kill.kind = wanted[kill.stage]["kind"]
