# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The audit log, read: what ``journal`` wrote, from the system journal, and who logged in when.

Only what root itself sent counts: anybody may send a line that looks alike (systemd.journal-fields(7)).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from . import hostfiles, journal
from .errors import InvalidInput
from .names import printable

#: sd-messages(3): SD_MESSAGE_SESSION_START, which systemd-logind writes, with the user as USER_ID.
_SESSION = "8d45620c1a4348dbb17410da57c60c66"
_SESSIONS = 20_000
_PAIR = re.compile(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^" ]*)(?: |$)')
_SPAN = re.compile(r"([1-9][0-9]{0,5})(min|h|d|w)")
_SECONDS = {"min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DATES = ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S")


@dataclass(frozen=True)
class Act:
    """A privileged act: when (seconds since 1970), who asked, what, of which project, and how it ended.

    ``more`` is what else was written down of it.
    """

    time: float
    user: str
    verb: str
    project: str = ""
    outcome: str = ""
    more: Mapping[str, str] = field(default_factory=dict)

    def shown(self) -> dict[str, Any]:
        """Return it as plain data."""
        known = {"user": self.user, "verb": self.verb, "project": self.project, "outcome": self.outcome}
        return {"time": self.time, **known, "more": dict(self.more)}


def fields(line: str) -> dict[str, str]:
    """Return the values of a line that ``journal.line`` made, as far as it goes."""
    found = {}
    position = 0
    while position < len(line):
        match = _PAIR.match(line, position)
        if match is None:
            break
        key, value = match.groups()
        found[key] = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
        position = match.end()
    return found


def act(entry: Mapping[str, Any]) -> Act | None:
    """Return what an entry of the journal (``journalctl -o json``) says; None for one that is no act."""
    message = entry.get("MESSAGE")
    values = fields(message) if isinstance(message, str) else {}
    if "verb" not in values:
        return None
    container = values.pop("container", "")
    project = values.pop("project", "") or container.split("._.")[0]
    if container:
        values["container"] = container
    return Act(
        time=_moment(entry),
        user=values.pop("user", ""),
        verb=values.pop("verb"),
        project=project,
        outcome=values.pop("outcome", ""),
        more=values,
    )


def _moment(entry: Mapping[str, Any]) -> float:
    with suppress(TypeError, ValueError):
        return int(entry["__REALTIME_TIMESTAMP"]) / 1_000_000
    return 0.0


def since(text: str, now: float) -> float:
    """Return the time (seconds since 1970) that ``text`` means; raise InvalidInput.

    A span before now (30min, 12h, 3d, 2w), today, yesterday, or a date with or without a time.
    """
    span = _SPAN.fullmatch(text)
    if span:
        return now - int(span.group(1)) * _SECONDS[span.group(2)]
    if text in ("today", "yesterday"):
        there = time.localtime(now - (86400 if text == "yesterday" else 0))
        return time.mktime((there.tm_year, there.tm_mon, there.tm_mday, 0, 0, 0, 0, 0, -1))
    for form in _DATES:
        with suppress(ValueError, OverflowError):
            return time.mktime(time.strptime(text, form))
    raise InvalidInput(
        f"--since: {printable(text)[:40]!r} is no time.",
        "Write it as 30min, 12h, 3d, 2w, today, yesterday, 2026-11-26 or '2026-11-26 08:00'.",
    )


def acts(begin: float | None, *, user: str = "", project: str = "", most: int = 0) -> list[Act]:
    """Return the acts from ``begin`` on, in their order; with ``most`` the last so many. Raises HostError."""
    command = [f"SYSLOG_IDENTIFIER={journal.IDENT}", "_UID=0"]
    if begin is not None:
        command = [f"--since=@{int(begin)}", *command]
    found = [
        one
        for one in map(act, _entries(command))
        if one is not None and user in ("", one.user) and project in ("", one.project)
    ]
    return found[-most:] if most else found


def _entries(arguments: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    # What it has nothing of, or not even a journal, ends with 1 in some releases of it.
    said = hostfiles.run(
        ["journalctl", "--quiet", "--no-pager", "--output=json", *arguments], timeout=120, accept=(0, 1)
    )
    for line in said.stdout.splitlines():
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                yield entry


def logins() -> dict[str, float]:
    """Return when each account began the last session that the journal knows of. Raises HostError."""
    arguments = [f"MESSAGE_ID={_SESSION}", "_UID=0", "--reverse", f"--lines={_SESSIONS}"]
    found: dict[str, float] = {}
    for entry in _entries(arguments):
        found.setdefault(str(entry.get("USER_ID", "")), _moment(entry))
    found.pop("", None)
    return found
