# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Units of systemd: files written together, with one reload if any of them changed, then those that run.

A reload is not free: with the systemd cgroup driver it can take their GPUs from running containers.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping, Sequence

from . import hostfiles
from .errors import HostError, InvalidInput
from .items import ItemResult
from .names import printable

DIRECTORY = "/etc/systemd/system"
_RUNS = frozenset({"active", "activating", "reloading", "refreshing"})
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


def states(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return what systemd says of units, all asked in one call: property by property, by the unit's name.

    Source: systemctl(1), show; org.freedesktop.systemd1(5). Raises HostError.
    """
    if not names:
        return {}
    asked = "--property=UnitFileState,ActiveState,SubState,LoadState,NeedDaemonReload"
    told = hostfiles.run(["systemctl", "show", asked, *names]).stdout
    blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in told.strip().split("\n\n")]
    if len(blocks) != len(names):
        raise HostError("systemd did not answer for each unit.", "Look at: systemctl status.")
    return dict(zip(names, blocks))


def plan_running(name: str, state: Mapping[str, str], new: str) -> ItemResult:
    """Compare a unit with one that runs, now and after the next boot; ``new`` is its text if that changes."""
    item = ItemResult(f"{name} runs")
    there = state.get("LoadState") not in ("not-found", "masked")
    if state.get("LoadState") == "masked":
        raise HostError(f"{name} is masked.", f"Let it run: systemctl unmask {name}.")
    if not there and not new:
        raise HostError(f"There is no unit {name}.", "Install the package that brings it.")
    # A unit without [Install] cannot be enabled; another one wants it.
    if state.get("UnitFileState") == "disabled" if there else "[Install]" in new:
        item.actions.append("enable")
    # One that failed and waits for its next try is "activating", too.
    if state.get("ActiveState") not in _RUNS or state.get("SubState") == "auto-restart":
        item.actions.append("start")
    if item.actions:
        item.changed, item.reason = True, "it does not run, or would not after a boot"
        shown = {"enabled": "enable" not in item.actions, "running": "start" not in item.actions}
        item.diff = {"before": shown, "after": {"enabled": True, "running": True}}
    return item


def reconcile(units: Mapping[str, str], running: Sequence[str] = (), *, check: bool) -> list[ItemResult]:
    """Bring unit files, text by name, to what is declared, then let the units of ``running`` run.

    Raises LabError.
    """
    for name in running:
        check_name(name)
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
    return items + _run(units, running, check=check)


def _run(units: Mapping[str, str], running: Sequence[str], *, check: bool) -> list[ItemResult]:
    found = states(running)
    if not check and any(state.get("NeedDaemonReload") == "yes" for state in found.values()):
        reload()
    items = []
    for name in running:
        item = plan_running(name, found[name], units.get(name, ""))
        items.append(item)
        if not check:
            for action in item.actions:
                hostfiles.run(["systemctl", action, name])
    return items
