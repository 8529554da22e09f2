# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the broker tells of GPUs and their queue, and does with a place in it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

from . import gpuidle, gpuleases, gpurequests, gpureservations, gpureserve, leases, names
from .errors import InvalidInput, LabError, NotFound
from .gpudevices import Device
from .gpuleases import Held, Survey
from .notices import IDLE_WAITED
from .protocol import gpus
from .verbs import Request, Verb, connected, settings, yes


def _devices(request: Request) -> tuple[list[Device], str]:
    """Return the devices, and why there are none."""
    try:
        return gpuleases.inventory(request.policy), ""
    except LabError as error:
        return [], str(error)


def _list(request: Request) -> dict[str, Any]:
    devices, problem = _devices(request)
    with connected() as engine:
        seen = gpuleases.survey(engine, request.policy)
    limits = leases.bounds(request.policy, request.user)
    mine = [one for one in seen.leases if one.uid == request.user.uid]
    stock = leases.Stock(devices, seen.leases, limits.shared_by)
    kept = gpuleases.kept_from(seen, request.policy, request.user)
    idle = gpuidle.idle()
    return {
        "devices": [
            {**_told(request, one, seen, stock, kept), "idle": _idle(one.uuid, seen, idle)} for one in devices
        ],
        "gone": _gone(request, devices, seen),
        "problem": problem,
        "held": leases.shown(sum((one.cost for one in mine), Fraction(0))),
        "limit": limits.equivalents,
        "waiting": len(seen.waiting),
    }


def _told(
    request: Request, device: Device, seen: Survey, stock: leases.Stock, kept: frozenset[str]
) -> dict[str, Any]:
    """Return a device as it is told: what others have is in use or reserved, and no more is said."""
    holders = [one for one in seen.held if device.uuid in one.lease.uuids]
    use = _use(request, device, holders, stock)
    if use == "free" and device.uuid in kept:
        use = "reserved"
    return {
        "uuid": device.uuid,
        "index": device.index,
        "name": names.printable(device.name),
        "memory": device.memory,
        "profile": device.profile,
        "gpu": device.parent,
        "free": stock.is_free(device) and device.uuid not in kept,
        "usable": stock.is_sound(device),
        "problem": device.problem,
        "shared": any(one.lease.shared for one in holders),
        "use": use,
        "projects": sorted(_project(one) for one in holders if one.lease.uid == request.user.uid),
    }


def _idle(uuid: str, seen: Survey, idle: Mapping[str, int]) -> int | None:
    """Return for how many seconds the leases of a device have been idle; None: not known, or nobody's."""
    held = [idle.get(one.container) for one in seen.held if uuid in one.lease.uuids]
    known = [one for one in held if one is not None]
    return min(known) if known and len(known) == len(held) else None


def _gone(request: Request, devices: Sequence[Device], seen: Survey) -> list[dict[str, Any]]:
    """Return the user's own containers whose GPU is not there any more."""
    there = {one.uuid for one in devices}
    return [
        {"uuid": uuid, "project": _project(one)}
        for one in seen.held
        if one.lease.uid == request.user.uid
        for uuid in one.lease.uuids
        if uuid not in there
    ]


def _use(request: Request, device: Device, holders: Sequence[Held], stock: leases.Stock) -> str:
    """Return "yours", "in use", "free", or "" for what cannot be used."""
    if any(one.lease.uid == request.user.uid for one in holders):
        return "yours"
    if holders or (stock.is_sound(device) and not stock.is_free(device)):
        return "in use"
    return "free" if stock.is_free(device) else ""


def _project(held: Held) -> str:
    return names.parse_container_name(held.lease.holder)[0]


def _queue(request: Request) -> dict[str, Any]:
    with connected() as engine:
        seen = gpuleases.survey(engine, request.policy)
    told, now = [], time.time()
    for one in seen.waiting:
        place, seconds = gpuleases.place(seen, one.holder, now)
        own = one.uid == request.user.uid
        told.append(
            {
                "place": place,
                "yours": own,
                "project": one.project if own else None,
                "gpus": one.request,
                "waited": gpuleases.waited(one),
                "estimate": None if seconds < 0 else seconds,
            }
        )
    mine = [one for one in gpuleases.interrupted() if one.uid == request.user.uid]
    idle = gpuidle.idle()
    held = {uuid for one in seen.held if one.lease.uid != request.user.uid for uuid in one.lease.uuids}
    return {
        "waiting": told,
        "interrupted": [{"project": one.project, "gpus": one.request} for one in mine],
        # How many that others hold have done nothing for an hour; whose they are is not told.
        "idle": sum((_idle(uuid, seen, idle) or 0) >= IDLE_WAITED for uuid in held),
    }


