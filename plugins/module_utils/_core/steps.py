# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Work in steps, each of which says what it would do before it does it, and may be repeated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Callable

from .errors import LabError
from .items import ItemResult


@dataclass(frozen=True)
class Step:
    """One step: ``plan`` returns in words what is to be done, nothing where nothing is; ``do`` does it."""

    name: str
    plan: Callable[[], list[str]]
    do: Callable[[], None]


def carry_out(
    steps: Iterable[Step], note: Callable[[str], None], reason: str, *, check: bool
) -> list[ItemResult]:
    """Go through the steps, one result each, up to the first that fails; with ``check`` only say them.

    ``note`` is told the name of a step before it is done, and "" afterwards.
    """
    results = []
    for step in steps:
        result = ItemResult(step.name)
        results.append(result)
        try:
            wanted = step.plan()
            if wanted and not check:
                note(step.name)
                step.do()
                note("")
        except LabError as error:
            result.failed, result.message = True, str(error)
            break
        if wanted:
            result.changed, result.actions, result.reason = True, wanted, reason
            result.diff = {"before": "", "after": "".join(f"{line}\n" for line in wanted)}
    return results
