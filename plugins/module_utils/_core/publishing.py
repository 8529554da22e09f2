# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Publish datasets in a share, and take them back: whole or not at all, whenever it is broken off.

All is done as the data manager who calls, in folders that the group of the share may write; nothing needs
root. Root may call it, too, so every path is opened below an open folder and no link is followed.

A version is copied to ``<name>/.incoming-...``, which others cannot enter, and renamed when it is complete.
What ``current`` is to lead to lies beside it before, as the link ``.current.new``: whoever comes next
finishes what was broken off (``_settle``). What readers see changes by rename(2), under a lock.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from . import datasets, locks, names, safefs
from .asuser import Identity, run_as_user
from .datasets import CATALOGUE, CURRENT, MANIFEST, RECORD, Dataset
from .errors import HostError, InvalidInput, LabError, NotFound, Refused
from .policy import Policy, Share

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20
_DEEPEST = 200  # folders that are open at once
_RECORD_LIMIT = 4 << 20
_MANIFEST_LIMIT = 256 << 20
_WAIT = 60.0  # seconds for what others change, which takes no longer than a few renames
_REMOVING = 3600.0  # seconds

_LOCK = ".publish.lock"
_NEXT = ".current.new"
_LEFTOVER = re.compile(r"\.(?:incoming|retracted)-[0-9a-f]{16}")

Progress = Callable[[int], None]


def _silent(_size: int) -> None:
    """Show no progress."""


@dataclass
class Tree:
    """What is in a tree: SHA-256 of each file ("" where it was not read), folders, links, bytes together.

    ``writable`` are the files and folders that somebody may write.
    """

    files: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    writable: list[str] = field(default_factory=list)
    size: int = 0


