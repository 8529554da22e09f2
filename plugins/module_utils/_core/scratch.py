# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A quota is tried by somebody who does not exist: a uid without an account, for one write, then undone."""

from __future__ import annotations

import errno
import os
import posixpath
import pwd
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from . import locks, quota
from .asuser import Identity, run_as_user
from .errors import HostError
from .policy import HOME_ROOT, Quota

# Debian policy 9.2.2: 60000 to 64999 are given out by Debian itself, and only when they are asked for.
_UIDS = range(64900, 64990)
_LIMIT, _ASKED = 1 << 20, 4 << 20  # bytes
_CHUNK = 1 << 16
_FOLDER = ".lab-verify"


@dataclass(frozen=True)
class Written:
    """What came of a write of ``asked`` bytes with a quota of ``limit``: whether the kernel stopped it."""

    limit: int
    asked: int
    stopped: bool


def write_beyond(device: str, taken: Collection[int] = (), root: str = HOME_ROOT) -> Written:
    """Write more than a quota allows into ``root``, which only root can change, as a uid that nobody has.

    What was made is removed again, and so is what a call that was killed left behind. Raises HostError.
    """
    with locks.hold("verify", timeout=60, title="lab verify"):
        uid = _free(device, taken)
        folder = posixpath.join(root, _FOLDER)
        # Mostly there is none; one that cannot be removed is told by the mkdir that follows.
        shutil.rmtree(folder, ignore_errors=True)
        try:
            os.mkdir(folder, 0o700)
            path = posixpath.join(folder, "probe")
            os.mkdir(path, 0o700)
            os.chown(path, uid, uid)
            # Others still find nothing to do there: the folder above is searched by its name only.
            os.chmod(folder, 0o711)  # noqa: S103  # the scratch user has to get through
            quota.write(device, quota.USER, uid, Quota(_LIMIT, _LIMIT, 0, 0))
            stopped = run_as_user(Identity(uid, uid), lambda: _write(posixpath.join(path, "file")))
        except OSError as error:
            raise HostError(f"{folder} cannot be made: {error.strerror}.") from error
        finally:
            # What stays is removed by the next call; nobody else has that uid.
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(HostError):
                quota.write(device, quota.USER, uid, quota.NO_LIMIT)
    return Written(_LIMIT, _ASKED, stopped)


def _free(device: str, taken: Collection[int]) -> int:
    for uid in _UIDS:
        if uid in taken:
            continue
        with suppress(KeyError):
            pwd.getpwuid(uid)
            continue
        usage = quota.read(device, quota.USER, uid)
        # One that has the limit of a call that was killed is taken again: nobody else gives these out.
        if usage.quota in (quota.NO_LIMIT, Quota(_LIMIT, _LIMIT, 0, 0)):
            return uid
    raise HostError(f"All uids from {_UIDS.start} to {_UIDS.stop - 1} are somebody's.")


def _write(path: str) -> bool:
    """Write until the quota ends it; say whether it did. Runs as the scratch user."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for _number in range(_ASKED // _CHUNK):
            os.write(descriptor, b"\1" * _CHUNK)
        os.fsync(descriptor)
    except OSError as error:
        if error.errno == errno.EDQUOT:
            return True
        raise
    finally:
        os.close(descriptor)
    return False
