# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Units of systemd: files written together, with one reload if any of them changed, then those that run.

A reload is not free: with the systemd cgroup driver it can take their GPUs from running containers. That
one is due is noted before anything is written, so that a run which is cut off between the two is made up for.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
from collections.abc import Mapping, Sequence

from . import RUN_DIRECTORY, hostfiles, loaded
from .errors import HostError, InvalidInput
from .items import ItemResult
from .loaded import Reads
from .names import printable

DIRECTORY = "/etc/systemd/system"
_SYSTEMD = "/run/systemd/system"  # there while systemd runs (sd_booted(3))
_UNREAD = posixpath.join(RUN_DIRECTORY, "units-unread")
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


def runs_systemd() -> bool:
    """Say whether this server runs systemd."""
    return os.path.isdir(_SYSTEMD)


def announce() -> None:
    """Note that systemd will have to read its unit files, or fstab, anew; ``reload`` takes that back.

    To be called before the first of them is written. After a boot systemd has read all. Raises HostError.
    """
    if not runs_systemd() or unread():
        return
    try:
        os.makedirs(RUN_DIRECTORY, mode=0o755, exist_ok=True)
        hostfiles.write_text(_UNREAD, "")
    except OSError as error:
        raise HostError(f"{RUN_DIRECTORY} cannot be made: {error.strerror}.") from error


def unread() -> bool:
    """Say whether a run was cut off between writing unit files and letting systemd read them."""
    return os.path.exists(_UNREAD)


def plan_unread() -> list[ItemResult]:
    """Return an item for the reload that a run which was cut off still owes, if there is one."""
    if not unread():
        return []
    item = ItemResult("systemd", changed=True, actions=["read the unit files anew"])
    item.reason = "an earlier run was cut off before it"
    item.diff = {"before": {"unit files": "not read"}, "after": {"unit files": "read"}}
    return [item]


def write(name: str, text: str) -> None:
    """Put one unit file in place; systemd does not know it before ``reload``. Raises HostError."""
    path = posixpath.join(DIRECTORY, name)
    announce()
    os.makedirs(posixpath.dirname(path), mode=0o755, exist_ok=True)
    hostfiles.write_text(path, text)


def reload() -> None:
    """Let systemd read its unit files anew, where it runs. Raises HostError."""
    if runs_systemd():
        hostfiles.run(["systemctl", "daemon-reload"])
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_UNREAD)


def states(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return what systemd says of units, all asked in one call: property by property, by the unit's name.

    Source: systemctl(1), show; org.freedesktop.systemd1(5). Raises HostError.
    """
    if not names:
        return {}
    asked = "UnitFileState,ActiveState,SubState,LoadState,NeedDaemonReload,InvocationID"
    asked = f"--property={asked},InactiveExitTimestampMonotonic"
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
    if not _is_up(state):
        item.actions.append("start")
    if item.actions:
        item.changed, item.reason = True, "it does not run, or would not after a boot"
        shown = {"enabled": "enable" not in item.actions, "running": "start" not in item.actions}
        item.diff = {"before": shown, "after": {"enabled": True, "running": True}}
    return item


def _is_up(state: Mapping[str, str]) -> bool:
    # One that failed and waits for its next try is "activating", too.
    return state.get("ActiveState") in _RUNS and state.get("SubState") != "auto-restart"


def plan_current(reads: Reads, state: Mapping[str, str], *, known: bool) -> ItemResult:
    """Compare a unit with one that has read its files; ``known`` says whether it has, if it runs at all."""
    item = ItemResult(f"{reads.unit} knows its files")
    if not known and _is_up(state):
        item.changed, item.actions = True, ["reload" if reads.reload else "restart"]
        item.reason = "it runs since before they were as they are"
        item.diff = {"before": {"files": "not read"}, "after": {"files": "read"}}
    return item


def reconcile(
    units: Mapping[str, str],
    running: Sequence[str] = (),
    current: Sequence[Reads] = (),
    *,
    check: bool,
) -> list[ItemResult]:
    """Bring unit files, text by name, to what is declared, then let the units of ``running`` run.

    Those of ``current`` that run are restarted, or reloaded, where they have not read their files as these
    are now. One that fails to is marked so and does not stop the others. Raises LabError.
    """
    for name in running:
        check_name(name)
    for one in current:
        check_name(one.unit)
        one.check()
    items = [
        plan(check_name(name), hostfiles.read_text(posixpath.join(DIRECTORY, name)), text)
        for name, text in units.items()
    ]
    owed = plan_unread()
    if not check:
        for item in items:
            if item.changed:
                write(item.name, units[item.name])
        if owed or any(item.changed for item in items):
            reload()
    # Where systemd does not run, nothing does that would have to be restarted.
    current = current if runs_systemd() else ()
    written = {posixpath.join(DIRECTORY, item.name): units[item.name] for item in items if item.changed}
    return items + owed + _run(units, running, current, written, check=check)


def _run(
    units: Mapping[str, str],
    running: Sequence[str],
    current: Sequence[Reads],
    written: Mapping[str, str],
    *,
    check: bool,
) -> list[ItemResult]:
    names = list(dict.fromkeys([*running, *(one.unit for one in current)]))
    found = states(names)
    if not check and any(state.get("NeedDaemonReload") == "yes" for state in found.values()):
        reload()
    items = [plan_running(name, found[name], units.get(name, "")) for name in running]
    # Taken before anything is done: what is read afterwards is at least as new.
    digests = {one.unit: loaded.digest(one.files, written) for one in current}
    late = []
    for one in current:
        known = loaded.is_current(one, found[one.unit], digests[one.unit], written)
        # That somebody else had it reload another text is told by nothing; each start has its own number.
        known = known and not (one.changing and (check or one.reload))
        late.append(plan_current(one, found[one.unit], known=known))
    if not check:
        for name, item in zip(running, items):
            for action in item.actions:
                hostfiles.run(["systemctl", action, name])
        for one, item in zip(current, late):
            _catch_up(one, item)
        if any(item.changed for item in items + late):
            found = states(names)
        for one, item in zip(current, late):
            if _is_up(found[one.unit]) and not item.failed:
                loaded.note(one.unit, found[one.unit], digests[one.unit])
    return items + late


def _catch_up(reads: Reads, item: ItemResult) -> None:
    try:
        for action in item.actions:
            hostfiles.run(["systemctl", action, reads.unit])
    except HostError as error:
        item.failed, item.message = True, f"{error} Look at: journalctl -u {reads.unit}"