@dataclass(frozen=True)
class Version:
    """A version in a share; ``dataset`` is None, and ``problem`` says why, if its record is damaged."""

    name: str
    version: str
    current: bool
    dataset: Dataset | None
    problem: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of publishing or retracting; ``current`` is the version that it leads to, "" for none."""

    changed: bool
    current: str
    dataset: Dataset | None = None
    problem: str = ""


# ---- reading trees ---------------------------------------------------------------------------------------


def _scan(
    source: int, target: int | None, tree: Tree, prefix: str = "", *, reading: bool, progress: Progress
) -> None:
    """Go through an open folder, in the order of names; add to ``tree`` what is there.

    With ``reading`` the files are read for their checksums; with ``target``, an open folder, they are copied
    there, for nobody to write. Raises InvalidInput for what is neither file, folder nor link, and HostError.
    """
    if prefix.count("/") > _DEEPEST:
        raise InvalidInput(
            f"There are folders more than {_DEEPEST} deep.", "Make them less deep, or an archive."
        )
    for name in sorted(os.listdir(source), key=os.fsencode):
        path = prefix + name
        if target is not None and path in (MANIFEST, RECORD):
            raise _taken(path)
        try:
            mode = os.stat(name, dir_fd=source, follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                tree.links[path] = os.readlink(name, dir_fd=source)
                if target is not None:
                    os.symlink(tree.links[path], name, dir_fd=target)
                continue
            if mode & 0o222:
                tree.writable.append(path)
            if stat.S_ISREG(mode):
                tree.files[path], size = _read(source, target, name, reading=reading, progress=progress)
                tree.size += size
                continue
            if not stat.S_ISDIR(mode):
                raise InvalidInput(
                    f"{names.printable(path)} is no file, folder or link.",
                    "Remove it, or publish another folder.",
                )
            tree.folders.append(path)
            below = os.open(name, _FOLDER, dir_fd=source)
            try:
                inner = None if target is None else _make(target, name)
                try:
                    _scan(below, inner, tree, path + "/", reading=reading, progress=progress)
                    if inner is not None:
                        os.fchmod(inner, 0o555)
                finally:
                    if inner is not None:
                        os.close(inner)
            finally:
                os.close(below)
        except OSError as error:
            raise _failed(path, error) from error


def _taken(path: str) -> InvalidInput:
    return InvalidInput(f"{path} is there already.", "It is written here: rename yours, or leave it out.")


def _failed(path: str, error: OSError) -> HostError:
    if error.errno in (errno.EDQUOT, errno.ENOSPC):
        return HostError(
            f"There is no more room, at {names.printable(path)}: {error.strerror}.",
            "Make room, as by 'lab share retract', or ask your admins. What was published is as it was.",
        )
    return HostError(f"{names.printable(path)}: {error.strerror or error}.", "See to it, then try again.")


def _make(folder: int, name: str) -> int:
    """Make a folder for this user alone and return it open."""
    os.mkdir(name, 0o700, dir_fd=folder)
    return os.open(name, _FOLDER, dir_fd=folder)


def _read(
    source: int, target: int | None, name: str, *, reading: bool, progress: Progress
) -> tuple[str, int]:
    """Return the checksum ("" without ``reading``) and the size of a file; copy it if there is a target."""
    descriptor = os.open(name, _FILE, dir_fd=source)
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise OSError(errno.EAGAIN, "it was replaced meanwhile")
        if not reading:
            return "", before.st_size
        digest, copied = hashlib.sha256(), 0
        output = None if target is None else os.open(name, _NEW, 0o600, dir_fd=target)
        try:
            while chunk := os.read(descriptor, _CHUNK):
                digest.update(chunk)
                copied += len(chunk)
                if output is not None:
                    _write(output, chunk)
                progress(len(chunk))
                if copied > before.st_size:
                    break  # who goes on writing would keep us here for ever
            after = os.fstat(descriptor)
            if copied != before.st_size or after.st_mtime_ns != before.st_mtime_ns:
                raise OSError(errno.EAGAIN, "it was changed while it was read")
            if output is not None:
                os.utime(output, ns=(before.st_mtime_ns, before.st_mtime_ns))
                os.fchmod(output, 0o555 if before.st_mode & 0o100 else 0o444)
        finally:
            if output is not None:
                os.close(output)
        return digest.hexdigest(), copied
    finally:
        os.close(descriptor)


def _write(output: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(output, view) :]


def hashed(data: bytes) -> str:
    """Return the SHA-256 of data as a manifest writes it."""
    return hashlib.sha256(data).hexdigest()


def open_source(path: str, share: str) -> int:
    """Return the open folder that is to be published; raise NotFound, InvalidInput or HostError.

    ``share`` is the path of the share, which it must not hold.

    Who is not root may name it by a link: it is opened with the caller's own rights. Root may not, since a
    user could change where the link leads.
    """
    path = os.path.abspath(path)
    if os.geteuid() != 0:
        path = os.path.realpath(path)
    if os.path.commonpath([path, os.path.realpath(share)]) == path:
        raise InvalidInput(
            f"{names.printable(path)} holds the share itself.", "Name the folder of the dataset."
        )
    try:
        return safefs.open_directory(path)
    except NotFound as error:
        raise NotFound(f"{names.printable(path)} is not there.", "Name a folder that is.") from error
    except InvalidInput as error:
        raise InvalidInput(
            f"{names.printable(path)} is no folder, or is reached by a symbolic link.",
            "Name the folder itself by its own path.",
        ) from error
    except OSError as error:
        raise HostError(f"{names.printable(path)} cannot be read: {error.strerror}.") from error


def survey(source: int) -> Tree:
    """Return what would be published of an open folder, without reading its files.

    Raises InvalidInput, which names it, for what cannot be published, and HostError.
    """
    tree = Tree()
    _scan(source, None, tree, reading=False, progress=_silent)
    for path in (MANIFEST, RECORD):
        if path in tree.files or path in tree.folders or path in tree.links:
            raise _taken(path)
    _check_links(tree)
    if not tree.files:
        raise InvalidInput("There is no file to publish.", "Name the folder that holds the dataset.")
    return tree


def _check_links(tree: Tree) -> None:
    for path in datasets.astray(tree.links, {*tree.files, *tree.folders}):
        raise InvalidInput(
            f"The link {names.printable(path)} does not lead to something in the folder by relative links.",
            "Put the file itself there, or remove it.",
        )
    datasets.many_links(tree.links)


# ---- a share ---------------------------------------------------------------------------------------------


class Place:
    """An open share; ``with`` closes it."""

    def __init__(self, policy: Policy, share: Share) -> None:
        """Raise HostError if the folder of the share cannot be opened."""
        self.share = share
        self.path = policy.share_path(share)
        try:
            root = os.open(policy.data_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self.folder = os.open(share.name, _FOLDER, dir_fd=root)
            finally:
                os.close(root)
        except OSError as error:
            raise HostError(
                f"The share {share.name} cannot be opened: {error.strerror}.", "Tell your admins."
            ) from error

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self.folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of those who publish here; finish first what was broken off.

        Its file is closed to readers, who could otherwise hold it for ever. Raises Refused and HostError.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(_LOCK, flags, 0o660, dir_fd=self.folder)
        except PermissionError as error:
            raise Refused(
                f"You may not write in {self.path}.",
                "If you were added to its group just now, log in again; else ask your admins.",
            ) from error
        except OSError as error:
            raise _failed(f"{self.path}/{_LOCK}", error) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise HostError(f"{self.path}/{_LOCK} is no plain file.", "Remove it.")
            if status.st_uid == os.geteuid():
                os.fchmod(descriptor, 0o660)  # whatever the umask
            locks.wait(descriptor, self.path, _WAIT)
            for name in self.names():
                # What belongs to another user, who closed it, is that user's to mend.
                with suppress(OSError, LabError), self.open(name) as folder:
                    if _settle(folder):
                        _remove_if_empty(self.folder, name, folder)
            with suppress(HostError):  # without room there is none for it, and room is made here
                self.write_catalogue()
            yield
        finally:
            os.close(descriptor)

    def names(self) -> list[str]:
        """Return the names that datasets may have, of what is in the share."""
        found = []
        for name in sorted(os.listdir(self.folder)):
            with suppress(InvalidInput):
                found.append(names.share_name(name))
        return found

    @contextmanager
    def open(self, name: str, *, make: bool = False) -> Iterator[int]:
        """Open the folder of a dataset, with ``make`` also a new one; raise NotFound or InvalidInput."""
        names.share_name(name, "dataset")
        if make:
            with suppress(FileExistsError):
                os.mkdir(name, 0o775, dir_fd=self.folder)
        try:
            descriptor = os.open(name, _FOLDER, dir_fd=self.folder)
        except FileNotFoundError:
            raise NotFound(
                f"There is no dataset {name} in {self.share.name}.", "See 'lab share list'."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise InvalidInput(f"{self.path}/{name} is no folder.", "Choose another name.") from error
        try:
            status = os.fstat(descriptor)
            if make and status.st_uid == os.geteuid():
                # As the share itself: colleagues publish here, too, and everybody reads.
                os.fchmod(descriptor, stat.S_IMODE(os.fstat(self.folder).st_mode))
            yield descriptor
        finally:
            os.close(descriptor)

    def versions(self, name: str = "") -> list[Version]:
        """Return the published versions, of one dataset or all, by name and newest first; raise NotFound."""
        found = []
        for one in [name] if name else self.names():
            try:
                with self.open(one) as folder:
                    found += _versions(folder, one)
            except (OSError, InvalidInput, NotFound):
                continue  # what was put beside the datasets, or went away just now
        if name and not found:
            raise NotFound(f"There is no dataset {name} in {self.share.name}.", "See 'lab share list'.")
        return found

    def write_catalogue(self) -> None:
        """Bring the catalogue to what is there; raise HostError."""
        found = [(one.dataset, one.current) for one in self.versions() if one.dataset]
        text = datasets.catalogue(self.path, found).encode("utf-8", "backslashreplace")
        with suppress(LabError, OSError):
            if safefs.read_file(self.folder, CATALOGUE, len(text)) == text:
                return
        new = f".{CATALOGUE}.new"
        try:
            with suppress(FileNotFoundError):
                os.unlink(new, dir_fd=self.folder)
            _put(self.folder, new, text)
            os.rename(new, CATALOGUE, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        except OSError as error:
            raise HostError(
                f"The catalogue {self.path}/{CATALOGUE} could not be written: {error.strerror}.",
                "Whoever publishes here next writes it.",
            ) from error


def _put(folder: int, name: str, text: bytes) -> None:
    """Write a new file that nobody may change, to the disk; raise OSError."""
    descriptor = os.open(name, _NEW, 0o600, dir_fd=folder)
    try:
        _write(descriptor, text)
        os.fchmod(descriptor, 0o444)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _present(folder: int) -> list[str]:
    """Return the names of the versions in the open folder of a dataset."""
    found = []
    for name in os.listdir(folder):
        with suppress(InvalidInput, FileNotFoundError):
            datasets.version(name)
            if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                found.append(name)
    return sorted(found)


def _link(folder: int, name: str) -> str:
    """Return where a link in the open folder leads, "" if there is none."""
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:
        return ""


def record(folder: int, name: str, version: str) -> Dataset:
    """Return the record of a version in the open folder of its dataset; raise HostError."""
    try:
        dataset = datasets.parse(safefs.read_file(folder, f"{version}/{RECORD}", _RECORD_LIMIT))
    except (InvalidInput, NotFound, OSError) as error:
        said = f"{error.strerror}." if isinstance(error, OSError) else error.message
        raise HostError(f"{RECORD} of {name} {version} cannot be read: {said}") from error
    if (dataset.name, dataset.version) != (name, version):
        raise HostError(
            f"{RECORD} of {name} {version} is of another version.", "Retract it and publish it again."
        )
    return dataset


def _versions(folder: int, name: str) -> list[Version]:
    found, current = [], _link(folder, CURRENT)
    for version in _present(folder):
        try:
            dataset, problem = record(folder, name, version), ""
        except LabError as error:
            dataset, problem = None, error.message
        found.append(Version(name, version, version == current, dataset, problem))
    return sorted(
        found, key=lambda one: (one.dataset.published if one.dataset else 0, one.version), reverse=True
    )


# ---- what was broken off ---------------------------------------------------------------------------------


def _settle(folder: int) -> bool:
    """Finish what was broken off in the open folder of a dataset; raise OSError where that is not ours.

    Return whether leftovers were removed. A folder that was made without these commands is left as it is.
    """
    there = _present(folder)
    following = _link(folder, _NEXT)
    if following in there:
        # Its version got its name: all that was left to do was this.
        os.rename(_NEXT, CURRENT, src_dir_fd=folder, dst_dir_fd=folder)
    elif following:
        os.unlink(_NEXT, dir_fd=folder)
    if _link(folder, CURRENT) not in there:
        newest = _newest(folder, there)
        if newest:
            _lead_to(folder, newest)
    removed = False
    for name in os.listdir(folder):
        if _LEFTOVER.fullmatch(name):
            with suppress(FileNotFoundError):
                removed |= _discard(folder, name)
    return removed


def _newest(folder: int, there: list[str]) -> str:
    """Return which of the versions ``there`` was published last, "" if there is none."""
    dated = []
    for version in there:
        with suppress(LabError, OSError):
            text = safefs.read_file(folder, f"{version}/{RECORD}", _RECORD_LIMIT)
            dated.append((datasets.parse(text).published, version))
    return max(dated)[1] if dated else ""


def _lead_to(folder: int, version: str) -> None:
    """Let ``current`` lead to a version at once, or be gone for ""."""
    if version:
        _prepare(folder, version)
        os.rename(_NEXT, CURRENT, src_dir_fd=folder, dst_dir_fd=folder)
    elif _link(folder, CURRENT):
        os.unlink(CURRENT, dir_fd=folder)


def _prepare(folder: int, version: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(_NEXT, dir_fd=folder)
    os.symlink(version, _NEXT, dir_fd=folder)


def _discard(folder: int, name: str) -> bool:
    """Remove a tree that this user made and nobody is at work on; return whether it was such a one."""
    descriptor = os.open(name, _FOLDER, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        _empty(descriptor, status.st_dev)
    finally:
        os.close(descriptor)
    os.rmdir(name, dir_fd=folder)
    return True


def _empty(folder: int, device: int) -> None:
    """Remove what is in an open folder of this user's, and nothing of others or of another file system."""
    status = os.fstat(folder)
    if status.st_uid != os.geteuid() or status.st_dev != device:
        return
    os.fchmod(folder, 0o700)
    for name in os.listdir(folder):
        try:
            os.unlink(name, dir_fd=folder)
        except IsADirectoryError:
            below = os.open(name, _FOLDER, dir_fd=folder)
            try:
                _empty(below, device)
            finally:
                os.close(below)
            os.rmdir(name, dir_fd=folder)


