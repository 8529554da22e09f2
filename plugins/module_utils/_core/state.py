# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the server must remember and Docker does not, in a directory that only root can reach.

Which containers were stopped on purpose: one empty file for each; the boot unit does not start those. Which
were brought back after a retire: one file for each, with the container's id in it. To whom the files of an
environment were copied. And small records of root's own programs.
"""

from __future__ import annotations

import contextlib
import os
import posixpath

from . import STATE_DIRECTORY, safefs
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


def _restored(container: str) -> str:
    parse_container_name(container)
    return posixpath.join(STATE_DIRECTORY, "restored", container)


def mark_restored(container: str, identifier: str) -> None:
    """Remember that the container of this id was brought back. Raises HostError."""
    _write(_restored(container), identifier)


def is_restored(container: str, identifier: str) -> bool:
    """Say whether this very container was brought back."""
    return _read(_restored(container)) == identifier


def mark_furnished(container: str, identifier: str, size: int, *, replaces: str = "") -> None:
    """Remember how many bytes we put into a new container; of the one that it ``replaces`` still, too.

    Raises HostError.
    """
    parse_container_name(container)
    path = posixpath.join(STATE_DIRECTORY, "furnished", container)
    before = (_read(path) or "").splitlines() if replaces else []
    lines = [line for line in before if line.startswith(f"{replaces} ")]
    _write(path, "\n".join([*lines, f"{identifier} {size}"]))


def is_furnished(container: str, identifier: str, size: int) -> bool:
    """Say whether this very container holds as many bytes as we put into it."""
    record = _read(posixpath.join(STATE_DIRECTORY, "furnished", container)) or ""
    return f"{identifier} {size}" in record.splitlines()


def _brought(uid: int, folder: str) -> str:
    return posixpath.join(STATE_DIRECTORY, "brought", str(uid), folder)


def mark_brought(uid: int, folder: str) -> None:
    """Remember that the files of an environment were copied to a user's folder. Raises HostError."""
    _write(_brought(uid, folder), "")


def was_brought(uid: int, folder: str) -> bool:
    """Say whether that was done."""
    return os.path.lexists(_brought(uid, folder))


def _moving() -> str:
    return posixpath.join(STATE_DIRECTORY, "data-move", "paused")


def set_moving() -> None:
    """Let no container be started until the shared data have moved. Raises HostError."""
    _write(_moving(), "")


def clear_moving() -> None:
    """Let containers be started again."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_moving())


def is_moving() -> bool:
    """Say whether the shared data are between two file systems."""
    return os.path.lexists(_moving())


def thin_out(folder: str, keep: int) -> None:
    """Keep the newest ``keep`` files of a folder of records; what cannot be removed stays."""
    with contextlib.suppress(OSError):
        with os.scandir(posixpath.join(STATE_DIRECTORY, folder)) as entries:
            found = sorted((entry.stat().st_mtime_ns, entry.path) for entry in entries)
        for _when, path in found[:-keep]:
            os.unlink(path)


def clear(folder: str) -> None:
    """Remove the files of a folder of records, but not the folders in it; what cannot be removed stays."""
    with contextlib.suppress(OSError), os.scandir(posixpath.join(STATE_DIRECTORY, folder)) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)


def place(name: str) -> str:
    """Return the path of a record, or of a folder of records."""
    return posixpath.join(STATE_DIRECTORY, name)


def write_record(name: str, text: str) -> None:
    """Keep a record of root's own; it is whole at every instant. Raises HostError."""
    _write(posixpath.join(STATE_DIRECTORY, name), text)


def append_record(name: str, line: str, limit: int) -> None:
    """Add a line to a record of at most ``limit`` bytes, of which the older half goes when it is full.

    The caller holds a lock. A line that was cut off by a full disk spoils no other. Raises HostError.
    """
    path = posixpath.join(STATE_DIRECTORY, name)
    # The line's end comes first, so that it also ends one that was cut off.
    data = b"\n" + line.encode("utf-8")
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.makedirs(posixpath.dirname(path), mode=0o700, exist_ok=True)
        with os.fdopen(os.open(path, flags, 0o600), "r+b", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size + len(data) <= limit:
                file.write(data)
                return
            kept = os.pread(file.fileno(), limit // 2, max(0, size - limit // 2))
    except OSError as error:
        raise HostError(f"{path} could not be written: {error.strerror}.") from error
    # Whole at every instant. What was read begins within a line.
    safefs.write_atomically(path, kept[max(0, kept.find(b"\n")) :] + data)


def read_record(name: str) -> str | None:
    """Return a record, None if there is none."""
    return _read(posixpath.join(STATE_DIRECTORY, name))


def _write(path: str, text: str) -> None:
    try:
        os.makedirs(posixpath.dirname(path), mode=0o700, exist_ok=True)
    except OSError as error:
        raise HostError(f"{path} could not be written: {error.strerror}.") from error
    safefs.write_atomically(path, text.encode("utf-8"))


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"{path} cannot be read: {error.strerror}.") from error
