# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The shared folders under the data root: owner, group, mode, setgid and default ACL.

A default ACL takes the place of the umask (acl(5)), so what one member of a group creates, another can edit.
Only the folders themselves are set; what is in them belongs to those who made it. A share with a size has a
project quota (``sharesize``).
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import mounts, sharesize
from .errors import HostError, InvalidInput
from .items import ItemResult
from .names import group_name, share_name
from .policy import Share
from .sizes import parse_size

# linux/posix_acl_xattr.h: version 2, then (tag, permissions, id) each
_ACL_XATTR = "system.posix_acl_default"
_ACL_HEADER, _ACL_ENTRY = struct.Struct("<I"), struct.Struct("<HHI")
_ACL_VERSION, _ACL_NO_ID = 2, 0xFFFFFFFF
_ACL_USER, _ACL_GROUP, _ACL_OTHER = 0x01, 0x04, 0x20


@dataclass(frozen=True)
class Folder:
    """How a folder is, or should be; ``acl`` is the default ACL in words, '' for none."""

    owner: int
    group: str
    mode: int
    acl: str

    def words(self) -> dict[str, str]:
        """Return the folder in words, for people and for diffs."""
        return {
            "owner": str(self.owner),
            "group": self.group,
            "mode": f"{self.mode:04o}",
            "default acl": self.acl or "none",
        }


def from_options(options: Mapping[str, Any]) -> Share:
    """Return one share of a module's list; raise InvalidInput."""
    name, access, group = share_name(options["name"]), options["access"], options.get("group") or ""
    if access == "group" and not group:
        raise InvalidInput(
            f"The share {name} has no group.", "A group share names the group that writes to it."
        )
    size = parse_size(options.get("size") or 0, f"the size of {name}")
    return Share(name=name, access=access, group=group_name(group) if group else "", size=size)


def wanted(share: Share) -> Folder:
    """Return how the folder of a share should be.

    read-only: its group, if it has one, publishes on the host and everybody reads; group: its members alone,
    all with the same rights; admin: root alone.
    """
    if share.access == "group":
        return Folder(0, share.group, 0o2770, "u::rwx,g::rwx,o::---")
    if share.access == "admin":
        return Folder(0, "root", 0o700, "")
    if share.group:
        return Folder(0, share.group, 0o2775, "u::rwx,g::rwx,o::r-x")
    return Folder(0, "root", 0o755, "")


def encode_acl(words: str) -> bytes:
    """Return a minimal ACL such as ``u::rwx,g::r-x,o::---`` as the kernel keeps it in an attribute."""
    packed = [_ACL_HEADER.pack(_ACL_VERSION)]
    for tag, entry in zip((_ACL_USER, _ACL_GROUP, _ACL_OTHER), words.split(",")):
        letters = entry.split("::", 1)[1]
        bits = sum(bit for letter, bit in zip("rwx", (4, 2, 1)) if letter in letters)
        packed.append(_ACL_ENTRY.pack(tag, bits, _ACL_NO_ID))
    return b"".join(packed)


def decode_acl(raw: bytes) -> str:
    """Return an ACL in words; entries for named users and groups are shown by number."""
    names = {_ACL_USER: "u:", 0x02: "u:", _ACL_GROUP: "g:", 0x08: "g:", 0x10: "m:", _ACL_OTHER: "o:"}
    words = []
    for tag, bits, number in _ACL_ENTRY.iter_unpack(raw[_ACL_HEADER.size :]):
        letters = "".join(letter if bits & bit else "-" for letter, bit in zip("rwx", (4, 2, 1)))
        words.append(f"{names.get(tag, '?:')}{'' if number == _ACL_NO_ID else number}:{letters}")
    return ",".join(words)


def plan(name: str, actual: Folder | None, target: Folder) -> ItemResult:
    """Compare a folder, None if there is none, with how it should be."""
    item = ItemResult(name)
    after = target.words()
    before = actual.words() if actual else {}
    differing = {key: value for key, value in after.items() if before.get(key) != value}
    if not differing:
        return item
    item.changed = True
    item.actions = [
        ("set " if actual else "make with ") + ", ".join(f"{k} {v}" for k, v in differing.items())
    ]
    item.reason = "the folder differs" if actual else "there is no such folder"
    item.diff = {"before": {key: before[key] for key in differing} if actual else {}, "after": differing}
    return item


