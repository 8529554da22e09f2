# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A project's folder as one file: packed, read back, unpacked. To be run as the user whose folder it is.

The file is a tar in the format of POSIX.1-2001 (pax), compressed with gzip: what Python's own library reads
and writes on every server, and ``tar xzf`` anywhere else. zstd would be quicker, but Python has it from 3.14
on, and the program is not on every server. The archive holds the folder, and as its last member
``NAME.manifest``: a line of JSON about the whole, then one for each member, with the SHA-256 of every file.
Who reads an archive makes the same lines of what was read; only where they are equal it is whole.

- Links are packed and unpacked as links and never followed; a file with several names is packed once.
- FIFOs, sockets and devices are no data; they are left out, and told.
- Holes of sparse files cost nearly nothing (a block of zeros is compressed once) and are holes again.
- Names that are not UTF-8 are kept byte for byte: pax has a way to say that (hdrcharset=BINARY).
- Owners, access control lists and extended attributes are not kept: all of it is the user's own.

Everything is opened by directory descriptors and without following links (``safefs``): a project may hold
links to anywhere, and what is outside of it is neither read nor written, whoever changes what meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import itertools
import json
import os
import posixpath
import re
import stat
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, BinaryIO, Callable

from . import safefs
from .errors import HostError, InvalidInput, LabError, NotFound, Refused
from .names import printable, project_name

SUFFIX = ".tar.gz"
_FORMAT = 1
_MANIFEST = ".manifest"
# The first line of a manifest, which names what was left out.
_HEAD_LIMIT = 1 << 28
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_CHUNK = 1 << 20
# Names of one folder that are looked at before the first of them is told.
_AT_ONCE = 1000
# What is compressed at once, with a level of its own (RFC 1952 allows any number of members in a file).
_BLOCK = 4 << 20
_SAMPLE = 1 << 15
# zlib's level 3 takes half the time of 6 for a tenth more of size. What hardly shrinks is stored as it is, at
# ten times the speed: models, pictures and compressed data are most of what projects hold.
_LEVEL, _STORED, _BEST = 3, 0, 9
_HARDLY = 0.95
_HOLE = 1 << 16
_ZEROS, _ZERO_BLOCK = bytes(_HOLE), bytes(_BLOCK)
_TIME = re.compile(r"(-?)([0-9]{1,11})(?:\.([0-9]{1,9})[0-9]*)?")
_ALL_BITS, _PLAIN_BITS = 0o7777, 0o777
_DAMAGED = "It is cut off or was changed; use another copy of it."

Progress = Callable[[int, str], None]


def ignore(_bytes: int, _path: str) -> None:
    """Show no progress."""


# What there is


@dataclass(frozen=True)
class Found:
    """Something in a project: its path below the folder ("" for itself), and why it cannot be looked into."""

    path: str
    status: os.stat_result
    problem: str = ""


LeaveOut = Callable[[int, str, os.stat_result], bool]


def nothing(_folder: int, _path: str, _status: os.stat_result) -> bool:
    """Leave nothing out."""
    return False


def walk(folder: int, leave_out: LeaveOut = nothing, *, in_use: bool = False) -> Iterator[Found]:
    """Go through an open folder, each folder before what is in it, always in one order.

    A folder that cannot be read, or that is another file system, comes a second time, with the problem. While
    the tree is ``in_use``, what is no folder any more when its turn comes is no error.
    """
    top = os.fstat(folder)
    # What is left in each folder on the way down; of a folder of a million files no more than the names.
    waiting = [iter([Found("", top)])]
    while waiting:
        here = next(waiting[-1], None)
        if here is None:
            waiting.pop()
            continue
        yield here
        if not stat.S_ISDIR(here.status.st_mode) or here.problem:
            continue
        if here.status.st_dev != top.st_dev:
            yield Found(here.path, here.status, "it is another file system")
            continue
        waiting.append(_listed(folder, here, leave_out, in_use=in_use))


