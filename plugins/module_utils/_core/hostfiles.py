# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files and tools of the host, in places where only root writes.

Not for a user's tree: these functions follow the path that they are given.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence

from .errors import HostError
from .names import printable

# The tools of the administrator are not on every PATH (sudo, cron, systemd units).
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


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

    The owner and mode of a file that is replaced are kept; ``mode`` is that of a new one.
    Raises HostError.
    """
    directory = os.path.dirname(path)
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".lab-server-", dir=directory)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as stream:
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
