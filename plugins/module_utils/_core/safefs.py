# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files below a directory, opened without ever following a symbolic link or leaving the directory.

Source: openat2(2), since Linux 5.6. Where the kernel (or a filter of system calls) does not have it, each
component is opened by itself with O_NOFOLLOW, which refuses the same paths.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from typing import Any

from . import hostfiles
from .errors import HostError, InvalidInput, NotFound
from .names import printable

# The number is the same on every architecture (<asm-generic/unistd.h>).
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RESOLVE = _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH
# renameat2(2), <linux/fs.h>
_RENAME_NOREPLACE = 1
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


_libc: Any | None = None


def _components(path: str) -> list[str]:
    parts = path.split("/")
    if not path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise InvalidInput(f"{printable(path)!r} is not a plain relative path.", "Write it as a/b.")
    return parts


def _openat2(directory: int, path: str, flags: int, mode: int) -> int:
    global _libc
    if _libc is None:
        _libc = ctypes.CDLL(None, use_errno=True)
    how = _OpenHow(flags, mode, _RESOLVE)
    raw = os.fsencode(path)
    # EAGAIN: a rename raced with the resolution, and the kernel asks to try again (openat2(2)).
    for _attempt in range(32):
        descriptor = int(
            _libc.syscall(
                ctypes.c_long(_SYS_OPENAT2),
                ctypes.c_int(directory),
                ctypes.c_char_p(raw),
                ctypes.byref(how),
                ctypes.c_size_t(ctypes.sizeof(how)),
            )
        )
        number = ctypes.get_errno()
        if descriptor >= 0 or number != errno.EAGAIN:
            break
    if descriptor < 0:
        raise OSError(number, os.strerror(number), path)
    return descriptor


def _open_by_steps(directory: int, parts: list[str], flags: int, mode: int) -> int:
    here = os.dup(directory)
    try:
        for part in parts[:-1]:
            below = os.open(part, _DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        return os.open(parts[-1], flags | os.O_NOFOLLOW, mode, dir_fd=here)
    finally:
        os.close(here)


def open_beneath(directory: int, path: str, flags: int = os.O_RDONLY, mode: int = 0) -> int:
    """Return a descriptor of ``path`` (relative, below the open ``directory``), with close-on-exec set.

    Raises InvalidInput for a path that leaves the directory or passes a link, NotFound when it is not there,
    and OSError for the rest.
    """
    parts = _components(path)
    flags |= os.O_CLOEXEC
    try:
        try:
            return _openat2(directory, path, flags, mode)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
            return _open_by_steps(directory, parts, flags, mode)
    except OSError as error:
        shown = printable(path)
        if error.errno in (errno.ELOOP, errno.EXDEV):
            raise InvalidInput(
                f"{shown} is, or passes, a symbolic link.", "Put the file itself there."
            ) from error
        if error.errno == errno.ENOENT:
            raise NotFound(f"{shown} is not there.") from error
        if error.errno == errno.ENOTDIR:
            raise InvalidInput(
                f"{shown} is not where a folder is expected.", "Move what is in its place."
            ) from error
        raise


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """Yield what ``open_directory`` returns, and close it."""
    descriptor = open_directory(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_directory(path: str) -> int:
    """Return a descriptor of the absolute directory ``path``; no component of it may be a link.

    Raises NotFound, InvalidInput, or OSError.
    """
    if not path.startswith("/"):
        raise InvalidInput(f"{printable(path)!r} is not an absolute path.")
    root = os.open("/", _DIRECTORY)
    try:
        inner = path.strip("/")
        return open_beneath(root, inner, _DIRECTORY) if inner else os.dup(root)
    finally:
        os.close(root)


def open_regular(directory: int, path: str) -> int:
    """Return a descriptor for reading the regular file ``path``; anything else is refused at once."""
    # O_NONBLOCK: opening a FIFO would wait for a writer (open(2)); regular files do not mind it.
    descriptor = open_beneath(directory, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidInput(f"{printable(path)} is not a regular file.", "Put a plain file there.")
    return descriptor


def read_file(directory: int, path: str, limit: int) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes; raise NotFound or InvalidInput."""
    with os.fdopen(open_regular(directory, path), "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise InvalidInput(f"{printable(path)} is larger than {limit} bytes.", "Make it smaller.")
    return content


def create_file(directory: int, path: str, data: bytes, mode: int = 0o644) -> bool:
    """Create the file ``path`` with ``data``; return False, and touch nothing, if anything has that name."""
    try:
        descriptor = open_beneath(directory, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except BaseException:
        # A half-written file would be taken for the user's own the next time.
        parent, name = _parent(directory, path)
        try:
            os.unlink(name, dir_fd=parent)
        finally:
            os.close(parent)
        raise
    return True


def is_there(directory: int, path: str, folder: bool) -> bool:
    """Say whether anything has the name ``path``; raise InvalidInput if it should be a folder and is none.

    Where the folder that would hold it is missing, so is it.
    """
    try:
        parent, name = _parent(directory, path)
    except NotFound:
        return False
    try:
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return False
    finally:
        os.close(parent)
    if folder and not stat.S_ISDIR(mode):
        raise _no_folder(path)
    return True


def _no_folder(path: str) -> InvalidInput:
    return InvalidInput(f"{printable(path)} is there, but is not a folder.", "Move what is in its place.")


def make_directory(directory: int, path: str, mode: int = 0o755) -> bool:
    """Create the directory ``path``; return False if it is there; raise InvalidInput if something else is."""
    parent, name = _parent(directory, path)
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise _no_folder(path) from None
        return False
    finally:
        os.close(parent)
    return True


def _parent(directory: int, path: str) -> tuple[int, str]:
    """Return an open descriptor of the directory that holds ``path``, and the last component."""
    parts = _components(path)
    if len(parts) == 1:
        return os.dup(directory), parts[0]
    return open_beneath(directory, "/".join(parts[:-1]), _DIRECTORY), parts[-1]


def move(source: int, name: str, target: int, new_name: str) -> None:
    """Rename ``name`` in the open directory ``source`` to ``new_name`` in ``target``; replace nothing.

    Raises FileExistsError if anything has the new name, and OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    old, new = os.fsencode(name), os.fsencode(new_name)
    with contextlib.suppress(AttributeError):  # a C library without renameat2(2)
        if libc.renameat2(source, old, target, new, ctypes.c_uint(_RENAME_NOREPLACE)) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
            raise OSError(number, os.strerror(number), name)
    with contextlib.suppress(FileNotFoundError):
        os.stat(new_name, dir_fd=target, follow_symlinks=False)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new_name)
    os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)


def sync_all(folder: int) -> None:
    """Write the file system of an open folder to its disk: one call, not one for each file (syncfs(2)).

    Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(folder) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def write_atomically(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write a file of root's own: a temporary file beside it, fsync, rename, fsync. Raises HostError.

    When it returns, the file lasts through a loss of power. Only for directories that belong to root alone.
    """
    temporary = f"{path}.{os.getpid()}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            with os.fdopen(os.open(temporary, flags, mode), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        hostfiles.sync_directory(os.path.dirname(path))
    except OSError as error:
        raise HostError(f"{path} could not be written: {error.strerror}.") from error