def _remove_if_empty(share: int, name: str, folder: int) -> None:
    """Remove the folder of a dataset that has nothing in it."""
    if not os.listdir(folder):
        with suppress(OSError):
            os.rmdir(name, dir_fd=share)


# ---- publishing ------------------------------------------------------------------------------------------


def existing(place: Place, wanted: Dataset, source: int, progress: Progress = _silent) -> Outcome | None:
    """Return the outcome if ``wanted`` is published just so, None if there is no such version.

    Raises Refused if that version is another one: what is published does not change.
    """
    try:
        with place.open(wanted.name) as folder:
            if wanted.version not in _present(folder):
                return None
            there = record(folder, wanted.name, wanted.version)
            current = _link(folder, CURRENT)
    except NotFound:
        return None
    tree = Tree()
    _scan(source, None, tree, reading=True, progress=progress)
    manifest = hashed(datasets.manifest(tree.files))
    differing = [
        word
        for word, same in (
            ("content", (manifest, datasets.many_links(tree.links)) == (there.manifest, there.links)),
            ("source", wanted.source == there.source),
            ("licence", wanted.licence == there.licence),
            ("description", wanted.description in ("", there.description)),
        )
        if not same
    ]
    if differing:
        raise Refused(
            f"{wanted.name} {wanted.version} is published already, with another {' and '.join(differing)}.",
            "A published version does not change: publish it under another version.",
        )
    return Outcome(False, current, there)


