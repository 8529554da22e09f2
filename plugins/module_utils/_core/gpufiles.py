# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The device files of the GPUs: which group may open them, where not everybody may.

The driver makes them as its parameters say (NVreg_DeviceFileMode and the like; the role
nvidia_container_toolkit sets them by ``device_gid``). A container with GPUs then needs that group, too, and
no other container does. Which GPUs it can open is held by its control group, not by this.

Source: the driver's README, "Modifying the properties of the NVIDIA device files".
"""

from __future__ import annotations

import os
import re
import stat

from .errors import HostError
from .policy import Policy
from .spec import ContainerSpec

FOLDER = "/dev"
# Those that every program that computes opens. The capabilities of MIG instances are files of their own.
_FILES = re.compile(r"nvidia(?:[0-9]+|ctl|-uvm)")


def gids(folder: str = "") -> tuple[int, ...]:
    """Return the groups that alone may read and write the device files; none where everybody may.

    0 stands for files that only root can open. Raises HostError where the folder cannot be read.
    """
    found = set()
    try:
        with os.scandir(folder or FOLDER) as entries:
            states = [one.stat(follow_symlinks=False) for one in entries if _FILES.fullmatch(one.name)]
    except OSError as error:
        raise HostError(f"{folder or FOLDER} cannot be read: {error.strerror}.") from error
    for status in states:
        if stat.S_ISCHR(status.st_mode) and status.st_mode & 0o006 != 0o006:
            found.add(status.st_gid if status.st_mode & 0o060 == 0o060 else 0)
    return tuple(sorted(found))


def further_groups(policy: Policy, spec: ContainerSpec) -> tuple[int, ...]:
    """Return the groups that a container with GPUs needs beside its user's, to open them.

    Raises HostError where the device files are root's alone, or of lab users whom this one is not among: the
    group would also open the files of those.
    """
    needed = tuple(gid for gid in gids() if gid not in (spec.gid, *spec.groups)) if spec.gpus else ()
    fix = "Tell your admins: nvidia_container_toolkit_device_gid is to be a group of its own."
    if 0 in needed:
        raise HostError("The GPUs' device files can be opened by root alone.", fix)
    known = {policy.lab_gid, *(one.gid for one in policy.groups), *(one.gid for one in policy.users)}
    for gid in needed:
        if gid in known:
            raise HostError(f"The GPUs' device files belong to a group of lab users (gid {gid}).", fix)
    return needed
