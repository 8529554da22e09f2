# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The output of the last build of each project, in files that only root can reach, and how that build ended.

It is written while the build runs, in whole lines in which nothing steers a terminal, and lasts through a
reboot. Of a long one the beginning and the end are kept: each file is called by the build and by where in the
output it begins; the first one stays, and of the others the last few. So nothing is ever written over, and
who reads needs no lock. Whoever builds holds a lock on the folder (flock(2)), which dies with its holder: a
build without an end and without a holder was broken off. No trouble with these files is one of the build.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import posixpath
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from . import state
from .errors import HostError, LabError
from .names import printable, project_name

RUNNING, DONE, FAILED, BROKEN_OFF = "running", "done", "failed", "broken off"

_SEGMENT = 512 << 10  # bytes of a file
_LAST = 3  # files that are kept beside the first one, so that a log has 2 MiB at most
_PROJECTS = 20  # of one user that have a log
_LINE = 16_000  # characters
_FOLDER = "build-logs"
_RECORD = "build.json"
_NAME = re.compile(r"([0-9]{1,24})\.([0-9]{1,16})\.log")
# Colours, and what else moves the cursor (ECMA-48): of no use in a file.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


@dataclass(frozen=True)
class Build:
    """The last build of a project. ``started`` is in seconds since 1970; it took ``seconds``.

    ``outcome`` is one of RUNNING, DONE, FAILED and BROKEN_OFF; ``message`` and ``hint`` are those of the
    failure, and ``files`` says which files it was built from, and how.
    """

    id: str
    started: float
    outcome: str = BROKEN_OFF
    seconds: float | None = None
    message: str = ""
    hint: str = ""
    files: str = ""

    def shown(self) -> dict[str, Any]:
        """Return it as it is told to its user."""
        return {
            "started": int(self.started),
            "outcome": self.outcome,
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "message": self.message,
        }


def last(uid: int, project: str) -> Build | None:
    """Return the last build of a project that is known; None where there is none."""
    # In this order: a build that ends between the two is one that runs, for a moment longer.
    runs = is_running(uid, project)
    with contextlib.suppress(HostError, ValueError, TypeError, KeyError):
        data = json.loads(state.read_record(posixpath.join(_name(uid, project), _RECORD)) or "{}")
        build = Build(**{**data, "id": str(data["id"]), "started": float(data["started"])})
        return replace(build, outcome=RUNNING) if runs else build
    return None


