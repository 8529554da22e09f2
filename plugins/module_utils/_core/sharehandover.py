# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A project of who leaves goes to a group share, as a folder that all members of its group work on.

The files stay those of who left, whose uid is never given again, so that what is added to them counts for
somebody: root's files count for nobody. Their group is the share's, which gets the rights that the owner had.

All is unpacked by a child that has become that user, with the group of the share, in a folder of the data
root that root alone can enter. It gets its place in the share by one rename(2), whole and on the disk.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from . import archive, asuser, mounts, quota, safefs, shares, sharesize, tree
from .errors import HostError, LabError, NotFound, Refused
from .names import printable
from .policy import Policy, Share
from .quota import PROJECT, USER
from .sizes import format_size

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TIMEOUT = 24 * 3600.0  # seconds for one project
_NO_FILE_LIMIT = 1 << 50  # bytes; the quotas and the disk are the bound
# Below the data root; no share has the name.
_HANDED = ".handed"


def share_of(policy: Policy, name: str) -> Share:
    """Return the group share of the name; raise NotFound or Refused."""
    for share in policy.shares:
        if share.name != name:
            continue
        if share.access != "group":
            raise Refused(
                f"The share {name} has 'access: {share.access}', so no group could go on with it there.",
                "Name a share with 'access: group'.",
            )
        return share
    raise NotFound(f"There is no share {printable(name)}.", "Correct hand_over, or declare it in lab_shares.")


def check(policy: Policy, share: Share, name: str, uid: int, size: int) -> None:
    """Raise LabError where a project of so many bytes cannot have the name in the share."""
    with shares.opened(policy.data_root, share, _gid(policy, share)) as (root, folder):
        if _is_there(folder, name):
            raise _taken(policy, share, name)
        _check_room(policy, share, root, uid, size)


def take_over(
    policy: Policy, share: Share, name: str, uid: int, number: int, size: int, *, begun: bool
) -> None:
    """Unpack the archive that is open as ``number`` as the folder ``name`` of the share.

    ``begun`` says that it was begun before: what is there and the same is it. Raises LabError.
    """
    gid = _gid(policy, share)
    who = asuser.Identity(uid, gid)
    made = f"{uid}-{share.name}"
    with contextlib.ExitStack() as opened:
        root, folder = opened.enter_context(shares.opened(policy.data_root, share, gid))
        above = opened.enter_context(_handed(root, made, who))
        if _is_there(folder, name):
            if begun and _become(who, lambda: _is_same(folder, name, number), folder, number):
                return  # it was done, and the run broken off before that was noted
            raise _taken(policy, share, name)
        _check_room(policy, share, root, uid, size)
        with _made(above, made, share, uid, gid) as making:
            project = sharesize.numbers(root).get(share.name, 0)
            if project:
                quota.set_project(making, project)
            _become(who, lambda: _unpack(making, number), making, number)
            safefs.sync_all(making)
        try:
            _place(above, made, folder, name)
        except FileExistsError as error:
            raise _taken(policy, share, name) from error


def _place(above: int, made: str, folder: int, name: str) -> None:
    """Give what was made its place in the share, and return when that lasts."""
    safefs.move(above, made, folder, name)
    os.fsync(folder)


def _gid(policy: Policy, share: Share) -> int:
    return policy.group(share.group).gid