def publish(place: Place, wanted: Dataset, source: int, progress: Progress = _silent) -> Outcome:
    """Publish an open folder as a version of a dataset, and let ``current`` lead to it.

    Of ``wanted`` what is not known yet (size, files, manifest, links, published) is filled in. ``progress``
    is told how many bytes were copied, each time. What readers see changes when all is on the disk. Raises
    Refused if the version is there and another one, InvalidInput for what cannot be published, and HostError.
    """
    survey(source)
    with place.locked():
        pass  # what was broken off is finished, also if there is nothing else to do
    known = existing(place, wanted, source, progress)
    if known:
        return known
    staging = f".incoming-{secrets.token_hex(8)}"
    with place.locked(), place.open(wanted.name, make=True) as folder:
        kept = os.dup(folder)
        incoming = -1
        try:
            incoming = _make(folder, staging)
            fcntl.flock(incoming, fcntl.LOCK_EX)
        except OSError as error:
            os.close(kept)
            if incoming >= 0:
                os.close(incoming)
            raise _failed(f"{place.path}/{wanted.name}", error) from error
    done = False
    try:
        dataset = _fill(incoming, source, wanted, progress)
        with place.locked():
            outcome = _expose(place, kept, staging, dataset)
            done = True
        return outcome
    except FileExistsError:
        # Somebody published that version meanwhile.
        known = existing(place, wanted, source, progress)
        if known is None:
            raise HostError("Others change this dataset just now.", "Try again.") from None
        return known
    finally:
        os.close(incoming)
        if not done:
            with suppress(OSError):
                _discard(kept, staging)
                _remove_if_empty(place.folder, wanted.name, kept)
        os.close(kept)


