"""What keeps an agent's process in: namespaces of its own where Linux allows, limits everywhere.

Inside, the disk can only be read, what the judge hides is empty, there is no network, no other
process can be named, and nothing of this can be undone: the process has no capabilities left.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from llmqueue_gym.errors import UsageError

NAMESPACES, PROCESS = "namespaces", "process"
"""How an agent is kept in: by the kernel, or only by having a process of its own."""

PASSED = (
    *("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"),
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
    *("NUMBA_CACHE_DIR", "NUMBA_DISABLE_JIT", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"),
)
"""Variables of the environment that an agent's process has."""

MAX_PROCESSES = 256
DISK = "256m"
"""What an agent may write into its working folder, which is gone with it."""

_HIDDEN = ("/dev", "/run", "/tmp", "/var/tmp")  # sockets, and files of others
_DEVICES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom"))
_WORK = "/run/agent"

_NEWNS, _NEWUTS, _NEWIPC = 0x00020000, 0x04000000, 0x08000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _BIND, _REC, _PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
_MOUNT_SETATTR, _AT_RECURSIVE, _ATTR_RDONLY = 442, 0x8000, 1
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CAPABILITY_VERSION = 0x20080522
_NOBODY = 65534


def limit_environment(variables: Mapping[str, str]) -> None:
    """Leave only what an agent's process is to know of the environment, and no command line."""
    kept = {name: variables[name] for name in PASSED if name in variables}
    os.environ.clear()
    os.environ.update(kept)
    sys.argv[:] = ["agent"]


def enclose(hidden: Iterable[str], kept: Iterable[str], folder: str) -> str:
    """Shut this process in, in a fresh working folder; return how.

    With namespaces it goes on in a grandchild: whoever calls must have no threads.

    Parameters
    ----------
    hidden : iterable of str
        Files and folders that are not to be seen.
    kept : iterable of str
        What is to be seen all the same, where it lies below something hidden.
    folder : str
        Empty folder to work in, where there are no namespaces.

    Raises
    ------
    UsageError
        If all of a folder is to be seen in which there are sockets and files of others.
    """
    if sys.platform == "linux":
        for path in set(map(os.path.realpath, kept)).intersection(_HIDDEN):
            raise UsageError(
                f"{path} is on Python's path, and holds what agents must not see: put the agent "
                "into a folder of its own, and run there"
            )
    if sys.platform == "linux" and _new_namespaces():
        end_with_parent()  # new credentials have made the kernel forget it
        _relay()  # a process sees its new process namespace only in its children, ...
        os.setsid()
        _relay()  # ... of which the first cannot be killed by a signal of its own
        try:
            _arrange((*_HIDDEN, *hidden), (*kept, *_DEVICES))
        except OSError as error:
            print(f"the wall is a process only: {error}", file=sys.stderr)
            _settle(folder)
            return PROCESS
        _drop_capabilities()
        _limit(processes=MAX_PROCESSES)
        _settle(_WORK)
        return NAMESPACES
    _limit()
    _settle(folder)
    return PROCESS


def this_core() -> int | None:
    """Return the number of the core that this process runs on (Linux)."""
    with suppress(OSError):
        return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[36])
    return None


def stay_on_core(core: int | None) -> None:
    """Keep this process on a core, if there is a way to.

    The two sides of the wall take turns: to wake the other on its own core takes six
    microseconds, across cores often ten times that.
    """
    if core is not None:
        with suppress(OSError, AttributeError):
            os.sched_setaffinity(0, {core})


def end_with_parent() -> None:
    """Have this process killed when its parent ends (Linux)."""
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def keep_closed() -> None:
    """Keep other processes of the same user from reading this one's memory (Linux)."""
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _settle(folder: str) -> None:
    """Make a folder the working one, and that of temporary files."""
    os.chdir(folder)
    os.environ.update(HOME=folder, TMPDIR=folder)


def _limit(processes: int | None = None) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if processes is not None:  # a count of this namespace alone
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))


# --- Linux ----------------------------------------------------------------------------------------


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(function: str, *arguments: object) -> None:
    """Call the C library; an error is an OSError."""
    if getattr(_libc(), function)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{function}{arguments}: {os.strerror(code)}")


def _new_namespaces() -> bool:
    """Leave the namespaces of users, mounts, networks, processes; False if that is forbidden."""
    user, group = os.getuid(), os.getgid()
    try:
        _call("unshare", _NEWUSER | _NEWNS | _NEWNET | _NEWPID | _NEWIPC | _NEWUTS)
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{_NOBODY} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{_NOBODY} {group} 1", encoding="ascii")
    except (OSError, AttributeError):  # Ubuntu lets everybody have them, but do nothing there
        return False
    return True


def _relay() -> None:
    """Go on in a child; the parent waits for it and leaves as it has left."""
    child = os.fork()
    if child == 0:
        end_with_parent()
        return
    os.closerange(0, os.sysconf("SC_OPEN_MAX"))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _arrange(hidden: Sequence[str], kept: Sequence[str]) -> None:
    """Make the disk read-only and hide parts of it."""
    _mount("none", "/", None, _REC | _PRIVATE)
    read_only = (ctypes.c_uint64 * 4)(_ATTR_RDONLY, 0, 0, 0)
    number, here, size = map(ctypes.c_long, (_MOUNT_SETATTR, -100, 32))
    _call("syscall", number, here, b"/", ctypes.c_long(_AT_RECURSIVE), read_only, size)
    seen = sorted({os.path.realpath(path) for path in kept if os.path.exists(path)})
    for path in sorted({os.path.realpath(path) for path in hidden}):
        if os.path.exists(path) and path not in seen:
            _hide(path, [one for one in seen if one.startswith(f"{path}/")])
    for folder in (_WORK, "/dev/shm"):
        os.makedirs(folder, exist_ok=True)
    try:
        _mount("proc", "/proc", "proc", _RDONLY | _NOSUID | _NODEV)
    except OSError:  # a container that hides parts of its own
        _mount("none", "/proc", "tmpfs", _RDONLY | _NOSUID | _NODEV)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    words = (word.encode() for word in (source, target, kind or "none"))
    _call("mount", *words, ctypes.c_ulong(flags), options.encode())


def _hide(path: str, kept: Sequence[str]) -> None:
    """Lay an empty folder or file over a path, with what is kept of it."""
    if not os.path.isdir(path):
        _mount("/dev/null", path, None, _BIND)
        return
    handles = [os.open(one, os.O_PATH) for one in kept]
    folders = [os.path.isdir(one) for one in kept]
    _mount("none", path, "tmpfs", _NOSUID | _NODEV, f"size={DISK},mode=0755")
    for one, handle, is_folder in zip(kept, handles, folders, strict=True):
        with suppress(FileExistsError):  # it lies in another one that is kept
            if is_folder:
                os.makedirs(one)
            else:
                os.makedirs(os.path.dirname(one), exist_ok=True)
                os.close(os.open(one, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            _mount(f"/proc/self/fd/{handle}", one, None, _BIND | _REC)
        os.close(handle)


def _drop_capabilities() -> None:
    """Give up what a process may do in a user namespace of its own, for good."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
