# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What happened to a project's container: one line for each deed, in files that only root can reach.

They are for the container's user to ask (``container why``), not for accounting: bounded for each project and
each user, and whatever goes wrong in writing them is no reason for the deed to fail. Their order is that in
which they were written. The time of each is what the clock said, beside what the kernel counted since its
boot (CLOCK_BOOTTIME, clock_gettime(2)), by which a clock that was changed can be told.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from . import state
from .errors import HostError
from .names import printable, project_name

MADE, REPLACED, STARTED, NOT_STARTED, STOPPED, RETIRED, RESTORED, REMOVED, GONE = (
    "made",
    "replaced",
    "started",
    "not-started",
    "stopped",
    "retired",
    "restored",
    "removed",
    "gone",
)
JOB_BEGUN, JOB_ENDED = "job-begun", "job-ended"
EXTENDED = "extended"
#: Who did it: the container's user, IT's run of the playbook, the boot, the daily clean-up, the limits of
#: time, or itself.
USER, IT, BOOT, CLEANUP, LIMIT, ITSELF = "user", "it", "boot", "clean-up", "limit", "itself"

_FILE_LIMIT = 32 << 10  # bytes of one project; the older half goes when it is full
_FILES = 100  # of one user
_REASON = 300  # characters
_CLOCK_SLACK = 60.0  # seconds by which two clocks may differ without anybody having changed one


@dataclass(frozen=True)
class Event:
    """A deed: what, by whom, and why. ``time`` is in seconds since 1970, ``up`` since the boot ``boot``."""

    what: str
    by: str
    time: float
    boot: str = ""
    up: float = 0.0
    reason: str = ""


def record(uid: int, project: str, what: str, by: str, reason: str = "") -> None:
    """Add an event to those of a project; what cannot be written is left out. The caller holds a lock.

    A failure that comes again and again is written once.
    """
    event = Event(
        what,
        by,
        round(time.time(), 3),
        boot_id(),
        round(time.clock_gettime(time.CLOCK_BOOTTIME), 3),
        printable(reason)[:_REASON],
    )
    if what == NOT_STARTED and _is_again(read(uid, project), event):
        return
    with contextlib.suppress(HostError):
        line = json.dumps(asdict(event), sort_keys=True)
        state.append_record(_record(uid, project), line, _FILE_LIMIT)
        state.thin_out(f"events/{int(uid)}", _FILES)


def _is_again(before: Sequence[Event], event: Event) -> bool:
    return bool(before) and (before[-1].what, before[-1].by, before[-1].reason) == (
        event.what,
        event.by,
        event.reason,
    )


def read(uid: int, project: str) -> list[Event]:
    """Return the events of a project that are still known, in their order, without damaged lines."""
    found = []
    try:
        lines = (state.read_record(_record(uid, project)) or "").split("\n")
    except HostError:
        return []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            data = json.loads(line)
            found.append(
                Event(
                    str(data.get("what", "")),
                    str(data.get("by", "")),
                    float(data.get("time", 0)),
                    str(data.get("boot", "")),
                    float(data.get("up", 0)),
                    str(data.get("reason", "")),
                )
            )
    return [event for event in found if event.what]


def jumps(events: Sequence[Event]) -> list[float]:
    """Return for each event by how many seconds the clock was changed since the one before it; 0.0: not.

    Between two boots nobody counted, so there only a clock that went back is known.
    """
    found = [0.0] * min(1, len(events))
    for before, after in zip(events, events[1:]):
        passed = after.time - before.time
        known = before.boot == after.boot != ""
        changed = passed - (after.up - before.up) if known else min(0.0, passed)
        found.append(changed if abs(changed) > _CLOCK_SLACK else 0.0)
    return found


def boot_id() -> str:
    """Return what is different after each start of the kernel (random(4)); "" where it cannot be read."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return ""


def _record(uid: int, project: str) -> str:
    return f"events/{int(uid)}/{project_name(project)}.jsonl"
