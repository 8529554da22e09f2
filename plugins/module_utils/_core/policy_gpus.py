# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The part of the policy about GPUs: the variable ``lab_gpu``.

``limits.gpus`` says how many GPUs a user may hold at once, in GPU equivalents: a MIG instance of 1g is a
seventh of one, a part of a shared GPU is as much as it is. This says the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from . import gpurequests
from .errors import InvalidInput
from .names import printable

_MOST = 1024
_MOST_SHARED = 64


@dataclass(frozen=True)
class GpuRule:
    """What a group or a user may do with GPUs; None is what the group says, and without one no bound.

    ``devices``: how many devices at once; ``container``: how many in one container; ``whole``: whether whole
    GPUs, not only MIG instances and shared ones; ``weight``: how much of them a group is to have beside
    the others, when there is a queue; ``reserve``: how many of them a user may have reserved for one time.
    """

    devices: int | None = None
    container: int | None = None
    whole: bool | None = None
    weight: int | None = None
    reserve: int | None = None


@dataclass(frozen=True)
class ReserveRules:
    """What may be reserved, and how a reservation is carried out; admins are bound by the last two alone.

    ``gpus``: GPU equivalents that a user may have reserved for one time, 0: none; a rule's ``reserve`` goes
    first. ``ahead_days``: how far ahead a window begins; ``hours``: how long it is; ``open``: how many of a
    user's are still to end. ``notice_hours``: who is in the way is told so long before. ``grace_minutes``:
    one that nobody uses for so long lapses.
    """

    gpus: int = 0
    ahead_days: int = 14
    hours: int = 24
    open: int = 2
    notice_hours: int = 4
    grace_minutes: int = 60


@dataclass(frozen=True)
class GpuPolicy:
    """The rules, by name, how many containers may share a whole GPU (1: none do), and reservations.

    ``out_of_service``: the uuids of GPUs and MIG instances that are given to nobody any more.
    """

    shared_by: int = 1
    groups: tuple[tuple[str, GpuRule], ...] = ()
    users: tuple[tuple[str, GpuRule], ...] = ()
    reserve: ReserveRules = field(default_factory=ReserveRules)
    out_of_service: tuple[str, ...] = ()

    def rule(self, user: str, group: str) -> GpuRule:
        """Return what holds for a user of a group: each of its own values, else the group's."""
        own = dict(self.users).get(user, GpuRule())
        theirs = dict(self.groups).get(group, GpuRule())
        return GpuRule(
            *(
                mine if mine is not None else other
                for mine, other in zip(asdict(own).values(), asdict(theirs).values())
            )
        )


def read(table: Any, groups: Iterable[str], users: Iterable[str]) -> GpuPolicy:
    """Return the policy in a table of policy.py; raise InvalidInput, which names the key and the fix."""
    table.fill("", {"shared_by": 1})
    found = GpuPolicy(
        shared_by=table.integer("shared_by", 1, _MOST_SHARED),
        groups=_rules(table.table("groups"), frozenset(groups), "lab_groups"),
        users=_rules(table.table("users"), frozenset(users), "lab_users"),
        reserve=_reserve(table.table("reserve")),
        out_of_service=_uuids(table, "out_of_service"),
    )
    table.done()
    return found


def _uuids(table: Any, key: str) -> tuple[str, ...]:
    found = table.texts(key)
    for number, one in enumerate(found):
        if not gpurequests.is_uuid(one):
            raise InvalidInput(
                f"{table.at(key)}[{number}]: {printable(one)[:60]!r} is no uuid of a GPU or MIG instance.",
                "Write it as nvidia-smi -L tells it: GPU-... or MIG-...",
            )
    return tuple(sorted(set(found)))


def _reserve(table: Any) -> ReserveRules:
    table.fill("", asdict(ReserveRules()))
    found = ReserveRules(
        gpus=table.integer("gpus", 0, _MOST),
        ahead_days=table.integer("ahead_days", 1, 366),
        hours=table.integer("hours", 1, 8760),
        open=table.integer("open", 1, 100),
        notice_hours=table.integer("notice_hours", 1, 168),
        grace_minutes=table.integer("grace_minutes", 10, 10080),
    )
    table.done()
    return found


def _rules(table: Any, known: frozenset[str], variable: str) -> tuple[tuple[str, GpuRule], ...]:
    found = []
    for name in table.keys:
        if name not in known:
            raise InvalidInput(
                f"{table.at(printable(str(name))[:40])}: is not in {variable}.", "Correct the name."
            )
        rule = _rule(table.table(name))
        if rule.weight is not None and variable == "lab_users":
            raise InvalidInput(f"{table.at(name)}.weight: only a group has one.", "Set it for the group.")
        found.append((str(name), rule))
    return tuple(sorted(found))


def _rule(table: Any) -> GpuRule:
    keys = table.keys
    rule = GpuRule(
        devices=table.integer("devices", 0, _MOST) if "devices" in keys else None,
        container=table.integer("container", 1, _MOST) if "container" in keys else None,
        whole=table.boolean("whole") if "whole" in keys else None,
        weight=table.integer("weight", 1, 1000) if "weight" in keys else None,
        reserve=table.integer("reserve", 0, _MOST) if "reserve" in keys else None,
    )
    table.done()
    return rule


def dump(policy: GpuPolicy) -> dict[str, Any]:
    """Return the policy as plain data; ``read`` of it gives an equal one."""
    return {
        "shared_by": policy.shared_by,
        "reserve": asdict(policy.reserve),
        "out_of_service": list(policy.out_of_service),
        **{
            kind: {
                name: {key: value for key, value in asdict(rule).items() if value is not None}
                for name, rule in rules
            }
            for kind, rules in (("groups", policy.groups), ("users", policy.users))
        },
    }
