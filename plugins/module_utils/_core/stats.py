# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a running container uses, from two looks at what Docker says of its cgroup, and what it lacked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any


def measured(before: Mapping[str, Any], after: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return what was used between two answers of GET /containers/{id}/stats that are ``seconds`` apart.

    ``cpus`` is in cores, ``memory`` in bytes without what the kernel can take back at once (the inactive
    page cache, as 'docker stats' counts), ``pids`` a number. What Docker does not say is 0.
    """
    busy = _number(after, "cpu_stats", "cpu_usage", "total_usage")
    busy -= _number(before, "cpu_stats", "cpu_usage", "total_usage")
    memory = _number(after, "memory_stats", "usage")
    # cgroup v2 and v1 name it differently.
    cache = _number(after, "memory_stats", "stats", "inactive_file") or _number(
        after, "memory_stats", "stats", "total_inactive_file"
    )
    return {
        "cpus": round(max(0, busy) / 1e9 / seconds, 2) if seconds > 0 else 0.0,
        "memory": max(0, memory - cache),
        "pids": _number(after, "pids_stats", "current"),
    }


def oom_kills(pid: int, proc: str = "/proc", cgroups: str = "/sys/fs/cgroup") -> int:
    """Return how many processes of a container were ended for want of memory since it was started.

    ``pid`` is that of its first process on the host. Docker tells it of one that ended, but not of one that
    runs. Source: memory.events (cgroup v2), memory.oom_control (cgroup v1); 0 where neither can be read.
    """
    with contextlib.suppress(OSError, ValueError):
        with open(os.path.join(proc, str(int(pid)), "cgroup"), encoding="utf-8") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
        for _number_of_it, controllers, path in lines:
            places = {
                "": os.path.join(cgroups, path.lstrip("/"), "memory.events"),
                "memory": os.path.join(cgroups, "memory", path.lstrip("/"), "memory.oom_control"),
            }
            if controllers in places and os.path.exists(places[controllers]):
                with open(places[controllers], encoding="ascii") as file:
                    return int(dict(line.split() for line in file).get("oom_kill", 0))
    return 0


def _number(data: Any, *keys: str) -> int:
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return int(data) if isinstance(data, (int, float)) else 0
