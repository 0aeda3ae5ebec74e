"""One folder, one run: the file OUT/lock, locked as long as a process trains there.

The lock belongs to the open file (flock; on Windows, msvcrt.locking), not to what the file says. So the system itself
releases it when the process ends, however it ends. The file stays, and says which process was the last.
"""

import errno
import functools
import json
import os
import platform
import time
import weakref
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

LOCK = "lock"
PATIENCE = 0.5  # seconds: a process that has been killed, or only looks whether the lock is free, is gone by then
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
FAR = 2**30  # Windows lets nobody read what is locked: a byte far behind the end of the file


class Taken(ValueError):
    """Another process trains in this folder."""


class Lock:
    """The lock of `folder`, which is made if need be. Taken raises who has it.

    It is released by `release`, with the end of the process, or when nothing refers to it any more.
    """

    def __init__(self, folder: Path):
        self.path = folder / LOCK
        self.file = _take(self.path, make=True)
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        self.file.seek(0)
        self.file.truncate()
        self.file.write(json.dumps({"process": os.getpid(), "host": platform.node(), "since": since}).encode() + b"\n")
        _held.add(self)

    def in_place(self) -> bool:
        """Is it still the lock of its folder? Not if somebody has renamed or deleted that."""
        return _is_at(self.file, self.path)

    def release(self) -> None:
        self.file.close()


def refuse_taken(folder: Path) -> None:
    """Taken if another process trains in `folder`. Changes nothing."""
    try:
        _take(folder / LOCK, make=False).close()
    except (FileNotFoundError, NotADirectoryError):
        pass


def _take(path: Path, make: bool) -> BinaryIO:
    """The lock file, opened and locked. Between opening and locking, another process may have renamed the folder: then
    this is the lock of the earlier run."""
    last_try = time.monotonic() + PATIENCE
    while True:
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)
        file = open(os.open(path, os.O_RDWR | os.O_CREAT * make, 0o666), "r+b", buffering=0)
        try:
            if _locked(file) and _is_at(file, path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()
        if time.monotonic() > last_try:
            raise Taken(f"--out {path.parent}: {_holder(path)}. Wait for it, stop it, or choose another --out")
        time.sleep(PATIENCE / 10)


def _locked(file: BinaryIO) -> bool:
    """Lock it; False if another process has."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            file.seek(FAR)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in NO_LOCKS:
            _say_once(f"{file.name}: this file system has no locks. Nothing keeps a second run out: start only one")
            return True
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True


@functools.cache
def _say_once(text: str) -> None:
    print(text)


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False


def _holder(path: Path) -> str:
    """Who has the lock, in words."""
    try:
        says = json.loads(path.read_text(encoding="utf-8"))
        return f"process {says['process']} on {says['host']} has been training there since {says['since']}"
    except (OSError, ValueError, TypeError, KeyError):  # it is writing that at this moment
        return "another process is training there"


_held: "weakref.WeakSet[Lock]" = weakref.WeakSet()


def _forget() -> None:
    for lock in _held:
        lock.release()


if hasattr(os, "register_at_fork"):  # a child that outlives the run would keep the lock; programs that it starts do not
    os.register_at_fork(after_in_child=_forget)
