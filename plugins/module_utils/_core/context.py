# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A project's build context: packed as the user, checked again by root before Docker sees it.

The packing runs in a child that has become the user and opens everything relative to open directories, so a
link, a FIFO or a race leads nowhere. The checking trusts nothing of what came through the pipe.

A context that did not change is not read again. ``look`` goes through the names alone and digests what
lstat(2) says of each file that would be sent: device, inode, size, mode, time of change (mtime) and time of
change of anything about it (ctime). ``packed`` takes the same digest of the files that it reads, each before
its first byte is read. Where both are equal, so are the contents:

- Every write, and every change of a name or a mode, sets the ctime, and no system call sets it to a chosen
  time (inode(7)); mtime, which touch(1) sets at will, is not relied on. Renaming a file over another, or
  giving the inode of a removed file to a new one, shows in inode and ctime together.
- The ctime is no finer than the kernel's clock tick, so a file could change once more within the tick in
  which it was looked at. A digest counts only if the newest ctime in it is 2 seconds older than its walk, so
  that whatever changes later gets a later ctime; else the files are read once more the next time. That is
  git's rule for "racily clean" files, with room for file systems that keep whole seconds
  (https://git-scm.com/docs/racy-git). A ctime of the future is never old enough.
- A program that has a file mapped sets the ctime only with its first write to a page that is clean
  (file_update_time in the kernel's page_mkwrite). Before a file is read, sync_file_range(2) sends its dirty
  pages to the disk, so that they are clean, and the next write is seen. On tmpfs, which writes nothing out,
  such a write is not seen; homes are on ext4 or XFS.
- The patterns of .dockerignore are read each time, and decide which names are in the digest.

The digest is made by the user's child. Somebody who could forge it (a FUSE file system shows any ctime) would
keep his own image from being built again, and nothing else: it decides that a build is not needed, never what
is built.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import io
import os
import posixpath
import re
import stat
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, Callable

from . import STATE_DIRECTORY, VERSION, asuser, safefs
from .asuser import Identity
from .dockerignore import Pattern, patterns
from .errors import HostError, InvalidInput, NotFound, Refused
from .names import printable, project_name
from .sizes import format_size

BYTES_LIMIT = 1 << 30
FILES_LIMIT = 100_000
DOCKERFILE = "Dockerfile"
DOCKERFILE_LIMIT = 1 << 20
IGNORE_FILE = ".dockerignore"
_DEPTH_LIMIT = 100
_PATH_LIMIT = 4096
SECONDS = 600.0
_CHUNK = 1 << 20
# What builds leave free on the file system of the server: files without blocks cost their user no quota.
_RESERVE = 1 << 30
# Nanoseconds by which the newest change must be older than the walk that saw it.
_RACY = 2_000_000_000
# sync_file_range(2): wait for pages on their way to the disk, then send those that are dirty.
_SYNC_FILE_RANGE = 1 | 2
# A member costs at most this much beyond its content: headers of tar and of PAX for long names, and padding.
_MEMBER_COST = 8192

_MANY = Refused(
    f"More than {FILES_LIMIT} files or {format_size(BYTES_LIMIT)} of the project would go into the build.",
    "Name folders that the image does not need in the file .dockerignore.",
)


@dataclass(frozen=True)
class Member:
    """A member of a checked context: kind is "d", "f" or "l", content a SHA-256 or the target of a link."""

    path: str
    kind: str
    executable: bool
    content: str


@dataclass(frozen=True)
class Look:
    """What the files of a context look like from outside: a digest (hexadecimal) of what lstat says of them.

    ``newest`` is the newest ctime among them, ``began`` when the walk began, both in nanoseconds since 1970.
    """

    digest: str
    newest: int
    began: int

    @property
    def settled(self) -> bool:
        """Whether any later change must show in the digest."""
        return self.newest < self.began - _RACY


@dataclass
class Context:
    """A checked context: the tar at its start, what is in it, the text of the Dockerfile, how it looked.

    The tar is empty where it was not to be kept.
    """

    archive: BinaryIO
    members: tuple[Member, ...]
    dockerfile: str
    look: Look


def look(who: Identity, workspace: str, project: str, *, seconds: float = SECONDS) -> Look:
    """Return how a project's build context looks, without reading any of it but .dockerignore.

    What takes longer than ``seconds`` is broken off with HostError.
    Raises as ``packed`` does; a context that is too large is refused here already.
    """
    project_name(project)
    began = time.time_ns()
    return _look_of(asuser.run_as_user(who, lambda: _glance(workspace, project), timeout=seconds), began)


@contextlib.contextmanager
def packed(
    who: Identity, workspace: str, project: str, *, keep: bool = True, seconds: float = SECONDS
) -> Iterator[Context]:
    """Yield the checked build context of a project; the file behind it is gone afterwards.

    Without ``keep`` it is checked as it comes, and takes no space of the server's disk. ``seconds``: as of
    ``look``. Raises NotFound (no
    project, no Dockerfile), InvalidInput, Refused (too large), HostError.
    """
    project_name(project)
    began = time.time_ns()
    limit = BYTES_LIMIT + FILES_LIMIT * _MEMBER_COST

    def pack(output: BinaryIO) -> tuple[str, int]:
        return _pack(workspace, project, output)

    if not keep:
        seen, found = asuser.read_as_user(who, pack, check, timeout=seconds, limit=limit)
        yield Context(io.BytesIO(), *found, _look_of(seen, began))
        return
    with _temporary_file() as archive:
        seen = asuser.stream_as_user(who, pack, archive, timeout=seconds, limit=limit)
        archive.seek(0)
        found = check(archive)
        archive.seek(0)
        yield Context(archive, *found, _look_of(seen, began))


def _look_of(answer: Any, began: int) -> Look:
    """Return what the user's child says of its walk; raise HostError when it says something else."""
    if isinstance(answer, list) and [type(part) for part in answer] == [str, int]:
        return Look(answer[0][:64], answer[1], began)
    raise HostError("The work in the user's folder was broken off.", "Try again.")


@contextlib.contextmanager
def _temporary_file() -> Iterator[BinaryIO]:
    """Yield a file without a name in a directory that only root can reach: /tmp may be memory, or small."""
    directory = posixpath.join(STATE_DIRECTORY, "tmp")
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        there = os.statvfs(directory)
        if there.f_bavail * there.f_frsize < BYTES_LIMIT + _RESERVE:
            raise HostError(
                f"There is too little space in {directory} for a build context.",
                "The disk of the server is full; tell IT.",
            )
        with tempfile.TemporaryFile(dir=directory) as file:
            yield file
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise HostError(
            f"The build context could not be kept in {directory}: {error.strerror}.",
            "The disk of the server is full; tell IT." if full else "Tell IT.",
        ) from error


def weigh(workspace: str, project: str) -> tuple[dict[str, tuple[int, int]], bool]:
    """Return ({name right below the project: (bytes, files) of it that would be sent}, whether that is all).

    To be called as the user, and to be cut off at the limit on the number of files. Raises as ``look`` does.
    """
    with _opened(workspace, project) as folder:
        scale = _Scale(_Ignored(folder))
        try:
            scale.folder(os.dup(folder), "", 0)
        except Refused:
            return scale.weights, False
    return scale.weights, True


# In the child, as the user


def _glance(workspace: str, project: str) -> tuple[str, int]:
    """Walk through the project's folder; return the digest of what is there, and the newest ctime."""
    with _opened(workspace, project) as folder:
        walk = _Walk(_Ignored(folder))
        walk.folder(os.dup(folder), "", 0)
    return walk.digest.hexdigest(), walk.newest


def _pack(workspace: str, project: str, output: BinaryIO) -> tuple[str, int]:
    """Write the tar of the project's folder to ``output``; return what ``_glance`` returns."""
    with _opened(workspace, project) as folder:
        packer = _Packer(_Ignored(folder), output)
        packer.folder(os.dup(folder), "", 0)
        packer.close()
    return packer.digest.hexdigest(), packer.newest


@contextlib.contextmanager
def _opened(workspace: str, project: str) -> Iterator[int]:
    """Open the folder of a project that has a Dockerfile of a kind that can be read."""
    root = safefs.open_directory(workspace)
    try:
        folder = safefs.open_beneath(root, project, os.O_RDONLY | os.O_DIRECTORY)
    except NotFound as error:
        raise NotFound(
            f"There is no project {project} in the workspace.", f"Make it: project init {project}."
        ) from error
    finally:
        os.close(root)
    try:
        try:
            safefs.read_file(folder, DOCKERFILE, DOCKERFILE_LIMIT)
        except NotFound as error:
            raise NotFound(
                f"The project {project} has no Dockerfile.",
                f"project init {project} makes the missing files.",
            ) from error
        yield folder
    finally:
        os.close(folder)


def _patterns(lines: Sequence[str]) -> list[Pattern]:
    # Docker's own command sends these two whatever .dockerignore says, and so do we.
    try:
        return patterns([*lines, f"!{DOCKERFILE}", f"!{IGNORE_FILE}"])
    except (re.error, OverflowError) as error:
        raise InvalidInput("The file .dockerignore has a line that is no pattern.", "Correct it.") from error


class _Ignored:
    """What .dockerignore names."""

    def __init__(self, folder: int) -> None:
        try:
            text = safefs.read_file(folder, IGNORE_FILE, DOCKERFILE_LIMIT).decode("utf-8", "replace")
        except NotFound:
            text = ""
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        self._patterns = _patterns(lines)

    def below(self, folder: str) -> Callable[[str], bool]:
        """Return what says of a path right below ``folder`` ("" for the top) whether it is not to be sent.

        The last pattern that matches the path, or a folder above it, decides. What matches folders is found
        out once for all that is in one.
        """
        above = folder.split("/") if folder else []
        rules: list[tuple[Callable[[str], object], bool]] = []
        otherwise = False
        for pattern in reversed(self._patterns):
            if 0 < pattern.depth <= len(above) and pattern.matches.match("/".join(above[: pattern.depth])):
                otherwise = not pattern.exception
                break
            rules.append((pattern.matches.match, not pattern.exception))

        def ignored(path: str) -> bool:
            for match, verdict in rules:
                if match(path):
                    return verdict
            return otherwise

        return ignored

    def has_exception_below(self, path: str) -> bool:
        """Say whether something in the folder ``path`` may have to be sent though the folder is not."""
        return any(
            pattern.exception and (pattern.text + "/").startswith(path + "/") for pattern in self._patterns
        )


class _Walk:
    """Goes through what is to be sent, in one order, and digests what it looks like."""

    def __init__(self, ignored: _Ignored) -> None:
        self._ignored = ignored
        self._bytes = 0
        self._count = 0
        # Another version of ours may send something else of the same files.
        self.digest = hashlib.sha256(VERSION.encode("ascii"))
        self.newest = 0

    def folder(self, descriptor: int, path: str, depth: int) -> None:
        """Go through what is in an open directory, and close it."""
        try:
            if depth > _DEPTH_LIMIT:
                raise Refused(
                    f"{printable(path)}: the folders are nested too deep.", "Name it in .dockerignore."
                )
            for name, ignored in self._listed(descriptor, path):
                self._entry(descriptor, name, f"{path}/{name}" if path else name, ignored, depth)
        finally:
            os.close(descriptor)

    def _listed(self, descriptor: int, path: str) -> list[tuple[str, bool]]:
        """Return the names to go through, each with whether it is itself ignored, sorted.

        It stops at the limit, whatever number of names the folder has.
        """
        found = []
        is_ignored = self._ignored.below(path)
        with os.scandir(descriptor) as entries:
            for entry in entries:
                below = f"{path}/{entry.name}" if path else entry.name
                ignored = is_ignored(below)
                if ignored and not (
                    entry.is_dir(follow_symlinks=False) and self._ignored.has_exception_below(below)
                ):
                    continue
                self._count += 1
                if self._count > FILES_LIMIT:
                    raise _MANY
                found.append((entry.name, ignored))
        return sorted(found)

    def _entry(self, parent: int, name: str, path: str, ignored: bool, depth: int) -> None:
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(status.st_mode):
            if not ignored:
                # Its times change with files in it that are ignored; what counts in it is digested by name.
                self._digest(path, "d")
                self.found_folder(path)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            with _named(path):
                below = os.open(name, flags, dir_fd=parent)
            self.folder(below, path, depth + 1)
        elif stat.S_ISLNK(status.st_mode):
            self._saw(path, status)
            self.found_link(parent, name, path)
        elif stat.S_ISREG(status.st_mode):
            self._saw(path, status)
            self.found_file(parent, name, path)
        # A FIFO, socket or device is no part of a build; Docker's own command leaves sockets out as well.

    def _saw(self, path: str, status: os.stat_result) -> None:
        self._bytes += status.st_size
        if self._bytes > BYTES_LIMIT:
            raise _MANY
        self.newest = max(self.newest, status.st_ctime_ns)
        self._digest(
            path,
            f"{status.st_dev} {status.st_ino} {status.st_mode} {status.st_size}"
            f" {status.st_mtime_ns} {status.st_ctime_ns}",
        )

    def _digest(self, path: str, text: str) -> None:
        # No name holds a NUL byte, so no two lists of names give the same bytes.
        self.digest.update(os.fsencode(path) + b"\0" + text.encode("ascii") + b"\0")

    def found_folder(self, path: str) -> None:
        """Take a folder that is to be sent."""

    def found_link(self, parent: int, name: str, path: str) -> None:
        """Take a symbolic link."""

    def found_file(self, parent: int, name: str, path: str) -> None:
        """Take a regular file. It was looked at before, so what changes while it is read shows later."""


class _Scale(_Walk):
    """Weighs what is to be sent, by the names right below the project, and digests nothing."""

    def __init__(self, ignored: _Ignored) -> None:
        super().__init__(ignored)
        self.weights: dict[str, tuple[int, int]] = {}

    def _saw(self, path: str, status: os.stat_result) -> None:
        top = path.split("/", 1)[0]
        size, files = self.weights.get(top, (0, 0))
        self.weights[top] = (size + status.st_size, files + 1)


class _Packer(_Walk):
    """Writes what is to be sent, with nothing in it that changes by itself (times, owners)."""

    def __init__(self, ignored: _Ignored, output: BinaryIO) -> None:
        super().__init__(ignored)
        self._archive = tarfile.TarFile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT)

    def close(self) -> None:
        """Write the end of the archive."""
        self._archive.close()

    def found_folder(self, path: str) -> None:
        """Add a folder."""
        self._add(path, tarfile.DIRTYPE, 0o755)

    def found_link(self, parent: int, name: str, path: str) -> None:
        """Add a link as a link."""
        self._add(path, tarfile.SYMTYPE, 0o777, link=os.readlink(name, dir_fd=parent))

    def found_file(self, parent: int, name: str, path: str) -> None:
        """Add a file with its content."""
        with _named(path):
            descriptor = safefs.open_regular(parent, name)
        with os.fdopen(descriptor, "rb") as file:
            write_out(descriptor)
            status = os.fstat(descriptor)
            mode = 0o755 if status.st_mode & 0o111 else 0o644
            try:
                self._add(path, tarfile.REGTYPE, mode, status.st_size, file=file)
            except OSError as error:
                # tarfile says so when there is less in the file than it was told.
                if error.errno is None:
                    raise HostError(f"{printable(path)} changed while it was read.", "Try again.") from error
                raise

    def _add(
        self, path: str, kind: bytes, mode: int, size: int = 0, link: str = "", file: Any = None
    ) -> None:
        for text in (path, link):
            _check_text(text)
        member = tarfile.TarInfo(path)
        member.type, member.mode, member.size, member.linkname = kind, mode, size, link
        self._archive.addfile(member, file)
        _forget_members(self._archive)


def _forget_members(archive: Any) -> None:
    """Empty the list that tarfile keeps of all members: those of a hundred thousand files are 100 MB."""
    archive.members.clear()


def write_out(descriptor: int) -> None:
    """Send the dirty pages of a file on their way to the disk; it is not waited for."""
    # A C library without the call, or a file system that refuses it, costs only what the module's text says.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).sync_file_range(
            ctypes.c_int(descriptor), ctypes.c_int64(0), ctypes.c_int64(0), ctypes.c_uint(_SYNC_FILE_RANGE)
        )


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Put the whole path into an error that knows only the last part of it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, printable(path)) from error


