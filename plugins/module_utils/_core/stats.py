# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a running container uses, from two looks at what Docker says of its cgroup. Pure functions."""

from __future__ import annotations

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


def _number(data: Any, *keys: str) -> int:
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return int(data) if isinstance(data, (int, float)) else 0
