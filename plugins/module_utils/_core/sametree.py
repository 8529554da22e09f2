# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a copy of a tree is the same: names, kinds, owners, modes, times, links, attributes and contents.

Root reads both trees by directory descriptors and follows no link (``safefs``), whoever changes what
meanwhile. Of each file a line is kept: what lstat(2) said of the file and of its copy when they were equal,
and a SHA-256, for which holes are not read. What has the same inode and time of change (ctime) later is not
read again; ``context`` says why its content cannot differ then, and why a ctime must be 2 seconds older than
the look to count.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import heapq
import json
import math
import os
import stat
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Callable

from . import archive, context, safefs
from .archive import Found
from .errors import HostError, LabError
from .names import printable

_BLOCK = 1 << 16
_ZEROS = bytes(_BLOCK)
_NUMBERS = struct.Struct("<2Q")
_SECTOR = 512  # of st_blocks, stat(2)
_WORST = 3
_RACY = 2_000_000_000  # nanoseconds, see ``context``


@dataclass(frozen=True)
class Line:
    """A file and its copy that were equal: (inode, ctime in nanoseconds) of each, the ``_digest`` of both.

    ``settled`` says that any later change must show in a ctime.
    """

    path: str
    file: tuple[int, int]
    copy: tuple[int, int]
    sha256: str
    settled: bool

    def render(self) -> str:
        """Return its text, without a line break whatever is in the name."""
        return json.dumps(list(asdict(self).values()))


def parse(text: str) -> Line:
    """Return the line of a text; raise HostError for one that is damaged."""
    try:
        path, file, copy, sha256, settled = json.loads(text)
        return Line(str(path), (file[0], file[1]), (copy[0], copy[1]), str(sha256), settled is True)
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise HostError("A line of the list of compared files is damaged.") from error


@dataclass
class Verdict:
    """What a comparison found: why what differs does, by path, and how much there was and was read."""

    different: dict[str, str] = field(default_factory=dict)
    files: int = 0
    bytes: int = 0
    read: int = 0


