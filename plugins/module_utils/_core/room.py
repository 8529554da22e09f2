# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How full a quota is, for people: a line with a bar, and a warning before it is used up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from .sizes import format_size
from .terminal import Terminal, duration, gauge

if TYPE_CHECKING:
    from .quota import Usage

#: From these shares of a quota on it is told: first that it fills, then that it is nearly full.
WARN, ALARM = 0.80, 0.95
_NARROWEST = 4  # columns within the brackets of a bar
_AROUND = 8 + 3  # the label before a bar, its brackets and the space behind it


def lines(out: Terminal, usage: Usage) -> list[str]:
    """Return a line for the space and one for the number of files."""
    limits = usage.quota
    return [
        _line(out, "space", usage.used, limits.hard or limits.soft, format_size),
        _line(out, "files", usage.inodes, limits.inodes_hard or limits.inodes_soft, str),
    ]


def _line(out: Terminal, label: str, used: int, limit: int, show: Callable[[int], str]) -> str:
    if not limit:
        return f"{label:<7} {show(used)} used, no limit"
    share = used / limit
    colour = "bad" if share >= ALARM else "warn" if share >= WARN else "good"
    figures = f"{round(share * 100):>3} %  {show(used)} of {show(limit)}"
    # On a narrow terminal the bar makes room for the figures.
    left = min(24, out.width - len(figures) - _AROUND)
    shown = out.style(gauge(share, left), colour) + " " if left >= _NARROWEST else ""
    return f"{label:<7} {shown}{figures}"


def warnings(usage: Usage) -> dict[str, tuple[str, str]]:
    """Return (sentence, colour) for ``space`` and ``files``, where so much is used that it must be told."""
    limits = usage.quota
    found = {}
    for what, of_what, used, limit in (
        ("space", "space", usage.used, limits.hard or limits.soft),
        ("files", "number of files", usage.inodes, limits.inodes_hard or limits.inodes_soft),
    ):
        share = used / limit if limit else 0.0
        # Rounded down: 100 per cent are told only when nothing is left.
        used_up = f"{int(share * 100)} % of your {of_what} is used"
        if share >= ALARM:
            more = ": soon nothing can be written. Make room: workspace usage, workspace clean."
            found[what] = (used_up + more, "bad")
        elif share >= WARN:
            found[what] = (
                f"{used_up}. What takes it: workspace usage; what can go: workspace clean.",
                "warn",
            )
    return found


def over(usage: Usage, now: float) -> str:
    """Return a sentence where a soft limit is exceeded, with the time that is left, or ''."""
    limits = usage.quota
    for used, soft, until, shown in (
        (usage.used, limits.soft, usage.space_until, format_size),
        (usage.inodes, limits.inodes_soft, usage.files_until, lambda number: f"{number} files"),
    ):
        if soft and used > soft:
            over_it = f"You are above the soft limit of {shown(soft)}"
            if not until:
                return f"{over_it}: make room before the grace ends."
            if until <= now:
                return f"{over_it}, and the grace is over: nothing can be written until you make room."
            return f"{over_it}: make room within {duration(until - now)}, then nothing can be written."
    return ""


def beside(out: Terminal, found: Mapping[str, int | None]) -> list[str]:
    """Return lines for what somebody holds beside home and workspace: of containers and of images."""
    told = []
    for what in ("layers", "images"):
        used, limit = found.get(what), found.get(f"{what}_limit") or 0
        if used is not None:
            told.append(_line(out, what, used, limit, format_size))
    if told:
        told.append("Layers: what containers hold beyond their images; retire those not needed.")
    return told
