# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who has which GPU, and who waits, by name: for the admins. Lab users are told by ``verbs_gpu``, without.

``look`` asks; everything else is a pure function of what it was told. Sizes are bytes, times seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from . import gpuidle, gpuleases, gpurequests, gpus, leases, names
from .engine import DEFAULT_URL, Engine
from .errors import LabError
from .gpudevices import Device
from .gpuleases import Held, Survey
from .gpuqueue import Waiting
from .gpus import Gpu, Process
from .notices import idle_words
from .plan import Actual
from .policy import Policy, User


def look(policy: Policy, url: str = DEFAULT_URL, seen: gpus.Seen | None = None) -> dict[str, Any]:
    """Return the GPUs, who holds and uses them and who waits, as plain data.

    ``seen`` is what ``gpus.look`` told, where it was asked. What is not known is told with its reason.
    """
    found = gpus.look(out_of_service=policy.gpu.out_of_service) if seen is None else seen
    try:
        engine = Engine.connect(url)
        try:
            survey, there = gpuleases.survey(engine, policy), _names(engine.containers())
        finally:
            engine.close()
    except LabError as error:
        return shown(policy, found, Survey(()), {}, problem=str(error))
    return shown(policy, found, survey, there, idle=gpuidle.idle())


def is_wanted(seen: gpus.Seen, there: Iterable[Actual]) -> bool:
    """Say whether a server has GPUs, working or not, or containers that were given some."""
    return bool(seen.gpus) or gpus.on_bus() > 0 or any(one.lease for one in there)


