# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a unit that runs has read its files as they are now.

A handler that was notified is lost with a run that is cut off. So what a unit has read is noted on the
server: a digest of the files, together with the InvocationID that systemd gives to each start of a unit
(systemd.exec(5)). While both are the same nothing has to be done, whatever clocks say. Of a start that is
not noted, such as the one at boot, the times tell: were the files there before it?
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from . import RUN_DIRECTORY, hostfiles
from .errors import HostError, InvalidInput
from .names import printable

_FOLDER = "loaded"
# So many seconds may the kernel's clock for files be behind: one tick of the slowest one (time(7)).
_COARSE = 0.01


@dataclass(frozen=True)
class Reads:
    """A unit, and the files that it reads when it starts, or where ``reload`` says so, when it is reloaded.

    ``changing`` tells that an earlier part of the run changed one of them, or in a check would.
    """

    unit: str
    files: tuple[str, ...]
    reload: bool = False
    changing: bool = False

    def check(self) -> None:
        """Raise InvalidInput where a file is not named by its whole path."""
        for path in self.files:
            if not path.startswith("/"):
                raise InvalidInput(
                    f"{printable(path)!r}, which {self.unit} reads, is no whole path.", "Begin it with a '/'."
                )


def digest(files: Sequence[str], texts: Mapping[str, str]) -> str:
    """Return a digest of the files; ``texts`` holds by path what of them is about to be written.

    One that is not there counts as such. Raises HostError.
    """
    total = hashlib.sha256()
    for path in sorted(files):
        text = texts[path] if path in texts else hostfiles.read_text(path)
        content = b"" if text is None else text.encode("utf-8", "surrogateescape")
        total.update(f"{path}\0{'absent' if text is None else len(content)}\0".encode() + content)
    return total.hexdigest()


def is_current(reads: Reads, state: Mapping[str, str], now: str, written: Collection[str] = ()) -> bool:
    """Say whether a unit that runs has read its files, whose digest is ``now``.

    ``state`` is what systemd says of the unit, as ``units.states`` returns it; the files in ``written`` are
    written now, or would be, were this no check. Raises HostError.
    """
    invocation = state.get("InvocationID", "")
    noted = _noted(reads.unit)
    if invocation and noted.get("invocation") == invocation:
        return noted.get("digest") == now
    return all(path not in written and _is_older(path, state) for path in reads.files)


def note(unit: str, state: Mapping[str, str], now: str) -> None:
    """Note what a unit that runs has read, unless that is noted. Raises HostError."""
    record = {"invocation": state.get("InvocationID", ""), "digest": now}
    if not record["invocation"] or _noted(unit) == record:
        return
    path = _path(unit)
    try:
        os.makedirs(posixpath.dirname(path), mode=0o700, exist_ok=True)
    except OSError as error:
        raise HostError(f"{posixpath.dirname(path)} cannot be made: {error.strerror}.") from error
    hostfiles.write_text(path, json.dumps(record) + "\n", 0o600)


def _path(unit: str) -> str:
    return posixpath.join(RUN_DIRECTORY, _FOLDER, f"{unit}.json")


def _noted(unit: str) -> dict[str, str]:
    try:
        record = json.loads(hostfiles.read_text(_path(unit)) or "{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _is_older(path: str, state: Mapping[str, str]) -> bool:
    """Say whether a file, or its absence, was there before the unit began to start.

    The start is counted back from now, so that a clock which was set since boot does not mislead.
    """
    started = state.get("InactiveExitTimestampMonotonic", "")
    if not started.isdigit():
        return False
    ago = time.clock_gettime(time.CLOCK_MONOTONIC) - int(started) / 1e6
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError as error:
        raise HostError(f"{path} cannot be read: {error.strerror}.") from error
    return status.st_ctime + _COARSE < time.time() - ago
