# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is mounted where, as the kernel tells it in /proc/self/mountinfo (proc(5))."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from .errors import HostError

MOUNTINFO = "/proc/self/mountinfo"

# proc(5): space, tab, newline and backslash are written as three octal digits.
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One mount. ``number`` is ``major:minor`` of its device, ``root`` the part of the device that shows."""

    point: str
    source: str
    fstype: str
    options: frozenset[str]
    number: str
    root: str


def _plain(field: str) -> str:
    if "\\" not in field:
        return field
    return _ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), field)


def parse(text: str, besides: Collection[str] = ()) -> tuple[Mount, ...]:
    """Return the mounts of a mountinfo text, in the order in which they were mounted.

    Those of the types of file systems in ``besides`` are left out.
    """
    mounts = []
    for line in text.splitlines():
        before, _separator, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if len(left) < 6 or len(right) < 2 or right[0] in besides:
            continue
        mounts.append(
            Mount(
                point=_plain(left[4]),
                source=_plain(right[1]),
                fstype=right[0],
                options=frozenset(left[5].split(",")),
                number=left[2],
                root=_plain(left[3]),
            )
        )
    return tuple(mounts)


def read(path: str = MOUNTINFO, besides: Collection[str] = ()) -> tuple[Mount, ...]:
    """Return what is mounted now, but for the types in ``besides``; raise HostError."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return parse(stream.read(), besides)
    except OSError as error:
        raise HostError(f"{path} cannot be read: {error.strerror}.") from error


def at(point: str, mounts: Iterable[Mount]) -> Mount | None:
    """Return what is mounted at exactly that path; the last mount hides the ones before."""
    found = None
    for mount in mounts:
        if mount.point == point:
            found = mount
    return found


def holding(path: str, mounts: Iterable[Mount]) -> Mount:
    """Return the mount whose file system holds the absolute ``path``; raise HostError."""
    found: Mount | None = None
    for mount in mounts:
        inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if inside and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    if found is None:
        raise HostError(f"No file system holds {path}.", "Is /proc mounted?")
    return found


def device_number(device: str) -> str:
    """Return ``major:minor`` of a block device (a path, ``UUID=`` or ``LABEL=``), or '' if it is missing."""
    try:
        status = os.stat(device_path(device))
    except OSError:
        return ""
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}" if status.st_rdev else ""


def device_path(device: str) -> str:
    """Return the path of a device that fstab(5) would call ``device``; udev(7) keeps the links."""
    for prefix, directory in (("UUID=", "/dev/disk/by-uuid"), ("LABEL=", "/dev/disk/by-label")):
        if device.startswith(prefix):
            return os.path.join(directory, device[len(prefix) :])
    return device
