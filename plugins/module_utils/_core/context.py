# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A project's build context: packed as the user, checked again by root before Docker sees it.

The packing runs in a child that has become the user and opens everything relative to open directories, so a
link, a FIFO or a race leads nowhere. The checking trusts nothing of what came through the pipe.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import posixpath
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, BinaryIO

from . import STATE_DIRECTORY, asuser, safefs
from .asuser import Identity
from .errors import HostError, InvalidInput, NotFound, Refused
from .names import printable, project_name
from .sizes import format_size

BYTES_LIMIT = 1 << 30
FILES_LIMIT = 100_000
DOCKERFILE = "Dockerfile"
DOCKERFILE_LIMIT = 1 << 20
_IGNORE_FILE = ".dockerignore"
_DEPTH_LIMIT = 100
_PATH_LIMIT = 4096
_SECONDS = 600.0
_CHUNK = 1 << 20
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


@dataclass
class Context:
    """A checked context: the tar at its start, what is in it, and the text of the Dockerfile."""

    archive: BinaryIO
    members: tuple[Member, ...]
    dockerfile: str


@contextlib.contextmanager
def packed(who: Identity, workspace: str, project: str) -> Iterator[Context]:
    """Yield the checked build context of a project; the file behind it is gone afterwards.

    Raises NotFound (no project, no Dockerfile), InvalidInput, Refused (too large), HostError. Needs the
    Docker SDK for Python, which knows the rules of .dockerignore.
    """
    matcher = _matcher_class()
    project_name(project)
    with _temporary_file() as archive:
        asuser.stream_as_user(
            who,
            lambda output: _pack(workspace, project, matcher, output),
            archive,
            timeout=_SECONDS,
            limit=BYTES_LIMIT + FILES_LIMIT * _MEMBER_COST,
        )
        archive.seek(0)
        members, dockerfile = check(archive)
        archive.seek(0)
        yield Context(archive, members, dockerfile)


def _matcher_class() -> Any:
    try:
        from docker.utils.build import PatternMatcher  # a third-party library, imported when it is needed
    except ImportError as error:
        raise HostError(
            "The Docker SDK for Python is missing.", "Install the package python3-docker."
        ) from error
    return PatternMatcher


@contextlib.contextmanager
def _temporary_file() -> Iterator[BinaryIO]:
    """Yield a file without a name in a directory that only root can reach: /tmp may be memory, or small."""
    directory = posixpath.join(STATE_DIRECTORY, "tmp")
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            yield file
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise HostError(
            f"The build context could not be kept in {directory}: {error.strerror}.",
            "The disk of the server is full; tell IT." if full else "Tell IT.",
        ) from error


# In the child, as the user


def _pack(workspace: str, project: str, matcher_class: Any, output: BinaryIO) -> int:
    """Write the tar of the project's folder to ``output``; return the number of members."""
    root = safefs.open_directory(workspace)
    try:
        folder = safefs.open_beneath(root, project, os.O_RDONLY | os.O_DIRECTORY)
    except NotFound as error:
        raise NotFound(
            f"There is no project {project} in the workspace.", f"Make it: project init {project}."
        ) from error
    try:
        safefs.read_file(folder, DOCKERFILE, DOCKERFILE_LIMIT)
    except NotFound as error:
        raise NotFound(
            f"The project {project} has no Dockerfile.", f"project init {project} makes the missing files."
        ) from error
    try:
        lines = (
            safefs.read_file(folder, _IGNORE_FILE, DOCKERFILE_LIMIT).decode("utf-8", "replace").splitlines()
        )
    except NotFound:
        lines = []
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    # Docker's own command sends the Dockerfile whatever .dockerignore says, and so do we.
    packer = _Packer(matcher_class([*patterns, "!" + DOCKERFILE]), output)
    packer.folder(folder, "", 0)
    packer.close()
    return packer.count


