# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The hand-over of GPUs to who reserved them: who is in the way is told, and gives way when that has stood.

For how long each notice has stood is counted by the clock that runs from the boot (CLOCK_BOOTTIME,
clock_gettime(2)), which nobody sets, and kept in a record of root's. What passed between two boots is not
counted. A container that gives way is stopped; nothing in it is lost.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from dataclasses import dataclass, field

from . import events, gpuleases, gpureservations, names, state
from .engine import Engine
from .errors import LabError
from .gpuleases import Held
from .gpureservations import End
from .policy import Policy

_RECORD = "gpus/handover.json"


@dataclass(frozen=True)
class Handover:
    """A container that gives way, why, and in how many seconds; 0.0 is now."""

    held: Held
    end: End
    left: float

    @property
    def project(self) -> str:
        """The project of the container."""
        return names.parse_container_name(self.held.lease.holder)[0]


@dataclass(frozen=True)
class Record:
    """For how many seconds each notice has stood, and when that was: ``up`` after the boot ``boot``."""

    boot: str = ""
    up: float = 0.0
    stood: dict[str, float] = field(default_factory=dict)


def look(engine: Engine, policy: Policy, *, check: bool = False) -> tuple[list[Handover], Record]:
    """Return who gives way, and what is to be recorded (``keep``) once those have been told.

    Devices that became unfit are replaced where there are others; not with ``check``. Raises LabError.
    """
    boot, up = events.boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME)
    if not gpuleases.known_reserved():
        return [], Record(boot, up)
    devices = None
    # Without a driver nobody knows what works; that is no reason to give way, nor not to.
    with contextlib.suppress(LabError):
        devices = gpuleases.inventory(policy)
    with contextlib.nullcontext() if check else gpuleases.locked():
        seen = gpuleases.survey(engine, policy)
        if devices is not None:
            seen = gpuleases.settled(seen, policy, devices, write=not check)
    there = [one for one in seen.held if one.container]
    now, rules = time.time(), policy.gpu.reserve
    ends = {
        there[index].container: end
        for index, end in gpureservations.ends(
            seen.reserved, [(one.lease, one.since) for one in there], now, rules, policy.gpu.shared_by
        ).items()
    }
    before = read()
    passed = max(0.0, up - before.up) if boot and boot == before.boot else 0.0
    stood, left = gpureservations.look(ends, before.stood, passed, now)
    found = [
        Handover(one, ends[one.container], left[one.container]) for one in there if one.container in ends
    ]
    return found, Record(boot, up, stood)


def read() -> Record:
    """Return the record; one that is damaged is empty, so that all notices begin anew."""
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        data = json.loads(state.read_record(_RECORD) or "null")
        stood = {str(key): float(value) for key, value in data["stood"].items()}
        record = Record(str(data["boot"]), float(data["up"]), stood)
        # json takes NaN and Infinity.
        if all(math.isfinite(one) for one in (record.up, *stood.values())):
            return record
    return Record()


def keep(record: Record) -> None:
    """Write the record, where there is something to write. Raises HostError."""
    if record.stood or read().stood:
        state.write_record(_RECORD, json.dumps(vars(record), sort_keys=True))
