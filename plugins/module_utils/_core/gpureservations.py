# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reservations of GPUs for a time: which devices each is to have, who is in the way, and when that ends.

Pure decisions. Times are in seconds since 1970, as people reserve by the clock; a window goes from its start
to just before its end. A reservation has devices from the moment that it is made, so that no two are ever
promised the same for one instant. While its window is near or open these are kept for its owner.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from . import gpurequests
from .errors import InvalidInput, Refused
from .gpudevices import Device
from .leases import Bounds, Given, Lease, Stock, choose
from .names import printable
from .policy_gpus import ReserveRules

#: Seconds by which a notice begins earlier than it must: containers are looked at every ten minutes.
MARGIN = 1200.0
_HOUR, _MINUTE = 3600.0, 60.0
_EXACT = "%Y-%m-%dT%H:%M"
_LENGTH = re.compile(r"([1-9][0-9]{0,3})(min|h|d)")
_SECONDS = {"min": 60, "h": 3600, "d": 86400}
_ALL = 1 << 20  # GPU equivalents; more than there are


@dataclass(frozen=True)
class Reservation:
    """A request of the user ``uid`` for a window, and the devices that are meant for it.

    ``number`` names it, and tells which was made first. Without devices it has lost them to a fault.
    ``used``: when its window was first seen open, then when its owner was last seen to use something of it,
    or somebody else to be in the way; before its start for never.
    """

    number: int
    uid: int
    request: str
    start: float
    end: float
    devices: tuple[Given, ...] = ()
    shared: bool = False
    used: float = 0.0

    @property
    def uuids(self) -> frozenset[str]:
        """The devices, by uuid."""
        return frozenset(one.uuid for one in self.devices)

    def is_on(self, now: float) -> bool:
        """Say whether its window is open."""
        return self.start <= now < self.end

    def overlaps(self, other: Reservation) -> bool:
        """Say whether there is an instant that is in both windows."""
        return self.start < other.end and other.start < self.end


# What people write


def parse_start(text: str, now: float) -> float:
    """Return the time that ``2026-12-01T09:00`` is in the time zone of this process; ``now`` is now.

    Raises InvalidInput, also for an hour that is left out where clocks are put forward.
    """
    if text == "now":
        return now
    with suppress(ValueError, OverflowError):
        parsed = time.strptime(text.replace(" ", "T"), _EXACT)
        seconds = time.mktime((*parsed[:8], -1))
        if time.localtime(seconds)[:5] != parsed[:5]:
            raise InvalidInput(f"{printable(text)[:40]} is left out where clocks are put forward.")
        return seconds
    raise InvalidInput(f"{printable(text)[:40]!r} is no time.", "Write it as 2026-12-01T09:00, or 'now'.")


def parse_length(text: str) -> float:
    """Return the seconds of ``90min``, ``8h`` or ``2d``; raise InvalidInput."""
    match = _LENGTH.fullmatch(text)
    if not match:
        raise InvalidInput(f"{printable(text)[:40]!r} is no length of time.", "Write 90min, 8h or 2d.")
    return float(int(match[1]) * _SECONDS[match[2]])


def words(seconds: float) -> str:
    """Return a time for people, with the time zone of this process: ``2026-12-01 09:00 CET``."""
    return time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(seconds)).strip()


# What stands


def notice(rules: ReserveRules) -> float:
    """Return for how many seconds a notice stands."""
    return rules.notice_hours * _HOUR


def stands(one: Reservation, now: float, rules: ReserveRules) -> bool:
    """Say whether a reservation is to come, or on: not over, and not lapsed for want of use."""
    return now < one.end and (now <= one.used or now < _lapse(one, rules))


def _lapse(one: Reservation, rules: ReserveRules) -> float:
    """Return when a reservation lapses, as far as is known."""
    return one.used + rules.grace_minutes * _MINUTE if one.used >= one.start else one.end


def holds(leases: Iterable[Lease], one: Reservation) -> bool:
    """Say whether its owner has something of it, used or not."""
    return any(_holds(lease, one) for lease in leases)


def is_near(one: Reservation, now: float, rules: ReserveRules) -> bool:
    """Say whether its window is open, or so near that nobody in the way could have the whole notice."""
    return one.start - notice(rules) - MARGIN <= now < one.end


def _holds(lease: Lease, one: Reservation) -> bool:
    return lease.uid == one.uid and bool(one.uuids.intersection(lease.uuids))


def settle(
    found: Sequence[Reservation],
    devices: Sequence[Device],
    leases: Sequence[Lease],
    now: float,
    rules: ReserveRules,
    shared_by: int,
) -> list[Reservation]:
    """Return the reservations with who is in use, and with devices that work.

    One whose devices became unfit gets others. Where there are too few, those in use keep theirs, and of the
    rest those that were made last have none.
    """
    in_use = {
        one.number
        for one in found
        if one.is_on(now)
        and stands(one, now, rules)
        and any(_holds(lease, one) and lease.live for lease in leases)
    }
    marked = [replace(one, used=now) if _is_seen(one, in_use, leases, now, rules) else one for one in found]
    standing = [one for one in marked if stands(one, now, rules)]
    order = sorted(standing, key=lambda one: (one.number not in in_use, one.number))
    placed: dict[int, Reservation] = {}
    for index, one in enumerate(order):
        before = [placed[other.number] for other in order[:index]]
        fixed = one.number in in_use
        placed[one.number] = _kept_place(one, before, order[index + 1 :], devices, leases, shared_by, fixed)
    return [placed.get(one.number, one) for one in marked]


