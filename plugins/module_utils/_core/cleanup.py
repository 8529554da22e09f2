# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The program of ``lab-server-cleanup.service``: what was kept for a while goes when its time is over.

That are retired containers, and images that nobody uses (``collecting``).

With ``--check`` it says what would go, and removes nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing

from . import journal
from .boot import say
from .collecting import collect
from .engine import Engine
from .errors import LabError
from .policy import load
from .retired import clean_up


def main(argv: Sequence[str] | None = None) -> int:
    """Clean up; return 0, or 1 when it could not be done, 2 for arguments that it does not know."""
    words = list(sys.argv if argv is None else argv)[1:]
    if words not in ([], ["--check"]):
        say("usage: lab-cleanup [--check]")
        return 2
    check = bool(words)
    try:
        policy = load()
        with closing(Engine.connect()) as engine:
            gone = clean_up(engine, policy, time.time(), check=check, tell=say)
            collected = collect(engine, policy, time.time(), check=check)
    except (LabError, OSError) as error:
        say(str(error))
        return 1
    for one in gone:
        say(f"{'would go' if check else 'gone'}: {one.actual.name}")
        if not check:
            journal.record(
                uid=0, user="root", verb="cleanup", container=one.actual.name, owner=one.uid, outcome="done"
            )
    for image in collected.gone:
        say(f"{'would go' if check else 'gone'}: the image {image}")
        if not check:
            journal.record(uid=0, user="root", verb="cleanup", image=image, outcome="done")
    for problem in collected.problems:
        say(problem)
    would = "would be " if check else ""
    say(f"{len(gone)} retired container(s) and {len(collected.gone)} image(s) {would}removed.")
    return 0
