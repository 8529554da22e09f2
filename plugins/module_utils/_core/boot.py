# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What happens after a reboot: everything that should run runs again, once the disks are there.

The containers have the restart policy ``no``: Docker would start them before anybody looked whether
/srv/data and the homes are mounted, on empty folders. The unit ``lab-server-boot.service`` runs this instead,
and again every half minute until it has succeeded. What keeps it from that stands in the journal and in the
notice that everybody sees at login.
"""

from __future__ import annotations

import os
import posixpath
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from . import RUN_DIRECTORY, hostfiles, journal, locks, mounts, names, state
from .errors import HostError, LabError
from .policy import Policy, load

#: The notice, and where pam_motd(8) shows it to everybody who logs in.
NOTICES = (posixpath.join(RUN_DIRECTORY, "notice"), "/run/motd.d/lab-server")
_DOCKER_UNIT = "docker.service"
_LATE = 60.0  # seconds


@dataclass(frozen=True)
class Outcome:
    """What was started, and sentences about the containers that could not be."""

    started: tuple[str, ...]
    failed: tuple[str, ...]


def say(text: str) -> None:
    """Write a line for IT: the unit's output is in the journal (systemd.exec(5))."""
    sys.stdout.write(names.printable(text) + "\n")
    sys.stdout.flush()


def write_notice(sentences: Sequence[str], paths: Sequence[str] = NOTICES) -> None:
    """Show these sentences to everybody who logs in; none takes the notice away."""
    text = "".join(f"  {names.printable(sentence)}\n" for sentence in sentences)
    for path in paths:
        if text:
            os.makedirs(posixpath.dirname(path), mode=0o755, exist_ok=True)
            hostfiles.write_text(path, f"\nThis server is not complete:\n{text}\n")
        else:
            with suppress(FileNotFoundError):
                os.unlink(path)


def mount_returned(policy: Policy) -> None:
    """Mount the file systems whose disk is there by now; what fails is left for the check to tell."""
    table = mounts.read()
    for filesystem in policy.filesystems:
        if mounts.at(filesystem.mount, table) is None and mounts.device_number(filesystem.device):
            with suppress(HostError):
                unit = hostfiles.run(
                    ["systemd-escape", "--path", "--suffix=mount", filesystem.mount]
                ).stdout.strip()
                # systemd.unit(5): a unit that failed too often must be reset before it is started again.
                hostfiles.run(["systemctl", "reset-failed", unit], accept=(0, 1))
                hostfiles.run(["systemctl", "start", unit])


def start_docker() -> None:
    """Start Docker if it is down: it was held back while a disk was missing. Raises HostError."""
    if hostfiles.run(["systemctl", "is-active", _DOCKER_UNIT], accept=range(256)).returncode == 0:
        return
    say("Docker was not running; starting it.")
    hostfiles.run(["systemctl", "reset-failed", _DOCKER_UNIT], accept=range(256))
    try:
        hostfiles.run(["systemctl", "start", _DOCKER_UNIT])
    except HostError as error:
        raise HostError("Docker does not start.", "See 'journalctl -b -u docker'.") from error


def start_containers(engine: Any, policy: Policy) -> Outcome:
    """Start each lab container that does not run and was not stopped on purpose.

    One that fails does not keep the others from starting. Those at which somebody is at work come last, and
    all of them are waited for no longer than ``_LATE``: most likely their users start them just now.
    """
    from .containers import listing_all, start_existing

    stopped = state.stopped_names()
    started: list[str] = []
    failed: list[str] = []
    down = [info for info in listing_all(engine, policy) if not info.running and info.name not in stopped]
    down.sort(key=lambda info: str(info.name))
    end = 0.0  # the first time nobody is waited for
    for last in (False, True):
        late = []
        for info in down:
            try:
                item = start_existing(engine, policy, info, wait=max(0.0, end - time.monotonic()))
            except LabError as error:
                if isinstance(error, locks.InUse) and not last:
                    late.append(info)
                else:
                    failed.append(f"{info.name}: {error}")
                continue
            if item.failed:
                failed.append(f"{info.name}: {item.message}")
            elif item.changed:
                started.append(info.name)
        down, end = late, time.monotonic() + _LATE
    return Outcome(tuple(started), tuple(failed))


def _connect() -> Any:
    from .engine import Engine

    return Engine.connect()


def bring_up(policy: Policy, connect: Callable[[], Any] = _connect) -> Outcome:
    """Check disks and Docker, then start the containers. Raises HostError while something is missing."""
    from .storage import check_mounts

    if check_mounts(policy):
        mount_returned(policy)
    missing = check_mounts(policy)
    if missing:
        raise HostError(
            " ".join(missing), "Containers stay down until then, and start by themselves after it."
        )
    start_docker()
    with closing(connect()) as engine:
        return start_containers(engine, policy)


def main(argv: Sequence[str] | None = None) -> int:
    """The program of ``lab-server-boot.service``. Returns 0 when all is up, 1 when to be tried again.

    With ``--launch CONTAINER`` it goes on with a launch that waited for GPUs (``resuming``).
    """
    from . import resuming

    given = list(sys.argv if argv is None else argv)[1:]
    if len(given) == 2 and given[0] == resuming.OPTION:
        return resuming.launch(given[1])
    try:
        policy = load()
        outcome = bring_up(policy)
    except (LabError, OSError, subprocess.SubprocessError) as error:
        say(str(error))
        with suppress(LabError, OSError):
            write_notice([str(error)])
        return 1
    for sentence in outcome.failed:
        say(f"Not started: {sentence}")
    for name in outcome.started:
        journal.record(uid=0, user="root", verb="boot-start", container=name, outcome="done")
    say(f"{len(outcome.started)} container(s) started, {len(outcome.failed)} failed.")
    with suppress(LabError, OSError):
        for sentence in resuming.resume(policy):
            say(sentence)
    with suppress(LabError, OSError):
        write_notice([])
    return 0
