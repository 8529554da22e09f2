# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Measure quotas on a provisioned server, as root: set for many users, found unchanged, and by setquota.

tools/bench.py sends it there; it answers in JSON, with seconds. The uids are nobody's, and have no limit
afterwards.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

LIBRARY = "/usr/local/lib/lab-server/current"
FIRST_UID = 50_000


def main() -> None:
    """Measure ``limits.py USERS LOOP``: so many users at once, and so many calls of setquota(8)."""
    users, loop = (int(word) for word in sys.argv[1:3])
    sys.path.insert(0, LIBRARY)
    from _core import quota, quotaset
    from _core.policy import Quota

    limits = Quota(9 << 30, 10 << 30, 900_000, 1_000_000)

    def reconcile(wanted: Quota) -> tuple[float, int]:
        everybody = [quota.Wanted(f"user{one}", FIRST_UID + one, wanted) for one in range(users)]
        started = time.perf_counter()
        items = quotaset.reconcile(
            "/home", everybody, project=True, common=quotaset.Common(), places=[], check=False
        )
        return time.perf_counter() - started, sum(item.changed for item in items)

    reconcile(quota.NO_LIMIT)
    scratch, changed = reconcile(limits)
    again, drifted = reconcile(limits)
    started = time.perf_counter()
    for one in range(loop):
        words = [str(number) for number in (8 << 20, 9 << 20, 800_000, 900_000)]
        subprocess.run(["setquota", "-u", str(FIRST_UID + one), *words, "/home"], check=True)
    by_loop = time.perf_counter() - started
    reconcile(quota.NO_LIMIT)
    print(
        json.dumps(
            {
                "scratch": scratch,
                "changed": changed,
                "unchanged": again,
                "drifted": drifted,
                "loop": by_loop / loop * users,
            }
        )
    )


if __name__ == "__main__":
    main()
