# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The check of GPUs: each container that runs has those of its lease and no others, and can open them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from typing import Any

from . import gpufiles, gpuleases, gpus, leases
from .errors import InvalidInput, NotFound
from .inspection import PLAYBOOK, SKIP, WARN, Check, Outcome, Server, judged
from .leases import Lease
from .names import parse_container_name, printable
from .plan import Actual
from .spec import CDI_KIND, given_gpus

_ANEW = "Make it anew: container retire and project launch, as its user. Who has what: lab gpus."
_NODES = ("/dev/nvidia", "/dev/dri")
_CDI_SINCE = 25


def _gpus(server: Server) -> Outcome:
    running = [one for one in server.containers if one.live]
    recorded, gids = gpuleases.recorded(), gpufiles.gids()
    problems: list[str] = []
    held: list[tuple[str, Lease]] = []
    for one in running:
        told, lease = server.inspected[one.name], lease_of(one)
        found = differences(told, lease, recorded.get(one.name), gids)
        if found and not _runs(server, one.id):
            continue  # it was retired meanwhile, and the record is of what came after it
        problems += [f"{one.name}: {what}" for what in found]
        held += [(one.name, lease)] if lease is not None else []
    problems += [*twice(held), *_strangers(server)]
    if not (problems or held or any(user.limits.gpus for user in server.policy.users)):
        return Outcome(SKIP, "nobody may have GPUs here, and no container has one")
    if not problems and (held or gpus.on_bus()) and _is_off(server):
        return Outcome(
            WARN,
            "Docker gives GPUs by NVIDIA's hook, as features.cdi is off in daemon.json: a container can lose "
            "them when systemd reads its units anew",
            PLAYBOOK,
        )
    devices = sum(len(lease.uuids) for _name, lease in held)
    good = f"{len(running)} containers run, {len(held)} of them with {devices} GPUs: those of their leases"
    return judged(problems, good, _ANEW)


def lease_of(actual: Actual) -> Lease | None:
    """Return the lease in a container's label; None where there is none that can be read."""
    with suppress(InvalidInput):
        return leases.parse(actual.lease, actual.name, parse_container_name(actual.name)[1])
    return None


def differences(
    told: Mapping[str, Any], lease: Lease | None, record: Lease | None, gids: Sequence[int] = ()
) -> list[str]:
    """Return in what Docker's description of a container differs from its lease, a few words each.

    ``lease`` is that of its label, ``record`` that of root's record, None where it says nothing of it: Docker
    is the register, and the next lease that is given completes the record.
    """
    host = told.get("HostConfig") or {}
    given, leased = set(given_gpus(told)), set(lease.uuids if lease is not None else ())
    found = [f"it has {uuid} without a lease" for uuid in sorted(given - leased)]
    found += [f"it lacks {uuid} of its lease" for uuid in sorted(leased - given)]
    if record is not None and set(record.uuids) != leased:
        found.append(f"the record of the server gives it {', '.join(record.uuids)}")
    found += _asked_beside(host)
    nodes = [str(one.get("PathOnHost")) for one in host.get("Devices") or ()]
    found += [f"it has {printable(path)} beside its lease" for path in nodes if path.startswith(_NODES)]
    asked = _variable(told)
    if asked != "void" and set(asked.split(",")) != leased:
        found.append(f"its environment asks NVIDIA's runtime for {printable(asked)[:40] or 'what it likes'}")
    user = str((told.get("Config") or {}).get("User", "")).rpartition(":")[2]
    groups = {user, *(str(group) for group in host.get("GroupAdd") or ())}
    lacking = [str(gid) for gid in gids if str(gid) not in groups] if given else []
    return found + [f"it cannot open its GPUs without the group {gid}" for gid in lacking]


def _asked_beside(host: Mapping[str, Any]) -> Iterator[str]:
    """Yield what Docker was asked for in another way than by the uuid of a GPU."""
    for request in host.get("DeviceRequests") or ():
        driver, named = str(request.get("Driver") or ""), [str(one) for one in request.get("DeviceIDs") or ()]
        foreign = driver == "cdi" and not all(one.startswith(CDI_KIND) for one in named)
        if driver not in ("cdi", "nvidia") or request.get("Count") or not named or foreign:
            what = "all" if int(request.get("Count") or 0) < 0 else ", ".join(named) or request.get("Count")
            yield f"Docker was asked for devices beside its lease: {printable(str(what))}"


def _variable(told: Mapping[str, Any]) -> str:
    """Return NVIDIA_VISIBLE_DEVICES of a container; "" where it is not set."""
    found = ""
    for entry in (told.get("Config") or {}).get("Env") or ():
        name, _equals, value = str(entry).partition("=")
        found = value if name == "NVIDIA_VISIBLE_DEVICES" else found
    return found


def twice(held: Sequence[tuple[str, Lease]]) -> list[str]:
    """Return which GPUs two containers have that do not share them, or one whole and the other in part."""
    found = []
    for (name, lease), (other, further) in combinations(held, 2):
        for one in lease.devices:
            for two in further.devices:
                same = one.uuid == two.uuid and not (lease.shared and further.shared)
                part = one.uuid != two.uuid and (one.uuid == two.card or two.uuid == one.card)
                if same or part:
                    found.append(f"{one.uuid} is given to {name}, and {two.uuid} to {other}")
    return found


def _strangers(server: Server) -> list[str]:
    """Return which containers that are nobody's project have GPUs, of which no lease knows."""
    known, found = {one.id for one in server.containers}, []
    for item in server.listed:
        if item["Id"] in known or item.get("State") != "running":
            continue
        with suppress(NotFound):
            host = server.engine.inspect(item["Id"]).get("HostConfig") or {}
            if host.get("DeviceRequests"):
                name = str((item.get("Names") or ["/"])[0]).lstrip("/")
                found.append(
                    f"{printable(name)} is nobody's project, and Docker was asked for devices for it"
                )
    return found


def _runs(server: Server, container: str) -> bool:
    try:
        return bool((server.engine.inspect(container).get("State") or {}).get("Running"))
    except NotFound:
        return False


def _is_off(server: Server) -> bool:
    """Say whether the engine knows CDI, and does not use it."""
    version = str(server.engine.info().get("ServerVersion", "")).partition(".")[0]
    return version.isdigit() and int(version) >= _CDI_SINCE and not server.engine.facts.cdi


CHECKS: tuple[Check, ...] = (
    Check("gpus", "every container that runs has the GPUs of its lease, and no others", _gpus, docker=True),
)
