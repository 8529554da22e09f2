# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Projects that are put away, brought back, renamed and removed. To be run as the user whose they are.

In the workspace, ``.archive`` holds archives (``NAME-<date>-<time>.tar.gz``) and ``.trash`` whole folders.
What is half done has a hidden name in ``.archive`` with an ending of its own, and is locked by the process
that is at it (flock(2), which dies with its holder). So whatever breaks off at any point, the next call knows
what to do with what it finds unlocked:

- ``.part``: half an archive; it is removed, since the folder is still there.
- ``.restoring``: half a folder; it is removed, since it is still in its archive.
- ``.leaving``: a folder that was taken out of the workspace and not compared yet; it is moved back.
- ``.removing``: a folder that is in its archive or was to go for good; the rest of it is removed. It may be
  in the workspace itself: who removes something because the quota is full can make no folder for it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import posixpath
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from . import archive, asuser, safefs, tree
from .archive import Look, Progress, Whole, ignore
from .errors import HostError, InvalidInput, LabError, NotFound, Refused
from .names import printable, project_name
from .sizes import format_size

STORE, TRASH = ".archive", ".trash"
_PART, _RESTORING, _LEAVING, _REMOVING = "part", "restoring", "leaving", "removing"
_HALF = re.compile(r"\.(?P<name>.+)-(?P<stamp>[0-9]{8}-[0-9]{6})\.(?P<state>part|restoring|leaving|removing)")
_KEPT = re.compile(r"(?P<name>.+)-(?P<stamp>[0-9]{8}-[0-9]{6})(?P<suffix>\.tar\.gz)?")
_TEXT_LIMIT = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
# Two changes of a file within one tick of the kernel's clock can have one ctime; a tick is at most 10 ms.
_TICK = 0.1


# The workspace, and what is half done in it


@contextlib.contextmanager
def _workspace(path: str) -> Iterator[int]:
    try:
        root = safefs.open_directory(path)
    except (OSError, LabError) as error:
        raise NotFound(f"Your workspace {path} is not there.", "Tell your admins.") from error
    try:
        yield root
    finally:
        os.close(root)