class _Packer:
    """Writes what is to be sent, in one order, with nothing in it that changes by itself (times, owners)."""

    def __init__(self, matcher: Any, output: BinaryIO) -> None:
        self._matcher = matcher
        self._archive = tarfile.TarFile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT)
        self._bytes = 0
        self.count = 0

    def close(self) -> None:
        self._archive.close()

    def folder(self, descriptor: int, path: str, depth: int) -> None:
        """Add what is in an open directory, and close it."""
        try:
            if depth > _DEPTH_LIMIT:
                raise Refused(
                    f"{printable(path)}: the folders are nested too deep.", "Name it in .dockerignore."
                )
            for name in sorted(os.listdir(descriptor)):
                self._entry(descriptor, name, f"{path}/{name}" if path else name, depth)
        finally:
            os.close(descriptor)

    def _entry(self, parent: int, name: str, path: str, depth: int) -> None:
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        ignored = self._matcher.matches(path)
        if stat.S_ISDIR(status.st_mode):
            if ignored and not self._has_exception_below(path):
                return
            if not ignored:
                self._add(path, tarfile.DIRTYPE, 0o755)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            with _named(path):
                below = os.open(name, flags, dir_fd=parent)
            self.folder(below, path, depth + 1)
        elif ignored:
            return
        elif stat.S_ISLNK(status.st_mode):
            self._add(path, tarfile.SYMTYPE, 0o777, link=os.readlink(name, dir_fd=parent))
        elif stat.S_ISREG(status.st_mode):
            self._file(parent, name, path)
        # A FIFO, socket or device is no part of a build; Docker's own command leaves sockets out as well.

    def _has_exception_below(self, path: str) -> bool:
        return any(
            pattern.exclusion and (pattern.cleaned_pattern + "/").startswith(path + "/")
            for pattern in self._matcher.patterns
        )

    def _file(self, parent: int, name: str, path: str) -> None:
        with _named(path):
            descriptor = safefs.open_regular(parent, name)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            self._bytes += status.st_size
            try:
                self._add(
                    path,
                    tarfile.REGTYPE,
                    0o755 if status.st_mode & 0o111 else 0o644,
                    status.st_size,
                    file=file,
                )
            except OSError as error:
                # tarfile says so when there is less in the file than it was told.
                if error.errno is None:
                    raise HostError(f"{printable(path)} changed while it was read.", "Try again.") from error
                raise

    def _add(
        self, path: str, kind: bytes, mode: int, size: int = 0, link: str = "", file: Any = None
    ) -> None:
        self.count += 1
        if self.count > FILES_LIMIT or self._bytes > BYTES_LIMIT:
            raise _MANY
        for text in (path, link):
            _check_text(text)
        member = tarfile.TarInfo(path)
        member.type, member.mode, member.size, member.linkname = kind, mode, size, link
        self._archive.addfile(member, file)


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
        with tarfile.open(fileobj=archive, mode="r|") as opened:
            for info in opened:
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


def _check_place(info: tarfile.TarInfo, members: Mapping[str, Member]) -> None:
    """Raise InvalidInput for a path that a context of ours cannot have, given what came before it."""
    path = info.name
    parts = path.split("/")
    if not path or any(part in ("", ".", "..") for part in parts) or "\0" in path or path in members:
        raise InvalidInput(f"The build context has a path that is not allowed: {printable(path)[:100]}.")
    for depth in range(1, len(parts)):
        above = members.get("/".join(parts[:depth]))
        # A folder that .dockerignore names is not sent, though something below it may be.
        if above is not None and above.kind != "d":
            raise InvalidInput(f"The build context has something below a file: {printable(path)[:100]}.")


def _member(info: tarfile.TarInfo, content: IO[bytes] | None) -> Member:
    """Return a member of the context with the digest of its content; raise InvalidInput for other kinds."""
    if info.isdir():
        return Member(info.name, "d", True, "")
    if info.issym():
        return Member(info.name, "l", False, info.linkname)
    if content is None or info.issparse():
        raise InvalidInput(f"The build context has a member of another kind: {printable(info.name)[:100]}.")
    if info.name == DOCKERFILE and info.size > DOCKERFILE_LIMIT:
        raise InvalidInput("The Dockerfile is too large.", "Make it smaller than 1 MiB.")
    digest = hashlib.sha256()
    while chunk := content.read(_CHUNK):
        digest.update(chunk)
    return Member(info.name, "f", bool(info.mode & 0o111), digest.hexdigest())
