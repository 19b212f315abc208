"""Every call that differs between systems, each with its Windows branch."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

WINDOWS = sys.platform == "win32"


def data_dir() -> Path:
    """The user's folder for jobs; `$STATE_DIRECTORY` where systemd gives one."""
    if state := os.environ.get("STATE_DIRECTORY"):
        return Path(state.split(":")[0])
    if WINDOWS:
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "vellumd"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "vellumd"


def config_dir() -> Path:
    """The user's folder for `vellumd.toml`."""
    if WINDOWS:
        return Path(os.environ.get("APPDATA", Path.home() / "AppData/Roaming")) / "vellumd"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "vellumd"


def cache_dir() -> Path:
    """The user's folder for what can be made again."""
    if cache := os.environ.get("CACHE_DIRECTORY"):
        return Path(cache.split(":")[0])
    if WINDOWS:
        return data_dir() / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vellumd"


class LockedError(Exception):
    """Another process holds the lock."""


class FileLock:
    """An exclusive lock on a file or folder that the system releases when its holder dies."""

    def __init__(self, path: Path) -> None:
        """Take the lock, on a file that is made if missing; `LockedError` if another has it.

        Raises `OSError` where the disk cannot lock.
        """
        flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
        self._handle = os.open(path, flags, 0o666)
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(self._handle, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._handle)
            if isinstance(error, BlockingIOError | PermissionError):  # Windows says the latter
                raise LockedError(path.name) from None
            raise

    def release(self) -> None:
        """Let another process in."""
        os.close(self._handle)


def lock_folder(folder: Path) -> FileLock:
    """Take the lock on a folder, as `FileLock` does.

    On Unix the folder itself is locked: a file in it could be removed, and then another
    one locked. Windows locks no folder, but lets nobody remove a file that is open.
    """
    return FileLock(folder / "daemon.lock" if WINDOWS else folder)


def fsync_dir(folder: Path) -> None:
    """Make new and renamed names in `folder` survive a power cut.

    Windows has no such call; NTFS journals names itself. Nor have some shares, which say
    that it is invalid (fsync(2), EINVAL): there it is the server's concern.
    """
    if WINDOWS:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def write_durably(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a new file and fsync it; the caller fsyncs the folder.

    `mode` are its rights, less the umask; Windows goes by the folder's. A failed fsync
    leaves the file unknown, so it is never repeated on the same file.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, mode)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(handle, left) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_durably(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Put `data` in place of `path`: readers see the old file or the new one, whole.

    Where that fails, nothing of the new one stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        write_durably(temporary, data, mode)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def being_written(path: Path, *, on_share: bool = False) -> bool:
    """Whether a program has the file open for writing, as far as the system tells.

    Linux grants a read lease only on a file that nobody writes (fcntl(2), F_SETLEASE). Not so
    on shares: NFS and CIFS refuse it wherever the server has granted no delegation. Windows
    shares no file with a reader that its writer does not share. Elsewhere False: size and
    times have to tell.
    """
    if sys.platform == "linux":
        if on_share:
            return False
        import fcntl

        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            # Who opens the file in this very moment breaks the lease, which is told by a
            # signal: one that does nothing, where the usual SIGIO would end the process.
            fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError as error:
            return error.errno == errno.EAGAIN
        finally:
            os.close(handle)
        return False
    try:
        path.open("rb").close()
    except PermissionError:
        return True
    return False


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for an immutable file; a copy where the disk has no hard links."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        write_durably(target, source.read_bytes())


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent's spawning thread dies.

    Elsewhere the end of the pipe on stdin is what ends it. PR_SET_PDEATHSIG, prctl(2).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


OOM_SCORE = 500
"""Of 1000 (proc(5), oom_score_adj): before the daemon and most other programs."""


def offer_to_oom_killer() -> None:
    """Ask Linux to kill this process first where the machine's memory runs out.

    It can be replaced; the daemon it spares keeps the jobs.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a sandbox may hide /proc
            Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE), encoding="ascii")


def more_files() -> None:
    """Allow as many open files as the system lets this process have.

    The customary 1,024 are used up by as many silent connections. Windows has no such limit.
    """
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            with contextlib.suppress(OSError, ValueError):  # macOS names limits it does not allow
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def own_group() -> dict[str, Any]:
    """Arguments of a subprocess that Ctrl+C in the daemon's terminal shall not reach.

    What a signal to the whole group means for the child is the daemon's to decide.
    """
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def end_group(leader: int) -> None:
    """Kill what a subprocess started with `own_group` has left behind.

    Windows keeps no such record: a job's processes end by themselves there.
    """
    if sys.platform != "win32":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)


def binary_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Private copies of stdin and stdout for frames; fd 1 then leads to stderr.

    So a stray print, a C library's too, cannot break the frames.
    """
    frames_in, frames_out = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if sys.platform == "win32":
        import msvcrt

        for handle in (frames_in, frames_out):
            msvcrt.setmode(handle, os.O_BINARY)
    return os.fdopen(frames_in, "rb"), os.fdopen(frames_out, "wb", buffering=0)


def on_stop(stop: Callable[[], None]) -> None:
    """Call `stop` on SIGINT, SIGTERM and Windows' Ctrl+Break, in the main thread.

    A plain handler and none of asyncio's: it also runs while something blocks the loop.
    """
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: stop())


