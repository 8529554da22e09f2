# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The commands ``workspace ...``: how much room is used."""

from __future__ import annotations

from collections.abc import Callable

from .calls import Call, Command
from .errors import HostError
from .sizes import format_size
from .terminal import gauge, table

_WARN, _ALARM = 0.80, 0.95  # of a quota


def _shown_limit(call: Call, label: str, used: int, soft: int, hard: int, show: Callable[[int], str]) -> str:
    limit = hard or soft
    if not limit:
        return f"{label:<6} {show(used)} used, no limit"
    share = used / limit
    colour = "bad" if share >= _ALARM else "warn" if share >= _WARN else "good"
    shown = f"{round(share * 100):>3} %  {show(used)} of {show(limit)}"
    return f"{label:<6} {call.out.style(gauge(share), colour)} {shown}"


def _workspace_usage(call: Call) -> int:
    from . import quota, tree

    user = call.user()
    usage = quota.usage(call.policy(), user)
    workspace = call.policy().workspace(user)
    try:
        found = tree.survey(workspace)
    except OSError as error:
        raise HostError(
            f"Your workspace {workspace} cannot be read: {error.strerror}.", "Tell your admins."
        ) from error
    limits = usage.quota
    if call.json:
        call.answer(
            {
                "used": usage.used,
                "soft": limits.soft,
                "hard": limits.hard,
                "inodes": usage.inodes,
                "inodes_soft": limits.inodes_soft,
                "inodes_hard": limits.inodes_hard,
                "complete": found.complete,
                "largest": [
                    {"path": one.path, "bytes": one.size, "files": one.files} for one in found.largest
                ],
            }
        )
        return 0
    call.out.line(_shown_limit(call, "space", usage.used, limits.soft, limits.hard, format_size))
    call.out.line(_shown_limit(call, "files", usage.inodes, limits.inodes_soft, limits.inodes_hard, str))
    call.out.line("Your home and your workspace count together.")
    if limits.soft and usage.used > limits.soft:
        over = f"You are above the soft limit of {format_size(limits.soft)}: make room before the grace ends."
        call.out.line(call.out.style(over, "warn"))
    if found.largest:
        call.out.line()
        rows = [[format_size(one.size), str(one.files), f"~/workspace/{one.path}"] for one in found.largest]
        for line in table(["SIZE", "FILES", "LARGEST DIRECTORIES"], rows, call.out.width):
            call.out.line(line)
    if not found.complete:
        call.out.line("There was not time to look at everything; there may be larger ones.")
    return 0


COMMANDS: tuple[Command, ...] = (
    Command(
        ("workspace", "usage"),
        "show how much of your quota is used, and by what",
        "Show how much of your quota is used, and the largest directories of your workspace.",
        "workspace usage",
        _workspace_usage,
        named=False,
    ),
)
