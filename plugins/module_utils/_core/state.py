# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the server must remember and Docker does not: which containers were stopped on purpose.

One empty file for each, in a directory that only root can reach; the boot unit does not start those.
"""

from __future__ import annotations

import contextlib
import os
import posixpath

from . import STATE_DIRECTORY
from .errors import HostError
from .names import parse_container_name


def _directory() -> str:
    return posixpath.join(STATE_DIRECTORY, "stopped")


def _marker(container: str) -> str:
    parse_container_name(container)
    return posixpath.join(_directory(), container)


def mark_stopped(container: str) -> None:
    """Remember that the container was stopped on purpose. Raises HostError."""
    try:
        os.makedirs(_directory(), mode=0o700, exist_ok=True)
        os.close(os.open(_marker(container), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise HostError(f"{_marker(container)} could not be written: {error.strerror}.") from error


def clear_stopped(container: str) -> None:
    """Forget it again."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_marker(container))


def is_stopped(container: str) -> bool:
    """Say whether the container was stopped on purpose."""
    return os.path.lexists(_marker(container))


def stopped_names() -> frozenset[str]:
    """Return the names of all containers that were stopped on purpose."""
    try:
        return frozenset(os.listdir(_directory()))
    except FileNotFoundError:
        return frozenset()
