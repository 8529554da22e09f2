# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Take a process of root's out of the reach of the user who had it started by sudo.

sudo(8) changes neither cgroup nor schedule. A user owns the cgroups of the own units (user@.service is
delegated) and can freeze what is in them, or see to it that it hardly ever runs, or is the first to be killed
for want of memory: with a lock of the server's in its hands, that stops everybody.
"""

from __future__ import annotations

import ctypes
import os

from . import hostfiles, slices
from .errors import HostError

_SYSTEMD = "/run/systemd/system"
# What ioprio_set(2) and prctl(2) are called with.
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_IOPRIO_WHO_PROCESS, _IOPRIO_CLASS_NONE = 1, 0
_PR_SET_TIMERSLACK, _TIMERSLACK = 29, 50_000  # nanoseconds, the kernel's own


def stand() -> None:
    """Let this process be in a cgroup of root's, and be treated like any other of root's.

    Where systemd does not run, as in a container, it stays in its cgroup. Raises HostError.
    """
    try:
        if os.path.isdir(_SYSTEMD):
            _change_cgroup(os.path.join(slices.CGROUPS, slices.ROOT_SLICE, slices.BROKER_SLICE))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("0")
    except OSError as error:
        raise HostError(f"The work cannot be set apart: {error}.", "Tell your admins.") from error
    # What fails here is not worth refusing the work: it would be slower.
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(_TIMERSLACK), 0, 0, 0)
    number = _IOPRIO_SET.get(os.uname().machine)
    if number is not None:
        libc.syscall(ctypes.c_long(number), _IOPRIO_WHO_PROCESS, 0, _IOPRIO_CLASS_NONE)


def _change_cgroup(folder: str) -> None:
    if not os.path.isdir(folder):  # the first call since the server started
        hostfiles.run(["systemctl", "start", slices.BROKER_SLICE])
    with open(os.path.join(folder, "cgroup.procs"), "w", encoding="ascii") as file:
        file.write("0")  # this process (cgroups(7))
