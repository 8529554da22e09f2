# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the inventory says of backups: the variable ``lab_backup``. Without it there are none.

It holds no secrets: password and credentials are files of root's, which the role ``backup`` writes.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import asdict, dataclass
from typing import Any

from .errors import InvalidInput
from .names import printable

# restic(1), "Preparing a new repository". Others run further programs or were never looked at.
_REMOTE = re.compile(r"s3:(?:https?://|//)?[^\s/]+/[^\s/]\S*|rest:https?://[^\s/]\S*")
_HOST = r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_][A-Za-z0-9_.-]*)"
# Without a port in the second form: what follows the colon is the path already.
_SFTP = (
    re.compile(rf"sftp://{_HOST}(?::(?P<port>[0-9]{{1,5}}))?/+[^\s/]\S*", re.ASCII),
    re.compile(rf"sftp:(?!//){_HOST}:(?![0-9]+/)/*[^\s/]\S*", re.ASCII),
)
_USER_AND_PASSWORD = re.compile(r"://[^/@]*:[^/@]*@")
_LONGEST = 500
_DEFAULTS: dict[str, object] = {
    "keep_daily": 7,
    "keep_weekly": 5,
    "keep_monthly": 12,
    "user_hours": 2,
    "alarm_hours": 50,
    "drill_files": 20,
    "drill_days": 14,
}


@dataclass(frozen=True)
class BackupRules:
    """Where backups go and for how long they are kept.

    The backup of one user takes ``user_hours`` at most, far less than the unit's 23, so that the others have
    theirs. A backup older than ``alarm_hours`` needs a hand, and so does a drill older than ``drill_days``; a
    drill restores ``drill_files`` files of each user.
    """

    repository: str
    exclude: tuple[str, ...] = ()
    keep_daily: int = 7
    keep_weekly: int = 5
    keep_monthly: int = 12
    user_hours: int = 2
    alarm_hours: int = 50
    drill_files: int = 20
    drill_days: int = 14

    @property
    def path(self) -> str:
        """The folder of a repository on this server; empty for one elsewhere."""
        return self.repository if self.repository.startswith("/") else ""


@dataclass(frozen=True)
class SftpServer:
    """A server as ssh(1) is told of it; ``user`` and ``port`` are empty where its settings decide."""

    host: str
    user: str = ""
    port: str = ""


def sftp_server(repository: str) -> SftpServer | None:
    """Return the server of a repository as restic reads it; None where it is reached in another way."""
    for pattern in _SFTP:
        found = pattern.fullmatch(repository)
        if found:
            parts = found.groupdict(default="")
            return SftpServer(parts["host"].strip("[]"), parts["user"], parts.get("port", ""))
    return None


def read(root: Any, prefix: str) -> BackupRules | None:
    """Return what the tables of policy.py say, None without the variable; raise InvalidInput."""
    value = root.take(prefix + "backup")
    if value is None:
        return None
    table = type(root)(value, prefix + "backup")
    table.fill("", _DEFAULTS)
    rules = BackupRules(
        repository=_repository(table),
        exclude=_patterns(table),
        keep_daily=table.integer("keep_daily", 1, 10000),
        keep_weekly=table.integer("keep_weekly", 0, 10000),
        keep_monthly=table.integer("keep_monthly", 0, 10000),
        user_hours=table.integer("user_hours", 1, 12),
        alarm_hours=table.integer("alarm_hours", 1, 8760),
        drill_files=table.integer("drill_files", 1, 1000),
        drill_days=table.integer("drill_days", 1, 3650),
    )
    table.done()
    return rules


def _repository(table: Any) -> str:
    value = str(table.required("repository"))
    where = table.at("repository")
    if _USER_AND_PASSWORD.search(value):
        raise InvalidInput(f"{where} holds a password.", "Put credentials into backup_environment.")
    plain = value.startswith("/") and posixpath.normpath(value) == value != "/"
    usable = value.isprintable() and " " not in value and len(value) <= _LONGEST
    if not usable or not (plain or _REMOTE.fullmatch(value) or sftp_server(value)):
        raise InvalidInput(
            f"{where}: {printable(value)[:60]!r} is no repository that is supported.",
            "Use an absolute path, sftp://USER@HOST:PORT//FOLDER, s3:https://HOST/BUCKET/FOLDER or rest:https://...",
        )
    return value


def _patterns(table: Any) -> tuple[str, ...]:
    patterns: tuple[str, ...] = table.texts("exclude")
    for number, pattern in enumerate(patterns):
        if not pattern or not pattern.isprintable() or len(pattern) > _LONGEST:
            raise InvalidInput(
                f"{table.at('exclude')}[{number}] is no pattern.", "Use one line such as *.ckpt."
            )
    return patterns


def dump(rules: BackupRules | None) -> dict[str, Any] | None:
    """Return the rules as plain data; ``read`` of it gives equal ones."""
    return None if rules is None else {**asdict(rules), "exclude": list(rules.exclude)}
