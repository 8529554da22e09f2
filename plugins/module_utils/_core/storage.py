# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The file systems that a server stands on: made, in fstab, mounted, and enforcing quotas.

``plan`` decides on what ``examine`` found; ``carry_out`` does it. ``check_mounts`` is what the broker and the
boot unit ask before they let anybody work.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import hostfiles, mounts, quota, quotable, state, units
from .errors import HostError, InvalidInput, LabError
from .items import ItemResult
from .mounts import Mount
from .policy import HOME_ROOT, UNSTABLE_DEVICE, Filesystem, Policy

FSTAB = "/etc/fstab"

# security.md of the design: nothing in a user's tree may be a setuid program or a device for the host.
_SAFE = {"home": ("nosuid", "nodev"), "data": ("nosuid", "nodev"), "docker": ()}
_QUOTA = {"ext4": ("usrquota", "prjquota"), "xfs": ("uquota", "pquota")}
# systemd.mount(5): a missing disk must not put the server into emergency mode, where nobody can log in.
_BOOT = ("nofail", "x-systemd.device-timeout=150s")
# Nobody logs in before the homes are there, or are known to be missing (systemd-user-sessions.service(8)).
_BOOT_HOME = ("x-systemd.before=systemd-user-sessions.service",)
# mke2fs(8): project needs inodes of 256 bytes, which are the default. No group quota: shares have none.
_MAKE = {
    "ext4": ("mke2fs", "-q", "-F", "-t", "ext4", "-O", "quota,project", "-E", "quotatype=usrquota:prjquota"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
}
# (bytes of a block, blocks of a group), and the first groups with a copy of the superblock.
_EXT4_GROUPS = ((1024, 8192), (2048, 16384), (4096, 32768))
_EXT4_COPIES = (1, 3, 5, 7, 9, 25, 27)
_EXT4_MAGIC_AT = 56
_XFS_BLOCK = 4096
_XFS_IN_PROGRESS_AT = 126
# The record of the devices on which file systems are being made.
_MAKING = "making"
_XFS_GROUPS = (2, 4, 8, 16, 32)
_CHUNK = 1 << 20
_DAMAGED = (
    "{0} has no file system that can be read, but copies of the first block of one: "
    "it is damaged, not blank. "
    "Repair it (e2fsck -b, xfs_repair); if nothing on it is needed: wipefs -a {0} && blkdiscard -z {0}"
)
# Names of devices that change when disks come or go.
_UNSTABLE = re.compile(r"/dev/(?:sd|vd|xvd|hd|nvme|mmcblk)[a-z0-9]+")


@dataclass(frozen=True)
class Device:
    """A block device; its ``fstype`` is empty if it has no content that is known, ``features`` are ext4's.

    ``remains`` says why one without known content is not taken for blank all the same.
    """

    path: str
    number: str
    fstype: str
    uuid: str
    features: frozenset[str]
    parts: tuple[str, ...]
    remains: str = ""


@dataclass(frozen=True)
class Actual:
    """What is there for one declared file system.

    ``features`` are those of an ext4 that somebody else mounts without quotas; None where nobody looked.
    """

    device: Device | None
    mount: Mount | None
    elsewhere: str
    hidden: tuple[str, ...]
    enforced: frozenset[int]
    fstab: tuple[str, ...]
    features: frozenset[str] | None = None


@dataclass(frozen=True)
class Step:
    """One thing to do: make, fstab, mount, remount or enforce; ``text`` says it to people."""

    verb: str
    text: str


def options(filesystem: Filesystem) -> tuple[str, ...]:
    """Return the mount options of a file system, each once, in the order of fstab(5)."""
    chosen = [*_SAFE[filesystem.role], *_QUOTA[filesystem.fstype], *filesystem.options, *_BOOT]
    if filesystem.role == "home":
        chosen += _BOOT_HOME
    return tuple(dict.fromkeys(chosen))


def fstab_line(filesystem: Filesystem, uuid: str) -> str:
    """Return the line of fstab(5); a device whose name may change with the next disk is named by its UUID."""
    source = filesystem.device
    if _UNSTABLE.fullmatch(source):
        source = f"UUID={uuid}" if uuid else source
    last = "2" if filesystem.fstype == "ext4" else "0"
    return f"{source} {filesystem.mount} {filesystem.fstype} {','.join(options(filesystem))} 0 {last}"


def _mounted_by(line: str) -> str:
    """Return the mount point of a line of fstab, or '' for a comment, an empty or a broken line."""
    fields = line.split()
    if len(fields) < 3 or fields[0].startswith("#"):
        return ""
    return fields[1].rstrip("/") or "/"


def fstab_lines(text: str, mount: str) -> tuple[str, ...]:
    """Return the lines of fstab that mount something at ``mount``, with their white space made single."""
    return tuple(" ".join(line.split()) for line in text.splitlines() if _mounted_by(line) == mount)


def fstab_with(text: str, mount: str, line: str) -> str:
    """Return fstab with ``line`` as the only one for ``mount``, in the place of the first that was there."""
    lines = []
    placed = False
    for old in text.splitlines():
        if _mounted_by(old) != mount:
            lines.append(old)
        elif not placed:
            lines.append(line)
            placed = True
    if not placed:
        lines.append(line)
    return "\n".join(lines) + "\n"


def fstab_without(text: str, mount: str) -> str:
    """Return fstab without the lines that mount something at ``mount``."""
    lines = [line for line in text.splitlines() if _mounted_by(line) != mount]
    return "\n".join(lines) + "\n"


def check_options(filesystem: Filesystem) -> None:
    """Raise InvalidInput if the options of IT would undo what a lab server rests on."""
    where = f"lab_filesystems.{filesystem.role}.options"
    for option in filesystem.options:
        if not option or any(c in ", \t\n#" for c in option) or not option.isprintable():
            raise InvalidInput(f"{where}: {option!r} is not one mount option.", "Write one option an item.")
        undone = option in ("suid", "dev", "defaults", "user", "users", "owner", "group")
        if option in ("noquota", "uqnoenforce", "pqnoenforce", "noauto") or (
            undone and _SAFE[filesystem.role]
        ):
            raise InvalidInput(f"{where}: '{option}' undoes what lab.server needs.", "Remove it.")


def problem(filesystem: Filesystem, actual: Actual) -> str:
    """Return why the file system cannot be brought up, in a sentence with the fix, or ''."""
    mount, device = filesystem.mount, actual.device
    where = f"lab_filesystems.{filesystem.role}"
    if not filesystem.device:
        if actual.mount is None:
            return f"{mount} is not mounted and {where}.device is not set. Set it, or mount it before."
        return _unsafe(filesystem, actual)
    if device is None:
        return f"{where}.device: {filesystem.device} is no disk of this server. See: ls -l /dev/disk/by-id"
    if actual.mount is not None and actual.mount.number != device.number:
        return (
            f"{mount} is mounted from {actual.mount.source}, not from {filesystem.device}. "
            f"Correct {where}.device, or unmount it and run again."
            + (" To move the data there: lab.server.move_data." if filesystem.role == "data" else "")
        )
    if actual.elsewhere:
        return f"{filesystem.device} is mounted at {actual.elsewhere}. Unmount it, or correct {where}."
    if device is not None and not device.fstype and _was_there(filesystem, actual):
        return (
            f"{mount} is in {FSTAB} with {filesystem.device}, but no file system is found on it now: "
            "it may be damaged. Look at it (blkid -p, e2fsck, xfs_repair); "
            f"to start empty, remove the line of {mount}."
        )
    if actual.mount is None and actual.hidden:
        return (
            f"{mount} holds {', '.join(actual.hidden)} on the disk of the system, which "
            f"{filesystem.device} would hide. Move it away and run again."
        )
    return _unusable(filesystem, actual, device)


def _was_there(filesystem: Filesystem, actual: Actual) -> bool:
    """Say whether fstab knows the file system from before: by its device, or by a UUID that nothing has."""
    sources = [line.split()[0] for line in actual.fstab]
    return any(
        source == filesystem.device
        or (source.startswith(("UUID=", "LABEL=")) and not mounts.device_number(source))
        for source in sources
    )


def _unusable(filesystem: Filesystem, actual: Actual, device: Device) -> str:
    """Return why the content of a device cannot be used, or ''."""
    where = f"lab_filesystems.{filesystem.role}"
    if not device.fstype:
        if device.parts:
            return (
                f"{filesystem.device} is not blank: it holds {', '.join(device.parts)}. "
                f"Name the partition or volume itself in {where}.device."
            )
        if not filesystem.create:
            return (
                f"{filesystem.device} is blank. Set {where}.create: true to make {filesystem.fstype} on it."
            )
        return device.remains
    if device.fstype in _QUOTA and device.fstype != filesystem.fstype:
        return f"{filesystem.device} holds {device.fstype}, not {filesystem.fstype}. Correct {where}.fstype."
    point = actual.mount.point if actual.mount else ""
    # An XFS that does not count yet gets its options in fstab first; quota.enforce tells the rest.
    found = quotable.Found(device.fstype, device.path, point, device.features, counts=True)
    why = quotable.obstacle(found)
    return "" if why is None else str(why)


def plan(filesystem: Filesystem, actual: Actual) -> tuple[ItemResult, list[Step]]:
    """Compare a declared file system, which has no problem, with what is there."""
    item = ItemResult(filesystem.mount)
    steps: list[Step] = []
    if not filesystem.device or actual.device is None:
        return item, steps
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    if not actual.device.fstype:
        steps.append(Step("make", f"make {filesystem.fstype} on {filesystem.device}"))
        before["content"], after["content"] = "blank", filesystem.fstype
    line = fstab_line(filesystem, actual.device.uuid)
    if actual.fstab != (line,):
        steps.append(Step("fstab", f"write the line of {filesystem.mount} in {FSTAB}"))
        before["fstab"], after["fstab"] = "\n".join(actual.fstab), line
    live = _live(filesystem)
    if actual.mount is None:
        steps.append(Step("mount", f"mount {filesystem.mount}"))
        before["mounted"], after["mounted"] = "no", "yes"
    else:
        absent = [option for option in live if option not in actual.mount.options]
        if absent:
            steps.append(Step("remount", f"remount {filesystem.mount} with {','.join(absent)}"))
            before["options"] = ",".join(sorted(actual.mount.options))
            after["options"] = ",".join(sorted({*actual.mount.options, *absent}))
        if actual.enforced != {quota.USER, quota.PROJECT}:
            steps.append(Step("enforce", f"enforce quotas on {filesystem.mount}"))
            before["quotas"], after["quotas"] = "not enforced", "enforced"
    if steps:
        item.changed = True
        item.actions = [step.text for step in steps]
        item.diff = {"before": before, "after": after}
        item.reason = "the server differs from lab_filesystems"
    return item, steps


def _live(filesystem: Filesystem) -> tuple[str, ...]:
    """Return the options that mountinfo shows for a mount and that lab.server insists on."""
    known = ("noatime", "nodiratime", "relatime", "noexec", "ro")
    return (*_SAFE[filesystem.role], *(option for option in filesystem.options if option in known))


def examine(filesystem: Filesystem, table: Sequence[Mount], fstab: str) -> Actual:
    """Look at what is there for a declared file system; change nothing."""
    mount = mounts.at(filesystem.mount, table)
    device = probe(filesystem.device) if filesystem.device else None
    elsewhere = ""
    if device is not None and mount is None:
        elsewhere = next((one.point for one in table if one.number == device.number and one.root == "/"), "")
    enforced = quota.enforced(mount.source) if mount else frozenset()
    unable = mount is not None and mount.fstype == "ext4" and not filesystem.device and not enforced
    return Actual(
        device=device,
        mount=mount,
        elsewhere=elsewhere,
        hidden=() if mount else _entries(filesystem.mount),
        enforced=enforced,
        fstab=fstab_lines(fstab, filesystem.mount),
        features=_features(mount.source) if mount is not None and unable else None,
    )


def _entries(path: str, most: int = 3) -> tuple[str, ...]:
    try:
        names = sorted(name for name in os.listdir(path) if name != "lost+found")
    except OSError:
        return ()
    return tuple(posixpath.join(path, name) for name in names[:most])


def probe(device: str) -> Device | None:
    """Return what a block device holds, or None if it is not there; raise HostError.

    One on which a run of ours began to make a file system, and was cut off, is blank.
    """
    path = os.path.realpath(mounts.device_path(device))
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISBLK(status.st_mode):
        return None
    # blkid(8): -p looks at the device and not at a cache; 2 is 'nothing found', 8 'several things found'.
    found = hostfiles.run(["blkid", "-p", "-o", "export", path], accept=(0, 2, 8))
    tags = dict(line.split("=", 1) for line in found.stdout.splitlines() if "=" in line)
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    fstype = tags.get("TYPE", "")
    parts = list(_sysfs_parts(number))
    if tags.get("PTTYPE") and not fstype:
        parts.append(f"a partition table ({tags['PTTYPE']})")
    if found.returncode == 8:
        parts.append("the signatures of several file systems")
    half_made = _is_half_made(device, path, fstype)
    fstype = "" if half_made else fstype
    return Device(
        path=path,
        number=number,
        fstype=fstype,
        uuid="" if half_made else tags.get("UUID", ""),
        features=_features(path) if fstype == "ext4" else frozenset(),
        parts=tuple(parts),
        remains="" if fstype or half_made else _remains(path),
    )


def _remains(path: str) -> str:
    """Return what speaks against a device without a known file system being blank, in a sentence, or ''.

    blkid(8) sees neither a device that cannot be read nor an ext4 or XFS whose first block is damaged. The
    others hold copies of it: ext4 at the start of some groups, XFS at the start of each allocation group
    (mke2fs(8), sparse_super; mkfs.xfs(8), agcount).
    """
    try:
        with open(path, "rb", buffering=0) as device:
            size = device.seek(0, os.SEEK_END)
            for place in (0, max(0, size - _CHUNK)):
                device.seek(place)
                device.read(_CHUNK)
            for place, magic in _copies(size):
                device.seek(place)
                if device.read(len(magic)) == magic:
                    return _DAMAGED.format(path)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}): the disk or its cable is broken. Look at: dmesg"
    return ""