class _Earlier:
    """The lines of an earlier comparison, which come in the order in which trees are walked."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines = iter(lines)
        self._next = next(self._lines, None)

    def of(self, path: str) -> Line | None:
        """Return the line of a path that comes after those that were asked for before."""
        while self._next is not None and _order(self._next.path) < _order(path):
            self._next = next(self._lines, None)
        return self._next if self._next is not None and self._next.path == path else None


class _Comparison:
    """One comparison of two open folders."""

    def __init__(self, source: int, copy: int, earlier: _Earlier, keep: Callable[[Line], None]) -> None:
        self._source = source
        self._copy = copy
        self._earlier = earlier
        self._keep = keep
        # Of files with several names: the inode of the copy that belongs to the inode of the file.
        self._inodes: dict[int, int] = {}
        self.verdict = Verdict()

    def differs(self, mine: Found, other: Found) -> str:
        """Return in words what differs between a file and its copy, or ''."""
        one, two = mine.status, other.status
        for problem in (mine.problem, other.problem):
            if problem:
                return problem
        for what, left, right in (
            ("kind or mode", one.st_mode, two.st_mode),
            ("owner", (one.st_uid, one.st_gid), (two.st_uid, two.st_gid)),
            ("device", one.st_rdev, two.st_rdev),
            ("time", one.st_mtime_ns, two.st_mtime_ns),
        ):
            if left != right:
                return what
        if not stat.S_ISDIR(one.st_mode) and not self._same_names(one, two):
            return "links between names"
        if _attributes(self._source, mine.path) != _attributes(self._copy, mine.path):
            return "attributes or access control list"
        if stat.S_ISLNK(one.st_mode):
            return "" if _target(self._source, mine.path) == _target(self._copy, mine.path) else "link"
        return self._content(mine, other) if stat.S_ISREG(one.st_mode) else ""

    def _same_names(self, one: os.stat_result, two: os.stat_result) -> bool:
        """Say whether a file and its copy have as many names, and so far the same."""
        if one.st_nlink != two.st_nlink:
            return False
        return one.st_nlink == 1 or self._inodes.setdefault(one.st_ino, two.st_ino) == two.st_ino

    def _content(self, mine: Found, other: Found) -> str:
        self.verdict.files += 1
        self.verdict.bytes += mine.status.st_size
        if mine.status.st_size != other.status.st_size:
            return "size"
        now = _identity(mine), _identity(other)
        line = self._earlier.of(mine.path)
        if line is not None and line.settled and (line.file, line.copy) == now:
            self._keep(line)
            return ""
        began = time.time_ns()
        # Pages that a program wrote by a mapping must be clean, so that its next write sets the ctime.
        sha256 = _sha256(self._source, mine.path, sync=True)
        self.verdict.read += mine.status.st_size
        if sha256 != _sha256(self._copy, mine.path, sync=False):
            return "content"
        newest = max(now[0][1], now[1][1])
        self._keep(Line(mine.path, *now, sha256, settled=newest < began - _RACY))
        return ""


def compare(
    source: int,
    copy: int,
    earlier: Iterable[Line] = (),
    keep: Callable[[Line], None] = lambda _line: None,
    until: float = math.inf,
) -> Verdict:
    """Compare two open folders, but for lost+found; ``keep`` gets a line for each file that is equal.

    ``earlier`` are the lines of an earlier comparison, in their order. Raises HostError for them, and when
    time.monotonic() is beyond ``until``: what cannot be read differs.
    """
    comparison = _Comparison(source, copy, _Earlier(earlier), keep)
    for mine, other in _pairs(_walk(source), _walk(copy)):
        if time.monotonic() > until:
            raise HostError("The comparison took too long and was ended.")
        path = (mine or other).path  # type: ignore[union-attr]  # of a pair one is there
        if mine is None:
            why = "it is only in the copy"
        elif other is None:
            why = "it is not in the copy"
        else:
            try:
                why = comparison.differs(mine, other)
            except OSError as error:
                why = f"it cannot be read: {error.strerror}"
            except LabError as error:
                why = error.message
        if why:
            comparison.verdict.different.setdefault(path, why)
    return comparison.verdict


def holes(folder: int, *, in_use: bool) -> tuple[int, list[tuple[int, str]]]:
    """Return how many bytes of the files in an open folder are holes, and which files have most, with theirs.

    What is in lost+found does not count. Raises LabError; see ``archive.walk`` for ``in_use``.
    """
    together, worst, seen = 0, list[tuple[int, str]](), set[int]()
    for found in _walk(folder, in_use=in_use):
        status = found.status
        missing = status.st_size - status.st_blocks * _SECTOR
        if not stat.S_ISREG(status.st_mode) or missing <= 0 or status.st_ino in seen:
            continue
        if status.st_nlink > 1:
            seen.add(status.st_ino)
        together += missing
        worst = heapq.nlargest(_WORST, [*worst, (missing, found.path)])
    return together, worst


def told(different: dict[str, str]) -> str:
    """Return a few of the differences in words."""
    shown = [f"{printable(path)[:80] or '.'} ({why})" for path, why in list(different.items())[:3]]
    more = len(different) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _walk(folder: int, *, in_use: bool = False) -> Iterator[Found]:
    return archive.walk(folder, lambda _folder, path, _status: path == "lost+found", in_use=in_use)


def _order(path: str) -> list[str]:
    """Return by what a walk is in order: each folder before what is in it."""
    return path.split("/") if path else []


def _pairs(one: Iterator[Found], two: Iterator[Found]) -> Iterator[tuple[Found | None, Found | None]]:
    """Go through two walks side by side."""
    left, right = next(one, None), next(two, None)
    while left is not None or right is not None:
        if right is None or (left is not None and _order(left.path) < _order(right.path)):
            yield left, None
            left = next(one, None)
        elif left is None or _order(right.path) < _order(left.path):
            yield None, right
            right = next(two, None)
        else:
            yield left, right
            left, right = next(one, None), next(two, None)


def _identity(found: Found) -> tuple[int, int]:
    return found.status.st_ino, found.status.st_ctime_ns


@contextlib.contextmanager
def _holder(folder: int, path: str) -> Iterator[tuple[int, str]]:
    """Yield an open descriptor of the folder that holds ``path``, and the last part of it."""
    above, _slash, name = path.rpartition("/")
    descriptor = safefs.open_beneath(folder, above, os.O_RDONLY | os.O_DIRECTORY) if above else os.dup(folder)
    try:
        yield descriptor, name or "."
    finally:
        os.close(descriptor)


def _attributes(folder: int, path: str) -> dict[str, bytes]:
    """Return the extended attributes of a file, its access control lists among them (acl(5))."""
    with _holder(folder, path) as (holder, name):
        # xattr(7) has no calls with a descriptor of a folder; the last part is not followed.
        place = f"/proc/self/fd/{holder}/{name}"
        names = os.listxattr(place, follow_symlinks=False)
        return {each: os.getxattr(place, each, follow_symlinks=False) for each in names}


def _target(folder: int, path: str) -> str:
    with _holder(folder, path) as (holder, name):
        return os.readlink(name, dir_fd=holder)


def _sha256(folder: int, path: str, *, sync: bool) -> str:
    """Return the digest of a regular file, of a copy as the disk has it: what is in memory proves little."""
    descriptor = safefs.open_regular(folder, path)
    try:
        if sync:
            context.write_out(descriptor)
        else:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return _digest(descriptor)
    finally:
        os.close(descriptor)


def _digest(descriptor: int) -> str:
    """Return the SHA-256 of the size, and of all blocks that are not zeros with their places and lengths.

    So a hole is the same as zeros in its place, and is not read: a user makes one of many TiB at no cost.
    """
    digest = hashlib.sha256(_NUMBERS.pack(os.fstat(descriptor).st_size, 0))
    offset = 0
    while block := os.pread(descriptor, _BLOCK, offset):
        if block == _ZEROS[: len(block)]:
            offset = _data(descriptor, offset + len(block))
            continue
        digest.update(_NUMBERS.pack(offset, len(block)))
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()


def _data(descriptor: int, offset: int) -> int:
    """Return where the next block begins in which there may be more than a hole; the end if there is none."""
    try:
        found = os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        # lseek(2): offset is in a hole at the end, or beyond it.
        if error.errno != errno.ENXIO:
            raise
        return max(offset, os.lseek(descriptor, 0, os.SEEK_END))
    return max(offset, found - found % _BLOCK)
