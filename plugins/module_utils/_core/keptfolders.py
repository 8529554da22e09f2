# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Folders of a container that are kept, with a size or without, of projects that IT declared (``keep``).

Each is a folder beside the kept home of the project, below folders of root's (``Policy.kept_source``). One
with a size is a project of its own on the file system of the homes, by which ``df`` tells that size. Root
remembers the number of that project and never reads it from the folder: its owner can take it out of the
project (chattr(1), -p), and what bounds the owner in any case is the user's own quota.
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import stat
from collections.abc import Sequence

from . import STATE_DIRECTORY, homes, locks, quota, safefs, sharesize, state
from .errors import HostError
from .policy import HOME_ROOT, KeptFolder, Policy, Project, Quota, User, kept_folders, kept_path
from .sizes import format_size

#: The lowest number of a kept folder's project. Those of shares are lower (sharesize.py), which counts where
#: homes and shared data are on one file system.
FIRST = 1 << 24
_RECORD = "kept-folders.json"
_LOCK = "kept-folders"


def reconcile(policy: Policy, user: User, projects: Sequence[Project], *, check: bool) -> list[str]:
    """Make the kept folders of a user's declared projects and set their sizes; return what was done.

    With ``check`` nothing is done and the same is returned. It may fork; call it before any thread is
    started. Raises LabError.
    """
    done = []
    for project in projects:
        where = f"keep of {project.name}"
        for kept in kept_folders(project.keep, where):
            kept_path(kept.path, policy.data_root, where)
            path = policy.kept_source(user, project.name, kept.path)
            try:
                done += _fit(policy, user, path, kept, check=check)
            except OSError as error:
                raise HostError(f"{path} could not be made: {error.strerror}.", "Look at it.") from error
    return done


def _fit(policy: Policy, user: User, path: str, kept: KeptFolder, *, check: bool) -> list[str]:
    """Make one folder and set its size."""
    new = not _is_there(user, path)
    if new and not check:
        homes.make_folder(policy, user, path)
    return [*([f"create {path}"] if new else []), *_sized(user, path, kept, new=new, check=check)]


def _is_there(user: User, path: str) -> bool:
    """Say whether a folder is there, and finished: one that is root's is one whose making was broken off."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (0, user.uid):
        raise HostError(
            f"{path} is not a folder of {user.name} ({user.uid}), so it is left alone.",
            "Give it back its owner, or move it away.",
        )
    return status.st_uid == user.uid


def _sized(user: User, path: str, kept: KeptFolder, *, new: bool, check: bool) -> list[str]:
    """Set the size of a folder; a new one, and one that never had a size, is in the project of its user."""
    with locks.hold(_LOCK):
        numbers = given_out()
        number = numbers.get(path, 0)
        if not kept.size and (new or not number):
            return []
        device = quota.device_of(HOME_ROOT)
        wanted = quota.in_blocks(Quota(0, kept.size, 0, 0))
        if quota.PROJECT not in quota.enforced(device):
            if kept.size and not check:
                raise HostError(
                    f"{kept.path} of {user.name} has a size, but {device or 'its disk'} enforces no project "
                    "quotas.",
                    "Declare lab_filesystems.home and run the role storage, or remove the size.",
                )
            return [_set(path, kept)] if kept.size else []
        if number and not new and quota.read(device, quota.PROJECT, number).quota == wanted:
            return []
        if check:
            return [_set(path, kept)]
        if not number:
            number = max([FIRST - 1, *numbers.values()]) + 1
            state.write_record(_RECORD, json.dumps({**numbers, path: number}, sort_keys=True))
        with safefs.opened(path) as folder:
            sharesize.give_tree(folder, number)
        # Last: a run that is broken off before it gives the tree to the project once more.
        quota.write(device, quota.PROJECT, number, wanted)
        return [_set(path, kept)]


def _set(path: str, kept: KeptFolder) -> str:
    return f"set size of {path} to {format_size(kept.size) if kept.size else 'no limit'}"


def given_out() -> dict[str, int]:
    """Return the numbers of the projects that were given out, by folder. Raises HostError."""
    text = state.read_record(_RECORD)
    if not text:
        return {}
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        return {str(path): int(number) for path, number in json.loads(text).items()}
    raise HostError(
        f"{posixpath.join(STATE_DIRECTORY, _RECORD)} is damaged.",
        "Remove it: sizes of kept folders are set anew then.",
    )