def _is_seen(
    one: Reservation, in_use: Collection[int], leases: Sequence[Lease], now: float, rules: ReserveRules
) -> bool:
    """Say whether the time after which a reservation lapses begins anew."""
    if not (one.is_on(now) and stands(one, now, rules)):
        return False
    return one.number in in_use or one.used < one.start or _is_held_up(one, leases)


def _is_held_up(one: Reservation, leases: Iterable[Lease]) -> bool:
    """Say whether somebody is in the way still, so that its owner could not have it."""
    return not one.shared and any(
        lease.live and lease.uid != one.uid and one.uuids.intersection(lease.uuids) for lease in leases
    )


def _kept_place(
    one: Reservation,
    before: Sequence[Reservation],
    after: Sequence[Reservation],
    devices: Sequence[Device],
    leases: Sequence[Lease],
    shared_by: int,
    fixed: bool,
) -> Reservation:
    """Return a reservation with its devices, with better ones, or with none."""
    firm = [booked(other) for other in before if other.overlaps(one)]
    later = [booked(other) for other in after if other.overlaps(one)]
    now = [lease for lease in leases if lease.uid != one.uid]
    if _can_keep(one, devices, firm, shared_by):
        if fixed or _can_keep(one, devices, [*firm, *now], shared_by):
            return one
        return place(one, devices, [*firm, *later, *now], shared_by) or one
    for taken in ([*firm, *later, *now], [*firm, *later], firm):
        found = place(one, devices, taken, shared_by)
        if found is not None:
            return found
    return replace(one, devices=())


def _can_keep(one: Reservation, devices: Sequence[Device], taken: Sequence[Lease], shared_by: int) -> bool:
    stock = Stock(devices, taken, shared_by)
    there = [stock.devices.get(uuid) for uuid in one.uuids]
    return bool(there) and all(each is not None and stock.is_free(each, shared=one.shared) for each in there)


def place(
    one: Reservation, devices: Sequence[Device], taken: Sequence[Lease], shared_by: int
) -> Reservation | None:
    """Return a reservation with devices that are not taken, its own first; None where there are too few."""
    holder = f"reservation {one.number}"
    own = Lease(holder, -1, one.devices, one.shared)
    bounds = Bounds(_ALL, shared_by=shared_by)
    try:
        lease = choose(gpurequests.parse(one.request), holder, -1, devices, [*taken, own], bounds)
    except Refused:
        return None
    return replace(one, devices=lease.devices, shared=lease.shared)


def booked(one: Reservation, uids: Iterable[int] = ()) -> Lease:
    """Return what a reservation keeps, as a lease that users of other uids cannot have."""
    # Not the name that place() gives it: what is kept counts there.
    return Lease(f"kept {one.number}", -1, one.devices, one.shared, kept_for=frozenset({one.uid, *uids}))


def overdue(
    waiting: Iterable[tuple[gpurequests.GpuRequest, str, int, Bounds]],
    devices: Sequence[Device],
    found: Iterable[Reservation],
    now: float,
    rules: ReserveRules,
) -> list[Lease]:
    """Return what no further reservation may have, as those who wait have waited too long for it.

    Of what each asks for, those devices that are free of reservations soonest.
    """
    until: dict[str, float] = {}
    for one in found:
        for each in one.devices if stands(one, now, rules) else ():
            for uuid in (each.uuid, each.card):
                until[uuid] = max(until.get(uuid, now), one.end)
    left: list[Lease] = []
    for request, holder, _uid, limits in waiting:
        stock = Stock(devices, left, limits.shared_by)
        free = stock.free(request, whole=limits.whole)
        free.sort(key=lambda one: max(until.get(one.uuid, now), until.get(one.card, now)))
        given = tuple(Given(one.uuid, one.card) for one in free[: request.count])
        left.append(Lease(holder, -1, given, request.kind == gpurequests.SHARED))
    return left


def kept(
    found: Iterable[Reservation], leases: Sequence[Lease], now: float, rules: ReserveRules, *, near: bool
) -> list[Lease]:
    """Return what is kept for owners now; with ``near`` also for windows that are so near.

    What an owner has already is not kept besides. Who has an open window may be given what is kept for the
    next one: it ends before that begins.
    """
    standing = [one for one in found if stands(one, now, rules)]
    told = []
    for one in standing:
        if not (one.is_on(now) or (near and is_near(one, now, rules))):
            continue
        held = {uuid for lease in leases if lease.uid == one.uid for uuid in lease.uuids}
        on = [] if one.is_on(now) else [other for other in standing if other.is_on(now)]
        for each in one.devices:
            if each.uuid not in held:
                also = [other.uid for other in on if each.uuid in other.uuids]
                told.append(booked(replace(one, devices=(each,)), also))
    return told


