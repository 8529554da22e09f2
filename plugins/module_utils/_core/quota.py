# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Disk quotas, by quotactl(2), which ext4 and XFS answer alike and which counts exactly.

The user quota is the one that holds: the owner of a file can change its project, but not its owner. The
project quota on the workspace only makes statfs(2), and so ``df`` in a container, tell the user's limit:
ext4_statfs_project (fs/ext4/super.c) and xfs_qm_statvfs (fs/xfs/xfs_qm_bhv.c) show a directory with the
inherit flag as a disk as large as its project's limit.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from . import mounts
from .errors import HostError, InvalidInput
from .items import ItemResult
from .policy import Policy, Quota, User
from .sizes import format_size, parse_size

# linux/quota.h and linux/dqblk_xfs.h
USER, PROJECT = 0, 2
_Q_GETQUOTA, _Q_SETQUOTA = 0x800007, 0x800008
_Q_GETINFO, _Q_SETINFO = 0x800005, 0x800006
_Q_XQUOTAON, _Q_XGETQSTAT = 0x5801, 0x5805
_ENFORCED = {USER: 1 << 1, PROJECT: 1 << 5}
# struct if_dqblk: block hard, block soft, bytes used, inodes hard, soft, used, two grace times, valid
_DQBLK = struct.Struct("=8QI4x")
_VALID_LIMITS = 1 | 4
_BLOCK = 1024
# struct if_dqinfo: seconds of grace for blocks and for inodes, flags, valid
_DQINFO = struct.Struct("=2Q2I")
_VALID_GRACES = 1 | 2
# struct fs_quota_stat: version, a byte of padding, flags, ...; longer than any version of it
_QSTAT_SIZE, _QSTAT_FLAGS = 256, struct.Struct("=bxH")

# linux/fs.h: struct fsxattr and its two calls
_FSXATTR = struct.Struct("=IIIII8s")
_FSGETXATTR, _FSSETXATTR = 0x801C581F, 0x401C5820
_PROJECT_INHERIT = 0x00000200

NO_LIMIT = Quota(soft=0, hard=0, inodes_soft=0, inodes_hard=0)


@dataclass(frozen=True)
class Usage:
    """What somebody uses of a file system, in bytes and inodes, and the limits on it.

    ``*_until``: when the soft limit becomes hard, in seconds since 1970; 0 while it is not exceeded.
    """

    used: int
    inodes: int
    quota: Quota
    space_until: int = 0
    files_until: int = 0


@dataclass(frozen=True)
class Wanted:
    """The quota that the user with this uid should have; the user's project has the uid as its number."""

    name: str
    uid: int
    quota: Quota


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _quotactl(command: int, kind: int, device: str, number: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
    libc = _libc()
    # quotactl(2): QCMD(command, type)
    request = ctypes.c_int((command << 8) | kind)
    if libc.quotactl(request, os.fsencode(device), ctypes.c_int(number), buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), device)


def _failed(device: str, error: OSError) -> HostError:
    if error.errno in (errno.ESRCH, errno.ENOSYS, errno.EOPNOTSUPP):
        return HostError(
            f"Quotas are not on for {device}.",
            "Mount it with the options of the role storage, which switch them on.",
        )
    if error.errno == errno.EPERM:
        return HostError(f"The quotas of {device} are not yours to read or change.", "Ask an administrator.")
    return HostError(f"The quotas of {device} cannot be used: {error.strerror}.")


def read(device: str, kind: int, number: int) -> Usage:
    """Return usage and limits of a user or project on the file system of a block device.

    A user may read the own user quota, only root the others (quotactl(2)). Raises HostError.
    """
    buffer = ctypes.create_string_buffer(_DQBLK.size)
    try:
        _quotactl(_Q_GETQUOTA, kind, device, number, buffer)
    except OSError as error:
        if error.errno == errno.ENOENT and os.path.exists(device):
            return Usage(0, 0, NO_LIMIT)  # XFS keeps no record for somebody without files and limits
        raise _failed(device, error) from error
    hard, soft, used, inodes_hard, inodes_soft, inodes, space_until, files_until, _valid = _DQBLK.unpack(
        buffer.raw
    )
    quota = Quota(soft=soft * _BLOCK, hard=hard * _BLOCK, inodes_soft=inodes_soft, inodes_hard=inodes_hard)
    return Usage(used, inodes, quota, space_until, files_until)


def write(device: str, kind: int, number: int, quota: Quota) -> None:
    """Set the limits of a user or project; they hold at once. Raises HostError."""
    quota = in_blocks(quota)
    packed = _DQBLK.pack(
        quota.hard // _BLOCK,
        quota.soft // _BLOCK,
        0,
        quota.inodes_hard,
        quota.inodes_soft,
        0,
        0,
        0,
        _VALID_LIMITS,
    )
    try:
        _quotactl(_Q_SETQUOTA, kind, device, number, ctypes.create_string_buffer(packed, _DQBLK.size))
    except OSError as error:
        raise _failed(device, error) from error


