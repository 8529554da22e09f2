# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""When a user's containers end, as the last look found it (``ending``): read as the user, or as root."""

from __future__ import annotations

import json
import os
import posixpath
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from .liferules import HOUR
from .terminal import duration

#: Where a user's file is; gone at every start, as it is made anew.
NOTICES = "/run/lab-server-notices"
#: The end of the name of the file that tells a user of GPUs that do nothing.
IDLE_GPUS = ".gpus"
#: GPUs that did nothing for so long, in seconds, are worth a word: where others wait, and where nobody does.
IDLE_WAITED, IDLE_ALONE = HOUR, 24 * HOUR


def notices(uid: int) -> dict[str, dict[str, Any]]:
    """Return when and why each container of a user ends, by project; as the user, or as root."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        with open(posixpath.join(NOTICES, str(int(uid))), encoding="ascii") as file:
            found = json.load(file)
        return {str(one["project"]): one for one in found if isinstance(one["at"], int)}
    return {}


def remark(notice: Mapping[str, Any] | None) -> str:
    """Return in a few words when a container ends; "" where that is not known, or long to come."""
    if not isinstance(notice, dict) or not notice.get("noticed"):
        return ""
    what = {"retire": "retired", "stop": "stopped"}.get(str(notice.get("do")), "stopped")
    left = int(notice["at"]) - time.time()
    return f"to be {what} in {duration(left)}" if left > 0 else f"to be {what} now"


def outlook(notice: Mapping[str, Any] | None) -> str:
    """Return in a few words when a container ends, also where that is long to come; "" where it has no end.

    One that ends for doing nothing goes on while it is used, until its own time is over, if that is limited.
    """
    if not isinstance(notice, dict) or notice.get("noticed") or not isinstance(notice.get("at"), int):
        return remark(notice)
    left = duration(notice["at"] - time.time())
    if notice.get("do") == "retire":
        return f"retired in {left}"
    if not notice.get("idle"):
        return f"stops in {left}"
    latest = notice.get("latest")
    used = f", else in {duration(latest - time.time())}" if isinstance(latest, int) else ""
    return f"stops in {left} if idle{used}"


def advice(notice: Mapping[str, Any] | None, project: str) -> str:
    """Return what can be done about the end of a container, in a few words."""
    if notice and notice.get("firm"):
        return str(notice.get("why") or "")
    return f"put it off: container extend {project}"


def publish(path: str, found: Sequence[Any], gid: int) -> None:
    """Write what a group is told at login; where that is nothing, take it away. Raises OSError, HostError."""
    from . import safefs  # a login only reads

    directory = posixpath.dirname(path)
    os.makedirs(directory, mode=0o755, exist_ok=True)
    os.chmod(directory, 0o755)  # noqa: S103  # to be entered; each file in it has its own readers
    if not found:
        with suppress(FileNotFoundError):
            os.unlink(path)
        return
    safefs.write_atomically(path, json.dumps(found, sort_keys=True).encode("ascii"), 0o640)
    os.chown(path, 0, gid)
    os.chmod(path, 0o640)  # whatever the umask is


def idle_gpus(uid: int) -> dict[str, str]:
    """Return what is to be said of a user's GPUs that do nothing, by project; as the user, or as root."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        with open(posixpath.join(NOTICES, f"{int(uid)}{IDLE_GPUS}"), encoding="ascii") as file:
            found = json.load(file)
        return {str(one["project"]): str(one["words"]) for one in found}
    return {}


def idle_words(idle: float | None, waiting: int, *, stopped: bool) -> str:
    """Return what is to be said of a GPU that is held and does nothing; "" where it is not worth a word.

    ``idle``: for how many seconds; None: not known. ``waiting``: how many launches of others wait for GPUs.
    """
    wait = {0: "", 1: ", and 1 waits"}.get(waiting, f", and {waiting} wait")
    if stopped and waiting:
        return f"is held by a container that is stopped{wait}"
    if idle is None or idle < (IDLE_WAITED if waiting else IDLE_ALONE):
        return ""
    hours = int(idle // HOUR)
    return f"has done nothing for {'1 hour' if hours == 1 else f'{hours} hours'}{wait}"