def _open_root(path: str, *, make: bool) -> int | None:
    """Return a descriptor of the data root, which only root may change; None if there is none."""
    if make:
        os.makedirs(path, mode=0o755, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"{path} is no folder: {error.strerror}.", "Correct lab_data_root.") from error
    status = os.fstat(descriptor)
    if status.st_uid != 0 or stat.S_IMODE(status.st_mode) & 0o022:
        os.close(descriptor)
        raise HostError(
            f"{path} can be changed by others than root.", f"Run: chown root:root {path}; chmod 755 {path}"
        )
    return descriptor


def _open_folder(root: int, name: str) -> int | None:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise HostError(
                f"The share {name} is a link or a file, not a folder.", "Move it away."
            ) from error
        raise HostError(f"The share {name} cannot be opened: {error.strerror}.") from error


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _read(descriptor: int) -> Folder:
    status = os.fstat(descriptor)
    acl = ""
    try:
        acl = decode_acl(os.getxattr(descriptor, _ACL_XATTR))
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
    return Folder(status.st_uid, _group_name(status.st_gid), stat.S_IMODE(status.st_mode), acl)


@contextlib.contextmanager
def opened(data_root: str, share: Share, gid: int) -> Iterator[tuple[int, int]]:
    """Yield the open data root and the open folder of a share that is as it is declared.

    ``gid`` is the number of its group. Raises HostError.
    """
    root, folder = _open_root(data_root, make=False), None
    try:
        if root is not None:
            folder = _open_folder(root, share.name)
        if root is None or folder is None or _read(folder) != _numbered(share, gid):
            raise HostError(
                f"The share {share.name} is not on this server as it is declared.",
                "Run lab.server.site first.",
            )
        yield root, folder
    finally:
        for descriptor in (folder, root):
            if descriptor is not None:
                os.close(descriptor)


def _numbered(share: Share, gid: int) -> Folder:
    return replace(wanted(share), group=_group_name(gid))


def give(descriptor: int, share: Share, uid: int, gid: int) -> None:
    """Make an open folder one that is to be in a share: its group, mode and default ACL, and a user's."""
    _set(descriptor, wanted(share), uid, gid)


def _apply(descriptor: int, target: Folder) -> None:
    _set(descriptor, target, target.owner, grp.getgrnam(target.group).gr_gid)


def _set(descriptor: int, target: Folder, uid: int, gid: int) -> None:
    os.fchown(descriptor, uid, gid)
    os.fchmod(descriptor, target.mode)
    if target.acl:
        os.setxattr(descriptor, _ACL_XATTR, encode_acl(target.acl))
        return
    try:
        os.removexattr(descriptor, _ACL_XATTR)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise


def _reconcile_one(root: int | None, share: Share, device: str, *, check: bool) -> ItemResult:
    target = wanted(share)
    descriptor = None if root is None else _open_folder(root, share.name)
    try:
        item = plan(share.name, None if descriptor is None else _read(descriptor), target)
        if not check and item.changed and root is not None:
            if descriptor is None:
                os.mkdir(share.name, 0o700, dir_fd=root)
                descriptor = _open_folder(root, share.name)
            if descriptor is not None:
                _apply(descriptor, target)
        sharesize.fit(descriptor, share, root, device, item, check=check)
        return item
    finally:
        if descriptor is not None:
            os.close(descriptor)


def reconcile(data_root: str, shares: Sequence[Share], *, mounted: bool, check: bool) -> list[ItemResult]:
    """Bring the folders of the shares to what is declared; folders that are not declared are left alone.

    ``mounted`` says that the data root has a file system of its own, without which nothing is made.
    Raises HostError, before anything is touched, if the data root is not safe or a group does not exist.
    """
    if mounted and not check and mounts.at(data_root, mounts.read()) is None:
        raise HostError(f"{data_root} is not mounted.", "Run the role storage first, or look for its disk.")
    if not check:
        for share in shares:
            _known_group(share)
    root = _open_root(data_root, make=not check)
    device = mounts.holding(data_root, mounts.read()).source
    items = []
    try:
        for share in shares:
            try:
                items.append(_reconcile_one(root, share, device, check=check))
            except (HostError, OSError) as error:
                items.append(ItemResult(share.name, failed=True, message=str(error)))
    finally:
        if root is not None:
            os.close(root)
    return items


def _known_group(share: Share) -> None:
    group = wanted(share).group
    try:
        grp.getgrnam(group)
    except KeyError:
        raise HostError(
            f"The share {share.name} belongs to the group {group}, which does not exist on this server.",
            "Declare it in lab_groups and run the role users first.",
        ) from None