def read_graces(device: str) -> tuple[int, int]:
    """Return for how many seconds users may exceed a soft limit, of space and of files. Raises HostError."""
    buffer = ctypes.create_string_buffer(_DQINFO.size)
    try:
        _quotactl(_Q_GETINFO, USER, device, 0, buffer)
    except OSError as error:
        raise _failed(device, error) from error
    space, files, _flags, _valid = _DQINFO.unpack(buffer.raw)
    return space, files


def write_graces(device: str, seconds: int) -> None:
    """Set for how many seconds users may exceed a soft limit. Who exceeds one already keeps the old time."""
    packed = _DQINFO.pack(seconds, seconds, 0, _VALID_GRACES)
    try:
        _quotactl(_Q_SETINFO, USER, device, 0, ctypes.create_string_buffer(packed, _DQINFO.size))
    except OSError as error:
        raise _failed(device, error) from error


def in_blocks(quota: Quota) -> Quota:
    """Return the quota as the kernel keeps it: in blocks of 1 KiB, rounded up so that none becomes 0."""
    soft, hard = (-(-size // _BLOCK) * _BLOCK for size in (quota.soft, quota.hard))
    return Quota(soft=soft, hard=hard, inodes_soft=quota.inodes_soft, inodes_hard=quota.inodes_hard)


def enforced(device: str) -> frozenset[int]:
    """Return which of USER and PROJECT the kernel enforces there; empty if quotas are off.

    A file system can count without enforcing (ext4 with the feature quota mounted without options).
    """
    buffer = ctypes.create_string_buffer(_QSTAT_SIZE)
    try:
        _quotactl(_Q_XGETQSTAT, USER, device, 0, buffer)
    except OSError:
        return frozenset()
    _version, flags = _QSTAT_FLAGS.unpack_from(buffer.raw)
    return frozenset(kind for kind, flag in _ENFORCED.items() if flags & flag)


def enforce(device: str, point: str) -> None:
    """Make a mounted file system enforce what it counts already; raise HostError if it does not count."""
    missing = {USER, PROJECT} - enforced(device)
    flags = sum(_ENFORCED[kind] for kind in missing)
    if not flags:
        return
    try:
        _quotactl(_Q_XQUOTAON, USER, device, 0, ctypes.create_string_buffer(struct.pack("=I", flags), 4))
    except OSError as error:
        raise HostError(
            f"Quotas cannot be switched on while {device} is mounted ({error.strerror}).",
            f"/etc/fstab is right already. Run: umount {point} && mount {point}, or restart the server.",
        ) from error


def get_project(descriptor: int) -> tuple[int, bool]:
    """Return the project of an open file or folder, and whether new files in it inherit it; or HostError."""
    _flags, _extent, _extents, project, _cow, _pad = _fsxattr(descriptor)
    return project, bool(_flags & _PROJECT_INHERIT)


def set_project(descriptor: int, project: int, *, inherit: bool = True) -> bool:
    """Give an open folder to a project, with all that will be made in it; return whether that was news.

    Without ``inherit`` it is a file. Raises HostError if the file system has no projects.
    """
    flags, extent, extents, current, cow, pad = _fsxattr(descriptor)
    mark = _PROJECT_INHERIT if inherit else 0
    if current == project and flags & mark == mark:
        return False
    packed = _FSXATTR.pack(flags | mark, extent, extents, project, cow, pad)
    try:
        fcntl.ioctl(descriptor, _FSSETXATTR, packed)
    except OSError as error:
        raise _no_projects(error) from error
    return True


def _fsxattr(descriptor: int) -> tuple[int, int, int, int, int, bytes]:
    try:
        answer = fcntl.ioctl(descriptor, _FSGETXATTR, bytes(_FSXATTR.size))
    except OSError as error:
        raise _no_projects(error) from error
    flags, extent, extents, project, cow, pad = _FSXATTR.unpack(answer)
    return flags, extent, extents, project, cow, pad


def _no_projects(error: OSError) -> HostError:
    return HostError(
        f"The file system has no project quotas ({error.strerror}).",
        "Use XFS, or ext4 with the features quota and project, as the role storage makes them.",
    )


def device_of(path: str) -> str:
    """Return the block device of the file system that holds ``path``; raise HostError."""
    return mounts.holding(path, mounts.read()).source


def usage(policy: Policy, user: User) -> Usage:
    """Return what a lab user uses of the file system of the homes; for root, or for the user himself."""
    return read(device_of(policy.home_root), USER, user.uid)


def for_project(quota: Quota) -> Quota:
    """Return the limits of the user's project: the hard ones, which statfs shows as the size of the disk."""
    return Quota(soft=0, hard=quota.hard, inodes_soft=0, inodes_hard=quota.inodes_hard)


def quota_from_options(options: Mapping[str, Any], name: str) -> Quota:
    """Return the quota of one user of a module's list; raise InvalidInput."""
    quota = Quota(
        soft=parse_size(options.get("soft") or 0, f"quota.soft of {name}"),
        hard=parse_size(options.get("hard") or 0, f"quota.hard of {name}"),
        inodes_soft=int(options.get("inodes_soft") or 0),
        inodes_hard=int(options.get("inodes_hard") or 0),
    )
    for kind, soft, hard in (("", quota.soft, quota.hard), ("inodes_", quota.inodes_soft, quota.inodes_hard)):
        if hard and soft > hard:
            raise InvalidInput(
                f"quota.{kind}soft of {name} is above quota.{kind}hard.", "Lower it, or raise the other."
            )
    return quota


def describe(quota: Quota) -> dict[str, str]:
    """Return the limits in words, exactly."""
    shown = {"soft": _bytes(quota.soft), "hard": _bytes(quota.hard)}
    shown["inodes_soft"] = str(quota.inodes_soft) if quota.inodes_soft else "no limit"
    shown["inodes_hard"] = str(quota.inodes_hard) if quota.inodes_hard else "no limit"
    return shown


def _bytes(size: int) -> str:
    if size == 0:
        return "no limit"
    short = format_size(size)
    return short if parse_size(short) == size else f"{size} bytes"


@dataclass(frozen=True)
class Change:
    """One call that is to be made: these limits for this user or project."""

    kind: int
    quota: Quota


def plan(
    wanted: Wanted, user: Quota, project: Quota | None, label: str = "quota"
) -> tuple[ItemResult, list[Change]]:
    """Compare a wanted quota with the limits that are set; ``project`` is None where it has none.

    ``label`` is what the user quota is called in the result.
    """
    target = in_blocks(wanted.quota)
    item = ItemResult(wanted.name)
    changes = []
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    pairs = [(label, USER, target, user)]
    if project is not None:
        pairs.append(("project quota", PROJECT, for_project(target), project))
    for called, kind, new, old in pairs:
        if new == old:
            continue
        old_words, new_words = describe(old), describe(new)
        differing = [key for key in new_words if new_words[key] != old_words[key]]
        changes.append(Change(kind, new))
        before.update({f"{called} {key}": old_words[key] for key in differing})
        after.update({f"{called} {key}": new_words[key] for key in differing})
        item.actions.append(f"set {called}: " + ", ".join(f"{key} {new_words[key]}" for key in differing))
    if changes:
        item.changed = True
        item.diff = {"before": before, "after": after}
        item.reason = "the limits differ"
    return item, changes


def above(used: Usage, wanted: Wanted, what: str) -> list[str]:
    """Return sentences where more is used already than a new hard limit lets: nothing is ever deleted."""
    told = []
    limits = in_blocks(wanted.quota)
    for used_now, limit, unit, show in (
        (used.used, limits.hard, "", format_size),
        (used.inodes, limits.inodes_hard, " files", str),
    ):
        if limit and used_now > limit:
            told.append(
                f"{wanted.name} uses {show(used_now)}{unit} of {what}, more than the new limit of "
                f"{show(limit)}{unit}. Nothing is deleted; {wanted.name} can add nothing there until so much "
                "is gone."
            )
    return told


def reconcile(
    path: str,
    wanted: Sequence[Wanted],
    *,
    project: bool = True,
    check: bool,
    label: str = "quota",
    what: str = "the homes",
) -> list[ItemResult]:
    """Bring the quotas on the file system that holds ``path`` to what is wanted, user by user.

    A limit below what is used already is set all the same, with a note. In check mode a file system on which
    quotas are not on yet counts as one where nobody has a limit. Raises HostError, before anything is set,
    if quotas are not enforced there.
    """
    device = device_of(path)
    kinds = {USER, PROJECT} if project else {USER}
    ready = kinds <= enforced(device)
    if not ready and not check:
        raise HostError(
            f"{device}, which holds {path}, enforces no {'user and project' if project else 'user'} quotas.",
            f"Declare the file system of {what} in lab_filesystems and run the role storage.",
        )
    items = []
    for one in wanted:
        used, old_project = Usage(0, 0, NO_LIMIT), NO_LIMIT if project else None
        if ready:
            used = read(device, USER, one.uid)
            old_project = read(device, PROJECT, one.uid).quota if project else None
        item, changes = plan(one, used.quota, old_project, label)
        notes = above(used, one, what) if any(change.kind == USER for change in changes) else []
        if notes:
            item.facts["notes"] = notes
        if not check:
            try:
                for change in changes:
                    write(device, change.kind, one.uid, change.quota)
            except HostError as error:
                item.failed, item.message = True, str(error)
        items.append(item)
    return items
