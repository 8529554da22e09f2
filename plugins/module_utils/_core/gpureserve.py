# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reservations of GPUs on this server: made within the policy, given up, and told."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from . import gpuleases, gpurequests, gpureservations, leases
from .engine import Engine
from .errors import HostError, LabError, NotFound, Refused
from .gpudevices import Device
from .gpuleases import Survey
from .gpureservations import Reservation
from .leases import Lease
from .policy import Policy, User
from .terminal import duration

_DAY, _HOUR, _MINUTE = 86400.0, 3600.0, 60.0
_FARTHEST = 366 * _DAY  # also for admins
_LIST = "What is reserved: gpu reserve --list."


def reserve(
    engine: Engine,
    policy: Policy,
    user: User,
    request: gpurequests.GpuRequest,
    start: float,
    length: float,
    devices: Callable[[], list[Device]],
    *,
    admin: bool = False,
    check: bool = False,
) -> dict[str, Any]:
    """Reserve GPUs for a user, from ``start`` (seconds since 1970) for ``length`` seconds; say what it is.

    An ``admin`` is bound by what the user may have at once alone. With ``check`` nothing is written. Raises
    Refused, HostError for a record that is damaged, or why no GPU of the server can be used.
    """
    leases.check_possible(request, leases.bounds(policy, user))
    there = devices()
    with contextlib.nullcontext() if check else gpuleases.locked():
        now = time.time()
        gpuleases.read_reserved()  # a record that is damaged is not written over
        seen = gpuleases.settled(gpuleases.survey(engine, policy), policy, there, write=not check)
        number = max((one.number for one in seen.reserved), default=0) + 1
        new = Reservation(number, user.uid, request.render(), max(start, now), max(start, now) + length)
        _check_times(policy, start, length, now, admin=admin)
        _check_open(policy, user, seen, now, admin=admin)
        overdue = [] if admin else gpuleases.overdue(seen, policy, there, user.uid, now)
        new = _placed(new, seen, policy, there, now, overdue)
        _check_amount(policy, user, seen, new, there, now, admin=admin)
        if not check:
            gpuleases.write_reserved([*seen.reserved, new])
    return {"changed": True, **told(new, policy, now)}


def _check_times(policy: Policy, start: float, length: float, now: float, *, admin: bool) -> None:
    rules = policy.gpu.reserve
    if start < now - 5 * _MINUTE:
        raise Refused(f"{gpureservations.words(start)} is over.", "Choose a later start, or 'now'.")
    ahead = _FARTHEST if admin else rules.ahead_days * _DAY
    if start > now + ahead:
        raise Refused(f"That begins more than {ahead / _DAY:g} days ahead.", "Choose an earlier start.")
    longest = _FARTHEST if admin else rules.hours * _HOUR
    if length > longest:
        raise Refused(f"That is longer than {longest / _HOUR:g} hours.", "Reserve a shorter time.")


def _check_open(policy: Policy, user: User, seen: Survey, now: float, *, admin: bool) -> None:
    rules = policy.gpu.reserve
    if admin:
        return
    if not most(policy, user):
        raise Refused("You may reserve no GPUs.", "Ask your admins; or wait for them: project launch --wait.")
    mine = [one for one in seen.reserved if one.uid == user.uid and gpureservations.stands(one, now, rules)]
    if len(mine) >= rules.open:
        raise Refused(
            f"You have {len(mine)} reservations that are not over, which is as many as you may have.",
            "Give one up: gpu reserve --cancel NUMBER.",
        )


def most(policy: Policy, user: User) -> int:
    """Return how many GPU equivalents a user may have reserved for one time; 0 for none."""
    own = policy.gpu.rule(user.name, user.group).reserve
    return policy.gpu.reserve.gpus if own is None else own


