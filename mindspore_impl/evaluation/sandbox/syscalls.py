"""System calls of the isolation layers, through ctypes: namespaces, a new root, Landlock, seccomp, limits.

Linux on x86_64 and aarch64; elsewhere each call raises OSError, and the layer is reported as missing. Numbers and
structures: the kernel's include/uapi (unistd.h, landlock.h, seccomp.h, filter.h, capability.h, mount.h).
"""

import ctypes
import errno
import os
import resource
import struct
import sys
from functools import partial
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
ANY_NAMESPACE = 0x7E020000  # the seven of clone(2)

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 8, 32, 4096
_MS_REC, _MS_PRIVATE, _MS_RELATIME = 16384, 1 << 18, 1 << 21
# statvfs uses the MS_ flags except for relatime; a user namespace may not drop the flags of the mount it copies.
_KEPT_FLAGS = {_MS_NOSUID: _MS_NOSUID, _MS_NODEV: _MS_NODEV, _MS_NOEXEC: _MS_NOEXEC, 1024: 1024, 2048: 2048,
               4096: _MS_RELATIME}  # fmt: skip
_MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47
_SECCOMP_MODE_FILTER, _SECCOMP_ALLOW, _SECCOMP_ERRNO, _SECCOMP_KILL = 2, 0x7FFF0000, 0x00050000, 0x80000000

# name: (x86_64, aarch64); numbers from 424 on are the same on both.
_CALLS = {
    "clone": (56, 220), "clone3": (435, 435), "socket": (41, 198), "pivot_root": (155, 41),
    "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445), "landlock_restrict_self": (446, 446),
    "capset": (126, 91), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fspick": (433, 433),
    "mount_setattr": (442, 442), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "kexec_load": (246, 104),
    "init_module": (175, 105), "finit_module": (313, 273), "memfd_create": (319, 279), "shmget": (29, 194),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
}  # fmt: skip
# A program that only computes needs none of these: sockets, namespaces, mounts, other processes' memory, kernel
# administration, and memory outside the process limits.
_DENIED = [name for name in _CALLS if name not in {"clone", "clone3", "capset"} and not name.startswith("landlock")]
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of _CALLS, AUDIT_ARCH_*

_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")  # that a program may use

_libc = ctypes.CDLL(None, use_errno=True)


def _machine() -> tuple[int, int]:
    """The entry of _MACHINES for this machine. Raises OSError."""
    if os.uname().machine not in _MACHINES:
        raise OSError(errno.ENOSYS, f"system calls of {os.uname().machine} are not listed")
    return _MACHINES[os.uname().machine]


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _syscall(name: str, *arguments) -> int:
    return _checked(_libc.syscall(ctypes.c_long(_CALLS[name][_machine()[0]]), *arguments), name)


def prctl(option: int, *arguments: int) -> None:
    """Change a property of this process. Raises OSError."""
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    _checked(_libc.prctl(option, *padded), f"prctl {option}")


# The kernel kills this process when its parent thread ends; a change of user resets this.
die_with_parent = partial(prctl, PR_SET_PDEATHSIG, 9)
# Whether other processes of this user may trace this one and read its /proc entries.
hide_memory, show_memory = partial(prctl, PR_SET_DUMPABLE, 0), partial(prctl, PR_SET_DUMPABLE, 1)
# Orphaned descendants become children of this process, so that they can be found and killed.
adopt_orphans = partial(prctl, PR_SET_CHILD_SUBREAPER, 1)
# No escalation on exec (set-user-id files, file capabilities).
no_new_privileges = partial(prctl, PR_SET_NO_NEW_PRIVS, 1)


def unshare(flags: int) -> None:
    """Move this process into new namespaces; without root also a user namespace that owns them. Raises OSError."""
    uid, gid = os.geteuid(), os.getegid()
    if uid != 0:
        flags |= CLONE_NEWUSER
    _checked(_libc.unshare(flags), "unshare")
    if uid != 0:
        for name, text in {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}.items():
            Path(f"/proc/self/{name}").write_text(text)


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _checked(_libc.mount(*arguments), f"mount {target}")


