# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Locks that die with their holder: flock(2) on files that only root can reach."""

from __future__ import annotations

import contextlib
import fcntl
import os
import posixpath
import time
import zlib
from collections.abc import Callable, Iterator

from . import RUN_DIRECTORY
from .errors import HostError, InvalidInput, Refused
from .names import printable

#: How long a lock is waited for, in seconds.
PATIENCE = 600.0
#: The same in what the server does by itself: who holds a lock decides how long, and a later look comes.
BRIEF = 2.0
#: The same for the set-up of the server: longer than any part of a run holds it.
SET_UP = 300.0
_PER_USER = 32


class InUse(Refused):
    """Somebody else holds the lock."""


@contextlib.contextmanager
def hold(
    name: str,
    *,
    timeout: float = PATIENCE,
    directory: str = "",
    title: str = "",
    meanwhile: Callable[[], bool] | None = None,
) -> Iterator[None]:
    """Hold the lock ``name`` inside the ``with`` block; wait for it for at most ``timeout`` seconds.

    ``meanwhile`` is called again and again while it is waited for, and where it says True, the waiting
    begins anew. Raises InUse, which names ``title``, when somebody else holds it all that time. The file
    stays: removing it would let two processes hold locks on two files of one name.
    """
    if not name or "/" in name or name.startswith("."):
        raise InvalidInput(f"{printable(name)!r} cannot name a lock.")
    where = directory or posixpath.join(RUN_DIRECTORY, "locks")
    try:
        os.makedirs(where, mode=0o700, exist_ok=True)
        descriptor = os.open(
            posixpath.join(where, f"{name}.lock"),
            os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
        )
    except OSError as error:
        raise HostError(
            f"The lock {name} cannot be made in {where}: {error.strerror}.", "Run it as root."
        ) from error
    try:
        wait(descriptor, title or name, timeout, meanwhile)
        yield
    finally:
        os.close(descriptor)


def host() -> contextlib.AbstractContextManager[None]:
    """Return the lock of who changes the server itself: accounts, fstab, units, quotas, programs, policy.

    What is read there and written back is read inside it. Nobody takes it twice, nor waits for another of
    these locks that somebody who waits for it may hold. Raises InUse after SET_UP seconds.
    """
    title = "the set-up of this server, such as another run of ansible-playbook"
    return hold("host", timeout=SET_UP, title=title)


def of_project(kind: str, uid: int, project: str) -> str:
    """Return the name of the lock of a project's ``kind`` (container, image).

    There is one name for many projects, so that nobody fills the directory with locks of invented ones. No
    process waits for a second lock of one kind.
    """
    return f"{kind}-{uid}-{zlib.crc32(project.encode('utf-8', 'replace')) % _PER_USER:02d}"


def wait(descriptor: int, name: str, timeout: float, meanwhile: Callable[[], bool] | None = None) -> None:
    """Lock an open file; raise InUse, which names ``name``, if that takes over ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    pause = 0.02
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if meanwhile is not None and meanwhile():
                deadline = time.monotonic() + timeout
            if time.monotonic() >= deadline:
                raise InUse(
                    f"Somebody else is at work on {name}.", "Wait until that is done, then try again."
                ) from None
        time.sleep(pause)
        pause = min(pause * 2, 0.5)