def _names(listed: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the names of all containers, by their ids, from Docker's listing."""
    return {str(item["Id"]): str((item.get("Names") or ["/"])[0]).lstrip("/") for item in listed}


def shown(
    policy: Policy,
    seen: gpus.Seen,
    survey: Survey,
    there: Mapping[str, str],
    problem: str = "",
    idle: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return what was seen, as plain data; ``problem`` says why nobody knows who holds what.

    ``idle``: for how many seconds the GPUs of a container, by its id, did nothing.
    """
    devices = [device for gpu in seen.gpus for device in gpus.devices_of(gpu)]
    stock = leases.Stock(devices, survey.leases, policy.gpu.shared_by)
    known = {device.uuid for device in devices}
    now = time.time()
    return {
        "driver": seen.driver,
        "cuda": seen.cuda,
        "problem": seen.problem,
        "docker": {"answers": not problem, "problem": problem},
        "devices": [one for gpu in seen.gpus for one in _devices(policy, gpu, survey, there, stock, idle)],
        "gone": [
            {"uuid": uuid, **_holder(policy, held, idle)}
            for held in survey.held
            for uuid in held.lease.uuids
            if uuid not in known
        ],
        "waiting": [_waiting(policy, survey, one, now) for one in survey.waiting],
    }


def _devices(
    policy: Policy,
    gpu: Gpu,
    survey: Survey,
    there: Mapping[str, str],
    stock: leases.Stock,
    idle: Mapping[str, int],
) -> Iterator[dict[str, Any]]:
    """Yield what can be given of a GPU; the GPU itself where nothing can, so that it is not overlooked."""
    parts = {one.uuid: one for one in gpu.instances}
    found = list(gpus.devices_of(gpu))
    whole = Device(gpu.uuid, gpu.name, gpu.memory, index=str(gpu.index), healthy=False)
    for device in found or [whole]:
        part = parts.get(device.uuid)
        holders = [one for one in survey.held if device.uuid in one.lease.uuids]
        processes = gpu.processes if part is None else part.processes
        problem = device.problem or gpu.problem
        yield {
            **asdict(device),
            "problem": problem,
            "healthy": not problem,
            "out_of_service": bool({device.uuid, device.card}.intersection(policy.gpu.out_of_service)),
            "used": gpu.used if part is None else part.used,
            "load": gpu.load,
            "temperature": gpu.temperature,
            "power": gpu.power,
            "xids": list(gpu.xids),
            "free": bool(found) and stock.is_free(device),
            "shared": any(one.lease.shared for one in holders),
            "holders": [_holder(policy, one, idle) for one in holders],
            "processes": [_process(one, holders, there) for one in processes],
        }


def _holder(policy: Policy, held: Held, idle: Mapping[str, int]) -> dict[str, Any]:
    project, uid = names.parse_container_name(held.lease.holder)
    state = "running" if held.lease.live else "stopped"
    return {
        **_who(policy, uid),
        "project": project,
        "container": held.lease.holder,
        # One that was never started, by a process that died, gives way when its GPUs are needed.
        "state": "abandoned" if held.abandoned else state if held.container else "being made",
        "since": held.since,
        # For how many seconds its GPUs have done nothing; not known before the first look at it.
        "idle": idle.get(held.container),
        "gpus": leases.shown(held.lease.cost),
    }


def _who(policy: Policy, uid: int) -> dict[str, Any]:
    """Return a user by name and group; both are empty for one who is not declared any more."""
    for user in policy.users:
        if user.uid == uid:
            return {"user": user.name, "uid": uid, "group": user.group}
    return {"user": "", "uid": uid, "group": ""}


def _process(process: Process, holders: Sequence[Held], there: Mapping[str, str]) -> dict[str, Any]:
    """Return a process with its container's name; ``leased``: that container holds the device."""
    name = there.get(process.container, process.container[:12])
    base = gpuleases.base_of(name)  # "" for a container of nobody's project, or a process of the host
    project = names.parse_container_name(base)[0] if base else ""
    leased = bool(process.container) and process.container in {one.container for one in holders}
    return {**asdict(process), "container": name, "project": project, "leased": leased}


def _waiting(policy: Policy, survey: Survey, one: Waiting, now: float) -> dict[str, Any]:
    place, seconds = gpuleases.place(survey, one.holder, now)
    return {
        **_who(policy, one.uid),
        "place": place,
        "project": one.project,
        "gpus": one.request,
        "waited": gpuleases.waited(one),
        "estimate": None if seconds < 0 else seconds,
    }


# ---- what needs a hand -----------------------------------------------------------------------------------


def attention(seen: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return what is bad and what is a warning, in words, of what ``look`` told."""
    ill = [one for one in seen["devices"] if one["problem"]]
    bad = list(dict.fromkeys(one["problem"] for one in ill if not one["out_of_service"]))
    warn = [seen["problem"]] if seen["problem"] else []
    warn += dict.fromkeys(one["problem"] for one in ill if one["out_of_service"])
    if not seen["problem"]:
        bad += [f"the GPU {one['uuid']} of {owner(one)} is not there any more" for one in seen["gone"]]
    warn += [
        f"{process['command'] or 'a process'} ({process['pid']}) of {process['user'] or process['uid']} "
        f"uses GPU {one['index']}, which nobody gave it"
        for one in seen["devices"]
        for process in one["processes"]
        if not process["leased"] and process["uid"] is not None and seen["docker"]["answers"]
    ]
    return bad, warn + _idle(seen)


def _idle(seen: Mapping[str, Any]) -> list[str]:
    """Return which GPUs are held and do nothing, each container once."""
    indexes: dict[str, list[str]] = {}
    holders = {}
    for one in seen["devices"]:
        for holder in one["holders"]:
            indexes.setdefault(holder["container"], []).append(one["index"])
            holders[holder["container"]] = holder
    told = []
    for name, holder in holders.items():
        waiting = sum(one["uid"] != holder["uid"] for one in seen["waiting"])
        said = idle_words(holder.get("idle"), waiting, stopped=holder["state"] == "stopped")
        told += [f"GPU {', '.join(indexes[name])} of {owner(holder)} {said}"] if said else []
    return told


def owner(one: Mapping[str, Any]) -> str:
    """Return whose something is, and of which project: "alice/thesis"."""
    return f"{one['user'] or one['uid']}/{one['project']}"


# ---- one user --------------------------------------------------------------------------------------------


def person(policy: Policy, user: User, wanted: str, url: str = DEFAULT_URL) -> dict[str, Any]:
    """Return what a user may have, holds and waits for, and whether ``wanted`` could be had now, or why not.

    ``wanted`` is a request's text. Nothing is given. Raises LabError, also where Docker does not answer.
    """
    request = gpurequests.parse(wanted)
    found = gpus.look(busy=False, out_of_service=policy.gpu.out_of_service)
    devices = [device for gpu in found.gpus for device in gpus.devices_of(gpu)]
    limits = leases.bounds(policy, user)
    engine = Engine.connect(url)
    try:
        survey = gpuleases.survey(engine, policy)
        possible, lease, error = gpuleases.tried(engine, policy, user, request, devices)
    finally:
        engine.close()
    mine, idle = [one for one in survey.held if one.lease.uid == user.uid], gpuidle.idle()
    waiting = [one for one in survey.waiting if one.uid == user.uid]
    return {
        "user": user.name,
        "uid": user.uid,
        "group": user.group,
        "limits": asdict(limits),
        "held": leases.shown(sum((one.lease.cost for one in mine), Fraction(0))),
        "holds": [{"uuids": list(one.lease.uuids), **_holder(policy, one, idle)} for one in mine],
        "waiting": [_waiting(policy, survey, one, time.time()) for one in waiting],
        "gpus": request.render(),
        "now": lease is not None and not found.problem,
        "later": possible,
        "why": found.problem or ("" if error is None else error.message),
    }
