# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the inventory says of the life of containers, beside each user's ``run_hours`` and ``idle_hours``.

``read`` takes it out of the policy's tables, in which keys of the inventory begin with ``lab_``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .policy import _Table

HOUR = 3600


@dataclass(frozen=True)
class LifeRules:
    """How containers come to their end; see docs/variables.md.

    A container is told ``notice_hours`` before it is stopped. One that is stopped is retired after
    ``retire_hours``, with the same notice; 0: never. A user puts a stop off by ``extend_hours`` at once at
    most, ``extend_times`` times.
    """

    notice_hours: int = 24
    retire_hours: int = 0
    extend_hours: int = 24
    extend_times: int = 3


def read(root: _Table, prefix: str) -> LifeRules:
    """Return what the tables say; raise InvalidInput."""
    table = root.table(prefix + "lifecycle")
    table.fill("", asdict(LifeRules()))
    rules = LifeRules(
        notice_hours=table.integer("notice_hours", 1, 8760),
        retire_hours=table.integer("retire_hours", 0, 87600),
        extend_hours=table.integer("extend_hours", 1, 8760),
        extend_times=table.integer("extend_times", 0, 1000),
    )
    table.done()
    return rules
