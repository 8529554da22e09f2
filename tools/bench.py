# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Measure the site playbook on a fresh virtual machine, and print a table for docs/performance.md.

First run and run that changes nothing with the example inventory; then the run that changes nothing with 10
and with 200 users, whose ratio is to stay below 1.25. ``--machine NAME`` measures the latter two on a machine
that is provisioned already, and keeps it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache import ToolError, run, say

ROOT = Path(__file__).resolve().parent.parent
SMALL, LARGE = 10, 200


@dataclass(frozen=True)
class Play:
    """What one run of the playbook took (seconds) and did."""

    seconds: float
    tasks: int
    changed: int


def play(name: str, variables: Mapping[str, object]) -> Play:
    """Run the site playbook against the machine ``name`` with further variables."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as extra:
        json.dump(variables, extra)
        extra.flush()
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        command = [program, "lab.server.site", "-i", "inventories/example", "-e", f"@{extra.name}"]
        environment = {**os.environ, "LAB_VM_NAME": name, "ANSIBLE_NOCOLOR": "1"}
        started = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - started
    found = re.search(r"ok=(\d+) +changed=(\d+)", done.stdout)
    if done.returncode != 0 or found is None:
        raise ToolError(f"The playbook failed.\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    return Play(seconds, int(found.group(1)), int(found.group(2)))


def users(number: int) -> dict[str, object]:
    """Return variables with ``number`` users of the example's groups by turns, and no projects."""
    groups = ("students", "researchers")
    people = [{"name": f"user{i:03}", "uid": 5000 + i, "group": groups[i % 2]} for i in range(number)]
    return {"lab_users": people, "lab_projects": []}


EXAMPLE: tuple[tuple[str, Mapping[str, object]], ...] = (
    ("first run, example inventory", {}),
    ("second run, nothing to change", {}),
)
USERS = tuple(
    (f"{number} users, {what}", users(number))
    for number in (SMALL, LARGE)
    for what in ("first run", "nothing to change")
)


def measure(name: str, runs: Sequence[tuple[str, Mapping[str, object]]]) -> bool:
    """Run on the machine ``name``, print the table, and return whether the ratio is as promised."""
    results: dict[str, Play] = {}
    for title, variables in runs:
        results[title] = play(name, variables)
        say(f"{title}: {results[title].seconds:.0f} s")
    print("| run | seconds | tasks | changed |\n|---|---|---|---|")
    for title, result in results.items():
        print(f"| {title} | {result.seconds:.0f} | {result.tasks} | {result.changed} |")
    small, large = (results[f"{number} users, nothing to change"] for number in (SMALL, LARGE))
    ratio = large.seconds / small.seconds
    text = f"{LARGE} users cost {ratio:.2f} times as much as {SMALL} when nothing changes"
    print(f"\n{text} (promised: 1.25 at most).")
    return ratio <= 1.25 and not small.changed and not large.changed


def measure_fresh(distro: str) -> bool:
    """Measure on a machine of its own, made for it and removed afterwards."""
    name = f"bench-{distro}"
    tool = [sys.executable, str(ROOT / "tools" / "vm.py")]
    run([sys.executable, str(ROOT / "tools" / "base_image.py"), "build", "python", "debian"])
    run([*tool, "destroy", name])
    run([*tool, "up", name, "--distro", distro], quiet=False)
    try:
        return measure(name, [*EXAMPLE, *USERS])
    finally:
        run([*tool, "destroy", name])


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Measure the site playbook on a fresh virtual machine.")
    parser.add_argument("--distro", default="debian-12")
    parser.add_argument("--machine", help="a machine that is provisioned already, and is kept")
    arguments = parser.parse_args()
    try:
        if arguments.machine:
            return 0 if measure(arguments.machine, USERS) else 1
        return 0 if measure_fresh(arguments.distro) else 1
    except ToolError as error:
        say(f"bench.py: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
