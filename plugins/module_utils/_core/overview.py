# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The server at a glance: what ``report`` tells, with units, disks and people, and what needs a hand first.

``look`` asks; everything else is a pure function of what it was told. Sizes are bytes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from . import (
    accounts,
    audit,
    backup,
    checks_host,
    damaged,
    gpuview,
    mounts,
    report,
    room,
    slices,
    units,
    watermarks,
)
from .accounts import Account
from .engine import DEFAULT_URL
from .errors import LabError, NotFound
from .inspection import desired
from .names import printable, slice_name
from .policy import Policy
from .sizes import format_size

_SYSTEM = "/"
_TIMER = ".timer"
_FAILED = "failed"


def look(policy: Policy, url: str = DEFAULT_URL, *, sizes: bool = False) -> dict[str, Any]:
    """Return all that is told of the server, as plain data: report.report with what an admin needs beside it.

    Raises HostError when even what is mounted cannot be read.
    """
    found = report.look(policy, url, sizes=sizes, packages=False)
    seen = report.report(policy, found)
    seen["host"] = {
        "name": os.uname().nodename,
        "time": time.time(),
        "up": time.clock_gettime(time.CLOCK_BOOTTIME),
    }
    seen["disks"] = _disks(policy)
    seen["units"], seen["units_problem"] = _units()
    seen["left"], seen["left_problem"] = _left(policy)
    seen["overcommit"] = policy.disks.overcommit
    seen["backup"] = _backup(policy, seen["host"]["time"])
    wanted = gpuview.is_wanted(found.gpus, found.docker.snapshot.containers.values())
    seen["gpu_leases"] = gpuview.look(policy, url, found.gpus) if wanted else None
    seen["damaged"] = damaged.problems()
    seen["attention"] = attention(seen)
    return seen


def _disks(policy: Policy) -> list[dict[str, Any]]:
    """Return how full each disk is, that of the system among them; only those that are mounted."""
    table = mounts.read()
    found = []
    for point in dict.fromkeys([_SYSTEM, *(fs.mount for fs in policy.filesystems)]):
        mount = mounts.at(point, table)
        if mount is None:
            continue
        there = watermarks.look(point)
        space, inodes = checks_host.fullness(point)
        found.append(
            {
                "mount": point,
                "device": mount.source,
                "fstype": mount.fstype,
                "size": there.size,
                "used": there.used,
                "space": space,
                "inodes": inodes,
            }
        )
    return found


def full(policy: Policy) -> list[str]:
    """Return which disks are as good as full. Raises HostError when what is mounted cannot be read."""
    return _filling(_disks(policy))[0]


def _units() -> tuple[list[dict[str, Any]], str]:
    try:
        there = os.listdir(units.DIRECTORY)
        names = [
            name for name in there if name.startswith("lab-server-") and name.endswith((".service", _TIMER))
        ]
        known = dict.fromkeys([*checks_host.UNITS, *sorted(name for name in names if "@." not in name)])
        states = units.states(list(known))
    except (LabError, OSError) as error:
        return [], str(error)
    return [
        {"name": name, "active": state.get("ActiveState", ""), "enabled": state.get("UnitFileState", "")}
        for name, state in states.items()
    ], ""


def _left(policy: Policy) -> tuple[list[dict[str, Any]], str]:
    try:
        return departed(policy, accounts.read_actual(desired(policy, {}))), ""
    except LabError as error:
        return [], str(error)


def departed(policy: Policy, actual: accounts.Actual) -> list[dict[str, Any]]:
    """Return the accounts that were lab users here and are not declared any more."""
    gone = actual.known - {user.uid for user in policy.users}
    return [
        {
            "name": account.name,
            "uid": account.uid,
            "home": account.home,
            "closed": _is_closed(account, actual.units.get(slice_name(account.uid), "")),
        }
        for account in sorted(actual.users.values(), key=lambda account: account.uid)
        if account.uid in gone
    ]


def _is_closed(account: Account, unit: str) -> bool:
    """Whether nothing is left for us to close: an account of somebody else's is not ours to close."""
    return account.closed or not account.local or slices.foreign(unit)


def _backup(policy: Policy, now: float) -> dict[str, Any] | None:
    if policy.backup is None:
        return None
    try:
        found = backup.records(policy)
    except LabError as error:
        return {"users": [], "bad": [str(error)], "warn": []}
    bad, warn = backup.attention(policy.backup, found, now)
    return {"users": [asdict(one) for one in found], "bad": bad, "warn": warn}


# ---- what needs a hand first -----------------------------------------------------------------------------


