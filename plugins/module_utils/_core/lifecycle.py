# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How long a container may run, and what becomes of it then: a notice, a stop, and at last a retire.

Time is what the kernel counts since its boot (CLOCK_BOOTTIME, clock_gettime(2)), added up at each look, so a
clock that jumps ends nothing. What passed between two boots is not counted. A container is stopped only when
its notice has stood for its whole time, however late the looks come. Decisions are pure; what was counted is
one record of root's, and where that is damaged nothing is decided at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from .errors import HostError, Refused
from .liferules import HOUR, LifeRules
from .policy import Limits

RUN, IDLE, DOWN = "run", "idle", "down"
NOTHING, NOTICE, STOP, RETIRE = "nothing", "notice", "stop", "retire"
#: A container that uses less than this part of a core from one look to the next is idle.
BUSY_CORES = 0.01
#: Looks that are further apart than this, in seconds, say nothing of what was between them.
LONGEST_LOOK = 6 * HOUR


@dataclass(frozen=True)
class Counted:
    """What was counted of one container, in seconds. ``cpu``: what it used of a processor, in nanoseconds.

    ``noticed`` is for how long a notice has stood, None where there is none, and ``about`` what it is of.
    ``granted`` is what its user put the stop off by, in ``extended`` calls. ``typed``: see Look.
    ``gpu_idle`` is for how long the GPUs that it holds have done nothing.
    """

    container: str
    ran: float = 0.0
    idle: float = 0.0
    down: float = 0.0
    cpu: int = 0
    noticed: float | None = None
    about: str = ""
    granted: float = 0.0
    extended: int = 0
    typed: int = 0
    gpu_idle: float = 0.0


@dataclass(frozen=True)
class Look:
    """A container as it is now. ``cpu``: nanoseconds of a processor since its start; 0 when it is down.

    ``typed`` is another number when somebody typed in a terminal of it, 0 where there is none (``sessions``).
    ``gpu`` says whether its GPUs work (``gpuidle``); None: it holds none.
    """

    name: str
    container: str
    live: bool
    cpu: int = 0
    typed: int = 0
    gpu: bool | None = None


@dataclass(frozen=True)
class Decision:
    """What is to be done with a container, why, and in how many seconds it ends; None: not at all."""

    do: str
    about: str = ""
    left: float | None = None


def count(before: Counted | None, look: Look, passed: float) -> Counted:
    """Return what is counted of a container after ``passed`` seconds; a new container starts from nothing."""
    if before is None or before.container != look.container:
        return Counted(look.container, cpu=look.cpu, typed=look.typed)
    if not look.live:
        # Its time begins anew when it is started again.
        keeps = before.about == DOWN
        return replace(
            before,
            ran=0.0,
            idle=0.0,
            down=before.down + passed,
            cpu=0,
            granted=0.0,
            extended=0,
            typed=0,
            gpu_idle=0.0 if look.gpu is None else before.gpu_idle + passed,
            noticed=_after(before.noticed, passed) if keeps else None,
            about=DOWN if keeps else "",
        )
    started_anew = before.down > 0 or look.cpu < before.cpu
    used = look.cpu if started_anew else look.cpu - before.cpu
    active = look.typed not in (0, before.typed) or look.gpu is True
    unknown = started_anew or passed > LONGEST_LOOK
    busy = active or passed > LONGEST_LOOK or used / 1e9 >= BUSY_CORES * max(passed, 1e-9)
    over = before.about == DOWN or (before.about == IDLE and busy)
    return replace(
        before,
        ran=before.ran + passed,
        idle=0.0 if busy else before.idle + passed,
        down=0.0,
        cpu=look.cpu,
        typed=look.typed,
        gpu_idle=before.gpu_idle + passed if look.gpu is False and not unknown else 0.0,
        noticed=None if over else _after(before.noticed, passed),
        about="" if over else before.about,
    )


def _after(noticed: float | None, passed: float) -> float | None:
    return None if noticed is None else noticed + passed


def decide(now: Counted, limits: Limits, rules: LifeRules, *, live: bool) -> tuple[Decision, Counted]:
    """Return what is to be done, and what is counted afterwards."""
    notice = rules.notice_hours * HOUR
    ends = _ends(now, limits, rules, live=live)
    if not ends:
        return Decision(NOTHING), replace(now, noticed=None, about="")
    # The notice that stands goes on to be about what it was, as long as that still holds.
    about, left = min(ends.items(), key=lambda end: end[1])
    if now.about in ends and ends[now.about] <= notice:
        about, left = now.about, ends[now.about]
    if left > notice:
        return Decision(NOTHING, about, left), replace(now, noticed=None, about="")
    noticed = now.noticed if now.about == about and now.noticed is not None else 0.0
    stands = replace(now, noticed=noticed, about=about)
    left = max(left, notice - noticed)
    if left <= 0:
        return Decision(STOP if live else RETIRE, about, 0.0), stands
    return Decision(NOTICE, about, left), stands