def _placed(
    new: Reservation,
    seen: Survey,
    policy: Policy,
    devices: Sequence[Device],
    now: float,
    overdue: Sequence[Lease],
) -> Reservation:
    """Return the reservation with devices that are its own for its window; raise Refused.

    ``overdue``: what it cannot have, as others have waited for it too long.
    """
    rules, shared_by = policy.gpu.reserve, policy.gpu.shared_by
    request = gpurequests.parse(new.request)
    if gpureservations.place(new, devices, [], shared_by) is None:
        raise leases.not_there(request, devices)
    firm = [
        gpureservations.booked(one)
        for one in seen.reserved
        if gpureservations.stands(one, now, rules) and one.overlaps(new)
    ]
    soon = gpureservations.is_near(new, now, rules)
    held = gpuleases.with_waiting(seen, policy, devices, firm) if soon else [*seen.leases, *firm]
    free_now = [lease for lease in held if lease.uid != new.uid]
    for taken in [free_now] if soon else [free_now, firm]:
        found = gpureservations.place(new, devices, [*taken, *overdue], shared_by)
        if found is not None:
            return found
    if overdue and gpureservations.place(new, devices, taken, shared_by):
        raise Refused(
            f"gpus: {request.words}: others have waited for a day, and come before a new reservation.",
            "Wait as well: project launch --wait. Who waits: gpu queue.",
        )
    if soon:
        raise Refused(
            f"gpus: {request.words}: not free now, and who has them is told {rules.notice_hours} h before.",
            f"Choose a later start, or wait for them: project launch --wait. {_LIST}",
        )
    raise Refused(f"gpus: {request.words}: reserved by others for a part of that time.", _LIST)


def _check_amount(
    policy: Policy,
    user: User,
    seen: Survey,
    new: Reservation,
    devices: Sequence[Device],
    now: float,
    *,
    admin: bool,
) -> None:
    """Raise Refused when a user would have more reserved for one time than is allowed, or could be had."""
    rules, limits = policy.gpu.reserve, leases.bounds(policy, user)
    mine = [
        one
        for one in seen.reserved
        if one.uid == user.uid and gpureservations.stands(one, now, rules) and one.overlaps(new)
    ]
    there = {one.uuid: one for one in devices}
    cost = sum(
        (
            leases.cost_of(there[uuid], shared=one.shared, shared_by=policy.gpu.shared_by)
            for one in [*mine, new]
            for uuid in one.uuids
            if uuid in there
        ),
        Fraction(0),
    )
    bound = limits.equivalents if admin else min(limits.equivalents, most(policy, user))
    if cost > bound:
        raise Refused(
            f"gpus: {leases.shown(cost)} GPUs would be reserved for that time, of {bound} at most.",
            "Ask for less, or for another time.",
        )
    count = sum(len(one.devices) for one in [*mine, new])
    if limits.devices is not None and count > limits.devices:
        raise Refused(f"gpus: you may have {limits.devices} devices at once, not {count}.", "Ask for less.")


def cancel(
    engine: Engine, policy: Policy, number: int, user: User | None = None, *, check: bool = False
) -> dict[str, Any]:
    """Give a reservation up, of a user or, without one, of anybody; say what it was.

    Raises NotFound, Refused, HostError for a record that is damaged.
    """
    with contextlib.nullcontext() if check else gpuleases.locked():
        now, rules = time.time(), policy.gpu.reserve
        found = gpuleases.read_reserved()
        one = next((one for one in found if one.number == number), None)
        if one is None or (user and one.uid != user.uid) or not gpureservations.stands(one, now, rules):
            whose = "You have" if user else "There is"
            raise NotFound(f"{whose} no reservation {number} that is to come or on.", _LIST)
        seen = gpuleases.survey(engine, policy)
        # What was given because of it is to end with it, too.
        if user and gpureservations.is_near(one, now, rules) and gpureservations.holds(seen.leases, one):
            raise Refused(
                f"Reservation {number} is in use.",
                "Retire the container that has its GPUs first (gpu list shows yours).",
            )
        if not check:
            over = replace(one, start=now, end=now, devices=())
            gpuleases.write_reserved([over if each.number == number else each for each in found])
    return {"changed": True, **told(one, policy, now)}


