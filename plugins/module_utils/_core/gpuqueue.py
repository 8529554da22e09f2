# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The queue for GPUs: who is next, and how long it may take. Pure decisions.

First come those of the group that had the least of the GPUs lately, by its weight; in it the user who had
the least; then who has waited longest. What somebody had counts half after each day. Who has waited for a day
is next whatever the others had, so nobody waits for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .leases import Lease
from .policy import Policy

#: Seconds after which what somebody had counts half.
HALF_LIFE = 86400.0
#: Seconds of waiting after which the order of arrival alone counts.
PATIENCE = 86400.0
# A clock that jumps, or a server that was off, adds no more than this at once.
_LONGEST_STEP = 86400.0


@dataclass(frozen=True)
class Waiting:
    """One who waits: the container that is to be, whose it is, the request, and since when.

    ``since`` is in seconds of the clock that runs from the boot (CLOCK_BOOTTIME), which nobody sets; ``at``
    is the same by the clock (since 1970), for after a reboot. ``words`` is what was asked of the broker
    beside the project, with which the launch is taken up again then.
    """

    holder: str
    uid: int
    project: str
    request: str
    since: float
    maker: str
    at: float = 0.0
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Usage:
    """What each user had lately, in GPU seconds by uid; ``at`` is the time (since 1970) that it is of.

    ``length`` is how long a lease lasted lately, in seconds; 0.0 where none has ended yet.
    """

    at: float = 0.0
    had: tuple[tuple[int, float], ...] = ()
    length: float = 0.0


def aged(usage: Usage, leases: Iterable[Lease], now: float) -> Usage:
    """Return the usage at ``now``, the leases having been held since ``usage.at``."""
    step = min(max(now - usage.at, 0.0), _LONGEST_STEP) if usage.at else 0.0
    fading = 0.5 ** (step / HALF_LIFE)
    had = {uid: amount * fading for uid, amount in usage.had}
    for lease in leases:
        if lease.uid > 0:
            had[lease.uid] = had.get(lease.uid, 0.0) + float(lease.cost) * step
    return Usage(now, tuple(sorted((uid, amount) for uid, amount in had.items() if amount > 1)), usage.length)


def ended(usage: Usage, seconds: float) -> Usage:
    """Return the usage after a lease that lasted so long."""
    length = seconds if not usage.length else 0.8 * usage.length + 0.2 * seconds
    return Usage(usage.at, usage.had, max(length, 1.0))


def order(waiting: Iterable[Waiting], policy: Policy, usage: Usage, now: float) -> list[Waiting]:
    """Return those who wait, next one first. ``now`` is of the clock of ``Waiting.since``."""
    had = dict(usage.had)
    groups = {user.uid: user.group for user in policy.users}
    by_group: dict[str, float] = {}
    for uid, amount in had.items():
        by_group[groups.get(uid, "")] = by_group.get(groups.get(uid, ""), 0.0) + amount

    def rank(one: Waiting) -> tuple[int, float, float, float, str]:
        if now - one.since >= PATIENCE:
            return (0, 0.0, 0.0, one.since, one.holder)
        group = groups.get(one.uid, "")
        weight = policy.gpu.rule("", group).weight or 1
        return (1, by_group.get(group, 0.0) / weight, had.get(one.uid, 0.0), one.since, one.holder)

    return sorted(waiting, key=rank)


def estimate(
    place: int, leases: Sequence[Lease], usage: Usage, since: Mapping[str, float], now: float
) -> int:
    """Return in how many seconds the one at ``place`` (from 1) may be served; -1 where nobody can say.

    It supposes that a lease lasts as long as those lately did, and that each one that ends serves one.
    """
    if not usage.length or not leases:
        return -1
    ends = sorted(max(0.0, usage.length - max(0.0, now - since.get(lease.holder, now))) for lease in leases)
    rounds, which = divmod(place - 1, len(ends))
    return int(ends[which] + rounds * usage.length)
