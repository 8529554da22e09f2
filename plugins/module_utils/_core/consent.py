# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Asking before something is lost."""

from __future__ import annotations

import sys

from .calls import Call
from .errors import InvalidInput


def check_possible(call: Call) -> None:
    """Raise InvalidInput where ``agreed`` has to ask and there is nobody to answer."""
    asking = not call.options.yes
    if asking and (call.json or not sys.stdin.isatty() or not call.out.interactive):
        raise InvalidInput(
            "This asks first, and there is no terminal to answer on.",
            "Add --yes to do it without being asked, or --dry-run to see what would be done.",
        )


def agreed(call: Call, question: str) -> bool:
    """Ask a question that is answered by yes or no, and say whether it was yes; with ``--yes`` it is."""
    check_possible(call)
    if call.options.yes:
        return True
    call.out.write(f"{question} [y/N] ")
    return sys.stdin.readline().strip().lower() in ("y", "yes")