def attention(seen: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return what needs a hand, the worst first: {"level": "bad" or "warn", "text": ...}."""
    bad = [str(problem) for problem in seen["storage"]["problems"]]
    docker = seen["docker"]
    bad += seen.get("damaged", [])
    bad += [] if docker["answers"] else [f"Docker: {docker['problem']}"]
    bad += [f"{one['name']} {one['active']}" for one in seen["units"] if one["active"] == _FAILED]
    warn = [
        f"{one['name']} is not active"
        for one in seen["units"]
        if one["active"] == "inactive" and _must_run(one)
    ]
    full, filling = _filling(seen["disks"])
    users_full, users_filling = _full_users(seen["users"])
    bad += full + users_full
    warn += filling + users_filling
    backups = seen.get("backup") or {"bad": [], "warn": []}
    bad += backups["bad"]
    warn += backups["warn"]
    if seen.get("gpu_leases"):
        ill, odd = gpuview.attention(seen["gpu_leases"])
        bad += ill
        warn += odd
    warn += [f"{one['name']} left, and the account is open" for one in seen["left"] if not one["closed"]]
    drifted = [one for one in seen["projects"] if one["drift"]]
    warn += [f"{one['user']}/{one['name']} is not as declared: {one['reason']}" for one in drifted]
    orphans = [one["name"] for one in seen["containers"] if not one["user"]]
    warn += [f"{name} belongs to nobody in the policy" for name in orphans]
    warn += [_too_much(one) for one in seen["storage"]["capacity"] if one["overcommitted"]]
    return [
        {"level": level, "text": printable(text)}
        for level, texts in (("bad", bad), ("warn", warn))
        for text in texts
    ]


def _too_much(disk: Mapping[str, Any]) -> str:
    promised, size = format_size(disk["promised"]), format_size(disk["size"])
    return f"{disk['mount']}: {promised} promised of {size} ({disk['ratio']:.2g} times)"


def _must_run(unit: Mapping[str, Any]) -> bool:
    return unit["name"] in checks_host.UNITS or (
        unit["enabled"] == "enabled" and unit["name"].endswith(_TIMER)
    )


def _filling(disks: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    full, filling = [], []
    for disk in disks:
        for key, what in (("space", "full"), ("inodes", "full of files (inodes)")):
            text = f"{disk['mount']} is {round(disk[key] * 100)} % {what}"
            if disk[key] >= room.ALARM:
                full.append(text)
            elif disk[key] >= room.WARN:
                filling.append(text)
    return full, filling


def share(user: Mapping[str, Any]) -> float | None:
    """Return the share (0 to 1) of a user's quota that is used, of bytes or files; None: not known."""
    usage = user.get("usage")
    if not usage:
        return None
    quota = usage["quota"]
    shares = [
        used / limit
        for used, limit in (
            (usage["used"], quota["hard"] or quota["soft"]),
            (usage["inodes"], quota["inodes_hard"] or quota["inodes_soft"]),
        )
        if limit
    ]
    return max(shares, default=0.0)


def _full_users(users: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    full: list[str] = []
    filling: list[str] = []
    for user in users:
        used = share(user)
        if used is not None and used >= room.WARN:
            text = f"{user['name']} has used {int(used * 100)} % of the quota"
            (full if used >= room.ALARM else filling).append(text)
    return full, filling


# ---- people ----------------------------------------------------------------------------------------------


def people(policy: Policy, url: str = DEFAULT_URL) -> dict[str, Any]:
    """Return the users with what they use and hold, and who left, as plain data."""
    seen = look(policy, url)
    try:
        sessions, problem = audit.logins(), ""
    except LabError as error:
        sessions, problem = {}, str(error)
    return {
        "users": [_person(user, seen, sessions) for user in seen["users"]],
        "left": [
            {**one, "last_login": sessions.get(one["name"]), **held(seen, one["uid"])} for one in seen["left"]
        ],
        "logins_problem": problem,
        "docker": seen["docker"],
    }


def _person(
    user: Mapping[str, Any], seen: Mapping[str, Any], sessions: Mapping[str, float]
) -> dict[str, Any]:
    projects = [one["name"] for one in seen["projects"] if one["user"] == user["name"]]
    return {
        **user,
        "share": share(user),
        "projects": projects,
        "last_login": sessions.get(user["name"]),
        **held(seen, user["uid"]),
    }


def held(seen: Mapping[str, Any], uid: int) -> dict[str, Any]:
    """Return what somebody holds in Docker; the size of images counts layers that several share each time."""
    own = [one for one in seen["containers"] if one["uid"] == uid]
    images = [one for one in seen["images"] if one["uid"] == uid]
    return {
        "containers": [one["name"] for one in own],
        "running": [one["name"] for one in own if one["running"]],
        "retired": [one["name"] for one in seen["retired"] if one["uid"] == uid],
        "images": [one["name"] for one in images],
        "images_size": sum(one["size"] for one in images),
    }


def on_docker(one: Mapping[str, Any]) -> int:
    """Return what one of ``people`` has of Docker's disk: images as in ``held``, layers where they count."""
    layers = one.get("layers")
    return int(one["images_size"]) + int(layers["used"] if layers else 0)


def most(seen: Mapping[str, Any]) -> dict[str, list[tuple[str, int]]]:
    """Return who has what of the ``homes`` and of ``docker``: (name, bytes), the largest first."""
    everybody = [{**one, **held(seen, one["uid"])} for one in (*seen["users"], *seen["left"])]
    homes = [(one["name"], one["usage"]["used"]) for one in seen["users"] if one["usage"]]
    docker = [(one["name"], on_docker(one)) for one in everybody]
    return {
        what: sorted([one for one in found if one[1]], key=lambda one: (-one[1], one[0]))
        for what, found in (("homes", homes), ("docker", docker))
    }


def person(people_seen: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return one of the users, or one who left; raise NotFound."""
    for one in (*people_seen["users"], *people_seen["left"]):
        if one["name"] == name:
            found: Mapping[str, Any] = one
            return found
    raise NotFound(f"{printable(name)[:40]!r} is no lab user.", "See them all: lab users.")


def running(seen: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the projects whose container runs, by user."""
    found: dict[str, list[str]] = {}
    for one in seen:
        if one["running"]:
            found.setdefault(one["user"] or str(one["uid"]), []).append(one["project"])
    return found