def _check_text(text: str) -> None:
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{printable(text)}: the name is not UTF-8.", "Rename it, or name it in .dockerignore."
        ) from error
    if len(raw) > _PATH_LIMIT:
        raise InvalidInput(f"{printable(text)[:60]}...: the path is too long.", "Name it in .dockerignore.")


# In the parent, as root


def check(archive: BinaryIO) -> tuple[tuple[Member, ...], str]:
    """Read a context as it came from the user's child; return its members and the text of its Dockerfile.

    Raises InvalidInput for anything that a context of ours cannot have: an absolute path, '..', a device, a
    hard link, a name that is there twice, a file below something that is not a folder, too much of anything.
    """
    members: dict[str, Member] = {}
    dockerfile = ""
    total = 0
    try:
        # As a stream, which never goes backwards: a header with a negative size would lead it round.
        with tarfile.open(fileobj=archive, mode="r|") as opened:
            for info in opened:
                _forget_members(opened)
                total += info.size
                if len(members) >= FILES_LIMIT or total > BYTES_LIMIT:
                    raise _MANY
                _check_place(info, members)
                content = opened.extractfile(info) if info.isreg() else None
                if content is not None and info.name == DOCKERFILE and info.size <= DOCKERFILE_LIMIT:
                    text = content.read()
                    dockerfile = text.decode("utf-8", "replace")
                    content = io.BytesIO(text)
                members[info.name] = _member(info, content)
    except (tarfile.TarError, UnicodeError, EOFError) as error:
        raise InvalidInput("The build context is broken.", "Try again.") from error
    own = members.get(DOCKERFILE)
    if own is None or own.kind != "f":
        raise InvalidInput("The Dockerfile is not a regular file.", "Put a plain file there.")
    return tuple(members[path] for path in sorted(members)), dockerfile


