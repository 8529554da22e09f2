# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The result of one item of a list that a module reconciles."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ItemResult:
    """What was done to one item, or in check mode what would be done.

    ``diff`` holds ``before`` and ``after``: dictionaries or text, empty when nothing differs.
    ``reason`` says why something was done; ``message`` says why it failed; ``facts`` is what else to return.
    """

    name: str
    changed: bool = False
    actions: list[str] = field(default_factory=list)
    diff: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    failed: bool = False
    message: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the item as it is handed to Ansible; ``failed`` and ``msg`` only when it failed."""
        shown: dict[str, Any] = {
            "name": self.name,
            "changed": self.changed,
            "actions": list(self.actions),
            "diff": dict(self.diff),
            "reason": self.reason,
        }
        shown.update(self.facts)
        if self.failed:
            shown.update(failed=True, msg=self.message)
        return shown