def _bind(source: str, root: Path, read_only: bool) -> None:
    target = f"{root}{source}"
    os.makedirs(target if os.path.isdir(source) else os.path.dirname(target), exist_ok=True)
    if not os.path.isdir(source):
        Path(target).touch()
    _mount(source, target, "", _MS_BIND | _MS_REC)
    if read_only:
        there = os.statvfs(target).f_flag
        kept = sum(flag for bit, flag in _KEPT_FLAGS.items() if there & bit)
        _mount("", target, "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | kept)


def readable_folders() -> list[str]:
    """Folders that Python needs to read: its own prefix and the system's libraries, without links and duplicates."""
    prefix = os.path.realpath(sys.base_prefix)
    own = [f"{prefix}/lib", f"{prefix}/bin"] if prefix != "/usr" else []
    wanted = ["/usr", "/lib", "/lib64", *own]
    return [path for path in wanted if os.path.isdir(path) and (path == "/usr" or not path.startswith("/usr/"))]


def enter_new_root(folder: Path, disk_bytes: int, owner: int) -> None:
    """Change to a new root on the empty `folder`.

    It has Python and its libraries (read-only), /dev/null, and a /tmp of `disk_bytes` in memory that belongs to the
    user id `owner`. Requires a mount namespace that this process is alone in. Raises OSError.
    """
    _mount("", "/", "", _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", str(folder), "tmpfs", _MS_NOSUID | _MS_NODEV, "size=256k,mode=755")
    for path in readable_folders():
        if os.path.islink(path):
            os.symlink(os.readlink(path), f"{folder}{path}")
        else:
            _bind(path, folder, read_only=True)
    for device in _DEVICES:
        _bind(device, folder, read_only=False)
    os.mkdir(f"{folder}/tmp")
    options = f"size={disk_bytes},nr_inodes={max(256, disk_bytes >> 14)},mode=700,uid={owner}"
    _mount("tmpfs", f"{folder}/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, options)
    os.chdir(folder)
    _syscall("pivot_root", b".", b".")
    _checked(_libc.umount2(b".", _MNT_DETACH), "umount2")
    _mount("", "/", "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.chdir("/tmp")


def landlock_version() -> int:
    """The kernel's Landlock version: 1 files, 4 adds TCP, 6 adds signals. Raises OSError without Landlock."""
    return _syscall("landlock_create_ruleset", None, ctypes.c_size_t(0), ctypes.c_uint32(1))


def landlock_rules(writable: str) -> int:
    """Create a rule set and return its file descriptor. Raises OSError.

    Python's folders are readable, `writable` is fully usable, nothing else can be opened; TCP and signals to processes
    outside are refused where the kernel supports it.
    """
    version = landlock_version()
    write_file, read_file, read_folder, truncate, device = 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
    every = (1 << 13) - 1  # version 1: all up to MAKE_SYM
    every |= (1 << 13 if version >= 2 else 0) | (truncate if version >= 3 else 0) | (device if version >= 5 else 0)
    attributes = struct.pack("QQQ", every, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _syscall("landlock_create_ruleset", attributes, ctypes.c_size_t(size), ctypes.c_uint32(0))
    allowed = {path: 1 | read_file | read_folder for path in [*readable_folders(), "/etc/ld.so.cache"]}
    allowed |= {path: read_file | write_file for path in _DEVICES}
    allowed[writable] = every
    for path, access in allowed.items():
        if os.path.exists(path):
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            access &= every if os.path.isdir(path) else 1 | write_file | read_file
            _syscall("landlock_add_rule", rules, 1, struct.pack("=Qi", access, handle), ctypes.c_uint32(0))
            os.close(handle)
    return rules


def landlock(rules: int) -> None:
    """Restrict this process and its descendants to `rules` permanently. Raises OSError."""
    _syscall("landlock_restrict_self", rules, ctypes.c_uint32(0))
    os.close(rules)


def drop_capabilities() -> None:
    """Drop every capability permanently, those of a user namespace included. Raises OSError."""
    for number in range(64):
        try:
            prctl(PR_CAPBSET_DROP, number)
        except OSError:
            break  # past the last capability, or none to drop
    prctl(PR_CAP_AMBIENT, 4)
    _syscall("capset", struct.pack("Ii", 0x20080522, 0), struct.pack("6I", 0, 0, 0, 0, 0, 0))


def become(user: int) -> None:
    """Change to the user and group id `user`, which needs no account, without other groups. Raises OSError."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def filter_system_calls() -> None:
    """Refuse _DENIED with EPERM for this process and its descendants. Requires `no_new_privileges`. Raises OSError."""
    column, architecture = _machine()
    load, equal, greater, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    refuse = _SECCOMP_ERRNO | errno.EPERM
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, _SECCOMP_KILL), (load, 0, 0, 0)]
    if column == 0:
        program += [(greater, 0, 1, 0x40000000), (give, 0, 0, refuse)]  # the x32 numbers
    for name in _DENIED:
        program += [(equal, 0, 1, _CALLS[name][column]), (give, 0, 0, refuse)]
    # clone3 passes its flags by pointer; C libraries fall back to clone when it is absent.
    program += [(equal, 0, 1, _CALLS["clone3"][column]), (give, 0, 0, _SECCOMP_ERRNO | errno.ENOSYS)]
    program += [(equal, 0, 3, _CALLS["clone"][column]), (load, 0, 0, 16)]
    program += [(any_bit, 0, 1, ANY_NAMESPACE), (give, 0, 0, refuse), (give, 0, 0, _SECCOMP_ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(header))


def limit(name: str, value: int, grace: int = 0) -> None:
    """Lower a resource limit to `value`, and its hard limit to `value + grace`. Never raises a limit."""
    kind = getattr(resource, f"RLIMIT_{name}")
    _, hard = resource.getrlimit(kind)
    top = value + grace if hard == resource.RLIM_INFINITY else min(value + grace, hard)
    resource.setrlimit(kind, (min(value, top), top))
