# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Measure the site playbook on a fresh virtual machine, and print a table for docs/performance.md.

First run and run that changes nothing with the example inventory; then the run that changes nothing with 10
and with 200 users, whose ratio is to stay below 1.25; then the quotas of 1,000 users. ``--machine NAME``
measures all but the first two on a machine that is provisioned already, and keeps it; with ``--quotas`` the
last alone.
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
from vm import Machine

ROOT = Path(__file__).resolve().parent.parent
SMALL, LARGE = 10, 200
QUOTAS, LOOP = 1000, 100
"""Users whose quotas are set at once, and calls of setquota(8) from which its loop is extrapolated."""
SCRATCH, UNCHANGED = 2.0, 0.5
"""Seconds that the one and the other may take for all of them."""


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
    # Of the server: localhost has a line of its own.
    found = re.search(r"^server +: ok=(\d+) +changed=(\d+)", done.stdout, re.MULTILINE)
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


def quotas(name: str) -> bool:
    """Set and find quotas on the machine ``name``, print the table, and return whether it is as promised."""
    program = (ROOT / "tests" / "benchmarks" / "limits.py").read_bytes()
    command = [*Machine(name).ssh_command(), f"python3 -I - {QUOTAS} {LOOP}"]
    done = subprocess.run(command, input=program, capture_output=True, check=False)
    if done.returncode != 0:
        raise ToolError(f"The quotas failed.\n{done.stderr.decode(errors='replace')[-2000:]}")
    took = json.loads(done.stdout)
    if took["changed"] != QUOTAS or took["drifted"]:
        raise ToolError(f"{took['changed']} quotas were set, and {took['drifted']} were set once more.")
    print(f"| quotas of {QUOTAS} users | seconds | promised |\n|---|---|---|")
    print(f"| from scratch, one batch | {took['scratch']:.2f} | {SCRATCH:g} at most |")
    print(f"| found unchanged, one batch | {took['unchanged']:.2f} | {UNCHANGED:g} at most |")
    print(f"| a loop of setquota(8), extrapolated from {LOOP} | {took['loop']:.2f} | |\n")
    return bool(took["scratch"] <= SCRATCH and took["unchanged"] <= UNCHANGED)


def measure_fresh(distro: str) -> bool:
    """Measure on a machine of its own, made for it and removed afterwards."""
    name = f"bench-{distro}"
    tool = [sys.executable, str(ROOT / "tools" / "vm.py")]
    run([sys.executable, str(ROOT / "tools" / "base_image.py"), "build", "python", "debian"])
    run([*tool, "destroy", name])
    run([*tool, "up", name, "--distro", distro], quiet=False)
    try:
        # Both are measured, whatever the first says.
        return all([measure(name, [*EXAMPLE, *USERS]), quotas(name)])
    finally:
        run([*tool, "destroy", name])


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Measure the site playbook on a fresh virtual machine.")
    parser.add_argument("--distro", default="debian-12")
    parser.add_argument("--machine", help="a machine that is provisioned already, and is kept")
    parser.add_argument("--quotas", action="store_true", help="of that machine the quotas alone")
    arguments = parser.parse_args()
    try:
        if arguments.quotas and not arguments.machine:
            parser.error("--quotas needs --machine")
        if arguments.machine:
            plays = True if arguments.quotas else measure(arguments.machine, USERS)
            return 0 if all([plays, quotas(arguments.machine)]) else 1
        return 0 if measure_fresh(arguments.distro) else 1
    except ToolError as error:
        say(f"bench.py: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
