"""One writer at a time in a folder. Floor 0; standard library only.

The lock is the kernel's (flock), so it goes when its process goes, however that ends. What is written in the file says
who holds it, and decides alone where a file system knows no locks or keeps them from other hosts: there the holder
shows that it lives by touching the file.
"""

import contextlib
import datetime
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows: who holds the lock is then told by the file alone
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
BEAT = 20.0  # seconds between signs of life
STALE = 120.0  # seconds without one after which a holder on another host counts as gone


class Busy(Exception):
    """Another process holds the folder; the message says which."""


class Lock:
    """Holds `folder` until `release`, or until this process ends.

    A lock that a process left behind is taken over: on this host when there is no such process any more, from another
    host when it has given no sign of life for two minutes.

    Raises:
      Busy: someone else holds it, this very process included.
      OSError: the file cannot be made.
    """

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)  # not inherited by children
        try:
            self._take()
        except BaseException:
            os.close(self._file)
            raise
        self._stop = threading.Event()
        self._pulse = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._pulse.start()

    def release(self) -> None:
        """Gives the folder free; a second call does nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._pulse.join()
        with contextlib.suppress(OSError):  # the folder may be gone
            os.ftruncate(self._file, 0)
        os.close(self._file)

    def _take(self) -> None:
        seen = os.fstat(self._file).st_mtime
        with contextlib.suppress(OSError):
            os.utime(self._file)
        age = os.fstat(self._file).st_mtime - seen  # by one clock, the file system's
        holder = self._holder()
        kernel = self._flock()
        if kernel is False or (holder and not self._gone(holder, age, known=kernel is True)):
            if kernel is not False and holder:
                os.utime(self._file, (seen, seen))  # that was no sign of life of the holder's
            raise Busy(_told(holder))
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(me).encode(), 0)

    def _flock(self) -> bool | None:
        """True: it is ours now. False: it is another's. None: there are no locks here."""
        if fcntl is None:
            return None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True

    def _holder(self) -> dict[str, Any]:
        """What the file says; nothing when it is empty or damaged."""
        try:
            told = json.loads(os.pread(self._file, 4096, 0))
            return told if isinstance(told.get("pid"), int) and isinstance(told.get("host"), str) else {}
        except (ValueError, AttributeError):
            return {}

    @staticmethod
    def _gone(holder: dict[str, Any], age: float, *, known: bool) -> bool:
        if holder["host"] == socket.gethostname():
            return known or not _alive(holder["pid"])
        return age > STALE

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._file)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _told(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process writes there"
    since = f", since {str(holder['since'])[:40]}" if holder.get("since") else ""
    here = holder["host"] == socket.gethostname()
    hint = "" if here else f"; if it is gone, try again {STALE / 60:.0f} minutes after its end"
    return f"process {holder['pid']} on {holder['host'][:80]} writes there{since}{hint}"
