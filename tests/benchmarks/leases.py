# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Measure a decision on GPUs, and print its row for docs/performance.md. No engine and no root is needed.

16 GPUs, each in 7 MIG instances; 200 containers, 100 of which hold an instance; 10 who wait. Docker's
listing is made beforehand, as it is measured elsewhere; the records are files, which are written and synced.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / ".ansible" / "collections"), str(ROOT / "tools")]

from ansible_collections.lab.server.plugins.module_utils import _core  # noqa: E402  # needs the path above
from ansible_collections.lab.server.plugins.module_utils._core import (  # noqa: E402  # as above
    gpuleases,
    gpurequests,
    locks,
    policy,
    spec,
    state,
)
from ansible_collections.lab.server.plugins.module_utils._core.gpudevices import Device  # noqa: E402  # as above
from bench_engine import Promise, Report, seconds  # noqa: E402  # as above

CARDS, PARTS, CONTAINERS, HOLDERS, WAITING, TURNS = 16, 7, 200, 100, 10, 50
ALLOWED = 20.0
LIMITS = {"containers": 9, "cpus": 1, "memory": "64m", "pids": 64, "shm": "1m", "gpus": 8}
QUOTA = {"soft": 0, "hard": 0, "inodes_soft": 0, "inodes_hard": 0}


def uuid(number: int, kind: str) -> str:
    """Return the uuid of a simulated device."""
    return f"{kind}-{number:08x}-0000-4000-8000-000000000000"


def devices() -> list[Device]:
    """Return the MIG instances."""
    return [
        Device(uuid(n, "MIG"), "MIG (simulated)", 10 << 30, "1g.10gb", uuid(n // PARTS, "GPU"), f"{n}")
        for n in range(CARDS * PARTS)
    ]


def lab() -> policy.Policy:
    """Return the policy of a server with a user for each container, and some who wait."""
    made, _keys = policy.from_inventory(
        {
            "lab_groups": [{"name": "students", "gid": 3101, "limits": LIMITS, "quota": QUOTA}],
            "lab_users": [
                {"name": f"user{n:03}", "uid": 5000 + n, "group": "students"}
                for n in range(CONTAINERS + WAITING + 1)
            ],
        }
    )
    return made


class Listing:
    """Docker's listing, which is there already."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []

    def containers(self) -> list[dict[str, Any]]:
        """Return it."""
        return self.items


def add(listing: Listing, made: policy.Policy, number: int) -> None:
    """Put a container there; the first of them hold an instance each."""
    user, lease = made.users[number], ""
    wanted = spec.decide(made, user, "work", own=spec.OwnWishes(gpus="1g.10gb" if number < HOLDERS else ""))
    if number < HOLDERS:
        lease = gpuleases.obtain(listing, made, user, wanted, devices).render()  # type: ignore[arg-type]  # a listing is all that it asks for
    listing.items.append(
        {
            "Id": f"{number:064x}",
            "Names": [f"/{wanted.name}"],
            "State": "running",
            "Created": 1,
            "Labels": spec.labels(wanted, lease),
        }
    )


def main() -> int:
    """Measure, print the row; return 0 when the promise is kept."""
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        state.STATE_DIRECTORY = _core.STATE_DIRECTORY = folder
        locks.RUN_DIRECTORY = _core.RUN_DIRECTORY = folder
        made, listing = lab(), Listing()
        for number in range(CONTAINERS):
            add(listing, made, number)
        for user in made.users[CONTAINERS : CONTAINERS + WAITING]:
            gpuleases.join(listing, made, user, "more", gpurequests.parse("2x1g.10gb"))  # type: ignore[arg-type]  # as above
        queue = Path(folder, "gpus/queue.json")
        waiting = len(json.loads(queue.read_text()))
        user, found = made.users[0], devices()
        wanted = spec.decide(made, user, "next", own=spec.OwnWishes(gpus="1g.10gb"))
        request = gpurequests.parse("1g.10gb")
        for what, work in (
            ("decided", lambda: gpuleases.tried(listing, made, user, request, found)),  # type: ignore[arg-type]  # as above
            ("given", lambda: gpuleases.obtain(listing, made, user, wanted, lambda: found)),  # type: ignore[arg-type]  # as above
        ):
            if what == "given":
                queue.write_text("[]")  # those who wait go first
                waiting = 0
            taken = []
            for _turn in range(TURNS):
                started = time.perf_counter()
                work()
                taken.append(time.perf_counter() - started)
            text = f"a lease {what}: {CARDS} GPUs in {PARTS} MIG instances each, {CONTAINERS} containers"
            text += f", {waiting} waiting" if waiting else ", recorded"
            report.add(text, f"{seconds(median(taken))}, at most {seconds(max(taken))}")
            report.promises.append(Promise(text, median(taken) * 1000, ALLOWED, " ms"))
    print(report.markdown())
    return 0 if all(one.kept for one in report.promises) else 1


if __name__ == "__main__":
    sys.exit(main())