# What is told


def told(one: Reservation, policy: Policy, now: float) -> dict[str, Any]:
    """Return a reservation as it is told to its owner. Texts of times are in the server's time zone.

    ``state``: "ahead", "on", "lapsed", "over", or "lost" where too few of the GPUs work for it.
    """
    rules = policy.gpu.reserve
    state = "on" if one.is_on(now) else "ahead"
    if not gpureservations.stands(one, now, rules):
        state = "over" if now >= one.end else "lapsed"
    elif not one.devices:
        state = "lost"
    return {
        "number": one.number,
        "gpus": one.request,
        "start": int(one.start),
        "end": int(one.end),
        "from": gpureservations.words(one.start),
        "until": gpureservations.words(one.end),
        "state": state,
        "grace_minutes": rules.grace_minutes,
    }


def listed(policy: Policy, user: User | None = None) -> list[dict[str, Any]]:
    """Return what is reserved, the next first: to a user without who others are, to admins with."""
    now, rules = time.time(), policy.gpu.reserve
    found = []
    for one in sorted(gpuleases.read_reserved(), key=lambda one: (one.start, one.number)):
        mine = user is not None and one.uid == user.uid
        # Somebody who comes late is told that it has lapsed.
        if now >= one.end or not (mine or user is None or gpureservations.stands(one, now, rules)):
            continue
        entry = {**told(one, policy, now), "yours": mine}
        if user is None:
            entry["user"] = _name(policy, one.uid)
        elif not mine:
            entry["number"] = None
        found.append(entry)
    return found


def _name(policy: Policy, uid: int) -> str:
    with contextlib.suppress(LabError):
        return policy.user_by_uid(uid).name
    return str(uid)


def notes(policy: Policy, user: User, uuids: Collection[str] = ()) -> list[str]:
    """Return what a user is to know: of own reservations, and of those that the devices ``uuids`` have."""
    now, rules = time.time(), policy.gpu.reserve
    try:
        found = gpuleases.read_reserved()
    except HostError as error:
        return [f"Reservations do not count until your admins have mended this: {error.message}"]
    said = []
    for one in found:
        if one.uid != user.uid or now >= one.end:
            continue
        what = f"Your reservation {one.number} ({one.request}, {gpureservations.words(one.start)})"
        state = told(one, policy, now)["state"]
        if state == "lapsed":
            said.append(f"{what} lapsed: nothing of it was used for {rules.grace_minutes} minutes.")
        elif state == "lost":
            said.append(f"{what} has no GPUs: too few of this server's work, and others were made earlier.")
        elif state == "on":
            said.append(f"{what} is on until {gpureservations.words(one.end)}.")
    return [*said, *until(policy, user, uuids)]


def until(policy: Policy, user: User, uuids: Collection[str]) -> list[str]:
    """Return a sentence where a container with these devices is stopped for a reservation."""
    now, rules = time.time(), policy.gpu.reserve
    found = gpuleases.known_reserved()
    mine = [
        one
        for one in found
        if one.uid == user.uid
        and gpureservations.stands(one, now, rules)
        and gpureservations.is_near(one, now, rules)
        and one.uuids.intersection(uuids)
    ]
    if mine:
        last = max(one.end for one in mine)
        return [f"Its GPUs are reserved for you until {gpureservations.words(last)}; it is stopped then."]
    start = gpureservations.next_start(found, user.uid, uuids, now, rules)
    if start is None:
        return []
    left = duration(max(0.0, start - now))
    return [
        f"Its GPUs are reserved for somebody else from {gpureservations.words(start)} on, in {left}: the "
        "container is stopped then, and nothing in it is lost."
    ]
