# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How much the directories of a tree hold, and their removal. To be run as the user whose tree it is."""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass

from . import safefs


@dataclass(frozen=True)
class Directory:
    """A directory with all below it: ``path`` relative to the tree, bytes on the disk, number of files."""

    path: str
    size: int
    files: int


@dataclass(frozen=True)
class Survey:
    """The largest directories of a tree; ``complete`` is False when time ran out before all was seen."""

    largest: tuple[Directory, ...]
    complete: bool


_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_BLOCK = 512  # bytes; the unit of st_blocks (stat(3type))
_LOOK_UP = 256  # entries of a directory between two looks at the clock


class _Walk:
    """One walk through a tree, on one file system, that counts each directory into its ancestors."""

    def __init__(self, root: str, depth: int) -> None:
        self.root = root
        self.depth = depth
        self.device = os.lstat(root).st_dev
        self.sizes: dict[str, list[int]] = {}
        # Directories yet to be read, each with the names of those that it counts for.
        self.waiting: list[tuple[str, tuple[str, ...]]] = [(root, ())]
        self._seen: set[int] = set()

    def step(self, deadline: float) -> None:
        """Read one directory, or what of it there is time for.

        Raises OSError only for the root; what else cannot be read is left out.
        """
        path, ancestors = self.waiting.pop()
        try:
            with os.scandir(path) as entries:
                for number, entry in enumerate(entries, 1):
                    with suppress(OSError):  # gone, or in a directory that may be listed and not searched
                        self._count(entry, entry.stat(follow_symlinks=False), ancestors)
                    if number % _LOOK_UP == 0 and time.monotonic() > deadline:
                        self.waiting.append((path, ancestors))
                        return
        except OSError:
            if path == self.root:
                raise

    def _count(self, entry: os.DirEntry[str], status: os.stat_result, ancestors: tuple[str, ...]) -> None:
        if status.st_dev != self.device:
            return
        directory = stat.S_ISDIR(status.st_mode)
        if directory:
            relative = os.path.relpath(entry.path, self.root)
            if relative.count(os.sep) < self.depth:
                self.sizes[relative] = [0, 0]
                ancestors = (*ancestors, relative)
            self.waiting.append((entry.path, ancestors))
        elif status.st_nlink > 1:
            if status.st_ino in self._seen:
                return
            self._seen.add(status.st_ino)
        for name in ancestors:
            self.sizes[name][0] += status.st_blocks * _BLOCK
            self.sizes[name][1] += not directory


def total(root: str, *, seconds: float = 3.0) -> tuple[Directory, bool]:
    """Return how much there is below ``root``, and whether all of it was seen; bounds as of ``survey``."""
    deadline = time.monotonic() + seconds
    walk = _Walk(root, 0)
    walk.sizes["."] = [0, 0]
    walk.waiting = [(root, (".",))]
    while walk.waiting and time.monotonic() <= deadline:
        walk.step(deadline)
    size, files = walk.sizes["."]
    return Directory(".", size, files), not walk.waiting


def survey(root: str, *, count: int = 5, depth: int = 2, seconds: float = 3.0) -> Survey:
    """Return the ``count`` largest directories down to ``depth`` levels below ``root``.

    Stays on one file system, follows no link, counts a file with several names once, leaves out what cannot
    be read, and stops after ``seconds``. Raises OSError if ``root`` itself cannot be read.
    """
    deadline = time.monotonic() + seconds
    walk = _Walk(root, depth)
    while walk.waiting and time.monotonic() <= deadline:
        walk.step(deadline)
    ranked = sorted(walk.sizes.items(), key=lambda pair: (-pair[1][0], pair[0]))
    largest = tuple(Directory(path, size, files) for path, (size, files) in ranked[:count])
    return Survey(largest, complete=not walk.waiting)


def remove(parent: int, name: str) -> None:
    """Remove the directory ``name`` in the open directory ``parent`` with all below it; follow no link.

    Directories that their owner may not write are made writable first. Raises OSError or LabError, and may
    then be called again.
    """
    waiting = [name]
    while waiting:
        path = waiting[-1]
        descriptor = _writable(parent, path)
        try:
            below = _unlink_all(descriptor)
        finally:
            os.close(descriptor)
        if below:
            waiting += [f"{path}/{each}" for each in below]
            continue
        waiting.pop()
        above, _slash, last = path.rpartition("/")
        holder = safefs.open_beneath(parent, above, _DIRECTORY) if above else os.dup(parent)
        try:
            os.rmdir(last, dir_fd=holder)
        finally:
            os.close(holder)


def empty(folder: int) -> None:
    """Remove all that is in an open folder, as ``remove`` does."""
    for name in _unlink_all(folder):
        remove(folder, name)


def _unlink_all(directory: int) -> list[str]:
    """Remove everything in an open directory but the directories; return their names."""
    below = []
    for name in os.listdir(directory):
        if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            below.append(name)
        else:
            os.unlink(name, dir_fd=directory)
    return below


def _writable(parent: int, path: str) -> int:
    """Open a directory that is to be emptied."""
    handle = safefs.open_beneath(parent, path, os.O_PATH | os.O_DIRECTORY)
    try:
        if stat.S_IMODE(os.fstat(handle).st_mode) & 0o700 != 0o700:
            # fchmod(2) takes no descriptor of O_PATH; its link in /proc leads to this very directory.
            os.chmod(f"/proc/self/fd/{handle}", 0o700)
    finally:
        os.close(handle)
    return safefs.open_beneath(parent, path, _DIRECTORY)