def later(found: Iterable[Reservation], uid: int, now: float, rules: ReserveRules) -> frozenset[str]:
    """Return the devices that others have reserved for now or later."""
    return frozenset(
        uuid for one in found if one.uid != uid and stands(one, now, rules) for uuid in one.uuids
    )


def next_start(
    found: Iterable[Reservation], uid: int, uuids: Collection[str], now: float, rules: ReserveRules
) -> float | None:
    """Return when the first window of somebody else begins that has one of these devices; None for none."""
    return min(
        (
            one.start
            for one in found
            if one.uid != uid and stands(one, now, rules) and one.uuids.intersection(uuids)
        ),
        default=None,
    )


# Who gives way, and when


@dataclass(frozen=True)
class End:
    """When a container's GPUs are handed over, for which reservation, and how long it must be told before.

    ``own``: the window in which it was given them is over.
    """

    at: float
    number: int
    notice: float
    own: bool = False

    @property
    def why(self) -> str:
        """The reason, in words."""
        what = "the reservation of its GPUs ends" if self.own else "its GPUs are reserved for somebody else"
        return f"{what} ({words(self.at)})"


def ends(
    found: Sequence[Reservation],
    leases: Sequence[tuple[Lease, float]],
    now: float,
    rules: ReserveRules,
    shared_by: int,
) -> dict[int, End]:
    """Return when leases end, by their place in ``leases``, each with when it was given.

    Only those are told whose end is so near that the notice stands.
    """
    told: dict[int, End] = {}
    whole = notice(rules)
    own = {
        index: end
        for index, (lease, since) in enumerate(leases)
        if (end := _own_end(found, lease, since, rules)) is not None
    }
    for index, end in own.items():
        if now >= end.at - whole - MARGIN:
            told[index] = end
    for one in found:
        if stands(one, now, rules) and is_near(one, now, rules):
            for index in _in_the_way(one, leases, found, shared_by, now, rules):
                before = told.get(index) or own.get(index)
                if before is None or one.start < before.at:
                    # What is down is not stopped by it, so nobody need be told before.
                    told[index] = End(one.start, one.number, whole if leases[index][0].live else 0.0)
    return told


def _own_end(found: Sequence[Reservation], lease: Lease, since: float, rules: ReserveRules) -> End | None:
    """Return the end of the window in which a lease was given; None for one that was given outside of any."""
    ahead = notice(rules) + MARGIN
    last: Reservation | None = None
    for one in sorted(found, key=lambda one: one.start):
        if not _holds(lease, one):
            continue
        # What is given after it lapsed is given like anything else.
        over = min(one.end, _lapse(one, rules))
        if one.start - ahead <= since < over if last is None else one.start <= last.end < one.end:
            last = one
    if last is None:
        return None
    # Whoever reserved it knows; a short window ends on time all the same.
    known = max(0.0, last.end - since - MARGIN)
    return End(last.end, last.number, min(notice(rules), known), own=True)


def _in_the_way(
    one: Reservation,
    leases: Sequence[tuple[Lease, float]],
    found: Sequence[Reservation],
    shared_by: int,
    now: float,
    rules: ReserveRules,
) -> Iterator[int]:
    """Yield the leases of others that must end for a reservation; of those who share, the last given."""
    cards = {each.card for each in one.devices if each.card != each.uuid}
    sharers: list[int] = []
    for index, (lease, _since) in enumerate(leases):
        if lease.uid == one.uid or lease.uid < 0:
            continue
        touches = any(
            each.uuid in one.uuids or each.uuid in cards or (each.card in one.uuids) for each in lease.devices
        )
        if touches and one.shared and lease.shared:
            sharers.append(index)
        elif touches:
            yield index
    if not one.shared:
        return
    owners = Counter(
        other.uid
        for other in found
        if other.shared and other.uuids == one.uuids and stands(other, now, rules) and other.overlaps(one)
    )
    room = max(0, shared_by - sum(owners.values()))
    others = []
    for index in sorted(sharers, key=lambda index: leases[index][1]):
        uid = leases[index][0].uid
        if owners[uid]:  # one for each part that was reserved; what an owner has beyond is like anybody's
            owners[uid] -= 1
        else:
            others.append(index)
    yield from others[room:]


def look(
    ends: Mapping[str, End], before: Mapping[str, float], passed: float, now: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Return for how long each notice has stood, and in how many seconds each container gives way.

    ``ends`` is by container, ``before`` what was returned at the last look, ``passed`` seconds ago. However
    the clock jumps, nobody gives way whose notice has not stood for its whole time.
    """
    stood: dict[str, float] = {}
    left: dict[str, float] = {}
    for container, end in ends.items():
        key = f"{container} {end.number}"
        stood[key] = before[key] + passed if key in before else 0.0
        left[container] = max(0.0, end.at - now, end.notice - stood[key])
    return stood, left
