# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files and tools of the host, in places where only root writes.

Not for a user's tree: these functions follow the path that they are given.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence

from .errors import HostError
from .names import printable

# The tools of the administrator are not on every PATH (sudo, cron, systemd units).
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def read_text(path: str) -> str | None:
    """Return the text of the file, or None if there is none; raise HostError if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise HostError(f"{path} cannot be read: {error.strerror}.") from error


def write_text(path: str, text: str, mode: int = 0o644) -> None:
    """Replace the file at ``path`` so that it is whole at every instant: temporary file, fsync, rename.

    The owner and mode of a file that is replaced are kept; ``mode`` is that of a new one. A temporary file
    that a process left when it was killed is removed by whoever writes the same file next. Raises HostError.
    """
    directory = os.path.dirname(path)
    try:
        descriptor, temporary = _temporary(path)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as stream:
            try:
                stream.write(text)
                with contextlib.suppress(FileNotFoundError):
                    old = os.lstat(path)
                    mode = old.st_mode & 0o7777
                    os.fchown(stream.fileno(), old.st_uid, old.st_gid)
                os.fchmod(stream.fileno(), mode)
                stream.flush()
                os.fsync(stream.fileno())
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
                raise
        sync_directory(directory)
    except OSError as error:
        raise HostError(f"{path} cannot be written: {error.strerror}.") from error


def _temporary(path: str) -> tuple[int, str]:
    """Make a file beside ``path``, under one name as long as nobody else does, and return it open."""
    directory, name = os.path.split(path)
    # Whoever reads all files of a kind by their ends (.conf, .json, .prom) does not take it for one.
    temporary = os.path.join(directory, f".lab-server-{name}.new")
    with contextlib.suppress(OSError):
        _clear(temporary)
        descriptor = os.open(temporary, _NEW, 0o600)
        if _is_held(descriptor, temporary):
            return descriptor, temporary
        os.close(descriptor)
    return tempfile.mkstemp(prefix=".lab-server-", dir=directory)


def _clear(temporary: str) -> None:
    """Remove what a killed process left there; a living one holds its lock. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if _is_held(descriptor, temporary):
                os.unlink(temporary)
        finally:
            os.close(descriptor)


def _is_held(descriptor: int, path: str) -> bool:
    """Lock an open file, and say whether that worked and it still has its name."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except OSError:
        return False


def sync_directory(path: str) -> None:
    """Make the names in the directory last through a loss of power (fsync(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def run(
    arguments: Sequence[str],
    *,
    timeout: float = 300.0,
    accept: Sequence[int] = (0,),
    text: str = "",
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a tool of the host with ``text`` on its standard input, and return what it answered.

    The tool gets a plain environment, and what ``environment`` adds to it.

    Raises HostError with the tool's last line if it is missing, takes longer than ``timeout`` seconds,
    or ends with a status that is not in ``accept``.
    """
    try:
        done = subprocess.run(
            list(arguments),
            input=text,
            capture_output=True,
            check=False,
            cwd="/",
            encoding="utf-8",
            env={**_ENVIRONMENT, **(environment or {})},
            errors="replace",
            timeout=timeout,
        )
    except FileNotFoundError:
        raise HostError(f"The tool {arguments[0]} is missing.", "Install its package.") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"{arguments[0]} could not be run: {error}.") from error
    if done.returncode not in accept:
        lines = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()
        raise HostError(f"{' '.join(arguments[:1])} failed: {printable(lines[-1])}")
    return done