STUCK = 70
"""Exit code of a daemon that ended with something still running in it; sysexits.h EX_SOFTWARE."""


def end_now(code: int) -> NoReturn:
    """End this process, whatever its threads and tasks still do."""
    logging.shutdown()
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def notify_manager(state: str) -> None:
    """Tell systemd `state`, e.g. READY=1, where it asked for that (sd_notify(3)).

    One datagram to the socket that `$NOTIFY_SOCKET` names. Other managers ask for nothing.
    """
    if sys.platform == "linux" and (address := os.environ.get("NOTIFY_SOCKET")):
        import socket

        if address.startswith("@"):  # in the abstract namespace
            address = "\0" + address[1:]
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto(state.encode(), address)


def watchdog_s() -> float:
    """Seconds after which systemd takes us for hung; 0 if it does not (sd_watchdog_enabled(3))."""
    try:
        limit_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
    except ValueError:
        return 0.0
    meant = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return limit_s if meant and sys.platform == "linux" else 0.0


def safe_console() -> None:
    """Let no console code page (cp949, cp1252) turn a character into a crash."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def maps_card_memory() -> bool:
    """Whether drivers here map a card's memory page by page; Windows' and WSL's do not."""
    return sys.platform == "linux" and "microsoft" not in os.uname().release.lower()


def nvidia_driver() -> bool:
    """Whether an NVIDIA driver is installed, told without loading it."""
    if WINDOWS:
        return (Path(os.environ.get("SYSTEMROOT", "C:/Windows")) / "System32/nvcuda.dll").is_file()
    return Path("/proc/driver/nvidia/version").is_file() or shutil.which("nvidia-smi") is not None


class Memory(NamedTuple):
    """The machine's memory in bytes, as far as this process may use it; 0 where unknown."""

    total: int
    available: int


def memory() -> Memory:
    """How much memory there is, and how much is free or only holds files."""
    if WINDOWS:
        return _windows_memory()
    try:
        text = Path("/proc/meminfo").read_text("ascii")
        kib = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()}
        whole = Memory(kib["MemTotal"] << 10, kib["MemAvailable"] << 10)
    except (OSError, LookupError, ValueError):
        return Memory(0, 0)
    try:  # a container's own limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text("ascii"))
        used = int((group / "memory.current").read_text("ascii"))
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = max(0, limit - used + int(kept["inactive_file"]))
    except (OSError, LookupError, ValueError):
        return whole
    return Memory(min(whole.total, limit), min(whole.available, free))


def _windows_memory() -> Memory:
    """What GlobalMemoryStatusEx says."""

    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_uint32), ("load", ctypes.c_uint32),
            ("total", ctypes.c_uint64), ("available", ctypes.c_uint64),
            ("rest", ctypes.c_uint64 * 5),
        ]  # fmt: skip

    status = Status(length=ctypes.sizeof(Status))
    kernel: Any = getattr(ctypes, "windll").kernel32  # noqa: B009 (there on Windows alone)
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        return Memory(0, 0)
    return Memory(status.total, status.available)


def read_ahead(file: Path, most: int) -> int:
    """Have the system fetch the beginning of `file` into its cache; bytes it was asked for.

    Nothing where the system cannot be asked: reading in its place would take the time of
    a processor, also for what is there already.
    """
    advise = getattr(os, "posix_fadvise", None)
    if advise is None:
        return 0
    try:
        handle = os.open(file, os.O_RDONLY)
    except OSError:
        return 0  # whoever reads it will say so
    try:
        size = min(os.fstat(handle).st_size, most)
        with suppress(OSError):
            advise(handle, 0, size, getattr(os, "POSIX_FADV_WILLNEED"))  # noqa: B009
    finally:
        os.close(handle)
    return size
