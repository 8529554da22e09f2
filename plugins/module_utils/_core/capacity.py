# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What was promised against the disk that there is, for each file system. Pure functions; sizes are bytes.

``disks`` puts together the promises of a policy, and ``judge`` compares those of one disk with its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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

_DOCKER = "docker"
_STOP = "From {} % on nothing is begun on it."
_ROOM = "Make room, or enlarge it."


@dataclass(frozen=True)
class Space:
    """How large a file system is, what of it is in use and what users may still fill, in bytes; 0: unknown.

    How full it is, is counted in this one way everywhere, df(1)'s: what is in use of what users may fill. So
    the blocks that ext4 keeps for root count as neither, and 100 per cent are where users can write nothing.
    """

    size: int = 0
    used: int = 0
    available: int = 0

    @property
    def share(self) -> float:
        """How full it is, from 0 to 1; 0 where that is not known."""
        within = self.used + self.available
        return self.used / within if within else 0.0

    @property
    def percent(self) -> int:
        """The same in per cent, rounded down: 100 are told only when nothing is left."""
        within = self.used + self.available
        return 100 * self.used // within if within else 0


@dataclass(frozen=True)
class Promise:
    """What one thing may come to hold on a disk; 0 bytes mean that nothing bounds it."""

    to: str
    size: int


@dataclass(frozen=True)
class Disk:
    """A file system and what was promised of it."""

    role: str
    mount: str
    space: Space
    promises: tuple[Promise, ...]


@dataclass(frozen=True)
class Capacity:
    """The verdict on one file system.

    ``ratio`` is what was promised through the size; ``unbounded`` are those whose promise has no limit,
    ``too_large`` those who alone were promised more than the disk is.
    ``overcommitted`` says whether more was promised than the policy allows, however full the disk is.
    ``level`` is one of LEVELS, the most urgent that holds; ``sentence`` says it to IT.
    """

    role: str
    mount: str
    space: Space
    promised: int
    ratio: float
    unbounded: tuple[str, ...]
    too_large: tuple[str, ...]
    overcommitted: bool
    level: str
    sentence: str

    @property
    def given(self) -> str:
        """What was promised against the size, in words."""
        promised, size = format_size(self.promised), format_size(self.space.size)
        return f"{promised} promised of {size} ({self.ratio:.2g} times)"


def judge(disk: Disk, overcommit: float, *, warn: int = 101, refuse: int = 101) -> Capacity:
    """Compare what was promised of a disk with its size.

    More than ``overcommit`` times its size is told; ``warn`` and ``refuse`` are per cent in use.
    """
    size, used = disk.space.size, disk.space.percent
    promised = sum(one.size for one in disk.promises)
    ratio = promised / size if size else 0.0
    judged = Capacity(
        role=disk.role,
        mount=disk.mount,
        space=disk.space,
        promised=promised,
        ratio=ratio,
        unbounded=tuple(one.to for one in disk.promises if not one.size),
        too_large=tuple(one.to for one in disk.promises if one.size > size > 0),
        overcommitted=ratio > overcommit,
        level=OK,
        sentence="",
    )
    if not size:
        return replace(
            judged,
            level=UNKNOWN,
            sentence=f"{disk.mount} is not mounted, so nobody knows how large it is.",
        )
    if used >= warn:
        # On the other disks it is the quotas alone that stop somebody.
        what = f"{_STOP.format(refuse)} {_ROOM}" if disk.role == _DOCKER else _ROOM
        level = FULL if used >= refuse else FILLING
        return replace(judged, level=level, sentence=f"{disk.mount} is {used} % full. {what}")
    if judged.overcommitted:
        return replace(judged, level=OVERCOMMITTED, sentence=too_much(judged, overcommit))
    if judged.unbounded:
        sentence = f"{disk.mount}: {judged.given}, and no limit to {some(judged.unbounded)}."
        return replace(judged, level=UNBOUNDED, sentence=sentence)
    return replace(judged, sentence=f"{disk.mount}: {judged.given}.")


def too_much(judged: Capacity, overcommit: float) -> str:
    """Return the sentence for a disk of which too much was promised."""
    return (
        f"{judged.mount} is overcommitted: {judged.given}, and lab_overcommit allows {overcommit:g} times. "
        "Enlarge the disk, or lower limits."
    )


def some(names: Sequence[str], most: int = 5) -> str:
    """Return the first of the names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def disks(policy: Policy, filesystems: Iterable[Mapping[str, Any]]) -> tuple[Disk, ...]:
    """Return the file systems (as ``storage.spaces`` tells them), each with what is promised of it."""
    promises = {"home": homes(policy), _DOCKER: _docker(policy), "data": _data(policy)}
    return tuple(
        Disk(
            role=str(one["role"]),
            mount=str(one["mount"]),
            space=Space(int(one["size"]), int(one["size"]) - int(one["free"]), int(one["available"])),
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
        "size": capacity.space.size,
        "used": capacity.space.used,
        "available": capacity.space.available,
        "used_percent": capacity.space.percent,
        "promised": capacity.promised,
        "ratio": round(capacity.ratio, 3),
        "unbounded": list(capacity.unbounded),
        "too_large": list(capacity.too_large),
        "overcommitted": capacity.overcommitted,
        "level": capacity.level,
        "sentence": capacity.sentence,
    }
