# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files between a workspace and object storage: what is meant, what is to be copied, and how it comes in.

Only folders and files of the caller's own workspace are taken; links are not followed. What is pulled goes
to a hidden folder of the workspace first, is compared there, and then takes its place file by file, so that
nothing half done and nothing that was changed here is ever overwritten.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import posixpath
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from . import names, objectrules, quota, safefs, where
from .errors import InvalidInput, LabError, NotFound, Refused
from .objectrules import Endpoint
from .policy import Policy, User
from .rclone import DIFFERENT, ONLY_SOURCE, ONLY_TARGET, SAME, Comparison, Listing
from .sizes import format_size

#: What is pulled and has not its place yet, below the workspace.
STAGES = ".pull"
_LONGEST_PREFIX = 900  # bytes; a key of S3 has 1024 at most, and names come behind it
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
# rclone's signs for a line's end and for the parts "." and ".." in a name, and for what is no UTF-8.
_ENCODED = re.compile("[\u201b\u2400-\u2421\uff0e\uff0f]")
_LINE_END, _DOTS, _NO_TEXT = "\u240a", ("", "\uff0e", "\uff0e\uff0e"), "\ufffd"


@dataclass(frozen=True)
class Place:
    """A place at an object storage: an endpoint, a bucket in it, and a folder or file in that, or ""."""

    endpoint: Endpoint
    bucket: str
    prefix: str = ""

    @property
    def root(self) -> str:
        """The place as rclone knows it."""
        return f"{self.endpoint.name}:{self.bucket}{'/' if self.prefix else ''}{self.prefix}"

    @property
    def holding(self) -> Place:
        """The folder that holds it."""
        return Place(self.endpoint, self.bucket, posixpath.dirname(self.prefix))


@dataclass(frozen=True)
class Local:
    """A folder of the workspace, or one file in it (``name``).

    ``path`` is the folder, without links, and ``inside`` the same from the workspace on.
    """

    path: str
    inside: str
    name: str = ""

    @property
    def shown(self) -> str:
        """Return it for people."""
        return "~/workspace/" + names.printable(posixpath.join(self.inside, self.name).rstrip("/"))


@dataclass(frozen=True)
class Plan:
    """What a copy would do, by name; ``size`` is the bytes that would be copied.

    ``left_out`` are links, what is no plain file, and names that cannot be there on the other side.
    """

    new: tuple[str, ...]
    differing: tuple[str, ...]
    same: tuple[str, ...]
    extra: tuple[str, ...]
    left_out: tuple[str, ...]
    size: int

    @property
    def copied(self) -> list[str]:
        """What would be copied where what differs is replaced."""
        return sorted((*self.new, *self.differing))


# What is meant


def place(policy: Policy, user: User, text: str, default_prefix: str = "") -> Place:
    """Return what ``[ENDPOINT:]BUCKET[/PREFIX]`` means; "" is the user's first bucket, where there is one.

    Raises InvalidInput, NotFound for an unknown endpoint, and Refused.
    """
    if not policy.object_storage:
        raise Refused(
            "This server has no object storage.", "Ask your admins: lab_object_storage declares it."
        )
    first, slash, prefix = text.partition("/")
    head, _colon, bucket = first.rpartition(":")
    endpoint = _endpoint(policy, head)
    allowed = endpoint.buckets_of(user)
    if not bucket and not allowed:
        raise InvalidInput(
            f"Say which bucket of {endpoint.name}.", f"Write it as {endpoint.name}:BUCKET/FOLDER."
        )
    if not bucket and not slash:
        bucket, prefix = allowed[0], default_prefix
    objectrules.bucket_name(bucket, "bucket")
    if allowed and bucket not in allowed:
        raise Refused(f"{bucket} is no bucket of yours at {endpoint.name}.", f"Yours: {', '.join(allowed)}.")
    return Place(endpoint, bucket, _prefix(prefix))


def _endpoint(policy: Policy, name: str) -> Endpoint:
    known = [one.name for one in policy.object_storage]
    if not name and len(known) > 1:
        raise InvalidInput(
            f"Say which object storage: {', '.join(known)}.", "Write it as NAME:BUCKET/FOLDER."
        )
    found = [one for one in policy.object_storage if not name or one.name == name]
    if not found:
        raise NotFound(
            f"'{names.printable(name)[:40]}' is no object storage of this server.",
            f"It has {', '.join(known)}.",
        )
    return found[0]


