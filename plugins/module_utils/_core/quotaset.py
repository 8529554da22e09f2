# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The quotas of users on all file systems of a server: homes, Docker's data, shared data.

On the homes a user has a user quota and, for df, a project quota. On the others the user quota alone bounds
what belongs to the user: writable layers of containers, and files in shares whatever project they are in.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from . import capacity, mounts, quota, watermarks
from .errors import HostError
from .items import ItemResult
from .policy import Quota
from .quota import USER, Wanted

_DAY = 86400
#: What the kernel begins with (MAX_IQ_TIME, MAX_DQ_TIME in linux/quota.h; XFS_QM_BTIMELIMIT).
_KERNEL_GRACE = 7 * _DAY


@dataclass(frozen=True)
class Place:
    """A further file system on which users have a quota: a path on it, words for it, and who gets what."""

    path: str
    label: str
    what: str
    limit: str
    wanted: Sequence[Wanted]

    @property
    def bounded(self) -> bool:
        """Whether anybody is to have a limit there."""
        return any(one.quota != quota.NO_LIMIT for one in self.wanted)


@dataclass(frozen=True)
class Common:
    """What holds for all users of the homes: the grace, the default of XFS, how far may be promised."""

    grace_days: int | None = None
    default: Quota | None = None
    overcommit: float = 0.0


def reconcile(
    path: str,
    wanted: Sequence[Wanted],
    *,
    project: bool,
    common: Common,
    places: Sequence[Place],
    check: bool,
) -> list[ItemResult]:
    """Bring all quotas to what is wanted; one result a user, and one for what is everybody's.

    Raises HostError, before anything is set, where limits are wanted that cannot be held.
    """
    # In a check the file systems may only be about to be made and mounted: nothing is said of others.
    ready = USER in quota.enforced(quota.device_of(path))
    if ready or not check:
        _check_default(path, common)
    used = [place for place in places if _holds(place, path, check=check)]
    items = quota.reconcile(path, wanted, project=project, check=check)
    for place in used:
        further = quota.reconcile(
            place.path, place.wanted, project=False, check=check, label=place.label, what=place.what
        )
        for item, more in zip(items, further):
            _merge(item, more)
    everybody = _everybody(path, common, check=check)
    promised = _promised(path, wanted, common)
    if promised and ready:
        everybody.facts["notes"] = [*everybody.facts.get("notes", []), promised]
    return [*items, everybody]


def _check_default(path: str, common: Common) -> None:
    """Raise HostError where a default is wanted of a file system that has none."""
    fstype = mounts.holding(path, mounts.read()).fstype
    if common.default is not None and fstype != "xfs":
        raise HostError(
            f"{path} is {fstype}, which has no default quota for unknown uids.",
            "Remove lab_quota_default, or use XFS for the homes.",
        )


def _holds(place: Place, homes: str, *, check: bool) -> bool:
    """Say whether quotas are to be set at a place; raise HostError where they are wanted and cannot be."""
    try:
        device = quota.device_of(place.path) if os.path.isdir(place.path) else ""
    except HostError:
        device = ""
    if device and device == quota.device_of(homes):
        if place.bounded and (not check or USER in quota.enforced(device)):
            raise HostError(
                f"{place.path} and {homes} are on one file system, so {place.limit} cannot be held apart.",
                f"Give {place.what} a file system of its own in lab_filesystems, or remove {place.limit}.",
            )
        return False
    if USER in quota.enforced(device):
        return True
    if place.bounded and not check:
        raise HostError(
            f"{place.limit} is declared, but {place.path} enforces no user quotas.",
            "Declare its file system in lab_filesystems and run the role storage.",
        )
    # In a check it may only be about to be made.
    return place.bounded and bool(device)


def _merge(item: ItemResult, more: ItemResult) -> None:
    """Add what is done for a user at a further place to what is done for the user at the homes."""
    if more.changed:
        item.changed = True
        item.actions += more.actions
        item.reason = item.reason or more.reason
        item.diff = {key: {**item.diff.get(key, {}), **more.diff.get(key, {})} for key in ("before", "after")}
    if more.facts.get("notes"):
        item.facts["notes"] = [*item.facts.get("notes", []), *more.facts["notes"]]
    if more.failed:
        item.failed = True
        item.message = " ".join(part for part in (item.message, more.message) if part)


def _everybody(path: str, common: Common, *, check: bool) -> ItemResult:
    """Set what holds for all users of the homes."""
    item = ItemResult("everybody")
    mount = mounts.holding(path, mounts.read())
    ready = USER in quota.enforced(mount.source)
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    if common.grace_days is not None:
        seconds = common.grace_days * _DAY
        old = quota.read_graces(mount.source) if ready else (_KERNEL_GRACE, _KERNEL_GRACE)
        if old != (seconds, seconds):
            before["grace"], after["grace"] = (
                " and ".join(_days(one) for one in sorted(set(old))),
                _days(seconds),
            )
            if not check:
                quota.write_graces(mount.source, seconds)
    if mount.fstype == "xfs" or (common.default is not None and not ready):
        _set_default(mount.source, common.default, before, after, ready=ready, check=check)
    if after:
        item.changed, item.reason = True, "they differ"
        item.actions = [f"set {key}: {words}" for key, words in after.items()]
        item.diff = {"before": before, "after": after}
    return item


def _set_default(
    device: str,
    default: Quota | None,
    before: dict[str, str],
    after: dict[str, str],
    *,
    ready: bool,
    check: bool,
) -> None:
    """Set the limits of whoever has none: on XFS those of uid 0, which bind not root but all others.

    xfs_quota(8), ``limit -d``; xfs_qm_scall_setqlim in fs/xfs/xfs_qm_syscalls.c.
    """
    old = quota.read(device, USER, 0).quota if ready else quota.NO_LIMIT
    new = quota.NO_LIMIT if default is None else quota.in_blocks(default)
    if old == new:
        return
    old_words, new_words = quota.describe(old), quota.describe(new)
    differing = [key for key in new_words if new_words[key] != old_words[key]]
    before.update({f"default {key}": old_words[key] for key in differing})
    after.update({f"default {key}": new_words[key] for key in differing})
    if not check:
        quota.write(device, USER, 0, new)


def _days(seconds: int) -> str:
    days = seconds / _DAY
    return f"{days:g} day{'' if days == 1 else 's'}"


def _promised(path: str, wanted: Sequence[Wanted], common: Common) -> str:
    """Return a sentence where more of the homes is promised than is allowed, or ''."""
    if not common.overcommit:
        return ""
    promises = tuple(capacity.Promise(one.name, one.quota.hard) for one in wanted)
    judged = capacity.judge(capacity.Disk("home", path, watermarks.look(path), promises), common.overcommit)
    return judged.sentence if judged.level == capacity.OVERCOMMITTED else ""