@contextlib.contextmanager
def _folder_of(root: int, name: str) -> Iterator[int]:
    """Open the hidden folder ``name`` of a workspace, making it where it is missing."""
    try:
        safefs.make_directory(root, name, 0o700)
        folder = safefs.open_beneath(root, name, _DIRECTORY)
    except InvalidInput as error:
        raise Refused(
            f"~/workspace/{name} is not a folder, so nothing can be kept there.", "Move it away."
        ) from error
    try:
        yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def _turn(store: int) -> Iterator[None]:
    """Be the only one for a moment that makes, names or clears away what is half done."""
    fcntl.flock(store, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(store, fcntl.LOCK_UN)


def _claim(descriptor: int) -> bool:
    """Lock what is open for as long as it is open; say False when somebody else has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _stamp(seconds: float) -> str:
    return time.strftime("%Y%m%d-%H%M%S", time.localtime(seconds))


def _is_there(folder: int, name: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        os.stat(name, dir_fd=folder, follow_symlinks=False)
        return True
    return False


def heal(path: str) -> list[str]:
    """Bring what was broken off in a workspace to its end; return, in sentences, what was done.

    What a living process is at is left to it.
    """
    said: list[str] = []
    with _workspace(path) as root:
        for name, match in _halves(root):
            if match["state"] == _REMOVING:
                said += _heal_one(root, root, name, match)
        if not _is_there(root, STORE):
            return said
        with _folder_of(root, STORE) as store, _turn(store):
            for name, match in _halves(store):
                said += _heal_one(root, store, name, match)
    return said


def _halves(folder: int) -> list[tuple[str, re.Match[str]]]:
    found = [(name, _HALF.fullmatch(name)) for name in sorted(os.listdir(folder))]
    return [(name, match) for name, match in found if match]


def _heal_one(root: int, place: int, half: str, match: re.Match[str]) -> list[str]:
    project, state = match["name"], match["state"]
    try:
        descriptor = safefs.open_beneath(place, half, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not _claim(descriptor):
                return []
            if state == _PART:
                os.unlink(half, dir_fd=place)
                return []
            if state == _LEAVING:
                return [_moved_back(root, place, half, project, match["stamp"])]
            tree.remove(place, half)
        finally:
            os.close(descriptor)
    except (OSError, LabError) as error:
        why = error.message if isinstance(error, LabError) else str(error.strerror)
        return [f"In your workspace, {printable(half)} was left over and could not be put right: {why}"]
    return []


def _moved_back(root: int, store: int, half: str, project: str, stamp: str) -> str:
    try:
        safefs.move(store, half, root, project)
    except FileExistsError:
        with _folder_of(root, TRASH) as trash:
            safefs.move(store, half, trash, f"{project}-{stamp}")
        return (
            f"An earlier call was broken off. Its folder of {project} is in"
            f" ~/workspace/{TRASH}/{project}-{stamp}, since there is another one by now."
        )
    return f"An earlier call was broken off; the folder of {project} is back in its place."


def halves(path: str) -> list[str]:
    """Return the names of what is half done, by somebody or by nobody any more. It changes nothing."""
    found: list[str] = []
    for place in (path, posixpath.join(path, STORE)):
        with contextlib.suppress(OSError):
            found += [name for name in os.listdir(place) if _HALF.fullmatch(name)]
    return sorted(found)


# A project that is worked on


@dataclass(frozen=True)
class Project:
    """A project's folder, open and locked, and the workspace that it is in; both are descriptors."""

    name: str
    root: int
    folder: int


def _open_project(root: int, name: str) -> int:
    try:
        return safefs.open_beneath(root, project_name(name), _DIRECTORY)
    except NotFound as error:
        raise NotFound(
            f"There is no project {name} in your workspace.", "See what there is with 'project list'."
        ) from error
    except InvalidInput as error:
        raise Refused(f"~/workspace/{name} is not a folder but a link or a file.", "Move it away.") from error


@contextlib.contextmanager
def project(workspace: str, name: str) -> Iterator[Project]:
    """Have a project's folder to oneself; raise NotFound, or Refused when another call is at it."""
    with _workspace(workspace) as root:
        folder = _open_project(root, name)
        try:
            if not _claim(folder):
                raise Refused(f"Another command is at work on {name}.", "Wait until it has ended.")
            yield Project(name, root, folder)
        finally:
            os.close(folder)


def peek(workspace: str, name: str, leave_out: archive.LeaveOut = archive.nothing) -> Look:
    """Look at a project's folder and change nothing. Raises NotFound."""
    with _workspace(workspace) as root:
        folder = _open_project(root, name)
        try:
            return archive.look(folder, leave_out)
        finally:
            os.close(folder)


# Put away


@dataclass(frozen=True)
class Archived:
    """An archive that was compared with the folder: its path in the workspace, its size, what it is of.

    ``blocked`` is what could not be read, and is not in it.
    """

    path: str
    size: int
    look: Look
    blocked: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether the folder can be removed, and nothing is lost."""
        return not self.blocked and not self.look.foreign


def _no_room(error: OSError, needed: int = 0) -> LabError:
    """Return the error of a disk or quota that is full, or of another kind."""
    if error.errno not in (errno.EDQUOT, errno.ENOSPC):
        return HostError(asuser.explain(error))
    what = "your quota is" if error.errno == errno.EDQUOT else "the disk is"
    more = f" Up to {format_size(needed)} are needed." if needed else ""
    return HostError(
        f"There is no room for it: {what} full.{more} Nothing was lost.",
        "Make room ('workspace usage' shows the largest), or send it elsewhere: project export NAME -",
    )


def put_away(work: Project, *, progress: Progress = ignore) -> Archived:
    """Pack a project into an archive in its workspace, and compare that with the folder byte by byte.

    The folder stays; ``let_go`` removes it. ``progress`` is told of what is packed, and once more of what is
    compared.
    Raises HostError when something changes meanwhile or there is no room; then there is no archive.
    """
    before = archive.look(work.folder)
    try:
        with _folder_of(work.root, STORE) as store, _part(work, store) as (name, file):
            packed = archive.pack(work.folder, work.name, file, progress=progress)
            file.flush()
            os.fsync(file.fileno())
            _let_the_clock_tick(before.newest)
            file.seek(0)
            archive.read(file, archive.Comparing(work.folder), progress=progress)
            if archive.look(work.folder).digest != before.digest:
                raise archive.changed("")
            path = f"{STORE}/{_named(work, store, name)}"
            return Archived(path, os.fstat(file.fileno()).st_size, before, tuple(packed.blocked))
    except OSError as error:
        raise _no_room(error, before.bytes) from error


def _let_the_clock_tick(newest: int) -> None:
    """Wait until a change of a file gets a later time than ``newest`` (nanoseconds since 1970)."""
    age = time.time() - newest / 1e9
    if age < _TICK:
        time.sleep(min(_TICK, _TICK - age))


@contextlib.contextmanager
def _part(work: Project, store: int) -> Iterator[tuple[str, BinaryIO]]:
    """Yield the file of a new archive, under the name of a half one, which is gone afterwards.

    While it is open it is locked, and nobody takes it for a leftover.
    """
    name = f".{work.name}-{_stamp(time.time())}.{_PART}"
    with _turn(store):
        descriptor = safefs.open_beneath(store, name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        _claim(descriptor)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield name, file
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=store)


def _named(work: Project, store: int, part: str) -> str:
    """Give a whole archive its name, which is that of nothing else; return it."""
    now = time.time()
    with _turn(store):
        for later in range(60):
            final = f"{work.name}-{_stamp(now + later)}{archive.SUFFIX}"
            with contextlib.suppress(FileExistsError):
                safefs.move(store, part, store, final)
                os.fsync(store)
                return final
    raise HostError("The archive could not be given a name.", "Try again.")


def let_go(work: Project, archived: Archived) -> None:
    """Remove a project's folder that is in an archive as it is; raise HostError if it changed since.

    It leaves the workspace first, so that nothing comes to it unseen, and is looked at once more.
    """
    with _folder_of(work.root, STORE) as store:
        leaving = f".{work.name}-{_stamp(time.time())}.{_LEAVING}"
        removing = leaving[: -len(_LEAVING)] + _REMOVING
        _moved(work, store, leaving)
        try:
            if archive.look(work.folder).digest != archived.look.digest:
                raise HostError(
                    f"The folder of {work.name} changed after it was packed, so it stays.",
                    "Archive it again when nothing is at work in it.",
                )
            safefs.move(store, leaving, store, removing)
        except BaseException:
            # Broken off after the last step, it is on its way out already; the next call goes on with it.
            if _is_there(store, leaving):
                safefs.move(store, leaving, work.root, work.name)
            raise
        os.fsync(store)
        _remove(store, removing, work.name)


def _moved(work: Project, target: int, name: str) -> None:
    """Move a project's folder.

    Its owner must be able to write to it, since '..' in it changes (rename(2)). Raises HostError when another
    folder is in its place by now.
    """
    _check_same(work)
    mode = stat.S_IMODE(os.fstat(work.folder).st_mode)
    if mode & 0o200 == 0:
        os.fchmod(work.folder, mode | 0o200)
    try:
        safefs.move(work.root, work.name, target, name)
    except FileExistsError as error:
        raise Refused(
            f"{printable(name)} is there already.", "Choose another name, or move it away."
        ) from error


def _check_same(work: Project) -> None:
    now = os.stat(work.name, dir_fd=work.root, follow_symlinks=False)
    mine = os.fstat(work.folder)
    if (now.st_dev, now.st_ino) != (mine.st_dev, mine.st_ino):
        raise HostError(f"~/workspace/{work.name} is another folder by now.", "Look at it, and try again.")


def _remove(folder: int, name: str, project_: str) -> None:
    try:
        tree.remove(folder, name)
    except OSError as error:
        raise HostError(
            f"A part of the folder of {project_} could not be removed: {error.strerror}.",
            f"What is left has the name {name}; the next call tries again.",
        ) from error


# Bring back


@dataclass(frozen=True)
class Kept:
    """A project that was put away: in an archive, or as it is in the trash. ``path`` is in the workspace."""

    project: str
    stamp: str
    path: str
    trash: bool


def kept(workspace: str) -> list[Kept]:
    """Return what can be brought back, newest first. It changes nothing."""
    found = []
    with _workspace(workspace) as root:
        for place in (STORE, TRASH):
            with contextlib.suppress(NotFound, InvalidInput):
                folder = safefs.open_beneath(root, place, _DIRECTORY)
                try:
                    listed = os.listdir(folder)
                finally:
                    os.close(folder)
                found += [one for name in listed for one in _kept(place, name)]
    return sorted(found, key=lambda one: (one.stamp, one.path), reverse=True)


def _kept(place: str, name: str) -> list[Kept]:
    match = _KEPT.fullmatch(name)
    if match is None or bool(match["suffix"]) == (place == TRASH):
        return []
    try:
        project_name(match["name"])
    except InvalidInput:
        return []
    return [Kept(match["name"], match["stamp"], f"{place}/{name}", place == TRASH)]


def find(workspace: str, wanted: str) -> Kept:
    """Return what is meant by the name of a project (the newest of it) or of what is kept; raise NotFound."""
    bare = posixpath.basename(wanted.rstrip("/"))
    for one in kept(workspace):
        base = posixpath.basename(one.path)
        if bare in (one.project, base, f"{one.project}-{one.stamp}"):
            return one
    raise NotFound(
        f"Nothing of the name {printable(wanted)[:80]} is kept.",
        f"Look into ~/workspace/{STORE} and ~/workspace/{TRASH}.",
    )


def _free(root: int, name: str) -> None:
    if _is_there(root, name):
        raise Refused(
            f"~/workspace/{name} is there already, and nothing is overwritten.",
            f"Give that one another name first: project rename {name} NEW",
        )


def from_trash(workspace: str, one: Kept) -> None:
    """Move a folder from the trash back to its place; raise Refused if that is taken."""
    with _workspace(workspace) as root, _folder_of(root, TRASH) as trash:
        _free(root, one.project)
        name = posixpath.basename(one.path)
        try:
            folder = safefs.open_beneath(trash, name, _DIRECTORY)
        except NotFound as error:
            raise NotFound(f"~/workspace/{one.path} is gone.") from error
        os.close(folder)
        try:
            safefs.move(trash, name, root, one.project)
        except FileExistsError:
            _free(root, one.project)


def open_kept(workspace: str, one: Kept) -> BinaryIO:
    """Return an archive of the store for reading."""
    with _workspace(workspace) as root:
        return os.fdopen(safefs.open_regular(root, one.path), "rb")


def bring_in(
    workspace: str, source: BinaryIO, name: str = "", *, own: bool, progress: Progress = ignore
) -> Whole:
    """Unpack an archive to a new project, by the name in it or by ``name``. Nothing is overwritten.

    It is unpacked to a hidden folder, which gets its name when it is whole and as its manifest says. ``own``
    says that the archive is the user's own, so that setuid bits are kept. Raises Refused, InvalidInput,
    HostError; then nothing of it is left.
    """
    if name:
        project_name(name)
    with _workspace(workspace) as root, _folder_of(root, STORE) as store:
        if name:
            _free(root, name)
        making, folder = _new_folder(store, name or "import")
        try:
            visitor = _Arriving(root, folder, name, own=own)
            whole = archive.read(source, visitor, progress=progress)
            visitor.finish()
            _arrive(root, store, making, name or whole.project)
        except BaseException as error:
            if _is_there(store, making):
                tree.remove(store, making)
            if isinstance(error, OSError):
                raise _no_room(error) from error
            raise
        finally:
            os.close(folder)
    return whole


class _Arriving(archive.Unpacking):
    """Unpacks, once it is known that the name of the project is free."""

    def __init__(self, root: int, folder: int, name: str, *, own: bool) -> None:
        super().__init__(folder, own=own)
        self._root = root
        self._name = name

    def begin(self, project: str) -> None:
        _free(self._root, self._name or project)


def _new_folder(store: int, name: str) -> tuple[str, int]:
    making = f".{name}-{_stamp(time.time())}.{_RESTORING}"
    with _turn(store):
        try:
            if not safefs.make_directory(store, making, 0o700):
                raise Refused("Another call is at the same just now.", "Try again.")
        except OSError as error:
            raise _no_room(error) from error
        folder = safefs.open_beneath(store, making, _DIRECTORY)
        _claim(folder)
    return making, folder


def _arrive(root: int, store: int, making: str, name: str) -> None:
    """Give a folder that is whole its place in the workspace."""
    folder = safefs.open_beneath(store, making, _DIRECTORY)
    try:
        status = os.fstat(folder)
        mode = stat.S_IMODE(status.st_mode)
        # Its owner must be able to write to a folder that moves, since '..' in it changes (rename(2)).
        os.fchmod(folder, mode | 0o200)
        try:
            safefs.move(store, making, root, name)
        except FileExistsError:
            _free(root, name)
        os.fchmod(folder, mode)
        os.utime(folder, ns=(status.st_mtime_ns, status.st_mtime_ns))
    finally:
        os.close(folder)


# Rename and remove


def rename(workspace: str, old: str, new: str) -> None:
    """Give a project's folder another name; raise NotFound, Refused."""
    project_name(new, "NEW")
    with project(workspace, old) as work:
        _free(work.root, new)
        safefs.move(work.root, old, work.root, new)


def mentions(workspace: str, name: str, word: str) -> list[str]:
    """Return which of the files that ``project init`` lays out hold a word."""
    found = []
    with _workspace(workspace) as root:
        folder = _open_project(root, name)
        try:
            for path in ("Dockerfile", "README.md", "pyproject.toml"):
                with contextlib.suppress(OSError, LabError):
                    text = safefs.read_file(folder, path, _TEXT_LIMIT).decode("utf-8", "replace")
                    if re.search(rf"(?<![a-z0-9-]){re.escape(word)}(?![a-z0-9-])", text):
                        found.append(path)
        finally:
            os.close(folder)
    return found


def to_trash(work: Project) -> str:
    """Move a project's folder to the trash; return its path in the workspace."""
    try:
        with _folder_of(work.root, TRASH) as trash:
            name = f"{work.name}-{_stamp(time.time())}"
            _moved(work, trash, name)
    except OSError as error:
        raise HostError(
            f"The folder of {work.name} could not be moved to the trash: {error.strerror}.",
            f"Make room first, or remove it for good: project remove {work.name} --for-good",
        ) from error
    return f"{TRASH}/{name}"


def remove_folder(work: Project) -> None:
    """Remove a project's folder for good."""
    removing = f".{work.name}-{_stamp(time.time())}.{_REMOVING}"
    _moved(work, work.root, removing)
    _remove(work.root, removing, work.name)


def trashed(workspace: str, name: str) -> list[Kept]:
    """Return what of a project is in the trash."""
    return [one for one in kept(workspace) if one.trash and one.project == name]


def empty_trash(workspace: str, found: list[Kept]) -> None:
    """Remove these from the trash for good."""
    if not found:
        return
    with _workspace(workspace) as root, _folder_of(root, TRASH) as trash:
        for one in found:
            removing = f".{one.project}-{one.stamp}.{_REMOVING}"
            name = posixpath.basename(one.path)
            folder = safefs.open_beneath(trash, name, _DIRECTORY)
            try:
                if not _claim(folder):
                    raise Refused(f"Another command is at work on {one.path}.", "Wait until it has ended.")
                safefs.move(trash, name, root, removing)
                _remove(root, removing, one.project)
            finally:
                os.close(folder)