def _prefix(text: str) -> str:
    prefix = text.rstrip("/")
    parts = prefix.split("/") if prefix else []
    plain = prefix.isprintable() and len(prefix.encode("utf-8", "replace")) <= _LONGEST_PREFIX
    if not plain or any(part in (".", "..", "") or part.strip() != part for part in parts):
        raise InvalidInput(
            f"'{names.printable(text)[:80]}' is no folder of a bucket.", "Write it as BUCKET/a/b."
        )
    return prefix


def local(policy: Policy, user: User, text: str) -> Local:
    """Return the folder or file of the workspace that ``text`` means; it need not be there.

    A path that begins with "/" or "." is the shell's, others begin at the workspace. Links on the way are
    followed, and where they lead must be in the workspace, too. Raises InvalidInput and Refused.
    """
    workspace = policy.workspace(user)
    if not text or "\0" in text:
        raise InvalidInput("An empty path names nothing.", "Name a project or a folder of your workspace.")
    path = text if text.startswith(("/", ".")) else posixpath.join(workspace, text)
    found = where.resolve(path, posixpath.join(user.home, "workspace"))
    shown = names.printable(text)[:80]
    if found.loop or not where.below(found.real, workspace):
        raise Refused(f"{shown} is not in your workspace.", "Only files of ~/workspace are copied.")
    if found.real == workspace:
        raise InvalidInput("That is all of your workspace.", "Name a project or a folder of it.")
    return Local(found.real, found.real[len(workspace) + 1 :])