def put_in(archive: BinaryIO, files: Mapping[str, str], modes: Mapping[str, int] | None = None) -> None:
    """Let a checked context have these files, texts by their paths; the archive is at its start afterwards.

    Their modes are 0644 where ``modes`` has no other. The last of two members of one name counts (tar(5);
    Docker removes what is there before it unpacks, but for a folder where one is to be), so what the project
    has under such a name, or in place of a folder above it, is not in the build.
    """
    above = (path.split("/")[:-1] for path in files)
    folders = {"/".join(parts[: depth + 1]) for parts in above for depth in range(len(parts))}
    archive.seek(0)
    with tarfile.open(fileobj=archive, mode="a:", format=tarfile.PAX_FORMAT) as opened:
        for name in sorted(folders):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            opened.addfile(member)
        for name, text in sorted(files.items()):
            content = text.encode("utf-8")
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), (modes or {}).get(name, 0o644)
            opened.addfile(member, io.BytesIO(content))
    archive.seek(0)


_CHANGED_MEANWHILE = (
    "Was it changed meanwhile? Try again; if it stays so, move it away or name it in .dockerignore."
)


def _check_place(info: tarfile.TarInfo, members: Mapping[str, Member]) -> None:
    """Raise InvalidInput for a path that a context of ours cannot have, given what came before it."""
    path = info.name
    parts = path.split("/")
    if not path or any(part in ("", ".", "..") for part in parts) or "\0" in path or path in members:
        raise InvalidInput(
            f"The build context has a path that is not allowed: {printable(path)[:100]}.", _CHANGED_MEANWHILE
        )
    for depth in range(1, len(parts)):
        above = members.get("/".join(parts[:depth]))
        # A folder that .dockerignore names is not sent, though something below it may be.
        if above is not None and above.kind != "d":
            raise InvalidInput(
                f"The build context has something below a file: {printable(path)[:100]}.", _CHANGED_MEANWHILE
            )


def _member(info: tarfile.TarInfo, content: IO[bytes] | None) -> Member:
    """Return a member of the context with the digest of its content; raise InvalidInput for other kinds."""
    if info.isdir():
        return Member(info.name, "d", True, "")
    if info.issym():
        return Member(info.name, "l", False, info.linkname)
    if content is None or info.issparse():
        raise InvalidInput(
            f"The build context has a member of another kind: {printable(info.name)[:100]}.",
            "Move it out of the project's folder, or name it in .dockerignore.",
        )
    if info.name == DOCKERFILE and info.size > DOCKERFILE_LIMIT:
        raise InvalidInput("The Dockerfile is too large.", "Make it smaller than 1 MiB.")
    digest = hashlib.sha256()
    while chunk := content.read(_CHUNK):
        digest.update(chunk)
    return Member(info.name, "f", bool(info.mode & 0o111), digest.hexdigest())
