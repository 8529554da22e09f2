# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the lab users' commands and the broker agree on."""

from __future__ import annotations

from .errors import HostError, InvalidInput, LabError, NotFound, Refused

BROKER = "/usr/local/sbin/lab-broker"

#: The verb that hands the caller's terminal to a shell in the container.
ATTACH = "attach"

#: Exit codes of the broker and of the commands, by kind of error.
EXIT_CODES = {"failed": 1, "usage": 2, "refused": 3, "not-found": 4}

_KINDS: dict[str, type[LabError]] = {"usage": InvalidInput, "refused": Refused, "not-found": NotFound}


def kind_of(error: LabError) -> str:
    """Return the kind of an error, a key of EXIT_CODES."""
    return next((kind for kind, error_type in _KINDS.items() if isinstance(error, error_type)), "failed")


def error_of(kind: str, message: str, hint: str) -> LabError:
    """Return the error of that kind; one that is not known has failed."""
    return _KINDS.get(kind, HostError)(message, hint)