def _is_there(folder: int, name: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        os.stat(name, dir_fd=folder, follow_symlinks=False)
        return True
    return False


def _taken(policy: Policy, share: Share, name: str) -> Refused:
    return Refused(f"{policy.share_path(share)}/{name} is there already.", "Give the project another 'name'.")


def _check_room(policy: Policy, share: Share, root: int, uid: int, size: int) -> None:
    """Raise Refused where so many bytes do not fit: on the disk, in the share, in what the user may have."""
    disk = os.fstatvfs(root)
    device = mounts.holding(policy.data_root, mounts.read()).source
    enforced = quota.enforced(device)
    rooms = [(disk.f_frsize * disk.f_bavail, "the disk of the shares", "Make room on it.")]
    project = sharesize.numbers(root).get(share.name, 0)
    bounds = [
        (
            PROJECT,
            project,
            f"the share {share.name}",
            "Give it more 'size' in lab_shares, or make room in it.",
        )
    ]
    bounds.append((USER, uid, f"the quota of uid {uid} there", "Give the user more 'data_size'."))
    for kind, number, where, hint in bounds:
        if number and kind in enforced:
            used = quota.read(device, kind, number)
            if used.quota.hard:
                rooms.append((max(0, used.quota.hard - used.used), where, hint))
    for room, where, hint in rooms:
        if size > room:
            raise Refused(
                f"The project has {format_size(size)}, and {where} has room for {format_size(room)}.", hint
            )


# The folder that it is unpacked in


@contextlib.contextmanager
def _handed(root: int, made: str, who: asuser.Identity) -> Iterator[int]:
    """Yield an open folder that root alone can enter; what is left in it is removed, before and after."""
    try:
        safefs.make_directory(root, _HANDED, 0o700)
        above = safefs.open_beneath(root, _HANDED, _FOLDER)
        try:
            os.fchmod(above, 0o700)
            _clear(above, made, who)
            try:
                yield above
            finally:
                _clear(above, made, who)
        finally:
            os.close(above)
        os.rmdir(_HANDED, dir_fd=root)
    except OSError as error:
        raise HostError(
            f"The project could not get its place in the share: {error.strerror or error}.",
            "See to it, then run it again.",
        ) from error


def _clear(above: int, made: str, who: asuser.Identity) -> None:
    """Remove what is left of a folder that was made here."""
    try:
        left = os.open(made, _FOLDER, dir_fd=above)
    except FileNotFoundError:
        return
    try:
        # One that is root's still is one whose making was broken off, with nothing in it.
        if os.fstat(left).st_uid == who.uid:
            _become(who, lambda: tree.empty(left), left)
    finally:
        os.close(left)
    os.rmdir(made, dir_fd=above)


@contextlib.contextmanager
def _made(above: int, made: str, share: Share, uid: int, gid: int) -> Iterator[int]:
    os.mkdir(made, 0o700, dir_fd=above)
    making = os.open(made, _FOLDER, dir_fd=above)
    try:
        shares.give(making, share, uid, gid)
        yield making
    finally:
        os.close(making)


def _become(who: asuser.Identity, function: Any, *keep: int) -> Any:
    """Call a function in a child that has become the user, with the group of the share."""
    return asuser.run_as_user(who, function, _TIMEOUT, keep=keep, file_limit=_NO_FILE_LIMIT)


# In the child, which is the user


def _alike(entry: archive.Entry) -> archive.Entry:
    """Return an entry with the mode that it has in a share: as the owner so the group, and nobody else.

    Folders are those of a share; files have no setuid, setgid and sticky bits.
    """
    if entry.kind == "d":
        return replace(entry, mode=0o2770)
    owner = entry.mode & stat.S_IRWXU
    return replace(entry, mode=owner | owner >> 3)


class _Unpacking(archive.Unpacking):
    def __init__(self, folder: int) -> None:
        super().__init__(folder, own=True)

    def folder(self, entry: archive.Entry) -> None:
        super().folder(_alike(entry))

    def file(self, entry: archive.Entry, source: Any) -> None:
        super().file(_alike(entry), source)


class _Comparing(archive.Comparing):
    def folder(self, entry: archive.Entry) -> None:
        super().folder(_alike(entry))

    def file(self, entry: archive.Entry, source: Any) -> None:
        super().file(_alike(entry), source)


def _unpack(folder: int, number: int) -> None:
    with os.fdopen(number, "rb", closefd=False) as file:
        visitor = _Unpacking(folder)
        archive.read(file, visitor)
        visitor.finish()


def _is_same(share: int, name: str, number: int) -> bool:
    try:
        folder = safefs.open_beneath(share, name, _FOLDER)
        try:
            with os.fdopen(number, "rb", closefd=False) as file:
                archive.read(file, _Comparing(folder))
        finally:
            os.close(folder)
    except (LabError, OSError):
        return False
    return True