def _listed(folder: int, here: Found, leave_out: LeaveOut, *, in_use: bool) -> Iterator[Found]:
    """Yield what is in a folder of the walk, and at the end the folder itself where it cannot be read."""
    try:
        with _open(folder, here.path) as descriptor:
            names = sorted(os.listdir(descriptor))
        for start in range(0, len(names), _AT_ONCE):
            with _open(folder, here.path) as descriptor:
                found = list(_looked_at(here.path, descriptor, names[start : start + _AT_ONCE]))
            yield from (one for one in found if not leave_out(folder, one.path, one.status))
    except PermissionError:
        yield Found(here.path, here.status, "it cannot be read")
    except (NotFound, InvalidInput):
        if not in_use:
            raise


def _looked_at(path: str, descriptor: int, names: Sequence[str]) -> Iterator[Found]:
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            yield Found(f"{path}/{name}" if path else name, status)


@contextlib.contextmanager
def _open(folder: int, path: str) -> Iterator[int]:
    descriptor = _opened(folder, path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _opened(folder: int, path: str) -> int:
    try:
        return safefs.open_beneath(folder, path, _DIRECTORY) if path else os.dup(folder)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InvalidInput(
                f"{printable(path)[:60]}...: the folders are nested too deep.", "Move what is in them up."
            ) from error
        raise


@dataclass
class Look:
    """What a folder holds, seen from outside. ``digest`` changes with every change of a file in it.

    ``newest`` is the newest ctime in nanoseconds since 1970, ``latest`` holds (mtime, path) of the files that
    were changed last. ``special`` is what is no data (FIFOs, sockets, devices); ``blocked`` what cannot be
    read, and why; ``foreign`` folders of other users, which cannot be emptied.
    """

    files: int = 0
    bytes: int = 0
    newest: int = 0
    latest: list[tuple[int, str]] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    _digest: Any = field(default_factory=hashlib.sha256)
    _seen: set[tuple[int, int]] = field(default_factory=set)

    @property
    def digest(self) -> str:
        """Of what lstat(2) says of all files; see ``context`` for why their contents cannot differ then."""
        return str(self._digest.hexdigest())

    def add(self, found: Found) -> None:
        """Take into account what a walk found."""
        status, path = found.status, found.path
        if found.problem:
            self.blocked.append(f"{path or '.'}: {found.problem}")
            return
        if stat.S_ISDIR(status.st_mode):
            # Its times change with what is in it. The mode of the top is ours to change.
            self._take(path, f"{stat.S_IMODE(status.st_mode) if path else 0}")
            if os.geteuid() not in (0, status.st_uid):
                self.foreign.append(path or ".")
            return
        # Not the number of the device: it can be another one after a reboot.
        self._take(
            path,
            f"{status.st_ino} {status.st_mode} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}",
        )
        self.newest = max(self.newest, status.st_ctime_ns)
        if stat.S_ISREG(status.st_mode):
            self._add_file(path, status)
        elif not stat.S_ISLNK(status.st_mode):
            self.special.append(path)

    def _add_file(self, path: str, status: os.stat_result) -> None:
        self.files += 1
        if status.st_nlink == 1 or (status.st_dev, status.st_ino) not in self._seen:
            self.bytes += status.st_size
        if status.st_nlink > 1:
            self._seen.add((status.st_dev, status.st_ino))
        self.latest.append((status.st_mtime_ns, path))
        if len(self.latest) > 64:
            self.latest = self.newest_files()

    def newest_files(self, count: int = 5) -> list[tuple[int, str]]:
        """Return (mtime, path) of the files that were changed last, the newest first."""
        return sorted(self.latest, reverse=True)[:count]

    def _take(self, path: str, text: str) -> None:
        self._digest.update(os.fsencode(path) + b"\0" + text.encode("ascii") + b"\0")


def look(folder: int, leave_out: LeaveOut = nothing) -> Look:
    """Look at all that is in an open folder, without reading any file."""
    seen = Look()
    for found in walk(folder, leave_out):
        seen.add(found)
    return seen


_CACHES = frozenset(
    {"__pycache__", ".ipynb_checkpoints", ".cache", ".pytest_cache", ".mypy_cache", ".ruff_cache"}
)
# https://bford.info/cachedir/
_TAG, _SIGNATURE = "CACHEDIR.TAG", b"Signature: 8a477f597d28d172789f06886806bc55"
_VENV = "pyvenv.cfg"  # a virtual environment holds absolute paths and works nowhere else (PEP 405)


def caches(folder: int, path: str, status: os.stat_result) -> bool:
    """Leave out what is made anew by itself: caches, by name or by their tag, and virtual environments."""
    if not stat.S_ISDIR(status.st_mode):
        return False
    return (
        posixpath.basename(path) in _CACHES
        or _starts_with(folder, f"{path}/{_TAG}", _SIGNATURE)
        or _starts_with(folder, f"{path}/{_VENV}", b"")
    )


def _starts_with(folder: int, path: str, beginning: bytes) -> bool:
    try:
        with os.fdopen(safefs.open_regular(folder, path), "rb") as file:
            return file.read(len(beginning)) == beginning
    except (LabError, OSError):
        return False


# Entries and the manifest


@dataclass(frozen=True)
class Entry:
    """A member: kind is "d", "f", "l" or "h" (another name of a file that came before).

    ``mtime`` in nanoseconds since 1970; ``content`` is a SHA-256, the target of a link, or the first name.
    """

    path: str
    kind: str
    mode: int
    mtime: int
    size: int
    content: str

    def line(self) -> bytes:
        """Return the line of the manifest."""
        values = [self.path, self.kind, f"{self.mode:04o}", self.mtime, self.size, self.content]
        return json.dumps(values).encode("ascii") + b"\n"


class _Lines:
    """The lines of a manifest, compressed meanwhile: those of a million files are 200 MB otherwise."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._last = bytearray()
        self.size = 0

    def add(self, line: bytes) -> None:
        """Take a line."""
        self._last += line
        self.size += len(line)
        if len(self._last) >= _CHUNK:
            self._blocks.append(zlib.compress(self._last, 1))
            self._last.clear()

    def blocks(self) -> Iterator[bytes]:
        """Yield all that was taken, some whole lines at once."""
        yield from map(zlib.decompress, self._blocks)
        yield bytes(self._last)


class _Joined:
    """Blocks of bytes, to be read like a file."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._ahead = b""

    def read(self, size: int) -> bytes:
        """Return so many bytes; fewer only at the end."""
        while len(self._ahead) < size and (block := next(self._blocks, None)) is not None:
            self._ahead += block
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return data


def leads_out(path: str, target: str) -> bool:
    """Say whether a link at ``path`` below the project leads to somewhere outside of it."""
    if target.startswith("/"):
        return True
    return posixpath.normpath(posixpath.join("top", posixpath.dirname(path), target)).split("/")[0] != "top"


def _seconds(nanoseconds: int) -> str:
    whole, rest = divmod(abs(nanoseconds), 10**9)
    return f"{'-' if nanoseconds < 0 else ''}{whole}.{rest:09d}"


def _nanoseconds(text: str) -> int:
    match = _TIME.fullmatch(text)
    if match is None:
        raise InvalidInput("The archive has a time that is none.", _DAMAGED)
    value = int(match[2]) * 10**9 + int((match[3] or "").ljust(9, "0"))
    return -value if match[1] else value


# Packing


class _Squeezer:
    """Compresses what is written, block by block, each as well as it is worth."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._waiting = bytearray()
        self._written = 0
        self._zeros = b""

    def write(self, data: bytes) -> int:
        """Take bytes."""
        self._waiting += data
        self._written += len(data)
        while len(self._waiting) >= _BLOCK:
            self._emit(bytes(self._waiting[:_BLOCK]))
            del self._waiting[:_BLOCK]
        return len(data)

    def tell(self) -> int:
        """Return how many bytes were taken."""
        return self._written

    def close(self) -> None:
        """Write what is left."""
        if self._waiting:
            self._emit(bytes(self._waiting))
            self._waiting.clear()

    def _emit(self, block: bytes) -> None:
        if block == _ZERO_BLOCK:
            self._zeros = self._zeros or gzip.compress(block, _BEST, mtime=0)
            self._output.write(self._zeros)
            return
        middle = len(block) // 2
        sample = block[:_SAMPLE] + block[middle : middle + _SAMPLE] + block[-_SAMPLE:]
        hardly = len(zlib.compress(sample, 1)) > _HARDLY * len(sample)
        self._output.write(gzip.compress(block, _STORED if hardly else _LEVEL, mtime=0))


class _Hashed:
    """A file that is read, with the digest of what was."""

    def __init__(self, file: IO[bytes], path: str, progress: Progress) -> None:
        self._file = file
        self._path = path
        self._progress = progress
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Return at most so many bytes."""
        data = self._file.read(size)
        self._hash.update(data)
        self._progress(len(data), self._path)
        return data

    @property
    def digest(self) -> str:
        """The SHA-256 of what was read."""
        return self._hash.hexdigest()


def check_locale() -> None:
    """Raise Refused where Python would take the bytes of names for other characters than are packed."""
    if sys.getfilesystemencoding().lower().replace("-", "") != "utf8":
        raise Refused(
            "In this locale the names of files cannot be kept exactly.", "Run it with LC_ALL=C.UTF-8."
        )


class _Packer:
    def __init__(self, folder: int, name: str, output: BinaryIO, progress: Progress) -> None:
        self._folder = folder
        self._name = name
        self._progress = progress
        self._lines = _Lines()
        self._first: dict[tuple[int, int], str] = {}
        self._output = _Squeezer(output)
        opener: Any = tarfile.open  # whose types do not know copybufsize (bytes that are read at once)
        self._tar = opener(
            fileobj=self._output,
            mode="w",
            format=tarfile.PAX_FORMAT,
            encoding="utf-8",
            errors="surrogateescape",
            copybufsize=_CHUNK,
        )
        self.look = Look()

    def take(self, found: Found) -> None:
        """Pack one thing that the walk found."""
        mode = found.status.st_mode
        if stat.S_ISREG(mode):
            self._file(found)
            return
        self.look.add(found)
        if found.problem:
            return
        if stat.S_ISDIR(mode):
            self._add(found, "d", tarfile.DIRTYPE)
        elif stat.S_ISLNK(mode):
            self._add(found, "l", tarfile.SYMTYPE, self._target(found.path))

    def _target(self, path: str) -> str:
        parent = _opened(self._folder, posixpath.dirname(path))
        try:
            return os.readlink(posixpath.basename(path), dir_fd=parent)
        finally:
            os.close(parent)

    def _file(self, found: Found) -> None:
        try:
            descriptor = safefs.open_regular(self._folder, found.path)
        except PermissionError:
            self.look.add(Found(found.path, found.status, "it cannot be read"))
            return
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            # What was opened counts, not what had the name before.
            self.look.add(Found(found.path, status))
            identity = (status.st_dev, status.st_ino)
            if status.st_nlink > 1 and identity in self._first:
                self._add(found, "h", tarfile.LNKTYPE, self._first[identity], status=status)
                return
            if status.st_nlink > 1:
                self._first[identity] = found.path
            self._add(found, "f", tarfile.REGTYPE, status=status, file=file)
            after = os.fstat(descriptor)
        if (after.st_size, after.st_ctime_ns) != (status.st_size, status.st_ctime_ns):
            raise changed(found.path)

    def _add(
        self,
        found: Found,
        kind: str,
        type_: bytes,
        link: str = "",
        *,
        status: os.stat_result | None = None,
        file: IO[bytes] | None = None,
    ) -> None:
        now = status or found.status
        member = tarfile.TarInfo(posixpath.join(self._name, found.path) if found.path else self._name)
        member.type, member.mode = type_, stat.S_IMODE(now.st_mode)
        member.linkname = posixpath.join(self._name, link) if kind == "h" else link
        member.size = now.st_size if file else 0
        member.mtime = max(0, now.st_mtime_ns // 10**9)
        member.pax_headers = {"mtime": _seconds(now.st_mtime_ns)}
        source = _Hashed(file, found.path, self._progress) if file else None
        data: Any = source
        try:
            self._tar.addfile(member, data)
        except OSError as error:
            # tarfile says so when there is less in the file than it was told.
            if error.errno is None:
                raise changed(found.path) from error
            raise
        _forget_members(self._tar)
        content = source.digest if source else link
        entry = Entry(found.path, kind, member.mode, now.st_mtime_ns, member.size, content)
        self._lines.add(entry.line())

    def finish(self) -> None:
        """Write the manifest and the end of the archive."""
        made = int(time.time())
        head = {
            "format": _FORMAT,
            "project": self._name,
            "made": made,
            "left_out": [*self.look.special, *self.look.blocked],
        }
        first = json.dumps(head, sort_keys=True).encode("ascii") + b"\n"
        member = tarfile.TarInfo(self._name + _MANIFEST)
        member.mode, member.size, member.mtime = 0o644, len(first) + self._lines.size, made
        text: Any = _Joined(itertools.chain([first], self._lines.blocks()))
        self._tar.addfile(member, text)
        self._tar.close()
        self._output.close()


def changed(path: str) -> HostError:
    """Return the error of a file that is not any more what it was a moment ago."""
    return HostError(
        f"{printable(path or '.')} changed while it was packed.",
        "Try again when nothing is at work in the project.",
    )


def pack(
    folder: int,
    name: str,
    output: BinaryIO,
    *,
    leave_out: LeaveOut = nothing,
    progress: Progress = ignore,
) -> Look:
    """Write an open folder as the archive of the project ``name`` to ``output``; return how it looked.

    ``progress`` is told how many bytes more were read, and of which file. What is in ``blocked`` of the
    answer is not in the archive. Raises HostError when a file changes meanwhile, InvalidInput, OSError.
    """
    check_locale()
    packer = _Packer(folder, project_name(name), output, progress)
    own = _identity(output)
    for found in walk(folder, leave_out):
        if own == (found.status.st_dev, found.status.st_ino):
            raise InvalidInput("The archive would be a file of the project itself.", "Name another place.")
        packer.take(found)
    packer.finish()
    return packer.look


def _identity(output: BinaryIO) -> tuple[int, int] | None:
    try:
        status = os.fstat(output.fileno())
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _forget_members(archive: Any) -> None:
    """Empty the list that tarfile keeps of all members: those of a hundred thousand files are 100 MB."""
    archive.members.clear()


# Reading


class Visitor:
    """What is done with the members of an archive that is read; here nothing but taking the digests."""

    def begin(self, project: str) -> None:
        """Take the name of the project, before its first member."""

    def folder(self, entry: Entry) -> None:
        """Take a folder; the first one is the project's own, with the path ""."""

    def link(self, entry: Entry) -> None:
        """Take a symbolic link."""

    def hard_link(self, entry: Entry) -> None:
        """Take another name of a file that came before."""

    def file(self, entry: Entry, source: _Hashed) -> None:  # noqa: ARG002  # others need to know which
        """Take a file, and read all of it."""
        while source.read(_CHUNK):
            pass


@dataclass(frozen=True)
class Whole:
    """An archive that was read to its end and is as its manifest says."""

    project: str
    files: int
    bytes: int
    links_out: tuple[str, ...]
    left_out: tuple[str, ...]


def read(source: BinaryIO, visitor: Visitor, *, progress: Progress = ignore) -> Whole:
    """Read an archive, never going back in it, and let ``visitor`` have its members.

    Only when it returns, the archive was whole. Raises InvalidInput for one that is damaged, that is none of
    this format, or that holds what none of ours can: a path that is absolute or has '..', a device, a name
    that is there twice, something below what is no folder.
    """
    check_locale()
    try:
        unpacked: Any = gzip.GzipFile(fileobj=source, mode="rb")
        with tarfile.open(
            fileobj=unpacked,
            mode="r|",
            bufsize=_CHUNK,
            encoding="utf-8",
            errors="surrogateescape",
        ) as opened:
            return _Reader(opened, visitor, progress).read()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, UnicodeError) as error:
        raise InvalidInput("This is no archive of a project, or a damaged one.", _DAMAGED) from error


class _Reader:
    def __init__(self, opened: Any, visitor: Visitor, progress: Progress) -> None:
        self._opened = opened
        self._visitor = visitor
        self._progress = progress
        self._project = ""
        self._kinds: dict[str, str] = {}
        self._lines = _Lines()
        self._links_out: list[str] = []
        self._files = 0
        self._bytes = 0

    def read(self) -> Whole:
        for info in self._opened:
            _forget_members(self._opened)
            if self._project and info.name == self._project + _MANIFEST:
                return self._end(info)
            self._member(info)
        raise InvalidInput("The archive has no end.", _DAMAGED)

    def _member(self, info: tarfile.TarInfo) -> None:
        path = self._place(info)
        mode = info.mode & _ALL_BITS
        mtime = _nanoseconds(info.pax_headers.get("mtime", str(int(info.mtime))))
        if info.isdir():
            self._took(Entry(path, "d", mode, mtime, 0, ""), self._visitor.folder)
        elif info.issym():
            entry = Entry(path, "l", mode, mtime, 0, info.linkname)
            if leads_out(path, info.linkname):
                self._links_out.append(path)
            self._took(entry, self._visitor.link)
        elif info.islnk():
            self._hard_link(info, Entry(path, "h", mode, mtime, 0, ""))
        elif info.isreg() and not info.issparse():
            self._file(info, Entry(path, "f", mode, mtime, info.size, ""))
        else:
            raise InvalidInput(
                f"The archive has something that is no file, folder or link: {printable(info.name)[:100]}.",
                "Nothing of it was taken over.",
            )

    def _took(self, entry: Entry, take: Callable[[Entry], None]) -> None:
        take(entry)
        self._kinds[entry.path] = entry.kind
        self._lines.add(entry.line())

    def _hard_link(self, info: tarfile.TarInfo, entry: Entry) -> None:
        first = info.linkname[len(self._project) + 1 :]
        if not info.linkname.startswith(self._project + "/") or self._kinds.get(first) != "f":
            raise InvalidInput(
                f"The archive has a name of a file that is not in it: {printable(info.name)[:100]}.",
                "Nothing of it was taken over.",
            )
        self._files += 1
        named = Entry(entry.path, "h", entry.mode, entry.mtime, 0, first)
        self._took(named, self._visitor.hard_link)

    def _file(self, info: tarfile.TarInfo, entry: Entry) -> None:
        content = self._opened.extractfile(info)
        source = _Hashed(content, entry.path, self._progress)
        self._visitor.file(entry, source)
        self._kinds[entry.path] = "f"
        self._files += 1
        self._bytes += info.size
        hashed = Entry(entry.path, "f", entry.mode, entry.mtime, info.size, source.digest)
        self._lines.add(hashed.line())

    def _place(self, info: tarfile.TarInfo) -> str:
        """Return the path below the project's folder; raise InvalidInput for one that none of ours has."""
        parts = info.name.split("/")
        wrong = any(part in ("", ".", "..") for part in parts) or "\0" in info.name
        if not wrong and not self._project:
            self._project = project_name(parts[0], "archive")
            self._visitor.begin(self._project)
            wrong = len(parts) > 1 or not info.isdir()
        path = "/".join(parts[1:])
        above = "/".join(parts[1:-1])
        if (
            wrong
            or parts[0] != self._project
            or path in self._kinds
            or (path and self._kinds.get(above) != "d")
        ):
            raise InvalidInput(
                f"The archive has a path that is not allowed: {printable(info.name)[:100]}.",
                "Nothing of it was taken over.",
            )
        return path

    def _end(self, info: tarfile.TarInfo) -> Whole:
        if not info.isreg():
            raise InvalidInput("The manifest of the archive is none.", _DAMAGED)
        text = self._opened.extractfile(info)
        head = text.readline(_HEAD_LIMIT)
        for block in self._lines.blocks():
            _same_lines(text.read(len(block)), block)
        _same_lines(text.readline(_CHUNK), b"")
        if self._opened.next() is not None:
            raise InvalidInput("The archive goes on after its end.", _DAMAGED)
        return Whole(
            self._project, self._files, self._bytes, tuple(self._links_out), _left_out(head, self._project)
        )


def _same_lines(lines: bytes, read_: bytes) -> None:
    """Raise InvalidInput, which names the first of them, for lines of a manifest that differ."""
    if lines != read_:
        raise InvalidInput(f"{_differing(lines, read_)} is not as the manifest says.", _DAMAGED)


def _differing(lines: bytes, read_: bytes) -> str:
    """Return the path of the first line that differs."""
    for wanted, got in zip(lines.split(b"\n"), read_.split(b"\n")):
        if wanted != got:
            with contextlib.suppress(ValueError, IndexError, TypeError):
                return printable(str(json.loads(got or wanted)[0]))[:100] or "The folder"
    return "The archive"


def _left_out(head: bytes, project: str) -> tuple[str, ...]:
    try:
        data = json.loads(head)
        if data["format"] == _FORMAT and data["project"] == project:
            return tuple(str(one) for one in data["left_out"])
    except (ValueError, KeyError, TypeError):
        pass
    raise InvalidInput("The archive was made by another version of lab.server.", "Use that version.")


class Comparing(Visitor):
    """Compares what an archive holds with the files of an open folder, byte by byte; raises HostError."""

    def __init__(self, folder: int) -> None:
        self._folder = folder

    def folder(self, entry: Entry) -> None:
        # Not for reading: one that cannot be read is in the archive, too, without what is in it.
        flags = os.O_PATH | os.O_DIRECTORY
        path = entry.path
        descriptor = safefs.open_beneath(self._folder, path, flags) if path else os.dup(self._folder)
        try:
            _same(entry, os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def link(self, entry: Entry) -> None:
        parent = _opened(self._folder, posixpath.dirname(entry.path))
        try:
            if os.readlink(posixpath.basename(entry.path), dir_fd=parent) != entry.content:
                raise changed(entry.path)
        except OSError as error:
            raise changed(entry.path) from error
        finally:
            os.close(parent)

    def hard_link(self, entry: Entry) -> None:
        opened = [safefs.open_regular(self._folder, path) for path in (entry.path, entry.content)]
        try:
            one, other = (os.fstat(descriptor) for descriptor in opened)
            if (one.st_dev, one.st_ino) != (other.st_dev, other.st_ino):
                raise changed(entry.path)
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def file(self, entry: Entry, source: _Hashed) -> None:
        with os.fdopen(safefs.open_regular(self._folder, entry.path), "rb") as file:
            _same(entry, os.fstat(file.fileno()))
            while chunk := source.read(_CHUNK):
                if file.read(len(chunk)) != chunk:
                    raise changed(entry.path)
            if file.read(1):
                raise changed(entry.path)


def _same(entry: Entry, status: os.stat_result) -> None:
    if (stat.S_IMODE(status.st_mode), status.st_mtime_ns) != (entry.mode, entry.mtime):
        raise changed(entry.path)


class Unpacking(Visitor):
    """Makes what an archive holds in an open, empty folder. ``finish`` gives the folders modes and times.

    What was not ``own`` gets no setuid, setgid and sticky bits.
    """

    def __init__(self, folder: int, *, own: bool) -> None:
        self._folder = folder
        self._bits = _ALL_BITS if own else _PLAIN_BITS
        self._folders: list[Entry] = []

    def folder(self, entry: Entry) -> None:
        # A folder that its owner may not write is made so when it is full.
        if entry.path:
            safefs.make_directory(self._folder, entry.path, 0o700)
        self._folders.append(entry)

    def link(self, entry: Entry) -> None:
        name = posixpath.basename(entry.path)
        with self._parent(entry.path) as parent:
            os.symlink(entry.content, name, dir_fd=parent)
            os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def hard_link(self, entry: Entry) -> None:
        with self._parent(entry.content) as source, self._parent(entry.path) as target:
            os.link(
                posixpath.basename(entry.content),
                posixpath.basename(entry.path),
                src_dir_fd=source,
                dst_dir_fd=target,
                follow_symlinks=False,
            )

    def file(self, entry: Entry, source: _Hashed) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(safefs.open_beneath(self._folder, entry.path, flags, 0o600), "wb", 0) as file:
            while chunk := source.read(_CHUNK):
                _write(file, chunk)
            file.truncate(entry.size)
            os.fchmod(file.fileno(), entry.mode & self._bits)
            os.utime(file.fileno(), ns=(entry.mtime, entry.mtime))

    def finish(self) -> None:
        """Give every folder its mode and time, the inner ones first."""
        for entry in reversed(self._folders):
            descriptor = _opened(self._folder, entry.path)
            try:
                os.utime(descriptor, ns=(entry.mtime, entry.mtime))
                os.fchmod(descriptor, entry.mode & self._bits)
            finally:
                os.close(descriptor)

    def _parent(self, path: str) -> contextlib.AbstractContextManager[int]:
        return _open(self._folder, posixpath.dirname(path))


def _write(file: IO[bytes], chunk: bytes) -> None:
    """Write bytes; where there are only zeros, leave a hole."""
    for start in range(0, len(chunk), _HOLE):
        piece = chunk[start : start + _HOLE]
        if piece == _ZEROS[: len(piece)]:
            file.seek(len(piece), os.SEEK_CUR)
        # A raw file may take less than it is given, before the quota or the disk is full.
        else:
            while piece:
                piece = piece[file.write(piece) :]
