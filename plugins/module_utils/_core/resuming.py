# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Launches that waited for GPUs when the server went down are taken up again after its start.

The boot unit, once all that should run runs, has systemd start a unit of its own for each
(systemd-run(1)): it belongs to no session, and a restart of Docker does not end it. It takes the place that
it had by how long it has waited, and does what the broker would.
"""

from __future__ import annotations

import os
import zlib

from . import broker, events, gpuleases, hostfiles, journal, names, verbs
from .engine import ignore
from .errors import HostError, LabError
from .policy import Policy, load

_BOOT_PROGRAM = "/usr/local/sbin/lab-boot"
OPTION = "--launch"


def resume(policy: Policy) -> list[str]:
    """Start the launches that were interrupted; return sentences about those that could not be."""
    problems = []
    for one in gpuleases.interrupted():
        # One name for each, so that none is started twice.
        unit = f"lab-server-launch-{one.uid}-{zlib.crc32(one.holder.encode()):08x}"
        try:
            policy.user_by_uid(one.uid)
            hostfiles.run(["systemctl", "reset-failed", f"{unit}.service"], accept=range(256))
            active = hostfiles.run(["systemctl", "is-active", f"{unit}.service"], accept=range(256))
            if active.returncode == 0:
                continue
            hostfiles.run(
                [
                    "systemd-run",
                    "--quiet",
                    "--collect",
                    f"--unit={unit}",
                    "--description=A launch that waits for GPUs",
                    _BOOT_PROGRAM,
                    OPTION,
                    one.holder,
                ]
            )
        except LabError as error:
            problems.append(f"{one.holder} does not wait for GPUs any more: {error}")
            _give_up(one.holder, str(error))
    return problems


def launch(holder: str) -> int:
    """Wait for the GPUs of a launch that was interrupted, and launch; return 0, or 1 when it failed.

    Its user reads in ``container why`` what went wrong.
    """
    one = next((one for one in gpuleases.interrupted() if one.holder == holder), None)
    if one is None:
        return 0
    os.umask(0o077)
    os.environ.update(broker.ENVIRONMENT)
    try:
        policy = load()
        user = broker.identify(one.uid, policy)
        verbs.launch_again(policy, user, one.project, one.words, ignore)
    except (LabError, OSError) as error:
        _give_up(holder, str(error))
        return 1
    journal.record(uid=0, user="root", verb="boot-launch", container=holder, outcome="done")
    return 0


def _give_up(holder: str, why: str) -> None:
    """Forget a launch, and tell its user why."""
    project, uid = names.parse_container_name(holder)
    events.record(uid, project, events.NOT_STARTED, events.BOOT, f"its launch waited for GPUs: {why}")
    journal.record(uid=0, user="root", verb="boot-launch", container=holder, outcome="failed", detail=why)
    try:
        gpuleases.leave(holder)
    except HostError as error:
        journal.record(uid=0, user="root", verb="boot-launch", container=holder, detail=str(error))
