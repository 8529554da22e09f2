# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The systemd slices that hold what all containers of one user use together (systemd.slice(5)).

What the user runs on the host itself is in the slice of systemd-logind, which gets the same limits once more
by a drop-in (user@.service(5)).
``lab-2001.slice`` is by its name a child of ``lab.slice``. Its unit file says the limits; a slice that runs
is told of a change as well, because from systemd 256 on a reload alone leaves its cgroup as it was.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping

from . import hostfiles
from .names import printable, slice_name
from .policy import Limits

CGROUPS = "/sys/fs/cgroup"
CONTROL = "/run/systemd/system.control"
ROOT_SLICE = "lab.slice"
SESSIONS = "user.slice"
BROKER_SLICE = "lab-broker.slice"  # what root does for lab users; systemd makes it when it is started
# The words of ``not_held`` for what ``systemctl set-property`` sets.
_WORDS = {"MemoryMax": "memory", "MemorySwapMax": "swap", "TasksMax": "processes", "CPUQuota": "cores"}
_HEAD = "# Managed by lab.server; changes are lost.\n[Unit]\n"


def root_unit() -> tuple[str, str]:
    """Return (file name, text) of the slice that holds the slices of all lab users."""
    return ROOT_SLICE, f"{_HEAD}Description=Containers of all lab users\n"


def session_unit(uid: int, *, cpus: float, memory: int, pids: int) -> tuple[str, str]:
    """Return (file name, text) of the drop-in for a user's sessions; units as in ``user_unit``."""
    return session_name(uid), _HEAD + _limits(cpus, memory, pids)


def session_name(uid: int) -> str:
    """Return the file name of the drop-in for a user's sessions."""
    return f"user-{uid}.slice.d/50-lab-server.conf"


def _limits(cpus: float, memory: int, pids: int) -> str:
    return (
        f"\n[Slice]\nMemoryMax={memory}\nMemorySwapMax=0\n"
        f"CPUQuota={max(1, math.ceil(cpus * 100))}%\nTasksMax={pids}\n"
    )


_OF_USER = "Description=Containers of the lab user "


_FOREIGN = "# The account is not lab.server's.\n"


def user_unit(
    name: str, uid: int, *, cpus: float, memory: int, pids: int, existing: bool = False
) -> tuple[str, str]:
    """Return (file name, text) of the slice of a user; ``memory`` in bytes, ``cpus`` in cores.

    ``existing`` is noted for the time after, when nobody declares the user any more.
    Memory is without swap, as in the containers themselves (systemd.resource-control(5)).
    """
    head = f"{_HEAD}{_OF_USER}{printable(name)}\n{_FOREIGN if existing else ''}"
    return slice_name(uid), head + _limits(cpus, memory, pids)


def owner(file_name: str) -> int:
    """Return the uid whose slice has that unit file, or 0."""
    found = re.fullmatch(r"lab-([1-9][0-9]*)\.slice", file_name)
    return int(found.group(1)) if found else 0


def holder(text: str) -> str:
    """Return the name of the user in the text of a slice of ours, or ""."""
    lines = text.splitlines()
    return next((line[len(_OF_USER) :] for line in lines if line.startswith(_OF_USER)), "")


def foreign(text: str) -> bool:
    """Say whether the account of the user in the text of a slice of ours is somebody else's."""
    return _FOREIGN in text


def properties(text: str) -> list[str]:
    """Return the limits in the text of a unit file, as ``systemctl set-property`` takes them."""
    _head, found, body = text.partition("[Slice]\n")
    return [line for line in body.splitlines() if "=" in line] if found else []


def apply(name: str, text: str) -> None:
    """Let a slice that runs hold the limits of its new unit file; ``systemctl daemon-reload`` follows.

    What systemd notes below /run about it is taken away, whether it runs or not: it would win over later unit
    files. A run that is cut off between any two of these steps is seen by ``stale``, or by ``units.unread``.
    Raises HostError.
    """
    limits = properties(text)
    unit = name.split(".d/")[0]
    parent = ROOT_SLICE if unit == name else SESSIONS
    if limits and os.path.isdir(os.path.join(CGROUPS, parent, unit)):
        hostfiles.run(["systemctl", "set-property", "--runtime", unit, *limits])
    for path in overrides(unit):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def overrides(unit: str) -> dict[str, tuple[str, ...]]:
    """Return which limits of a slice files of ``systemctl set-property --runtime`` set, by their paths."""
    found = {}
    directory = os.path.join(CONTROL, f"{unit}.d")
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory)):
            path = os.path.join(directory, name)
            lines = (hostfiles.read_text(path) or "").splitlines()
            keys = [line.partition("=")[0].strip() for line in lines]
            words = tuple(word for key, word in _WORDS.items() if key in keys)
            if words:
                found[path] = words
    return found


def read_live(directory: str) -> dict[str, str]:
    """Return the files of a cgroup that hold its limits (cgroup v2); none where it does not run."""
    found = {}
    for name in ("memory.max", "memory.swap.max", "pids.max", "cpu.max"):
        text = hostfiles.read_text(os.path.join(directory, name))
        if text is not None:
            found[name] = text.strip()
    return found


def live(uid: int) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield (unit, name of its file of limits, files of its cgroup) of the slices of a user that run."""
    for parent, unit, name in (
        (ROOT_SLICE, slice_name(uid), slice_name(uid)),
        (SESSIONS, f"user-{uid}.slice", session_name(uid)),
    ):
        read = read_live(os.path.join(CGROUPS, parent, unit))
        if read:
            yield unit, name, read


def not_held(limits: Limits, read: Mapping[str, str]) -> list[str]:
    """Return which limits in a cgroup's files (by name) are not those of a user."""
    page = os.sysconf("SC_PAGE_SIZE")
    quota_us, _blank, period = read.get("cpu.max", "").partition(" ")
    percent = round(int(quota_us) / int(period) * 100) if quota_us.isdigit() and period.isdigit() else 0
    found = []
    if read.get("memory.max", "") not in (str(limits.memory // page * page), str(limits.memory)):
        found.append("memory")
    # Without swap in the kernel there is no such file.
    if read.get("memory.swap.max", "0") != "0":
        found.append("swap")
    if read.get("pids.max", "") != str(limits.pids):
        found.append("processes")
    if percent != max(1, math.ceil(limits.cpus * 100)):
        found.append("cores")
    return found


def stale(limits: Limits, uid: int) -> dict[str, tuple[str, ...]]:
    """Return which limits of a user the slices do not hold, by the names of their unit files.

    A run that was cut off may have written a unit file, and not told systemd; or it has, and what systemd
    noted of that would win over the next unit file.
    """
    # Where the kernel cannot limit something, no run could change that.
    there = [
        (name, read) for _unit, name, read in live(uid) if {"memory.max", "pids.max", "cpu.max"} <= set(read)
    ]
    found = {name: wrong for name, read in there if (wrong := not_held(limits, read))}
    for name in (slice_name(uid), session_name(uid)):
        for words in overrides(name.partition(".d/")[0]).values():
            found[name] = [*found.get(name, []), *words]
    return {name: tuple(dict.fromkeys(wrong)) for name, wrong in found.items()}
