# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""rclone, run by the user who calls, and what it says in a plain sentence.

Keys are in the file of settings alone, never in arguments or the environment. Names of files are those that
rclone gives: what would be no name on one side (a control character, a part that is "..") is written with
other characters, so a name never holds a line's end and never leads out of its folder.
Source of options and output: rclone(1), "Global flags", "rclone check", "rclone lsjson".
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from .errors import HostError, LabError, NotFound, Refused
from .names import printable

PROGRAM = "/usr/bin/rclone"
_COMMON = (
    *("--use-json-log", "--log-level", "NOTICE", "--ask-password=false", "--contimeout", "15s"),
    *("--timeout", "2m", "--low-level-retries", "3", "--checkers", "16"),
)
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_PR_SET_PDEATHSIG = 1
# rclone(1), "Exit code": the directory is not there.
_NO_DIRECTORY = 3
#: How the two sides of a name compare (rclone(1), "rclone check", --combined).
SAME, ONLY_SOURCE, ONLY_TARGET, DIFFERENT = "=", "+", "-", "*"
# What comparing says of differences, which are no failure.
_DIFFERENCE = re.compile(
    r"file not in |(?:sizes|\S+) differ|Entry doesn't belong in directory|(?:.*: )?\d+ differences found"
)
_UNCHECKED = re.compile(r"(\d+) hashes could not be checked")
_SKIPPED = re.compile(r"Can't (?:follow symlink|transfer non file)")
# The last words, which are no JSON, begin with the time.
_TIME = re.compile(r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d ")

# What rclone and the S3 servers say, and what it means; {0} is the endpoint, {1} the file or folder.
_CAUSES: tuple[tuple[str, type[LabError], str, str], ...] = (
    (
        r"InvalidAccessKeyId|SignatureDoesNotMatch|AuthFailure|InvalidToken|InvalidClientTokenId|ExpiredToken",
        Refused,
        "The object storage {0} does not accept your key.",
        "Ask your admins for another one.",
    ),
    (
        r"NoSuchBucket|directory not found",
        NotFound,
        "There is no such bucket at the object storage {0}.",
        "Look at its name, or ask your admins to make it.",
    ),
    (
        r"RequestTimeTooSkewed",
        HostError,
        "The clocks of this server and of the object storage {0} differ too much.",
        "Tell your admins.",
    ),
    (
        r"QuotaExceeded|InsufficientStorage|XMinioStorageFull|status code: 507",
        Refused,
        "The object storage {0} has no room left for you.",
        "Remove something there, or ask whoever runs it.",
    ),
    (
        r"AccessDenied|Forbidden|status code: 403",
        Refused,
        "The object storage {0} does not let your key do that there.",
        "Look at the name of the bucket: it may be somebody else's, or not be there.",
    ),
    (
        r"x509: |tls: |server gave HTTP response to HTTPS client",
        HostError,
        "This server does not trust the certificate of the object storage {0}, so nothing was sent.",
        "Tell your admins: lab_ca_certificates takes its authority.",
    ),
    (
        r"disk quota exceeded",
        HostError,
        "Your disk quota is used up, so not all could be written.",
        "Remove files (workspace usage shows the largest), then say the same again.",
    ),
    (
        r"no space left on device|too big for remaining disk space",
        HostError,
        "The disk of this server is full, so not all could be written.",
        "Tell your admins.",
    ),
    (
        r"no such host|connection refused|connection reset|i/o timeout|unreachable|no route to host"
        r"|handshake timeout|unexpected EOF|deadline exceeded|SlowDown|ServiceUnavailable|status code: 50\d",
        HostError,
        "The object storage {0} cannot be reached now.",
        "Say the same again later: what was copied stays, and is not copied again.",
    ),
    (
        r"permission denied",
        HostError,
        "{1} cannot be read or written: permission denied.",
        "Give yourself access to it (chmod u+rwX).",
    ),
    (
        r"not a directory|is a directory|file exists",
        HostError,
        "{1} cannot be written: a file and a folder would have the same name.",
        "Give one of them another name.",
    ),
    (
        r"being updated|corrupted on transfer",
        HostError,
        "{1} changed while it was copied.",
        "Stop what writes to it, and say the same again.",
    ),
)


@dataclass(frozen=True)
class Listing:
    """The files below a folder with their sizes in bytes, and the names of what is no plain file."""

    files: Mapping[str, int]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """How the files of two sides compare: SAME and so on, by name.

    ``unchecked``: of how many the sizes alone could be compared, as the storage has no checksum of them.
    """

    signs: Mapping[str, str]
    unchecked: int = 0

    def those(self, *signs: str) -> list[str]:
        """Return the names with one of these signs, in order."""
        return sorted(name for name, sign in self.signs.items() if sign in signs)


@dataclass
class _Said:
    """What a run of rclone said."""

    code: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    unchecked: int = 0
    output: str = ""


def _ignore(_stats: Mapping[str, Any]) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Rclone:
    """rclone for one endpoint: ``settings`` is the file with the key, ``home`` that of the user."""

    endpoint: str
    settings: str
    home: str

    def is_file(self, root: str) -> bool:
        """Say whether ``root`` is one file, not a folder; raise LabError."""
        said = self._run(["lsjson", "--stat", "--no-modtime", "--no-mimetype", root])
        if said.code == _NO_DIRECTORY:
            return False
        self._check(said)
        found = json.loads(said.output or "null")
        return isinstance(found, dict) and not found.get("IsDir", True)

    def listing(self, root: str) -> Listing:
        """Return the files below ``root``; links and what is no file are skipped. Raises LabError."""
        said = self._run(["lsjson", "--recursive", "--files-only", "--no-modtime", "--no-mimetype", root])
        self._check(said)
        files = {str(one["Path"]): int(one["Size"]) for one in json.loads(said.output or "[]")}
        return Listing(files, tuple(sorted(said.skipped)))

    def compare(self, source: str, target: str, only: Sequence[str] | None = None) -> Comparison:
        """Compare two folders by size and checksum; ``only``: these names alone. Raises LabError.

        Where the target is not there yet, all is only in the source.
        """
        said = self._run(["check", source, target, "--combined", "-", "--skip-links"], only)
        failures = [one for one in said.errors if not _DIFFERENCE.match(one[1])]
        if failures:
            raise self._explained(failures)
        lines = [line.partition(" ") for line in said.output.splitlines()]
        return Comparison({name: sign for sign, _space, name in lines if name}, said.unchecked)

    def copy(
        self,
        source: str,
        target: str,
        only: Sequence[str],
        progress: Callable[[Mapping[str, Any]], None] = _ignore,
    ) -> LabError | None:
        """Copy these files; return why not all arrived, or None.

        ``progress`` is called twice a second with rclone's figures, ``bytes`` and ``transfers`` among them.
        """
        words = ["copy", source, target, "--checksum", "--no-update-modtime", "--skip-links"]
        words += ["--transfers", "8", "--retries", "2", "--retries-sleep", "1s"]
        said = self._run([*words, "--stats", "500ms", "--stats-log-level", "NOTICE"], only, progress)
        return self._explained(said.errors) if said.code else None

    def delete(self, root: str, only: Sequence[str]) -> None:
        """Delete these files below ``root``; raise LabError."""
        self._check(self._run(["delete", root], only))

    def _check(self, said: _Said) -> None:
        if said.code:
            raise self._explained(said.errors)

    def _explained(self, errors: Sequence[tuple[str, str]]) -> LabError:
        """Return the error for what was said: (file, words)."""
        for pattern, kind, message, hint in _CAUSES:
            for name, words in errors:
                if re.search(pattern, words):
                    return kind(message.format(self.endpoint, printable(name) or "Something"), hint)
        # The first line: an id of the request, which helps nobody here, may follow.
        words = errors[-1][1].splitlines()[0] if errors else "it ended without a word"
        return HostError(f"rclone failed: {printable(words)[:300]}", "Show this to your admins.")

    def _run(
        self,
        words: Sequence[str],
        only: Sequence[str] | None = None,
        progress: Callable[[Mapping[str, Any]], None] = _ignore,
    ) -> _Said:
        """Run rclone; ``only`` are names that it reads from its standard input."""
        command = [PROGRAM, *words, *_COMMON]
        if only is not None:
            command += ["--files-from-raw", "-"]
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as taken:
            given.write("".join(f"{name}\n" for name in only or ()).encode("utf-8", "surrogateescape"))
            given.seek(0)
            try:
                process = subprocess.Popen(
                    command,
                    stdin=given,
                    stdout=taken,
                    stderr=subprocess.PIPE,
                    env=self._environment(),
                    cwd="/",
                    encoding="utf-8",
                    errors="replace",
                    preexec_fn=_dying_with_us(),  # noqa: PLW1509  # there are no threads here
                )
            except OSError as error:
                raise HostError(
                    f"rclone cannot be run: {error.strerror}.",
                    "Tell your admins: lab_object_storage brings it.",
                ) from error
            with process, _ended(process):
                said = _read(process.stderr or (), progress)
            said.code = process.returncode
            taken.seek(0)
            said.output = taken.read().decode("utf-8", "replace")
        return said

    def _environment(self) -> dict[str, str]:
        """Return a plain environment: of the caller's only what leads out of the network."""
        proxies = {
            name: os.environ[name]
            for upper in _PROXIES
            for name in (upper, upper.lower())
            if name in os.environ
        }
        return {
            **proxies,
            "HOME": self.home,
            "LC_ALL": "C.UTF-8",
            "PATH": "/usr/bin:/bin",
            "RCLONE_CONFIG": self.settings,
        }


@contextlib.contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Have rclone end, and put away what it has half done, when we are stopped."""
    try:
        yield
    except BaseException:
        process.terminate()
        raise


def _dying_with_us() -> Callable[[], None]:
    """Return what the child does before it becomes rclone. Everything is loaded before the fork."""
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)

    return ask


def _read(lines: Iterator[str] | Sequence[str] | Any, progress: Callable[[Mapping[str, Any]], None]) -> _Said:
    """Take in what rclone says: a JSON object a line, and at its end words that are none."""
    said = _Said()
    for line in lines:
        event: Any = None
        with contextlib.suppress(ValueError):
            event = json.loads(line)
        if not isinstance(event, dict):
            _plain(said, line)
            continue
        words, name = str(event.get("msg", "")), str(event.get("object", ""))
        unchecked = _UNCHECKED.match(words)
        if isinstance(event.get("stats"), dict):
            progress(event["stats"])
        elif event.get("level") in ("error", "critical", "fatal"):
            said.errors.append((name, words))
        elif _SKIPPED.match(words):
            said.skipped.append(name)
        elif unchecked:
            said.unchecked = int(unchecked.group(1))
    return said


def _plain(said: _Said, line: str) -> None:
    """Take in a line that is no JSON: the last words, or one that goes on with them."""
    words = _TIME.sub("", line.rstrip("\n"))
    if words != line.rstrip("\n") or not said.errors:
        said.errors.append(("", words))
    elif words.strip():
        name, before = said.errors[-1]
        said.errors[-1] = (name, f"{before}\n{words}")
