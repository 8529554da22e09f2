# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the inventory says of disks beside each user's own limits: watermarks, grace, default, overcommit.

``read`` takes it out of the policy's tables, in which keys of the inventory begin with ``lab_``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Callable

from .errors import InvalidInput

if TYPE_CHECKING:
    from .policy import Filesystem, Quota, User, _Table

_WATERMARKS: dict[str, object] = {"warn": 85, "refuse": 95}
_OTHERS: dict[str, object] = {"quota_grace": 7, "overcommit": 1.5, "build_minutes": 240}


@dataclass(frozen=True)
class DiskRules:
    """How the server keeps its disks from filling up; see docs/variables.md.

    ``warn`` and ``refuse`` are per cent of a file system in use; ``contact`` is whom a message names.
    ``default`` is the quota of uids that nobody declared, None for none.
    """

    warn: int = 85
    refuse: int = 95
    contact: str = ""
    grace_days: int = 7
    default: Quota | None = None
    overcommit: float = 1.5
    build_minutes: int = 240
    private_tmp: bool = True

    @property
    def ask(self) -> str:
        """Whom to ask, for the end of a sentence."""
        return self.contact or "your admins"


def read(root: _Table, prefix: str, quota: Callable[[_Table], Quota]) -> DiskRules:
    """Return what the tables say; raise InvalidInput."""
    root.fill(prefix, _OTHERS)
    marks = root.table(prefix + "watermarks")
    marks.fill("", _WATERMARKS)
    default = root.take(prefix + "quota_default")
    rules = DiskRules(
        warn=marks.integer("warn", 1, 100),
        refuse=marks.integer("refuse", 1, 100),
        contact=marks.line("contact"),
        grace_days=root.integer(prefix + "quota_grace", 1, 365),
        default=None if default is None else quota(_defaults(root, prefix, default)),
        overcommit=root.number(prefix + "overcommit", 0.1, 1000),
        build_minutes=root.integer(prefix + "build_minutes", 1, 1440),
        private_tmp=root.boolean(prefix + "private_tmp", default=True),
    )
    marks.done()
    if rules.warn > rules.refuse:
        raise InvalidInput(
            f"{marks.at('warn')}: {rules.warn} is above refuse, which is {rules.refuse}.",
            "Warn before work is refused.",
        )
    return rules


def _defaults(root: _Table, prefix: str, value: object) -> _Table:
    table = type(root)(value, root.at(prefix + "quota_default"))
    table.fill("", {"soft": 0, "hard": 0, "inodes_soft": 0, "inodes_hard": 0})
    return table


def check_default(
    rules: DiskRules, users: Iterable[User], filesystems: Iterable[Filesystem], prefix: str
) -> None:
    """Raise InvalidInput where the default quota could not be held, or would bind a declared user."""
    if rules.default is None:
        return
    where = prefix + "quota_default"
    home = next((one for one in filesystems if one.role == "home"), None)
    if home is not None and home.fstype != "xfs":
        raise InvalidInput(
            f"{where}: {home.fstype} has no default for unknown uids, only xfs has.",
            f"Remove it, or make {prefix}filesystems.home an xfs.",
        )
    # xfs_qm_adjust_dqlimits (fs/xfs/xfs_trans_dquot.c): a limit of 0 is replaced by the default.
    for user in users:
        for field in fields(rules.default):
            if getattr(rules.default, field.name) and not getattr(user.quota, field.name):
                raise InvalidInput(
                    f"{where}.{field.name}: {user.name} has no limit of that kind, so XFS would take this.",
                    f"Give {user.name} or the group {user.group} a quota.{field.name}.",
                )


def dump(rules: DiskRules) -> dict[str, Any]:
    """Return the rules as plain data; ``read`` of it gives equal ones."""
    return {
        "watermarks": {"warn": rules.warn, "refuse": rules.refuse, "contact": rules.contact},
        "quota_grace": rules.grace_days,
        "quota_default": None if rules.default is None else asdict(rules.default),
        "overcommit": rules.overcommit,
        "build_minutes": rules.build_minutes,
        "private_tmp": rules.private_tmp,
    }
