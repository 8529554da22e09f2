# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The errors of the library. Each is a sentence for a person: what happened, why, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence


class LabError(Exception):
    """An error that a person can act on.

    ``message`` says what happened and why, ``hint`` what to do next; ``str()`` joins them.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InvalidInput(LabError):
    """A name, a size or a variable that cannot be accepted."""


class Refused(LabError):
    """The policy of the server says no."""


class NotFound(LabError):
    """The thing does not exist, or belongs to somebody else, which is answered alike."""


class EngineError(LabError):
    """Docker Engine is not there, or could not do what it was asked."""


class HostError(LabError):
    """A tool or a file system of the host is missing or failed."""


def together(mistakes: Sequence[InvalidInput], most: int = 10) -> InvalidInput:
    """Return one error that says the ``mistakes``, of more than ``most`` the first and their number."""
    if len(mistakes) == 1:
        return mistakes[0]
    text = " ".join(str(mistake) for mistake in mistakes[:most])
    left = len(mistakes) - most
    return InvalidInput(text, f"And {left} more of the kind." if left > 0 else "")
