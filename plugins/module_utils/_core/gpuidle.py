# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether the GPUs that containers hold do anything, and for how long they have not.

NVML tells what a GPU does at the instant of the look, and the processes on it. Of a MIG instance it tells no
load: one with a process of its container counts as working. So does all of which nothing is known. A lease
works when one of its devices does. For how long one did not is counted with the rest of the container's life
(``lifecycle``).
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from . import STATE_DIRECTORY, gpuleases, gpus, lifecycle, state
from .engine import Engine
from .errors import HostError
from .gpuleases import Held
from .gpus import Gpu, Instance, Seen
from .policy import Policy

RECORD = "lifecycle.json"


@dataclass(frozen=True)
class Working:
    """Of each container (its id) that holds GPUs, whether they work; the uids of those who wait for some."""

    containers: Mapping[str, bool] = field(default_factory=dict)
    waiting: tuple[int, ...] = ()

    def others(self, uid: int) -> int:
        """Return how many launches of others than this user wait."""
        return sum(one != uid for one in self.waiting)


def look(engine: Engine, policy: Policy) -> Working:
    """Ask Docker who holds GPUs, and NVML, where somebody does, what they do. Raises LabError."""
    survey = gpuleases.survey(engine, policy)
    held = [one for one in survey.held if one.container]
    seen = gpus.look() if held else Seen()
    return Working(
        {one.container: works(one, seen) for one in held}, tuple(one.uid for one in survey.waiting)
    )


def works(held: Held, seen: Seen) -> bool:
    """Say whether one of the GPUs of a container works for it, or nobody knows."""
    if not held.lease.live:
        return False
    if seen.problem:
        return True
    found: dict[str, tuple[Gpu, Gpu | Instance]] = {gpu.uuid: (gpu, gpu) for gpu in seen.gpus}
    found.update((one.uuid, (gpu, one)) for gpu in seen.gpus for one in gpu.instances)
    return any(uuid not in found or _works(held.container, *found[uuid]) for uuid in held.lease.uuids)


def _works(container: str, gpu: Gpu, device: Gpu | Instance) -> bool:
    if gpu.load == 0 and device is gpu:
        return False
    # Of a process that has just ended nobody knows whose it was.
    if device.unlisted or any(one.container == container or one.uid is None for one in device.processes):
        return True
    # What draws and does not compute is not listed.
    return device is gpu and not gpu.processes


def idle() -> dict[str, int]:
    """Return for how many seconds the GPUs of each container (its id) did nothing, by the last look; as root.

    Empty where the record is damaged, of which the lifecycle tells.
    """
    with suppress(HostError):
        record = lifecycle.parse(state.read_record(RECORD), posixpath.join(STATE_DIRECTORY, RECORD))
        return {one.container: int(one.gpu_idle) for _name, one in record.counted}
    return {}
