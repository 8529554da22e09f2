# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What every container of a lab user must be like, judged from Docker's description of it. Pure functions.

Written apart from ``spec.create_config`` on purpose: a mistake there is to be seen here, and so is what an
administrator changed by hand (``docker update``, ``docker network connect``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .names import printable
from .sizes import format_size
from .spec import HOST_ADDRESS, NETWORK, WORKSPACE, ContainerSpec, given_gpus

_CONFINED = ("unconfined", "=unconfined", "label=disable", "systempaths=unconfined")
#: Namespaces that would be the host's, or another container's; "" is Docker's default of one of its own.
_PRIVATE = {
    "PidMode": ("",),
    "UTSMode": ("",),
    "IpcMode": ("private",),
    "CgroupnsMode": ("private",),
    "UsernsMode": ("",),
}
_EMPTY = {
    "CapAdd": "added capabilities",
    "Devices": "devices of the host",
    "DeviceCgroupRules": "rules for devices",
    "VolumesFrom": "volumes of other containers",
    "Binds": "binds beside its mounts",
    "Sysctls": "kernel settings",
    "Links": "links to other containers",
}


@dataclass(frozen=True)
class Subject:
    """A container to be judged: its spec, its slice, Docker's description, whether AppArmor is there.

    ``device_gids``: the groups of the GPUs' device files, which it may have if it has GPUs.
    """

    spec: ContainerSpec
    parent: str
    told: Mapping[str, Any]
    apparmor: bool
    device_gids: tuple[int, ...] = ()

    @property
    def host(self) -> Mapping[str, Any]:
        """Its HostConfig."""
        return self.told.get("HostConfig") or {}

    @property
    def config(self) -> Mapping[str, Any]:
        """Its Config."""
        return self.told.get("Config") or {}


def violations(subject: Subject) -> list[str]:
    """Return what is not as it must be, a few words each; empty for a container that is in order."""
    return [problem for rule in _RULES for problem in rule(subject)]


def _identity(subject: Subject) -> list[str]:
    spec, said = subject.spec, str(subject.config.get("User", ""))
    wrong = [] if said == f"{spec.uid}:{spec.gid}" else [f"it runs as {said or 'root'}"]
    groups = {str(group) for group in subject.host.get("GroupAdd") or ()}
    allowed = {*spec.groups, *(subject.device_gids if given_gpus(subject.told) else ())}
    more = sorted(groups - {str(group) for group in allowed})
    return wrong + ([f"it has the groups {', '.join(more)}"] if more else [])


def _privileges(subject: Subject) -> list[str]:
    host = subject.host
    found = ["it is privileged"] if host.get("Privileged") else []
    if "ALL" not in [str(one).upper() for one in host.get("CapDrop") or ()]:
        found.append("it keeps capabilities")
    options = [str(option).replace(":", "=") for option in host.get("SecurityOpt") or ()]
    if not {"no-new-privileges", "no-new-privileges=true"} & set(options):
        found.append("it can gain privileges (no-new-privileges is missing)")
    found += [f"its confinement is off ({option})" for option in options if option.endswith(_CONFINED)]
    if subject.apparmor and subject.told.get("AppArmorProfile") in ("", "unconfined", None):
        found.append("no AppArmor profile holds it")
    if not host.get("MaskedPaths") or not host.get("ReadonlyPaths"):
        found.append("parts of /proc are open to it")
    return found + [f"it has {words}" for key, words in _EMPTY.items() if host.get(key)]


def _namespaces(subject: Subject) -> list[str]:
    host = subject.host
    found = [
        f"{key} is {printable(str(host.get(key)))}"
        for key, allowed in _PRIVATE.items()
        if str(host.get(key) or "") not in allowed
    ]
    mode = str(host.get("NetworkMode", ""))
    attached = sorted((subject.told.get("NetworkSettings") or {}).get("Networks") or {})
    others = [name for name in {mode, *attached} if name != NETWORK]
    return found + [f"it is in the network {printable(name)}" for name in sorted(others)]


def _limits(subject: Subject) -> list[str]:
    host, spec = subject.host, subject.spec
    found = []
    if host.get("CgroupParent") != subject.parent:
        found.append(f"it is not in the slice of its user, {subject.parent}")
    if host.get("Memory") != spec.memory or host.get("MemorySwap") != spec.memory:
        found.append(f"its memory is not limited to {format_size(spec.memory)} without swap")
    if int(host.get("PidsLimit") or 0) != spec.pids:
        found.append(f"its processes are not limited to {spec.pids}")
    if not 0 < int(host.get("NanoCpus") or 0) <= spec.cpus * 1e9:
        found.append(f"its cores are not limited to {spec.cpus:g}")
    if int(host.get("ShmSize") or 0) != spec.shm:
        found.append(f"shared memory (shm) is not limited to {format_size(spec.shm)}")
    limits = {str(one.get("Name")): one.get("Hard") for one in host.get("Ulimits") or ()}
    if limits.get("core") != 0 or int(limits.get("nofile") or 0) < 1:
        found.append("core dumps or open files are not limited")
    return found


def _files(subject: Subject) -> list[str]:
    spec = subject.spec
    writable = {spec.workspace: WORKSPACE, **{share: share for share in spec.shares}}
    if spec.home_source:
        writable[spec.home_source] = spec.home
    writable.update({source: path for path, source in spec.kept})
    found = []
    for mount in subject.host.get("Mounts") or ():
        if mount.get("Type") != "bind":
            continue
        source, target = str(mount.get("Source")), str(mount.get("Target"))
        known = writable.get(source) == target or (source == target == spec.data_root)
        if not known:
            found.append(f"{printable(source)} of the host is mounted in it")
        elif source not in writable and not mount.get("ReadOnly"):
            found.append(f"{source} is writable in it")
        options = mount.get("BindOptions") or {}
        if options.get("Propagation") != "rprivate":
            found.append(f"mounts below {printable(target)} reach it")
        # Docker before 25 leaves what is mounted below a read-only source as writable as it is.
        if mount.get("ReadOnly") and not options.get("NonRecursive"):
            found.append(f"what is mounted below {printable(target)} may be writable in it")
    return found + _mounted(subject)


def _mounted(subject: Subject) -> list[str]:
    """Return what is mounted of the host beside what was asked for when the container was made."""
    asked = {str(one.get("Target")) for one in subject.host.get("Mounts") or ()}
    there = [one for one in subject.told.get("Mounts") or () if one.get("Type") == "bind"]
    others = [str(one.get("Destination")) for one in there if str(one.get("Destination")) not in asked]
    return [f"{printable(path)} is mounted in it" for path in others]


def _life(subject: Subject) -> list[str]:
    host = subject.host
    found = []
    policy = str((host.get("RestartPolicy") or {}).get("Name") or "no")
    if policy != "no":
        found.append(f"Docker restarts it by itself ({policy}), before the disks are looked at")
    if host.get("AutoRemove"):
        found.append("it goes when it stops")
    log = host.get("LogConfig") or {}
    if log.get("Type") == "json-file" and not (log.get("Config") or {}).get("max-size"):
        found.append("its log is not bounded")
    check = (subject.config.get("Healthcheck") or {}).get("Test") or ["NONE"]
    if check != ["NONE"]:
        found.append("it runs a health check of its image's")
    return found


def _ports(subject: Subject) -> list[str]:
    found = ["it publishes all its ports"] if subject.host.get("PublishAllPorts") else []
    asked = subject.host.get("PortBindings") or {}
    live = (subject.told.get("NetworkSettings") or {}).get("Ports") or {}
    addresses = {
        str(one.get("HostIp") or "every address")
        for ports in (asked, live)
        for bindings in ports.values()
        for one in bindings or ()
    }
    return found + [f"a port of it is open on {address}" for address in sorted(addresses - {HOST_ADDRESS})]


_RULES: Sequence[Callable[[Subject], list[str]]] = (
    _identity,
    _privileges,
    _namespaces,
    _limits,
    _files,
    _life,
    _ports,
)