def _copies(size: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, magic) of the copies that an ext4 or XFS in ``size`` bytes has of its first block."""
    for block, blocks in _EXT4_GROUPS:
        for group in _EXT4_COPIES:
            # With blocks of 1 KiB the first one is before the first group (mke2fs(8)).
            place = group * block * blocks + (block if block == 1024 else 0) + _EXT4_MAGIC_AT
            if place < size:
                yield place, b"\x53\xef"
    for count in _XFS_GROUPS:
        length = -(-(size // _XFS_BLOCK) // count) * _XFS_BLOCK
        for group in range(1, count):
            if group * length < size:
                yield group * length, b"XFSB"


def _sysfs_parts(number: str) -> list[str]:
    """Return the partitions on a device, and the volumes that are made of it (sysfs: block devices)."""
    root = f"/sys/dev/block/{number}"
    found = []
    try:
        found += [
            f"the partition {name}"
            for name in sorted(os.listdir(root))
            if os.path.exists(f"{root}/{name}/partition")
        ]
        found += [f"a part of {name}" for name in sorted(os.listdir(f"{root}/holders"))]
    except OSError:
        return found
    return found


def _features(path: str) -> frozenset[str]:
    shown = hostfiles.run(["dumpe2fs", "-h", path])
    for line in shown.stdout.splitlines():
        key, _colon, value = line.partition(":")
        if key == "Filesystem features":
            return frozenset(value.split())
    return frozenset()


def reconcile(filesystems: Sequence[Filesystem], *, check: bool) -> list[ItemResult]:
    """Bring the declared file systems up. Raises LabError, before anything is touched, if one cannot be."""
    ordered = sorted(filesystems, key=lambda one: one.mount.count("/"))
    for filesystem in ordered:
        check_options(filesystem)
    table = mounts.read()
    fstab = hostfiles.read_text(FSTAB) or ""
    found = [(filesystem, examine(filesystem, table, fstab)) for filesystem in ordered]
    problems = [text for text in (problem(filesystem, actual) for filesystem, actual in found) if text]
    if problems:
        raise HostError(" ".join(problems))
    planned = [(filesystem, *plan(filesystem, actual)) for filesystem, actual in found]
    owed = units.plan_unread()
    if not check:
        if owed:
            units.reload()
        carry_out([(filesystem, steps) for filesystem, _item, steps in planned], fstab)
    return [*(item for _filesystem, item, _steps in planned), *owed]


def carry_out(planned: Sequence[tuple[Filesystem, Sequence[Step]]], fstab: str) -> None:
    """Do the steps: all file systems are made first, then fstab is written once, then each is mounted."""
    wanted = fstab
    for filesystem, steps in planned:
        verbs = {step.verb for step in steps}
        if "make" in verbs:
            make(filesystem)
        if "fstab" in verbs:
            device = probe(filesystem.device)
            wanted = fstab_with(
                wanted, filesystem.mount, fstab_line(filesystem, device.uuid if device else "")
            )
    _note_making(frozenset())  # whoever was cut off after it was made has not said so
    if wanted != fstab:
        write_fstab(wanted)
    for filesystem, steps in planned:
        for step in steps:
            if step.verb == "mount":
                os.makedirs(filesystem.mount, mode=0o755, exist_ok=True)
                hostfiles.run(["mount", filesystem.mount])
            elif step.verb == "remount":
                hostfiles.run(["mount", "-o", ",".join(("remount", *_live(filesystem))), filesystem.mount])
            elif step.verb == "enforce":
                quota.enforce(_source(filesystem.mount), filesystem.mount)
        if steps:
            _verify(filesystem)


def write_fstab(text: str) -> None:
    """Replace fstab, and let systemd make the units of its mounts. Raises HostError."""
    units.announce()
    hostfiles.write_text(FSTAB, text)
    units.reload()


def make(filesystem: Filesystem) -> None:
    """Make a file system with quotas on its device, whatever that holds. Raises HostError.

    That it is begun is noted: one that was cut off looks damaged, and would not be made again (``probe``).
    """
    label = f"lab-{filesystem.role}"
    _note_making(_making() | {filesystem.device})
    hostfiles.run([*_MAKE[filesystem.fstype], "-L", label, filesystem.device], timeout=3600)
    _note_making(_making() - {filesystem.device})


def _making() -> frozenset[str]:
    return frozenset((state.read_record(_MAKING) or "").splitlines())


def _note_making(devices: frozenset[str]) -> None:
    if devices:
        os.makedirs(posixpath.dirname(state.place(_MAKING)), mode=0o700, exist_ok=True)
        hostfiles.write_text(state.place(_MAKING), "".join(f"{one}\n" for one in sorted(devices)), 0o600)
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(state.place(_MAKING))


def _is_half_made(device: str, path: str, fstype: str) -> bool:
    """Say whether we began to make a file system on a device, and what is there is none yet.

    mke2fs(8) writes the first block last, and mkfs.xfs(8) takes a flag out of it last (sb_inprogress in
    fs/xfs/libxfs/xfs_format.h), with which no kernel mounts it. So nobody can have put anything into it.
    """
    # Behind a name that changes from boot to boot there may be another disk by now.
    if device not in _making() or UNSTABLE_DEVICE.fullmatch(device):
        return False
    if fstype != "xfs":
        return not fstype
    with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), 1, _XFS_IN_PROGRESS_AT) == b"\1"
    return False


def _source(point: str) -> str:
    mount = mounts.at(point, mounts.read())
    if mount is None:
        raise HostError(f"{point} is not mounted.", "Look at 'journalctl -b' for its disk.")
    return mount.source


def _verify(filesystem: Filesystem) -> None:
    sentences = _state(filesystem, mounts.read())
    if sentences:
        raise HostError(" ".join(sentences))


def _unsafe(filesystem: Filesystem, actual: Actual) -> str:
    """Return what is wrong with a file system that somebody else mounts, or ''."""
    if actual.mount is None:
        return f"{filesystem.mount} is not mounted."
    mount = actual.mount
    # An ext4 that was not looked at may be able to: then the general sentence is told.
    looked = mount.fstype != "ext4" or actual.features is not None
    if filesystem.role == "home" and quota.USER not in actual.enforced and looked:
        features = actual.features or frozenset()
        why = quotable.obstacle(quotable.Found(mount.fstype, mount.source, mount.point, features))
        if why is not None:
            return str(why)
    return " ".join(_faults(filesystem, actual.mount, actual.enforced))


def missing_options(filesystem: Filesystem, mount: Mount) -> list[str]:
    """Return the options without which a mounted file system is not safe, and which it does not have."""
    return [option for option in _SAFE[filesystem.role] if option not in mount.options]


def _faults(filesystem: Filesystem, mount: Mount, enforced: frozenset[int]) -> list[str]:
    sentences = []
    absent = missing_options(filesystem, mount)
    if absent:
        sentences.append(
            f"{mount.point} is mounted without {','.join(absent)}. Run the playbook lab.server.site."
        )
    if filesystem.role == "home" and quota.USER not in enforced:
        sentences.append(f"No user quotas are enforced on {mount.point}. Run the playbook lab.server.site.")
    return sentences


def _state(filesystem: Filesystem, table: Sequence[Mount]) -> list[str]:
    mount = mounts.at(filesystem.mount, table)
    if mount is None:
        missing = filesystem.device and not mounts.device_number(filesystem.device)
        why = f"its disk {filesystem.device} is missing" if missing else "see 'journalctl -b' for the reason"
        return [
            f"{filesystem.mount} is not mounted: {why}. Bring the disk back and run: mount {filesystem.mount}"
        ]
    if filesystem.device and mounts.device_number(filesystem.device) != mount.number:
        return [
            f"{filesystem.mount} is mounted from {mount.source}, not {filesystem.device}. Correct {FSTAB}."
        ]
    return _faults(filesystem, mount, quota.enforced(mount.source))


def check_mounts(policy: Policy, table: Sequence[Mount] | None = None) -> list[str]:
    """Return what is wrong with the file systems of the policy, a sentence each; empty if all is well.

    Asked before a container is started: on a missing disk it would work in an empty folder of the system's
    disk, where nothing is kept. ``table`` is what is mounted, read from the kernel if it is not given.
    """
    try:
        table = mounts.read() if table is None else table
    except LabError as error:
        return [str(error)]
    if state.is_moving():
        return ["The shared data are being moved to another disk. Try again when that is done."]
    return [sentence for filesystem in policy.filesystems for sentence in _state(filesystem, table)]


def spaces(policy: Policy, table: Sequence[Mount]) -> list[dict[str, Any]]:
    """Return how full each file system of the policy is, by statvfs(3); with zeros where it is not mounted.

    The homes are always among them: where the policy leaves them to somebody else, by what holds them.
    """
    found = [_space(one.role, one.mount, mounts.at(one.mount, table)) for one in policy.filesystems]
    if all(one.role != "home" for one in policy.filesystems):
        found.append(_space("home", HOME_ROOT, mounts.holding(HOME_ROOT, table)))
    return found


def _space(role: str, point: str, mount: Mount | None) -> dict[str, Any]:
    shown: dict[str, Any] = {"role": role, "mount": point, "mounted": mount is not None}
    shown["device"], shown["fstype"] = (mount.source, mount.fstype) if mount else ("", "")
    numbers = os.statvfs(point) if mount else None
    unit = numbers.f_frsize if numbers else 0
    for key, blocks in (("size", "f_blocks"), ("free", "f_bfree"), ("available", "f_bavail")):
        shown[key] = unit * int(getattr(numbers, blocks, 0))
    shown["inodes"], shown["inodes_free"] = (numbers.f_files, numbers.f_ffree) if numbers else (0, 0)
    return shown
