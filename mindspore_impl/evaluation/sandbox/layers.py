"""Isolation layers: their list, the promises that they keep together, and how a process enters them.

A run uses every layer that `probe` found, and stops when one fails: no program runs with less than its result reports.
"""

import contextlib
import os
import select
import signal
import stat
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from mindspore_impl.evaluation.sandbox import syscalls

LAYERS = {
    "limits": "CPU time, memory, file size and open files (setrlimit)",
    "no new privileges": "set-user-id programs gain nothing (prctl)",
    "process namespace": "the program sees and signals only its own processes, and all end with it",
    "own root": "a root folder of Python and libraries, read-only, and a /tmp in memory (mount namespace)",
    "network namespace": "no network, no local sockets of others, no shared IPC",
    "own user": "a dedicated user id without rights (root only)",
    "process limit": "the number of processes and threads (setrlimit, which binds all users but root)",
    "landlock": "files: Python's are readable, the private folder is usable, nothing else can be opened",
    "landlock signals": "no signals to processes outside (Landlock 6)",
    "system call filter": "no sockets, namespaces, mounts, tracing (seccomp)",
}
_NAMESPACES = {
    "process namespace": syscalls.CLONE_NEWPID,
    "own root": syscalls.CLONE_NEWNS,
    "network namespace": syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS,
}
# A promise holds when all layers of one of its tuples work.
PROMISES = {
    "files": [("own root",), ("landlock",)],
    "network": [("network namespace",), ("system call filter",)],
    "processes": [("process namespace",), ("own user",), ("landlock signals", "system call filter")],
    "limits": [("limits", "process limit", "no new privileges")],
}
_FIRST_USER = 0x70000000  # user ids that no account has
SETUP_SECONDS = 60.0


def missing_promises(layers: Collection[str]) -> list[str]:
    """The keys of PROMISES that `layers` do not keep."""
    return [name for name, ways in PROMISES.items() if not any(set(way) <= set(layers) for way in ways)]


def spawn(job: dict, folder: Path, keep: Sequence[int], body: Callable[[], None]) -> int:
    """Run `body` in a new process inside the "layers" of `job`, and return once it has entered them.

    job["limits"]: in bytes, seconds and counts. folder: empty and private, the mount point of the new root with "own
    root", else the body's working folder. keep: file descriptors that become 0, 1, ... inside; all others are closed.
    Returns the id of the process to wait for; its exit code is the body's, or 128 + the signal that ended the body.
    Raises OSError when a layer cannot be entered; nothing of `body` has run then.
    """
    ready, told = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        _never_returns(lambda: _outermost(job, folder, keep, told, body), told)
    os.close(told)
    said = os.read(ready, 4096) if select.select([ready], [], [], SETUP_SECONDS)[0] else b""
    os.close(ready)
    if said != b"inside":
        os.kill(keeper, signal.SIGKILL)
        os.waitpid(keeper, 0)
        raise OSError(said.decode(errors="replace") or "a process could not be prepared in time")
    return keeper


def _never_returns(work: Callable[[], None], told: int) -> None:
    code = 71
    try:
        work()
        code = 0
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(told, f"{type(error).__name__}: {error}".encode()[:4000])
    finally:
        os._exit(code)


def _outermost(job, folder, keep, told, body) -> None:
    layers, limits = job["layers"], job["limits"]
    syscalls.die_with_parent()
    os.setsid()
    syscalls.show_memory()  # briefly: the files below belong to root while it is hidden
    Path("/proc/self/oom_score_adj").write_text("1000")  # when memory runs out, the program is killed first
    user = _FIRST_USER + os.getpid() if "own user" in layers else os.geteuid()
    flags = sum(flag for name, flag in _NAMESPACES.items() if name in layers)
    # The process limit counts each user namespace separately since Linux 5.14.
    separately = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2]) >= (5, 14)
    before = 0 if user >= _FIRST_USER or flags and os.geteuid() and separately else _threads_of(user)
    if flags:
        syscalls.unshare(flags)
    syscalls.hide_memory()
    limits = limits | {"processes": limits["processes"] + before}

    def innermost() -> None:
        _confine(layers, folder, limits, user)
        _keep_only([*keep, told])
        os.write(len(keep), b"inside")
        os.close(len(keep))
        body()

    if "process namespace" in layers:
        # The first process of the namespace stays outside of the other layers: the program cannot signal or trace it,
        # and everything in the namespace ends with it.
        _stand_in_for(lambda: _stand_in_for(innermost, told), told)
    _stand_in_for(innermost, told)


def _stand_in_for(work: Callable[[], None], told: int) -> None:
    """Run `work` in a child and exit with its exit code."""
    child = os.fork()
    if child == 0:
        syscalls.die_with_parent()
        _never_returns(work, told)
    os.closerange(0, 4096)  # readers of the program's output must see its end
    _, status = os.waitpid(child, 0)
    os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


def _confine(layers: list[str], folder: Path, limits: dict, user: int) -> None:
    """Move this process, alone in its namespaces, into the layers and its private working folder."""
    if "own root" in layers:
        syscalls.enter_new_root(folder, limits["disk"], user)
        home = "/tmp"
    else:
        home = str(folder)
        os.chown(home, user, -1)
        os.chdir(home)
    rules = syscalls.landlock_rules(home) if "landlock" in layers else None
    names = {"AS": "memory", "FSIZE": "file", "NOFILE": "open_files", "NPROC": "processes"}
    for name, key in names.items():
        syscalls.limit(name, limits[key])
    for name in ("CORE", "MEMLOCK", "MSGQUEUE"):
        syscalls.limit(name, 0)
    syscalls.limit("CPU", limits["cpu_seconds"], grace=1)
    if os.geteuid() == 0 or "own root" in layers:
        if "own user" in layers:
            syscalls.become(user)
        syscalls.drop_capabilities()
    syscalls.no_new_privileges()
    syscalls.hide_memory()
    syscalls.die_with_parent()
    if rules is not None:
        syscalls.landlock(rules)
    if "system call filter" in layers:
        syscalls.filter_system_calls()
    os.umask(0o077)
    os.environ.clear()
    os.environ.update(HOME=home, TMPDIR=home, PATH="/usr/bin:/bin", LANG="C.UTF-8")


