# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Unit files and drop-ins of systemd: written together, with one reload of systemd if any of them changed.

A reload is not free: with the systemd cgroup driver it can take their GPUs from running containers.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping

from . import hostfiles
from .errors import InvalidInput
from .items import ItemResult
from .names import printable

DIRECTORY = "/etc/systemd/system"
# A unit such as x.service, or a drop-in such as x.service.d/y.conf (systemd.unit(5)).
_NAME = re.compile(
    r"[A-Za-z0-9:_.@-]+\.(?:service|slice|timer|path|socket|target|mount)(?:\.d/[A-Za-z0-9_.-]+\.conf)?"
)


def check_name(name: str) -> str:
    """Return the name of a unit file relative to its directory, or raise InvalidInput."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{printable(name)!r} is no name of a unit file.", "Write it as x.service or x.service.d/y.conf."
        )
    return name


def plan(name: str, old: str | None, new: str) -> ItemResult:
    """Compare a unit file, None if there is none, with how it should be."""
    item = ItemResult(name)
    if old != new:
        item.changed, item.actions = True, ["make" if old is None else "change"]
        item.reason = "there is no such file" if old is None else "its text differs"
        item.diff = {"before": old or "", "after": new}
    return item


def write(name: str, text: str) -> None:
    """Put one unit file in place; systemd does not know it before ``reload``. Raises HostError."""
    path = posixpath.join(DIRECTORY, name)
    os.makedirs(posixpath.dirname(path), mode=0o755, exist_ok=True)
    hostfiles.write_text(path, text)


def reload() -> None:
    """Let systemd read its unit files anew, where it runs (sd_booted(3)). Raises HostError."""
    if os.path.isdir("/run/systemd/system"):
        hostfiles.run(["systemctl", "daemon-reload"])


def reconcile(units: Mapping[str, str], *, check: bool) -> list[ItemResult]:
    """Bring unit files, text by name, to what is declared. Raises LabError."""
    items = [
        plan(check_name(name), hostfiles.read_text(posixpath.join(DIRECTORY, name)), text)
        for name, text in units.items()
    ]
    if not check:
        for item in items:
            if item.changed:
                write(item.name, units[item.name])
        if any(item.changed for item in items):
            reload()
    return items
