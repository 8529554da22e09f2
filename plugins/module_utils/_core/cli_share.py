# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The command ``workspace share``: the folders of shared data that a user may use."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from .calls import Call, Command
from .errors import LabError
from .policy import Policy, Share, User
from .sizes import format_size
from .terminal import fit, table

_DATASETS = 20  # of those that are published, as many are shown beside the shares

READ, WRITE, PUBLISH = "read", "read and write", "read, publish on the server"


def access(user: User, share: Share) -> str:
    """Return what a user may do with a share, in words; "" for nothing, of which it is not told either."""
    member = bool(share.group) and share.group in (user.group, *user.groups)
    if share.access == "group":
        return WRITE if member else ""
    if share.access == "read-only":
        return PUBLISH if member else READ
    return ""


def told(policy: Policy, user: User) -> list[dict[str, Any]]:
    """Return the shares that a user may use, as plain data; sizes in bytes, None where there is no limit."""
    found = []
    for share in policy.shares:
        words = access(user, share)
        if not words:
            continue
        path = policy.share_path(share)
        used = None
        if share.size:
            # The project quota makes the folder look like a disk of that size (quotactl(2), statvfs(3)).
            with suppress(OSError):
                disk = os.statvfs(path)
                used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
        found.append(
            {
                "name": share.name,
                "path": path,
                "access": words,
                "group": share.group,
                "description": share.description,
                "size": share.size or None,
                "used": used,
                "there": os.path.isdir(path),
                "datasets": _published(policy, share),
            }
        )
    return found


def _published(policy: Policy, share: Share) -> list[dict[str, Any]]:
    """Return the current versions of the datasets of a share, as plain data."""
    from . import datasets, publishing

    if share.access != "read-only":
        return []
    found = []
    with suppress(LabError, OSError), publishing.Place(policy, share) as place:
        for one in place.versions():
            if one.current and one.dataset:
                path = f"{place.path}/{one.name}/{datasets.CURRENT}"
                found.append({**one.dataset.shown(), "path": path})
    return found


def _room(share: dict[str, Any]) -> str:
    if not share["there"]:
        return "not there"
    if share["size"] is None:
        return "as the disk has"
    used = "?" if share["used"] is None else format_size(share["used"])
    return f"{used} of {format_size(share['size'])}"


def _workspace_share(call: Call) -> int:
    user = call.user()
    shares = told(call.policy(), user)
    if call.json:
        call.answer({"shares": shares})
        return 0
    if not shares:
        call.out.line("There is no shared data for you on this server.")
        return 0
    rows = [[share["path"], share["access"], _room(share)] for share in shares]
    for line in table(["SHARE", "YOU MAY", "ROOM"], rows, call.out.width):
        call.out.line(line)
    for share in shares:
        if share["description"]:
            call.out.line(fit(f"{share['name']}: {share['description']}", call.out.width))
    published = [one for share in shares for one in share["datasets"]]
    if published:
        rows = [[one["path"], one["version"], format_size(one["size"]), one["licence"]] for one in published]
        call.out.line()
        for line in table(["DATASET", "VERSION", "SIZE", "LICENCE"], rows[:_DATASETS], call.out.width):
            call.out.line(line)
        if len(rows) > _DATASETS:
            call.out.line(f"and {len(rows) - _DATASETS} more: lab share list")
        call.out.line()
    call.out.line("Containers have them at the same paths; a group edits what any of it wrote.")
    return 0


COMMANDS: tuple[Command, ...] = (
    Command(
        ("workspace", "share"),
        "list the shared folders that you may use",
        "List the folders of shared data that you may use: what you may do there, how much room they have, "
        "what they are for, and the datasets that are published in them. Containers have them at the same "
        "paths.",
        "workspace share",
        _workspace_share,
        named=False,
    ),
)