def _keep_only(handles: list[int]) -> None:
    """Renumber file descriptors to 0, 1, ... in this order, and close all others."""
    free = max(*handles, len(handles)) + 1
    for number, handle in enumerate(handles):
        os.dup2(handle, free + number)
    for number in range(len(handles)):
        os.dup2(free + number, number)
    os.closerange(len(handles), 4096)


def _of_processes(read: Callable[[Path], int]) -> dict[int, int]:
    """{process id: read(its folder in /proc)}, without those that end meanwhile."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                found[int(entry.name)] = read(entry)
    return found


def _threads_of(user: int) -> int:
    """Number of threads of `user`: the process limit counts them where the user is shared."""
    count = _of_processes(lambda entry: len(os.listdir(entry / "task")) if entry.stat().st_uid == user else 0)
    return sum(count.values())


def kill_user_of(keeper: int) -> None:
    """Kill at once every process of the user id that "own user" gave to the process `keeper`."""
    if (child := os.fork()) == 0:
        try:
            syscalls.become(_FIRST_USER + keeper)
            os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def kill_descendants() -> None:
    """Kill and reap every child of this process, adopted orphans included; their number is limited."""
    while True:
        for child in children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def children() -> list[int]:
    """The ids of this process's children."""
    me = os.getpid()
    try:
        return [int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()]
    except OSError:  # a kernel without this list
        parents = _of_processes(lambda entry: int((entry / "stat").read_text().rpartition(")")[2].split()[1]))
        return [pid for pid, parent in parents.items() if parent == me]


def remove_tree(folder: Path) -> None:
    """Remove a private folder that a hostile program has filled: unreadable folders, links, any depth.

    Links are removed, never followed. Folders are moved to the top before they are emptied, so that depth costs neither
    path length nor file descriptors. All processes of the program are dead.
    """
    if folder.is_symlink():
        folder.unlink()
        return
    top = _open_folder(str(folder), None)
    waiting = _empty_of_files(top)
    while waiting:
        emptied = waiting.pop()
        inner = _open_folder(emptied, top)
        for name in _empty_of_files(inner):
            os.chmod(name, 0o700, dir_fd=inner)  # a folder that changes its parent must be writable
            waiting.append(os.urandom(16).hex())
            os.rename(name, waiting[-1], src_dir_fd=inner, dst_dir_fd=top)
        os.close(inner)
        os.rmdir(emptied, dir_fd=top)
    os.close(top)
    os.rmdir(folder)


def _open_folder(name: str, parent: int | None) -> int:
    """Open a folder whatever its permissions."""
    os.chmod(name, 0o700, dir_fd=parent)
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)


def _empty_of_files(handle: int) -> list[str]:
    """Remove everything but folders; return the names of the folders."""
    folders = []
    for name in os.listdir(handle):
        if stat.S_ISDIR(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode):
            folders.append(name)
        else:
            os.unlink(name, dir_fd=handle)
    return folders


def probe(folder: Path) -> dict[str, str]:
    """{layer: "" where it works, else the reason}; each layer is entered by a throwaway process."""
    if os.uname().sysname != "Linux":
        return dict.fromkeys(LAYERS, "Linux only")
    found: dict[str, str] = {}
    for name in LAYERS:
        found[name] = _reason(name, folder, found)
    working = [name for name, reason in found.items() if not reason]
    if reason := _attempt(working, folder):  # they work one by one, but not together
        found |= {name: f"not together with the others: {reason}" for name in _NAMESPACES if not found[name]}
        found["own user"] = found["own user"] or _attempt(["own user"], folder)
    return found


def _reason(name: str, folder: Path, found: dict[str, str]) -> str:
    """Why the layer does not work here; `found` has the layers before it in LAYERS."""
    root = os.geteuid() == 0
    if name == "own user":
        # Python may be in a folder that no other user can enter; a new root contains it all the same.
        around = [name] if found["own root"] else ["own root", name]
        return _attempt(around, folder) if root else "only root can change its user"
    if name == "process limit":
        return "it does not bind root, and 'own user' does not work" if root and found["own user"] else ""
    if name == "landlock signals":
        version = 0 if found["landlock"] else syscalls.landlock_version()
        return "" if version >= 6 else found["landlock"] or f"the kernel has Landlock {version}"
    return _attempt([name], folder)


def _attempt(layers: list[str], folder: Path) -> str:
    limits = {"cpu_seconds": 10, "memory": 1 << 30, "file": 1 << 20, "disk": 1 << 20, "open_files": 64, "processes": 9}
    blank = os.open("/dev/null", os.O_RDWR)
    try:
        job = {"layers": layers, "limits": limits}
        _, status = os.waitpid(spawn(job, folder, [blank], _can_import), 0)
        return "" if status == 0 else "Python cannot read its own library there"
    except OSError as error:
        return str(error)
    finally:
        os.close(blank)
        os.chown(folder, os.geteuid(), -1)


def _can_import() -> None:
    import fractions  # noqa: F401 (not imported before: it must be read from inside)
