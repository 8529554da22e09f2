# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What can be made again, and so removed: found and measured, by a process that is the user.

Only folders whose name or mark says so: compiled Python, checkpoints of notebooks, the caches of pip and uv,
and what its own maker has marked as a cache (Cache Directory Tagging Specification,
https://bford.info/cachedir/). Environments are never taken for one. Every folder is opened beneath the tree,
without following a link.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from . import safefs
from .asuser import explain
from .errors import LabError

COMPILED, CHECKPOINTS, PIP, UV, TAGGED = (
    *("compiled Python", "notebook checkpoints", "cache of pip", "cache of uv"),
    "marked as a cache",
)
_TAG, _SIGNATURE = "CACHEDIR.TAG", b"Signature: 8a477f597d28d172789f06886806bc55"
_COMPILED_FILE = re.compile(r".+\.(?:py[co]|nb[ic])(?:\.[0-9]+)?")
_OFTEN = 200  # folders that are looked into before it is told again
_BLOCK = 512  # bytes; the unit of st_blocks (stat(3type))
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
# What cannot be read or is gone by now is no cache of ours.
_PASSED = (OSError, LabError)


@dataclass(frozen=True)
class Root:
    """A tree to look through: its path without links, what it is called, and whether it holds projects."""

    path: str
    shown: str
    projects: bool = False


@dataclass(frozen=True)
class Folder:
    """A folder that can be made again: its path in the tree, why, the bytes that it frees, and its files."""

    root: Root
    path: str
    why: str
    size: int
    files: int

    @property
    def shown(self) -> str:
        """The path for people."""
        return f"{self.root.shown}/{self.path}"


@contextmanager
def _opened(root: Root, path: str = "") -> Iterator[int]:
    """Open a folder of a tree; raise OSError or LabError."""
    top = safefs.open_directory(root.path)
    try:
        inner = safefs.open_beneath(top, path, _FOLDER) if path else os.dup(top)
    finally:
        os.close(top)
    try:
        yield inner
    finally:
        os.close(inner)


def find(roots: Iterable[Root], progress: Callable[[str], None]) -> list[Folder]:
    """Return what can be made again, the largest first; a root that is not there holds nothing."""
    found: list[Folder] = []
    for root in roots:
        with suppress(*_PASSED), _opened(root) as top:
            device = os.fstat(top).st_dev
            waiting, seen = [""], 0
            while waiting:
                path = waiting.pop()
                with suppress(*_PASSED):
                    waiting += _look(root, path, device, found)
                seen += 1
                if seen % _OFTEN == 0:
                    progress(f"{len(found)} folders found, looking into {root.shown}/{path}")
    return sorted(found, key=lambda one: (-one.size, one.shown))


def _look(root: Root, path: str, device: int, found: list[Folder]) -> list[str]:
    """Look into one folder: note it if it can be made again, else return the folders that are in it."""
    with _opened(root, path) as folder:
        if os.fstat(folder).st_dev != device:
            return []
        with os.scandir(folder) as entries:
            listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        why = _why(root, path, folder, dict(listed)) if path else ""
    if why:
        size, files = _measure(root, path, device)
        found.append(Folder(root, path, why, size, files))
        return []
    # What git keeps is nobody's to judge by its name.
    return [f"{path}/{name}".lstrip("/") for name, is_folder in listed if is_folder and name != ".git"]


def _why(root: Root, path: str, folder: int, listed: dict[str, bool]) -> str:
    """Return why a folder can be made again, or ""; ``listed`` says of each name in it if it is a folder."""
    parts = f"{root.shown}/{path}".split("/")
    above, name = parts[-2:]
    if name == "__pycache__":
        only = all(not inner and _COMPILED_FILE.fullmatch(file) for file, inner in listed.items())
        return COMPILED if only else ""
    if name == ".ipynb_checkpoints":
        return CHECKPOINTS
    if above == ".cache" and name in ("pip", "uv"):
        return PIP if name == "pip" else UV
    if _TAG not in listed or "pyvenv.cfg" in listed or (root.projects and "/" not in path):
        return ""
    with suppress(*_PASSED), os.fdopen(safefs.open_regular(folder, _TAG), "rb") as stream:
        return TAGGED if stream.read(len(_SIGNATURE)) == _SIGNATURE else ""
    return ""


def _measure(root: Root, path: str, device: int) -> tuple[int, int]:
    """Return the bytes that the removal of a folder frees, and how many files are in it."""
    size, files = 0, 0
    links: dict[int, int] = {}
    for _folder, _path, status in _entries(root, path, device):
        files += not stat.S_ISDIR(status.st_mode)
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            # Something is freed only with the last name of a file.
            links[status.st_ino] = links.get(status.st_ino, 0) + 1
            if links[status.st_ino] < status.st_nlink:
                continue
        size += status.st_blocks * _BLOCK
    return size, files


def _entries(root: Root, path: str, device: int) -> Iterator[tuple[int, str, os.stat_result]]:
    """Yield (the open folder, path, status) of all in a folder, each folder before what is in it."""
    waiting = [path]
    while waiting:
        here = waiting.pop()
        with suppress(*_PASSED), _opened(root, here) as folder:
            for name in os.listdir(folder):
                with suppress(FileNotFoundError):
                    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    if status.st_dev == device:
                        yield folder, f"{here}/{name}", status
                        if stat.S_ISDIR(status.st_mode):
                            waiting.append(f"{here}/{name}")


def remove(one: Folder) -> str:
    """Remove a folder with all that is in it; return a sentence about what is left of it, "" for nothing."""
    problem = ""
    try:
        with _opened(one.root) as top:
            device = os.fstat(top).st_dev
    except _PASSED as error:
        return _told(one, error)
    folders = [one.path]
    for folder, path, status in _entries(one.root, one.path, device):
        if stat.S_ISDIR(status.st_mode):
            folders.append(path)
            continue
        try:
            os.unlink(posixpath.basename(path), dir_fd=folder)
        except FileNotFoundError:
            continue
        except OSError as error:
            problem = problem or _told(one, error)
    for path in reversed(folders):
        above, _slash, name = path.rpartition("/")
        try:
            with _opened(one.root, above) as parent:
                os.rmdir(name, dir_fd=parent)
        except FileNotFoundError:
            continue
        except _PASSED as error:
            problem = problem or _told(one, error)
    return problem


def _told(one: Folder, error: Exception) -> str:
    why = explain(error) if isinstance(error, OSError) else str(error)
    return f"{one.shown} is not removed, or not all of it: {why}"
