# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Why a file system cannot hold quotas, in a sentence, and what would make it able. Pure functions.

Nothing here unmounts or restarts anything: what needs that is told as commands for IT to run.
"""

from __future__ import annotations

from dataclasses import dataclass

_NEEDED = frozenset({"quota", "project"})
_TUNE = "tune2fs -O project,quota -Q usrquota,prjquota {0}"
_MOVE = "Use a disk with XFS or ext4, or a blank one with create: true."
_REASONS = {
    "btrfs": "counts subvolumes and not users",
    "zfs": "has quotas of its own, which quotactl(2) does not reach",
    "nfs": "lies on another server, which alone holds its quotas",
    "nfs4": "lies on another server, which alone holds its quotas",
    "cifs": "lies on another server, which alone holds its quotas",
    "tmpfs": "is memory and is gone with the next boot",
    "overlay": "is a layer above another file system",
    "vfat": "knows no owners of files",
    "exfat": "knows no owners of files",
    "ntfs": "knows no owners of files",
    "ext2": "has no project quotas",
    "ext3": "has no project quotas",
}


@dataclass(frozen=True)
class Found:
    """A file system: its kind, the features of ext4, where it is mounted ("" if it is not), its device.

    ``counts``: whether it counts what users have, as far as it is mounted.
    """

    fstype: str
    device: str
    mount: str = ""
    features: frozenset[str] = frozenset()
    counts: bool = False


@dataclass(frozen=True)
class Obstacle:
    """Why a file system cannot hold quotas, and the commands that make it able; none where nothing does."""

    reason: str
    commands: tuple[str, ...] = ()
    advice: str = ""

    def __str__(self) -> str:
        """Return the sentence with the commands."""
        fix = f"Run: {' && '.join(self.commands)}" if self.commands else self.advice
        return f"{self.reason} {fix}".rstrip()


def obstacle(found: Found) -> Obstacle | None:
    """Return what keeps a file system from holding user and project quotas; None where nothing does."""
    where = found.mount or found.device
    if found.fstype not in ("ext4", "xfs"):
        why = _REASONS.get(found.fstype, "has no user and project quotas that Linux knows of")
        return Obstacle(
            f"{where} holds {found.fstype}, which {why}: it cannot hold the quotas of lab.server.",
            advice=_MOVE,
        )
    if found.fstype == "ext4":
        return _of_ext4(found, where)
    return _of_xfs(found, where)


def _of_ext4(found: Found, where: str) -> Obstacle | None:
    missing = sorted(_NEEDED - found.features)
    if missing:
        reason = f"{where} is ext4 without {' and '.join(missing)}, so it cannot hold quotas."
        tune = (f"e2fsck -f {found.device}", _TUNE.format(found.device))
        if found.mount == "/":
            return Obstacle(
                reason,
                advice=f"It is the system's own: start a rescue system and run there: {' && '.join(tune)}",
            )
        around = (f"umount {found.mount}", f"mount {found.mount}") if found.mount else ("", "")
        return Obstacle(reason, tuple(filter(None, (around[0], *tune, around[1]))))
    return None


def _of_xfs(found: Found, where: str) -> Obstacle | None:
    if not found.mount or found.counts:
        return None
    reason = f"{where} is XFS and was mounted without uquota,pquota, which it takes at that moment alone."
    if found.mount == "/":
        return Obstacle(
            reason,
            advice="It is the system's own: start with rootflags=uquota,pquota on the kernel's command line.",
        )
    return Obstacle(reason, (f"umount {found.mount}", f"mount -o uquota,pquota {found.mount}"))
