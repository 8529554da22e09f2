# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""In which containers somebody works at a terminal: what entered them, and when it was typed in last.

A terminal that was left open says nothing; one in which somebody types does. Only Docker's clients that
belong to root are looked at, which the broker starts, and no path is followed that a user has a say in.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress

_PSEUDO_TERMINALS = 136  # the major number (Linux, Documentation/admin-guide/devices.txt)


def typed(
    containers: Collection[str], proc: str = "/proc", terminals: str = "/dev/pts", owner: int = 0
) -> dict[str, int]:
    """Return for each container that was entered from a terminal what changes when somebody types in one.

    It is the time of the last input (tty_ioctl(4) calls it atime), in nanoseconds, and only to be compared
    with what it was before: a clock that jumps then changes nothing. ``owner`` is the uid of the clients.
    """
    found: dict[str, int] = {}
    for pid in filter(str.isdigit, os.listdir(proc)):
        # A process may end at any time.
        with suppress(OSError, ValueError, IndexError):
            name = _entered(os.path.join(proc, pid), containers, owner)
            if name:
                terminal = os.path.join(terminals, str(_terminal(os.path.join(proc, pid))))
                found[name] = max(found.get(name, 0), os.stat(terminal).st_atime_ns)
    return found


def _entered(process: str, containers: Collection[str], owner: int) -> str:
    """Return which container a process is the client of; "" for none."""
    if os.stat(process).st_uid != owner:
        return ""
    with open(os.path.join(process, "cmdline"), "rb") as file:
        words = os.fsdecode(file.read(4096)).split("\0")
    if os.path.basename(words[0]) != "docker" or "exec" not in words or "--tty" not in words:
        return ""
    # The options before the container are ours; what follows it is the user's.
    return next((word for word in words if word in containers), "")


def _terminal(process: str) -> int:
    """Return the number of a process's pseudo terminal (proc(5), stat: tty_nr); raise ValueError for none."""
    with open(os.path.join(process, "stat"), encoding="ascii", errors="replace") as file:
        # The name of the program is in parentheses, and may have any in it.
        device = int(file.read().rpartition(")")[2].split()[4])
    if (device >> 8) & 0xFFF != _PSEUDO_TERMINALS:
        raise ValueError("no pseudo terminal")
    return (device & 0xFF) | ((device >> 12) & 0xFFF00)