def _fill(incoming: int, source: int, wanted: Dataset, progress: Progress) -> Dataset:
    """Copy the files, write manifest and record, and see that all of it is on the disk; return the record."""
    tree = Tree()
    _scan(source, incoming, tree, reading=True, progress=progress)
    _check_links(tree)
    manifest = datasets.manifest(tree.files)
    if len(manifest) > _MANIFEST_LIMIT:
        raise InvalidInput(f"{len(tree.files)} files are too many.", "Publish archives of many files each.")
    dataset = replace(
        wanted,
        published=int(time.time()),
        size=tree.size,
        files=len(tree.files),
        manifest=hashed(manifest),
        links=datasets.many_links(tree.links),
    )
    try:
        _put(incoming, MANIFEST, manifest)
        _put(incoming, RECORD, datasets.render(dataset))
        safefs.sync_all(incoming)
        os.fchmod(incoming, 0o555)
        os.fsync(incoming)
    except OSError as error:
        raise _failed(wanted.name, error) from error
    return dataset


def _expose(place: Place, folder: int, staging: str, dataset: Dataset) -> Outcome:
    """Give a complete version its name, then let ``current`` lead to it; raise FileExistsError, HostError."""
    try:
        _prepare(folder, dataset.version)
        try:
            safefs.move(folder, staging, folder, dataset.version)
        except OSError:
            os.unlink(_NEXT, dir_fd=folder)
            raise
        os.rename(_NEXT, CURRENT, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    except FileExistsError:
        raise
    except OSError as error:
        raise _failed(f"{place.path}/{dataset.name}", error) from error
    return _told(place, Outcome(True, dataset.version, dataset))


def _told(place: Place, outcome: Outcome) -> Outcome:
    """Write the catalogue; what was done stands if that fails, and is told."""
    try:
        place.write_catalogue()
    except HostError as error:
        return replace(outcome, problem=str(error))
    return outcome


# ---- retracting ------------------------------------------------------------------------------------------


def retract(place: Place, name: str, version: str) -> Outcome:
    """Take a version back: at once for readers, then its files are removed; raise NotFound or HostError.

    ``current`` leads to the newest version that is left. Files of another user stay, hidden, until that user
    publishes or retracts something here; root removes them as that user.
    """
    with place.locked(), place.open(name) as folder:
        there = _present(folder)
        if version not in there:
            raise NotFound(
                f"There is no version {version} of {name}.",
                f"See 'lab share show {place.share.name} {name}'.",
            )
        hidden = f".retracted-{secrets.token_hex(8)}"
        try:
            if _link(folder, CURRENT) == version:
                _lead_away(folder, _newest(folder, [one for one in there if one != version]))
            safefs.move(folder, version, folder, hidden)
            os.fsync(folder)
        except OSError as error:
            raise _failed(f"{place.path}/{name}/{version}", error) from error
        problem = _remove(folder, hidden)
        with suppress(OSError):
            _settle(folder)
        outcome = _told(place, Outcome(True, _link(folder, CURRENT)))
        _remove_if_empty(place.folder, name, folder)
    return replace(outcome, problem=problem or outcome.problem)


def _lead_away(folder: int, version: str) -> None:
    """Let ``current`` lead to another version; without room for the link it is gone until there is."""
    try:
        _lead_to(folder, version)
    except OSError as error:
        if error.errno not in (errno.EDQUOT, errno.ENOSPC):
            raise
        os.unlink(CURRENT, dir_fd=folder)


def _remove(folder: int, hidden: str) -> str:
    """Remove what was retracted; return a sentence if it stays."""
    try:
        status = os.stat(hidden, dir_fd=folder, follow_symlinks=False)
        if os.geteuid() == 0 and status.st_uid != 0:
            # As its owner: root walks through no folder that others can change.
            owner = Identity(status.st_uid, status.st_gid)
            run_as_user(owner, lambda: _discard(folder, hidden), _REMOVING, keep=(folder,))
        else:
            _discard(folder, hidden)
        os.stat(hidden, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return ""
    except (OSError, LabError) as error:
        said = error.strerror if isinstance(error, OSError) else error.message
        return f"Its files could not be removed: {said}"
    return "Its files are another user's: they are hidden, and removed when that user next publishes here."


# ---- verifying -------------------------------------------------------------------------------------------


def verify(place: Place, name: str, version: str, progress: Progress = _silent) -> list[str]:
    """Compare a version with its record and its manifest; return what differs, in words, none if all is well.

    Raises NotFound if there is no such version.
    """
    with place.open(name) as folder:
        if version not in _present(folder):
            raise NotFound(
                f"There is no version {version} of {name}.",
                f"See 'lab share show {place.share.name} {name}'.",
            )
        try:
            dataset = record(folder, name, version)
            text = safefs.read_file(folder, f"{version}/{MANIFEST}", _MANIFEST_LIMIT)
            expected = datasets.read_manifest(text)
        except LabError as error:
            return [str(error)]
        if hashed(text) != dataset.manifest:
            return [f"{MANIFEST} is not the one that was published."]
        descriptor = os.open(version, _FOLDER, dir_fd=folder)
    try:
        tree = Tree(writable=["."] if os.fstat(descriptor).st_mode & 0o222 else [])
        try:
            _scan(descriptor, None, tree, reading=True, progress=progress)
        except LabError as error:
            return [str(error)]
    finally:
        os.close(descriptor)
    for own in (MANIFEST, RECORD):
        tree.files.pop(own, None)
    return _differences(tree, expected, dataset)


def _differences(tree: Tree, expected: dict[str, str], dataset: Dataset) -> list[str]:
    found = [(path, "is missing") for path in sorted(set(expected) - set(tree.files))]
    found += [(path, "was added") for path in sorted(set(tree.files) - set(expected))]
    found += [
        (path, "was changed")
        for path in sorted(tree.files)
        if expected.get(path, "") not in ("", tree.files[path])
    ]
    links = dict(datasets.many_links(tree.links))
    then = dict(dataset.links)
    changed = {path for path in {*links, *then} if links.get(path) != then.get(path)}
    found += [(path, "is a link that was changed") for path in sorted(changed)]
    found += [(path, "can be written") for path in sorted(tree.writable)]
    return [f"{names.printable(path)} {words}" for path, words in found]