def _ends(now: Counted, limits: Limits, rules: LifeRules, *, live: bool) -> dict[str, float]:
    """Return in how many seconds a container comes to its end, by what is counted for that."""
    if not live:
        return {DOWN: rules.retire_hours * HOUR - now.down} if rules.retire_hours else {}
    ends = {}
    if limits.run_hours:
        ends[RUN] = run_left(now, limits) or 0.0
    if limits.idle_hours:
        ends[IDLE] = limits.idle_hours * HOUR + now.granted - now.idle
    return ends


def run_left(now: Counted, limits: Limits) -> float | None:
    """Return in how many seconds a container ends whatever is done in it; None where that is not limited."""
    return limits.run_hours * HOUR + now.granted - now.ran if limits.run_hours else None


def extend(now: Counted, limits: Limits, rules: LifeRules, hours: int | None = None) -> Counted:
    """Return what is counted when a user puts the stop off; raise Refused where that may not be."""
    if not (limits.run_hours or limits.idle_hours):
        raise Refused("This container is not stopped for its time.", "There is nothing to put off.")
    if now.extended >= rules.extend_times:
        raise Refused(
            f"It was put off {now.extended} times already, which is as often as it may be.",
            "Save your work, and launch it again after the stop; or ask your admins.",
        )
    asked = rules.extend_hours if hours is None else hours
    if asked > rules.extend_hours:
        raise Refused(
            f"{asked} hours are more than a stop may be put off by at once.",
            f"Ask for {rules.extend_hours} or less.",
        )
    return replace(now, granted=now.granted + asked * HOUR, extended=now.extended + 1, noticed=None, about="")


def words(about: str, limits: Limits, rules: LifeRules) -> str:
    """Return why a container ends, for the sentence that tells it."""
    return {
        RUN: f"it ran for {_hours(limits.run_hours)}, which is the limit",
        IDLE: f"it did nothing for {_hours(limits.idle_hours)}, which is the limit",
        DOWN: f"it was stopped for {_hours(rules.retire_hours)}, which is the limit",
    }.get(about, "")


def _hours(number: int) -> str:
    return "1 hour" if number == 1 else f"{number} hours"


# The record


@dataclass(frozen=True)
class Record:
    """What was counted of all containers, and when: ``up`` seconds after the boot ``boot``."""

    boot: str = ""
    up: float = 0.0
    counted: tuple[tuple[str, Counted], ...] = ()

    def passed(self, boot: str, up: float) -> float:
        """Return the seconds since then; what was before the last boot is not known, and not counted."""
        return max(0.0, up - self.up) if boot == self.boot and boot else 0.0

    def render(self) -> str:
        """Return its text."""
        counted = {name: asdict(one) for name, one in self.counted}
        return json.dumps({"boot": self.boot, "up": self.up, "counted": counted}, sort_keys=True)


def parse(text: str | None, place: str) -> Record:
    """Return the record of a text, an empty one for None; raise HostError for one that is damaged."""
    if text is None:
        return Record()
    try:
        data = json.loads(text)
        counted = tuple(sorted((str(name), _counted(one)) for name, one in data["counted"].items()))
        return Record(str(data["boot"]), _seconds(data["up"]), counted)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise HostError(
            f"{place} is damaged, so no container is stopped for its time.",
            f"Remove it: rm {place}. Then all containers are counted anew, in favour of their users.",
        ) from error


def _seconds(value: Any) -> float:
    """Return a time that was counted; raise ValueError for one that nobody can have counted."""
    seconds = float(value)
    # json takes NaN and Infinity, with which everything would be over at once, or nothing ever.
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError("no time")
    return seconds


def _counted(data: Mapping[str, Any]) -> Counted:
    numbers = {key: _seconds(data[key]) for key in ("ran", "idle", "down", "granted")}
    noticed = data["noticed"]
    return Counted(
        container=str(data["container"]),
        cpu=int(data["cpu"]),
        noticed=None if noticed is None else _seconds(noticed),
        about=str(data["about"]),
        extended=int(data["extended"]),
        typed=int(data.get("typed", 0)),
        gpu_idle=_seconds(data.get("gpu_idle", 0.0)),
        **numbers,
    )


def after(record: Record, looks: Iterable[Look], boot: str, up: float) -> dict[str, Counted]:
    """Return what is counted of the containers that are there now, by name; the others are forgotten."""
    before, passed = dict(record.counted), record.passed(boot, up)
    return {look.name: count(before.get(look.name), look, passed) for look in looks}
