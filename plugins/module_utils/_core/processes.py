# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Processes that are told from every other one, also from a later one of the same number."""

from __future__ import annotations

import os

from . import events


def ticks(pid: int) -> int:
    """Return when a process was started, in ticks since the boot (proc(5), stat); 0 when there is none."""
    try:
        with open(f"/proc/{int(pid)}/stat", encoding="ascii", errors="replace") as file:
            # The name of the program is in parentheses, and may have any in it.
            fields = file.read().rpartition(")")[2].split()
            return 0 if fields[0] in ("Z", "X") else int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0


def this_process() -> str:
    """Return what names this process: its number, its start, and the boot."""
    pid = os.getpid()
    return f"{pid} {ticks(pid)} {events.boot_id()}"


def of_this_boot(process: str) -> bool:
    """Say whether the process that ``this_process`` named was started since the last boot."""
    return process.rpartition(" ")[2] == events.boot_id()


def alive(process: str) -> bool:
    """Say whether the process that ``this_process`` named lives."""
    pid, _blank, rest = process.partition(" ")
    start, _blank, boot = rest.partition(" ")
    return pid.isdigit() and boot == events.boot_id() and start == str(ticks(int(pid))) != "0"