def is_running(uid: int, project: str) -> bool:
    """Say whether a build of a project is at work."""
    try:
        folder = os.open(_folder(uid, project), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(folder)
    return False


def running(uid: int) -> list[str]:
    """Return the projects of a user of which a build is at work."""
    return [project for project in _projects(uid) if is_running(uid, project)]


def forget(uid: int, project: str) -> None:
    """Remove the log of a project; the caller holds the lock of its images."""
    shutil.rmtree(_folder(uid, project), ignore_errors=True)  # no trouble with a log is one of a build


def forget_all(uid: int) -> None:
    """Remove all logs of a user."""
    shutil.rmtree(state.place(f"{_FOLDER}/{int(uid)}"), ignore_errors=True)  # as above


class Reader:
    """Reads the log of one build from its beginning, as it grows."""

    def __init__(self, uid: int, project: str, build: str) -> None:
        self._folder, self._build = _folder(uid, project), build
        self._at = 0

    def more(self) -> list[str]:
        """Return the whole lines that were not returned yet, and where some are gone, a line that says so."""
        found: list[str] = []
        for begin, path in _segments(self._folder, self._build):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if begin + size <= self._at:
                    continue
                if begin > self._at:
                    found.append(f"[... {begin - self._at} bytes are left out here ...]")
                    self._at = begin
                file.seek(self._at - begin)
                data = file.read(_SEGMENT)
                data = data[: data.rfind(b"\n") + 1]
                self._at += len(data)
                # Not splitlines, for which there are more ends of lines than the one.
                found += data.decode("utf-8", "replace").split("\n")[:-1]
        return found


class Log:
    """Writes the log of a build, which begins with its first line; what cannot be written is left out."""

    def __init__(self, uid: int, project: str) -> None:
        self._uid, self._project = uid, project
        self._folder = -1
        self._file = -1
        self._left = 0
        self._written = 0
        self._started = 0.0
        self._build: Build | None = None
        self._broken = False
        #: Which files it is built from, and how; to be set before it begins.
        self.files = ""

    @property
    def begun(self) -> bool:
        """Whether there is a log to look into."""
        return self._build is not None

    def begin(self) -> None:
        """Take the place of the log of the build before, if that was not done yet."""
        if self._build is not None or self._broken:
            return
        path = _folder(self._uid, self._project)
        try:
            _make(path)
            self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            # Only a moment: of two builds of one project one waits, and who looks lets go at once.
            fcntl.flock(self._folder, fcntl.LOCK_EX)
            self._started = time.monotonic()
            build = Build(str(time.time_ns()), round(time.time(), 3), files=self.files)
            self._keep(build)
        except (OSError, HostError):
            self._give_up()
            return
        self._build = build
        for name in os.listdir(path):
            # What a killed process left of a record, too.
            if name != _RECORD and not name.startswith(f"{build.id}."):
                with contextlib.suppress(OSError):
                    os.unlink(posixpath.join(path, name))
        _thin_out(self._uid)

    def line(self, text: str) -> None:
        """Write a line of the output."""
        self.begin()
        if self._broken or self._build is None:
            return
        data = (harmless(text) + "\n").encode("utf-8", "replace")
        try:
            if len(data) > self._left:
                self._next(self._build)
            while data:
                count = os.write(self._file, data)
                data = data[count:]
                self._left -= count
                self._written += count
        except OSError:
            self._broken = True  # the disk is full, say

    def _next(self, build: Build) -> None:
        """Begin a new file, and remove the one that is too much."""
        folder = _folder(self._uid, self._project)
        path = posixpath.join(folder, f"{build.id}.{self._written}.log")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(path, flags, 0o600)
        if self._file >= 0:
            os.close(self._file)
        self._file, self._left = file, _SEGMENT
        for _begin, old in _segments(folder, build.id)[1:-_LAST]:
            os.unlink(old)

    def end(self, outcome: str, error: LabError | None = None) -> None:
        """Say how the build ended, where it has begun."""
        if self._build is None:
            return
        with contextlib.suppress(OSError, HostError):
            if self._file >= 0:
                os.fsync(self._file)
            self._keep(
                replace(
                    self._build,
                    outcome=outcome,
                    seconds=round(time.monotonic() - self._started, 3),
                    message=printable(error.message)[:2000] if error else "",
                    hint=printable(error.hint)[:2000] if error else "",
                )
            )

    def _keep(self, build: Build) -> None:
        name = posixpath.join(_name(self._uid, self._project), _RECORD)
        state.write_record(name, json.dumps(asdict(build), sort_keys=True))

    def _give_up(self) -> None:
        self._broken = True
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        for descriptor in (self._file, self._folder):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._folder = -1


@contextlib.contextmanager
def writing(uid: int, project: str) -> Iterator[Log]:
    """Yield the log of a build that may come, and note how it ended. The caller holds the image's lock."""
    log = Log(uid, project)
    try:
        yield log
        log.end(DONE)
    except LabError as error:
        log.end(FAILED, error)
        raise
    except BaseException:
        log.end(BROKEN_OFF)
        raise
    finally:
        log.close()


def harmless(text: str) -> str:
    """Return a line as a terminal would show it in the end, with nothing in it that steers the terminal."""
    plain = text.rstrip()
    if plain.isprintable():
        return plain[:_LINE]
    states = [part for part in _CONTROL.sub("", text).rstrip("\r\n").split("\r") if part.strip()]
    return printable(states[-1].rstrip().expandtabs())[:_LINE] if states else ""


def _segments(folder: str, build: str) -> list[tuple[int, str]]:
    """Return (where in the output it begins, path) of the files of a build, in their order."""
    try:
        found = [match for match in map(_NAME.fullmatch, os.listdir(folder)) if match]
    except OSError:
        return []
    return sorted((int(match[2]), posixpath.join(folder, match[0])) for match in found if match[1] == build)


def _projects(uid: int) -> list[str]:
    try:
        return sorted(os.listdir(state.place(f"{_FOLDER}/{int(uid)}")))
    except OSError:
        return []


def _thin_out(uid: int) -> None:
    """Keep the logs of the projects of a user that were built last."""
    known = sorted((_age(uid, project), project) for project in _projects(uid))
    for _when, project in known[:-_PROJECTS]:
        if not is_running(uid, project):
            forget(uid, project)


def _age(uid: int, project: str) -> int:
    with contextlib.suppress(OSError):
        return os.stat(posixpath.join(_folder(uid, project), _RECORD)).st_mtime_ns
    return 0


def _make(path: str) -> None:
    """Make a folder of root's own, with those above it in the folder of the logs."""
    top = state.place(_FOLDER)
    os.makedirs(os.path.dirname(top), mode=0o700, exist_ok=True)
    for folder in (top, os.path.dirname(path), path):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)


def _name(uid: int, project: str) -> str:
    return f"{_FOLDER}/{int(uid)}/{project_name(project)}"


def _folder(uid: int, project: str) -> str:
    return state.place(_name(uid, project))