def source(policy: Policy, user: User, text: str) -> Local:
    """Return the folder or file to push; raise NotFound, or what ``local`` raises."""
    found = local(policy, user, text)
    try:
        mode = os.lstat(found.path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{found.shown} is not there.", "Look at its name.") from None
    if stat.S_ISDIR(mode):
        return found
    folder, name = posixpath.split(found.path)
    if not stat.S_ISREG(mode):
        raise InvalidInput(f"{found.shown} is no file and no folder.", "Name one of these.")
    if not name.isprintable() or _ENCODED.search(name):
        # rclone writes these otherwise; of a folder it lists them itself.
        raise InvalidInput(f"{found.shown} has a name that is not plain.", "Push the folder that it is in.")
    return Local(folder, posixpath.dirname(found.inside), name)


# What is to be done


def usable(name: str) -> bool:
    """Say whether a file of that name, as rclone writes it, can be on both sides."""
    return not (
        _LINE_END in name.replace("\u201b" + _LINE_END, "")
        or _NO_TEXT in name
        or any(part in _DOTS for part in name.split("/"))
    )


def plan(listing: Listing, compared: Comparison, *, replace: bool = True) -> Plan:
    """Return what to do with the files of a source, which compare so with their target.

    Without ``replace`` what differs is left as it is. A file of which the comparison says nothing came
    meanwhile, or could not be read, and is left out.
    """
    good = {name: size for name, size in listing.files.items() if usable(name) and name in compared.signs}
    by_sign = {
        sign: tuple(name for name in compared.those(sign) if name in good)
        for sign in (SAME, ONLY_SOURCE, DIFFERENT)
    }
    wanted = by_sign[ONLY_SOURCE] + (by_sign[DIFFERENT] if replace else ())
    return Plan(
        new=by_sign[ONLY_SOURCE],
        differing=by_sign[DIFFERENT],
        same=by_sign[SAME],
        extra=tuple(name for name in compared.those(ONLY_TARGET) if usable(name)),
        left_out=tuple(sorted({*listing.skipped, *(set(listing.files) - set(good))})),
        size=sum(good[name] for name in wanted),
    )


def check_room(policy: Policy, user: User, size: int, files: int) -> None:
    """Raise Refused if so many bytes and files more cannot come into the workspace."""
    disk = os.statvfs(policy.workspace(user))
    room, slots = disk.f_bavail * disk.f_frsize, disk.f_favail
    whose = "the disk has"
    with contextlib.suppress(LabError):  # no quotas there
        used = quota.usage(policy, user)
        limits = used.quota
        if limits.hard and limits.hard - used.used < room:
            room, whose = max(limits.hard - used.used, 0), "your quota leaves"
        if limits.inodes_hard and limits.inodes_hard - used.inodes < slots:
            slots, whose = max(limits.inodes_hard - used.inodes, 0), "your quota leaves"
    if size > room:
        raise Refused(
            f"{format_size(size)} are to come, and {whose} room for {format_size(room)}.",
            "Make room: workspace usage, workspace clean. Or pull a part of it.",
        )
    # f_favail is 0 where the file system has no such bound.
    if files > slots > 0 or (files > slots and whose != "the disk has"):
        raise Refused(
            f"{files} files are to come, and {whose} room for {slots}.",
            "Make room: workspace usage, workspace clean. Or pull a part of it.",
        )


# How it comes in


@dataclass(frozen=True)
class Stage:
    """A hidden folder of the workspace for one pull: its path and an open descriptor."""

    path: str
    descriptor: int

    def size(self) -> int:
        """Return the bytes that an earlier pull, which was stopped, has left here."""
        total = 0
        for _root, _folders, files, root in os.fwalk(".", dir_fd=self.descriptor):
            for name in files:
                with contextlib.suppress(OSError):
                    total += os.lstat(name, dir_fd=root).st_size
        return total


@contextlib.contextmanager
def staged(workspace: str, origin: Place, target: str) -> Iterator[Stage]:
    """Hold the stage of a pull; the next pull of the same goes on with what is in it.

    Raises Refused while another one is at work there.
    """
    name = hashlib.sha256(f"{origin.root}\0{target}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    relative = f"{STAGES}/{name}"
    base = safefs.open_directory(workspace)
    try:
        safefs.make_directory(base, STAGES, 0o700)
        safefs.make_directory(base, relative, 0o700)
        descriptor = safefs.open_beneath(base, relative, _DIRECTORY)
    finally:
        os.close(base)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise
            raise Refused("The same is being pulled already.", "Wait until that is done.") from None
        if os.fstat(descriptor).st_nlink == 0:
            raise Refused("The same was pulled just now.", "Look at it, and say it again if need be.")
        yield Stage(posixpath.join(workspace, relative), descriptor)
    finally:
        for empty in (relative, STAGES):
            with contextlib.suppress(OSError):  # one in which something is stays for the next pull
                os.rmdir(posixpath.join(workspace, empty))
        os.close(descriptor)


def put_away(stage: Stage) -> None:
    """Remove what is in a stage that is done with; the lock is still held."""
    # What cannot be removed is the user's own, hidden, and found by the next pull of the same.
    shutil.rmtree(stage.path, ignore_errors=True)


def settle(workspace: str, stage: Stage, target: str, *, replace: bool) -> list[str]:
    """Move all files of a stage to their places below the folder ``target``; return those that were kept.

    Kept is what is there already, unless it is a plain file and ``replace`` is said, and what a link or
    a file in the place of a folder would lead elsewhere. No link is followed. Raises LabError and OSError.
    """
    kept: list[str] = []
    base = safefs.open_directory(workspace)
    try:
        inside = posixpath.relpath(target, workspace)
        _make_folders(base, inside)
        goal = safefs.open_beneath(base, inside, _DIRECTORY)
    finally:
        os.close(base)
    try:
        if replace:
            # No file of the user's may be gone for one that is not on the disk yet.
            safefs.sync_all(stage.descriptor)
        for folder, _folders, files, source_folder in os.fwalk(".", dir_fd=stage.descriptor):
            relative = posixpath.normpath(folder)
            inner = "" if relative == "." else relative
            if files and not _moved_all(source_folder, files, goal, inner, replace, kept):
                kept += [posixpath.join(inner, name) for name in files]
    finally:
        os.close(goal)
    return sorted(kept)


def _moved_all(
    source_folder: int, files: Sequence[str], goal: int, inner: str, replace: bool, kept: list[str]
) -> bool:
    """Move the files of one folder, adding to ``kept``; return False if their folder cannot be there."""
    try:
        if inner:
            _make_folders(goal, inner)
        here = safefs.open_beneath(goal, inner, _DIRECTORY) if inner else os.dup(goal)
    except InvalidInput:
        return False
    try:
        for name in files:
            if not _moved(source_folder, name, here, replace):
                kept.append(posixpath.join(inner, name))
    finally:
        os.close(here)
    return True


def _make_folders(base: int, path: str) -> None:
    parts = path.split("/")
    for number in range(len(parts)):
        safefs.make_directory(base, "/".join(parts[: number + 1]))


def _moved(source_folder: int, name: str, here: int, replace: bool) -> bool:
    try:
        safefs.move(source_folder, name, here, name)
    except FileExistsError:
        mode = os.stat(name, dir_fd=here, follow_symlinks=False).st_mode
        if not replace or not stat.S_ISREG(mode):
            return False
        os.rename(name, name, src_dir_fd=source_folder, dst_dir_fd=here)
    return True


def facts(made: Plan) -> dict[str, object]:
    """Return a plan as plain data for JSON."""
    return {
        "new": len(made.new),
        "differing": list(made.differing),
        "same": len(made.same),
        "bytes": made.size,
        "left_out": list(made.left_out),
    }
