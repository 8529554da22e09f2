# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What was promised against the disk that there is, for each file system. Pure functions; sizes are bytes.

``disks`` puts together the promises of a policy, ``judge`` compares those of one disk with its size, and
``page`` shows all of them to people.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .policy import Policy
from .sizes import format_size

OK, UNBOUNDED, OVERCOMMITTED, FILLING, FULL, UNKNOWN = LEVELS = (
    "ok",
    "unbounded",
    "overcommitted",
    "filling",
    "full",
    "unknown",
)


_STOP = "from {} % on nothing is begun on it. Make room, or enlarge it."


@dataclass(frozen=True)
class Promise:
    """What one thing may come to hold on a disk; 0 bytes mean that nothing bounds it."""

    to: str
    size: int


@dataclass(frozen=True)
class Disk:
    """A file system and what was promised of it; ``size`` is 0 where it is not known."""

    role: str
    mount: str
    size: int
    available: int
    promises: tuple[Promise, ...]


@dataclass(frozen=True)
class Capacity:
    """The verdict on one file system.

    ``ratio`` is what was promised through the size; ``unbounded`` are those whose promise has no limit.
    ``level`` is one of LEVELS, the most urgent that holds; ``sentence`` says it to IT.
    """

    role: str
    mount: str
    size: int
    available: int
    promised: int
    ratio: float
    unbounded: tuple[str, ...]
    level: str
    sentence: str

    @property
    def used_percent(self) -> int:
        """How much of it is in use, rounded down."""
        return used_percent(self.size, self.available)


def used_percent(size: int, available: int) -> int:
    """Return how many per cent of a file system are in use, rounded down; 0 where its size is not known."""
    return 100 * (size - available) // size if size else 0


def judge(disk: Disk, overcommit: float, *, warn: int = 101, refuse: int = 101) -> Capacity:
    """Compare what was promised of a disk with its size.

    More than ``overcommit`` times its size is told; ``warn`` and ``refuse`` are per cent in use.
    """
    promised = sum(one.size for one in disk.promises)
    unbounded = tuple(one.to for one in disk.promises if not one.size)
    ratio = promised / disk.size if disk.size else 0.0
    used = used_percent(disk.size, disk.available)
    level, sentence = OK, f"{disk.mount}: {_against(disk, promised, ratio)}."
    if not disk.size:
        level, sentence = UNKNOWN, f"{disk.mount} is not mounted, so nobody knows how large it is."
    elif used >= refuse:
        level = FULL
        sentence = f"{disk.mount} is {used} % full: {_STOP.format(refuse)}"
    elif used >= warn:
        level = FILLING
        sentence = f"{disk.mount} is {used} % full; {_STOP.format(refuse)}"
    elif ratio > overcommit:
        level = OVERCOMMITTED
        sentence = (
            f"{disk.mount} is overcommitted: {_against(disk, promised, ratio)}, and lab_overcommit allows "
            f"{overcommit:g} times. Enlarge the disk, or lower limits."
        )
    elif unbounded:
        level = UNBOUNDED
        sentence = f"{disk.mount}: {_against(disk, promised, ratio)}, and no limit to {_some(unbounded)}."
    return Capacity(
        disk.role, disk.mount, disk.size, disk.available, promised, ratio, unbounded, level, sentence
    )


def _against(disk: Disk, promised: int, ratio: float) -> str:
    return f"{format_size(promised)} promised of {format_size(disk.size)} ({ratio:.2g} times)"


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def disks(policy: Policy, filesystems: Iterable[Mapping[str, Any]]) -> tuple[Disk, ...]:
    """Return the file systems (role, mount, size, available), each with what the policy promises of it."""
    promises = {"home": homes(policy), "docker": _docker(policy), "data": _data(policy)}
    return tuple(
        Disk(
            role=str(one["role"]),
            mount=str(one["mount"]),
            size=int(one["size"]),
            available=int(one["available"]),
            promises=promises.get(str(one["role"]), ()),
        )
        for one in filesystems
    )


def homes(policy: Policy) -> tuple[Promise, ...]:
    """Return what is promised of the homes: each user's hard quota."""
    return tuple(Promise(user.name, user.quota.hard) for user in policy.users)


def _docker(policy: Policy) -> tuple[Promise, ...]:
    found = []
    for user in policy.users:
        # What retired containers hold is in their layers, and so within layers_size.
        for what, size in (("layers", user.limits.layers_size), ("images", user.limits.images_size)):
            found.append(Promise(f"{what} of {user.name}", size))
    if policy.package_cache is not None:
        found.append(Promise("the package cache", policy.package_cache.size))
    return tuple(found)


def _data(policy: Policy) -> tuple[Promise, ...]:
    # Shares without a size are bounded together by what their users may have.
    sized = [Promise(f"share {share.name}", share.size) for share in policy.shares if share.size]
    if len(sized) == len(policy.shares):
        return tuple(sized)
    return (*sized, *(Promise(f"files of {user.name}", user.limits.data_size) for user in policy.users))


def survey(policy: Policy, filesystems: Iterable[Mapping[str, Any]]) -> tuple[Capacity, ...]:
    """Return the verdict on each file system of a server, by the rules of its policy."""
    rules = policy.disks
    return tuple(
        judge(disk, rules.overcommit, warn=rules.warn, refuse=rules.refuse)
        for disk in disks(policy, filesystems)
    )


def shown(capacity: Capacity) -> dict[str, Any]:
    """Return a verdict as plain data."""
    return {
        "role": capacity.role,
        "mount": capacity.mount,
        "size": capacity.size,
        "available": capacity.available,
        "used_percent": capacity.used_percent,
        "promised": capacity.promised,
        "ratio": round(capacity.ratio, 3),
        "unbounded": list(capacity.unbounded),
        "level": capacity.level,
        "sentence": capacity.sentence,
    }