def _release(request: Request) -> dict[str, Any]:
    holder = names.container_name(request.project, request.user.uid)
    if request.options.get("check"):
        with connected() as engine:
            seen = gpuleases.survey(engine, request.policy)
        waiting = [*seen.waiting, *gpuleases.interrupted()]
        changed = found = any(one.holder == holder for one in waiting)
    else:
        changed = found = gpuleases.leave(holder)
    if not found:
        raise NotFound(
            f"{request.project} does not wait for GPUs.",
            f"To give up those that it has: container retire {request.project}.",
        )
    return {"changed": changed}


def _why(request: Request) -> dict[str, Any]:
    """Tell whether a request could be had now, and if not, why."""
    text = request.options.get("gpus", "1")
    devices, problem = _devices(request)
    with connected() as engine:
        possible, lease, error = gpuleases.tried(
            engine, request.policy, request.user, gpurequests.parse(text), devices
        )
    answer: dict[str, Any] = {"gpus": text, "now": lease is not None and not problem, "later": possible}
    answer["devices"] = list(lease.uuids) if lease is not None else []
    answer["why"] = problem or ("" if error is None else error.message)
    answer["hint"] = "" if problem or error is None else error.hint
    answer["notes"] = gpureserve.notes(request.policy, request.user, answer["devices"])
    return answer


def _reserve(request: Request, *, check: bool) -> dict[str, Any]:
    options = request.options
    for key in ("gpus", "from", "for"):
        if key not in options:
            raise InvalidInput(f"{key} is missing.", "Use the commands.")
    wanted = gpurequests.parse(options["gpus"])
    # In the time zone of the server, which is this process' own.
    start = gpureservations.parse_start(options["from"], time.time())
    with connected() as engine:
        return gpureserve.reserve(
            engine,
            request.policy,
            request.user,
            wanted,
            start,
            options["for"],
            partial(gpuleases.inventory, request.policy),
            check=check,
        )


def _reserved(request: Request) -> dict[str, Any]:
    rules = request.policy.gpu.reserve
    return {
        "reservations": gpureserve.listed(request.policy, request.user),
        "gpus": gpureserve.most(request.policy, request.user),
        "ahead_days": rules.ahead_days,
        "hours": rules.hours,
        "open": rules.open,
    }


def _cancel(request: Request, *, check: bool) -> dict[str, Any]:
    if "number" not in request.options:
        raise InvalidInput("The number of the reservation is missing.", "Use the commands.")
    with connected() as engine:
        return gpureserve.cancel(engine, request.policy, request.options["number"], request.user, check=check)


def start(word: str) -> str:
    """Take the start of a window, as it is written; raise InvalidInput."""
    gpureservations.parse_start(word, 0.0)
    return word


def number(word: str) -> int:
    """Take the number of a reservation; raise InvalidInput."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}", word):
        raise InvalidInput(f"{names.printable(word)[:20]!r} is no number of a reservation.")
    return int(word)


_RESERVE_WORDS = settings(**{"gpus": gpus, "from": start, "for": gpureservations.parse_length})


VERBS: dict[str, Verb] = {
    "gpu-list": Verb(False, _list),
    "gpu-queue": Verb(False, _queue),
    "gpu-reserve": Verb(False, partial(_reserve, check=False), further=_RESERVE_WORDS),
    "gpu-reserve-check": Verb(False, partial(_reserve, check=True), further=_RESERVE_WORDS),
    "gpu-reserved": Verb(False, _reserved),
    "gpu-unreserve": Verb(False, partial(_cancel, check=False), further=settings(number=number)),
    "gpu-unreserve-check": Verb(False, partial(_cancel, check=True), further=settings(number=number)),
    "gpu-release": Verb(True, _release, further=settings(check=yes)),
    "gpu-why": Verb(False, _why, further=settings(gpus=gpus)),
}
