# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The systemd slices that hold what all containers of one user use together (systemd.slice(5)).

``lab-2001.slice`` is by its name a child of ``lab.slice``. A unit file takes effect on a running slice at
the next ``systemctl daemon-reload``.
"""

from __future__ import annotations

import math

from .names import printable, slice_name

ROOT_SLICE = "lab.slice"
_HEAD = "# Managed by lab.server; changes are lost.\n[Unit]\n"


def root_unit() -> tuple[str, str]:
    """Return (file name, text) of the slice that holds the slices of all lab users."""
    return ROOT_SLICE, f"{_HEAD}Description=Containers of all lab users\n"


def user_unit(name: str, uid: int, *, cpus: float, memory: int, pids: int) -> tuple[str, str]:
    """Return (file name, text) of the slice of a user; ``memory`` in bytes, ``cpus`` in cores.

    Memory is without swap, as in the containers themselves (systemd.resource-control(5)).
    """
    text = (
        f"{_HEAD}Description=Containers of the lab user {printable(name)}\n\n[Slice]\n"
        f"MemoryMax={memory}\nMemorySwapMax=0\nCPUQuota={max(1, math.ceil(cpus * 100))}%\nTasksMax={pids}\n"
    )
    return slice_name(uid), text
