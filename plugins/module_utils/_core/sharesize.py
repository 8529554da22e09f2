# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Shares with a size: a project quota on the folder of a share and on all that is in it.

The folder, which is root's, holds the number of its project, so nothing else has to be remembered. Whoever
owns a file can take it out of the project (chattr(1), -p); what bounds a user in any case is data_size.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from . import quota
from .errors import HostError
from .items import ItemResult
from .policy import Quota, Share
from .quota import PROJECT
from .sizes import format_size

#: The lowest number of a share's project; those of users are their uids, which are lower (policy.py).
FIRST = 100_000
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_DEEPEST = 200  # folders that are open at once


def fit(
    folder: int | None, share: Share, root: int | None, device: str, item: ItemResult, *, check: bool
) -> None:
    """Bring the size of a share to what is declared, and add to ``item`` what was done.

    ``folder`` and ``root`` are the open folders of the share and of all shares, None where there is none yet.
    Raises HostError where a size is wanted that cannot be held.
    """
    enforced = PROJECT in quota.enforced(device)
    if not enforced:
        if share.size and not check:
            raise HostError(
                f"The share {share.name} has a size, but {device or 'its disk'} enforces no project quotas.",
                "Declare lab_filesystems.data and run the role storage, or remove the size.",
            )
        if share.size:
            _note(item, 0, share.size)
        return
    number = _number(folder) if folder is not None else 0
    used = quota.read(device, PROJECT, number) if number else quota.Usage(0, 0, quota.NO_LIMIT)
    wanted = quota.in_blocks(Quota(0, share.size, 0, 0))
    if used.quota == wanted:
        return
    _note(item, used.quota.hard, share.size)
    if used.quota.hard and 0 < wanted.hard < used.used:
        item.facts["notes"] = [
            f"It holds {format_size(used.used)}, more than its new size of {format_size(wanted.hard)}. "
            "Nothing is deleted; nothing can be added until so much is gone."
        ]
    if check or folder is None or root is None:
        return
    if not used.quota.hard:
        number = number or _free_number(root)
        give_tree(folder, number)
    # Last: as long as there is no limit, the next run gives the tree to the project once more.
    quota.write(device, PROJECT, number, wanted)


def _note(item: ItemResult, old: int, new: int) -> None:
    words = [format_size(size) if size else "no limit" for size in (old, new)]
    item.changed = True
    item.actions.append(f"set size {words[1]}")
    item.reason = item.reason or "the size differs"
    for key, word in zip(("before", "after"), words):
        item.diff[key] = {**item.diff.get(key, {}), "size": word}


def _number(folder: int) -> int:
    """Return the project of an open folder if it is a share's, 0 if it is none."""
    number, inherits = quota.get_project(folder)
    return number if number >= FIRST and inherits else 0


def numbers(root: int) -> dict[str, int]:
    """Return the projects of the folders right below an open one that are shares with a size, by name."""
    found = {}
    for name in sorted(os.listdir(root)):
        try:
            descriptor = os.open(name, _FOLDER, dir_fd=root)
        except OSError:
            continue  # a file or a link
        try:
            number = _number(descriptor)
        finally:
            os.close(descriptor)
        if number:
            found[name] = number
    return found


def _free_number(root: int) -> int:
    """Return a number above those of all folders beside each other, declared or not."""
    highest = FIRST - 1
    for descriptor in _children(root, folders_alone=True):
        highest = max(highest, quota.get_project(descriptor)[0])
    return highest + 1


def _children(folder: int, *, folders_alone: bool = False) -> Iterator[int]:
    """Yield an open descriptor of each folder and regular file in a folder; it is closed afterwards.

    No link is followed and nothing waited for; what is neither, and what went away meanwhile, is left out.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False)
            if not is_folder and (folders_alone or not entry.is_file(follow_symlinks=False)):
                continue
            try:
                descriptor = os.open(entry.name, _FOLDER if is_folder else _FILE, dir_fd=folder)
            except OSError:
                continue
            try:
                mode = os.fstat(descriptor).st_mode
                if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
                    yield descriptor
            finally:
                os.close(descriptor)


def give_tree(folder: int, project: int, depth: int = 0) -> int:
    """Give an open folder and all that is in it to a project; return how many files and folders that were.

    Each folder first, so that what is made in it meanwhile inherits the project. Another file system that is
    mounted below is left alone. Raises HostError.
    """
    if depth > _DEEPEST:
        raise HostError(f"There are folders that are more than {_DEEPEST} deep.", "Make them less deep.")
    quota.set_project(folder, project)
    device, count = os.fstat(folder).st_dev, 1
    for descriptor in _children(folder):
        status = os.fstat(descriptor)
        if status.st_dev != device:
            continue
        if stat.S_ISDIR(status.st_mode):
            count += give_tree(descriptor, project, depth + 1)
        else:
            quota.set_project(descriptor, project, inherit=False)
            count += 1
    return count
