# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a project's container is: one frozen value, its canonical form, and the request that Docker gets.

The spec holds decisions of the policy only, nothing that belongs to one host; what the engine and the image
add is in ``EngineFacts`` and ``ImageFacts``. Docker's API: https://docs.docker.com/engine/api/v1.41/.
Sizes are bytes, cpus are cores.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from . import VERSION, gpurequests, names
from . import WORKSPACE as _WORKSPACE
from .errors import InvalidInput, Refused
from .leases import Lease, bounds, check_possible
from .policy import (
    CONTAINER_HOME,
    HOST_HOME,
    LOWEST_PORT,
    KeptFolder,
    Policy,
    User,
    kept_folders,
    kept_path,
    overlaid,
)
from .sizes import format_size

LABEL_OWNER = "lab.server.owner"
LABEL_USER = "lab.server.user"
LABEL_PROJECT = "lab.server.project"
LABEL_DIGEST = "lab.server.digest"
LABEL_SPEC = "lab.server.spec"
LABEL_VERSION = "lab.server.version"
#: What the user asked for when the container was made: apart from the spec, which is what it got.
LABEL_WISHES = "lab.server.wishes"
#: The lease of GPUs that it was made with: a fact of this host, and no part of the spec.
LABEL_GPUS = "lab.server.gpus"

WORKSPACE = _WORKSPACE
NETWORK = "lab"
BRIDGE = "lab0"
_FORMAT = 1
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DOCKER_MEMORY_MINIMUM = 6 << 20
_STOP_SECONDS = 10
#: Where the programs for the user are in a container whose home is the host's: nothing of ours goes in there.
PROGRAMS = "/home/.lab-server/bin"
_VOLUMES_LIMIT = 16
#: Where Jupyter listens in a container.
JUPYTER_PORT = 8888
#: Ports of containers are reached from the host itself and from nowhere else.
HOST_ADDRESS = "127.0.0.1"
# Fields that came after the first release, and their values before that.
_ADDED: dict[str, object] = {
    "home_mode": CONTAINER_HOME,
    "home_source": "",
    "ports": (),
    "gpus": "",
    "kept": (),
}
#: The vendor and class of NVIDIA's CDI devices, which its toolkit names by uuid, too (nvidia-ctk-cdi).
CDI_KIND = "nvidia.com/gpu="


@dataclass(frozen=True)
class ContainerSpec:
    """A container as the policy wants it, apart from its image, which moves on by itself."""

    project: str
    user: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    workspace: str
    data_root: str
    shares: tuple[str, ...]
    cpus: float
    memory: int
    pids: int
    shm: int
    environment: tuple[tuple[str, str], ...]
    #: What HOME is: "container", "persistent" or "host"; for the latter two the folder that is mounted there.
    home_mode: str = CONTAINER_HOME
    home_source: str = ""
    #: (port in the container, port on the host's loopback address)
    ports: tuple[tuple[int, int], ...] = ()
    #: The request for GPUs, in its canonical text (gpurequests.py); "" for none.
    gpus: str = ""
    #: (path in the container, folder of the host) of what is kept beside workspace and home.
    kept: tuple[tuple[str, str], ...] = ()
    #: What its user asked for. Not a part of what it is: it counts in no comparison, and has its own label.
    wished_cpus: float | None = field(default=None, compare=False)
    wished_memory: int | None = field(default=None, compare=False)
    wished_port: int | None = field(default=None, compare=False)
    wished_gpus: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """The name of the container."""
        return names.container_name(self.project, self.uid)

    @property
    def home(self) -> str:
        """HOME in the container."""
        return posixpath.join("/home", self.user)

    def canonical(self) -> str:
        """Return the one JSON text of this spec: sorted keys, no white space, ASCII."""
        data: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self) if one.compare}
        # What is as it always was is left out: a container made before there was a choice does not differ.
        data = {key: value for key, value in data.items() if key not in _ADDED or value != _ADDED[key]}
        data["format"] = _FORMAT
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    def digest(self) -> str:
        """Return the SHA-256 of the canonical form, in hexadecimal."""
        return hashlib.sha256(self.canonical().encode("ascii")).hexdigest()

    def shown(self) -> dict[str, object]:
        """Return what a diff shows: values for people."""
        return {
            "cpus": self.cpus,
            "memory": format_size(self.memory),
            "pids": self.pids,
            "shm": format_size(self.shm),
            "data": self.data_root,
            "shares": list(self.shares),
            "workspace": self.workspace,
            "environment": dict(self.environment),
            "user": f"{self.user} {self.uid}:{self.gid}",
            "groups": list(self.groups),
            "home": self.home_source or self.home_mode,
            "ports": [f"{HOST_ADDRESS}:{host} to {inner}" for inner, host in self.ports],
            **({"gpus": self.gpus} if self.gpus else {}),
            **({"keep": [path for path, _source in self.kept]} if self.kept else {}),
        }


def parse(text: str) -> ContainerSpec:
    """Return the spec of a canonical form; raise InvalidInput for anything else."""
    try:
        data = json.loads(text)
        if not isinstance(data, dict) or data.pop("format", None) != _FORMAT:
            raise ValueError("format")
        data["groups"] = tuple(int(gid) for gid in data["groups"])
        data["shares"] = tuple(str(share) for share in data["shares"])
        data["environment"] = tuple((str(name), str(value)) for name, value in data["environment"])
        data["ports"] = tuple((int(inner), int(host)) for inner, host in data.get("ports", ()))
        data["kept"] = tuple((str(path), str(source)) for path, source in data.get("kept", ()))
        spec = ContainerSpec(**data)
        same = spec.canonical() == text
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidInput("A container's label does not hold a spec of this version.") from error
    if not same:
        raise InvalidInput("A container's label holds a spec that is not in canonical form.")
    return spec


def parse_wishes(text: str) -> dict[str, Any]:
    """Return the fields of a spec that a label of wishes holds; nothing for one that is none of ours."""
    try:
        data = json.loads(text)
        cpus, memory, port, gpus = (data.get(key) for key in ("cpus", "memory", "port", "gpus"))
        gpurequests.requested(gpus or "")
    except (ValueError, AttributeError, InvalidInput):
        return {}
    # A bool is an int, and none of ours.
    whole = all(
        isinstance(number, (int, type(None))) and not isinstance(number, bool) for number in (memory, port)
    )
    if not whole or not isinstance(cpus, (float, type(None))) or not isinstance(gpus, (str, type(None))):
        return {}
    found = {"wished_cpus": cpus, "wished_memory": memory, "wished_port": port}
    return {**found, **({"wished_gpus": gpus} if gpus else {})}


@dataclass(frozen=True)
class Wishes:
    """What somebody asks for one container; None follows the user's limits."""

    cpus: float | None = None
    memory: int | None = None
    pids: int | None = None
    shm: int | None = None
    environment: tuple[tuple[str, str], ...] = ()
    home: str = CONTAINER_HOME
    ports: tuple[tuple[int, int], ...] = ()
    #: A request for GPUs in its canonical text; "" for none, unless the user asks for some.
    gpus: str = ""
    #: Paths of folders in the container that are kept.
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class OwnWishes:
    """What the container's user asks for, where IT declared nothing; None follows the limits."""

    cpus: float | None = None
    memory: int | None = None
    gpus: str = ""
    #: The port of the server for Jupyter; the broker chooses it, never the user.
    port: int | None = None

    @classmethod
    def of(cls, spec: ContainerSpec | None) -> OwnWishes:
        """Return what was asked for when a container was made."""
        if spec is None:
            return cls()
        return cls(spec.wished_cpus, spec.wished_memory, spec.wished_gpus, spec.wished_port)


#: Nothing is asked for.
NO_WISHES = OwnWishes()


def check_own(user: User, project: str, declared: Wishes, own: OwnWishes) -> None:
    """Raise Refused where a user asks for more than the limits, or for other than what IT declared."""
    _check_own("cpus", own.cpus, declared.cpus, user.limits.cpus, user, project, str)
    _check_own("memory", own.memory, declared.memory, user.limits.memory, user, project, format_size)
    if own.gpus and declared.gpus and own.gpus != declared.gpus:
        raise Refused(
            f"gpus: IT declared {declared.gpus} for {project}.", "Launch it without --gpus, or ask IT."
        )


def check_gpus(policy: Policy, user: User, own: OwnWishes) -> None:
    """Raise Refused where a user asks for GPUs that the policy never gives."""
    if own.gpus:
        check_possible(gpurequests.parse(own.gpus), bounds(policy, user))


def _check_own(
    what: str, asked: Any, given: Any, limit: Any, user: User, project: str, shown: Callable[[Any], str]
) -> None:
    _within(what, asked, limit, user, shown)
    if asked is not None and given is not None and asked != given:
        raise Refused(
            f"{what}: IT declared {shown(given)} for {project}.", f"Launch it without --{what}, or ask IT."
        )


def decide(
    policy: Policy, user: User, project: str, wishes: Wishes = Wishes(), own: OwnWishes = NO_WISHES
) -> ContainerSpec:
    """Return the spec that the policy gives to a user's project; raise Refused when ``wishes`` ask too much.

    ``own`` counts where ``wishes`` say nothing, and only up to the limits: a container for which more was
    asked once is not refused when they are lowered.
    """
    limits = user.limits
    own_cpus = own.cpus if wishes.cpus is None else None
    own_memory = own.memory if wishes.memory is None else None
    own_gpus = "" if wishes.gpus else own.gpus
    if own_cpus is not None:
        wishes = replace(wishes, cpus=min(own_cpus, limits.cpus))
    if own_memory is not None:
        wishes = replace(wishes, memory=min(own_memory, limits.memory))
    memory = _within("memory", wishes.memory, limits.memory, user, format_size)
    if memory < _DOCKER_MEMORY_MINIMUM:
        raise InvalidInput(
            f"memory: {format_size(memory)} is less than Docker accepts.", "Ask for 6m or more."
        )
    cpus = _within("cpus", wishes.cpus, limits.cpus, user, str)
    pids = _within("pids", wishes.pids, limits.pids, user, str)
    if cpus < 0.01 or pids < 1:
        raise InvalidInput(
            "cpus and pids: too small for any process.", "Ask for at least 0.01 cpus and 1 pid."
        )
    if wishes.gpus:
        check_possible(gpurequests.parse(wishes.gpus), bounds(policy, user))
    shares = policy.shares_for(user)
    # Where IT gave the port of Jupyter itself, that one is it.
    own_port = None if JUPYTER_PORT in dict(wishes.ports) else own.port
    ports = (*wishes.ports, *(((JUPYTER_PORT, own_port),) if own_port else ()))
    check_ports(ports)
    return ContainerSpec(
        project=names.project_name(project),
        user=user.name,
        uid=user.uid,
        gid=user.gid,
        groups=tuple(sorted({policy.group(share.group).gid for share in shares})),
        workspace=policy.workspace(user),
        data_root=policy.data_root,
        shares=tuple(sorted(policy.share_path(share) for share in shares)),
        cpus=float(cpus),
        memory=memory,
        pids=pids,
        shm=_within("shm", wishes.shm, min(limits.shm, memory), user, format_size),
        environment=overlaid(policy.environment, user.environment, wishes.environment),
        home_mode=wishes.home,
        home_source=policy.home_source(user, names.project_name(project), wishes.home),
        ports=tuple(sorted(ports)),
        gpus=wishes.gpus or own_gpus,
        kept=_kept(policy, user, project, wishes.keep),
        wished_cpus=own_cpus,
        wished_memory=own_memory,
        wished_port=own_port,
        wished_gpus=own_gpus,
    )


def _kept(policy: Policy, user: User, project: str, paths: Iterable[str]) -> tuple[tuple[str, str], ...]:
    where = f"keep of {project}"
    folders = [KeptFolder(kept_path(path, policy.data_root, where)) for path in paths]
    return tuple(
        (one.path, policy.kept_source(user, project, one.path)) for one in kept_folders(folders, where)
    )


def _within(what: str, asked: Any, limit: Any, user: User, shown: Any) -> Any:
    if asked is None:
        return limit
    if asked > limit:
        raise Refused(
            f"{what}: {shown(asked)} is more than the limit of {shown(limit)} for {user.name}.",
            "Ask for less, or ask IT for a higher limit.",
        )
    return asked


def check_ports(ports: Sequence[tuple[int, int]], where: str = "ports") -> None:
    """Raise InvalidInput unless these are ports of a container, each at its own port of the host."""
    for inner, host in ports:
        if not 1 <= inner <= 65535:
            raise InvalidInput(f"{where}: {inner} is no port of a container.", "Use 1 to 65535.")
        if not LOWEST_PORT <= host <= 65535:
            raise InvalidInput(
                f"{where}: {host} is no port that a container may have on the host.",
                f"Use {LOWEST_PORT} to 65535.",
            )
    for what, numbers in (
        ("in the container", [inner for inner, _host in ports]),
        ("on the host", [host for _inner, host in ports]),
    ):
        if len(set(numbers)) < len(numbers):
            raise InvalidInput(f"{where}: a port {what} is there twice.", "Each must be there once.")


def no_longer_given(old: ContainerSpec | None, new: ContainerSpec) -> list[str]:
    """Return the shared folders that a container has by ``old`` and its user no longer has by ``new``.

    ``old`` is None where it cannot be known, which is answered as a folder that nobody gives.
    """
    if old is None:
        return ["the folders of another version of lab.server"]
    lost = [share for share in old.shares if share not in new.shares]
    if not lost and set(old.groups) - set(new.groups):
        lost = ["a group's files"]
    return lost


@dataclass(frozen=True)
class ImageFacts:
    """What matters here of an image: its id, PATH ("" when unset) and the VOLUMEs that it declares."""

    id: str
    path: str = ""
    volumes: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineFacts:
    """What matters here of an engine: its cgroup driver ("systemd" or "cgroupfs") and number of cores.

    ``cdi``: whether it gives devices by the Container Device Interface.
    """

    cgroup_driver: str
    cpus: int
    cdi: bool = False


def image_facts(inspected: Mapping[str, Any]) -> ImageFacts:
    """Return the facts of an image from Docker's answer to GET /images/{name}/json."""
    config = inspected.get("Config") or {}
    path = ""
    for entry in config.get("Env") or []:
        name, _equals, value = str(entry).partition("=")
        path = value if name == "PATH" else path
    return ImageFacts(str(inspected["Id"]), path, tuple(sorted(config.get("Volumes") or {})))


def check_volumes(spec: ContainerSpec, image: ImageFacts) -> None:
    """Raise Refused when a VOLUME of the image would hide or shadow what we mount or keep."""
    if len(image.volumes) > _VOLUMES_LIMIT:
        raise Refused(
            f"The image declares {len(image.volumes)} volumes.", f"No more than {_VOLUMES_LIMIT} are allowed."
        )
    kept = [path for path, _source in spec.kept]
    ours = [WORKSPACE, spec.data_root, spec.home, "/home/.workspaces", *spec.shares, *kept]
    ours += [PROGRAMS] if spec.home_mode == HOST_HOME else []
    for volume in image.volumes:
        path = posixpath.normpath("/" + volume.strip().lstrip("/"))
        for own in ours:
            if path == own or path.startswith(own + "/") or own.startswith(path.rstrip("/") + "/"):
                raise Refused(
                    f"The image declares VOLUME {names.printable(volume)}, which would hide {own}.",
                    "Remove that VOLUME line from the Dockerfile, or choose another base image.",
                )


def cgroup_parent(uid: int, driver: str) -> str:
    """Return the parent of a user's containers and builds: the slice, or a path for the cgroupfs driver."""
    return names.slice_name(uid) if driver == "systemd" else f"/lab/{uid}"


def labels(spec: ContainerSpec, lease: str = "") -> dict[str, str]:
    """Return the labels that make a container ours; ``lease`` is the text of its lease of GPUs."""
    return {
        LABEL_OWNER: str(spec.uid),
        LABEL_USER: spec.user,
        LABEL_PROJECT: spec.project,
        LABEL_DIGEST: spec.digest(),
        LABEL_SPEC: spec.canonical(),
        LABEL_VERSION: VERSION,
        # Always there: an image could have one of its own.
        LABEL_WISHES: json.dumps(_wishes(spec), sort_keys=True),
        LABEL_GPUS: lease,
    }


def _wishes(spec: ContainerSpec) -> dict[str, object]:
    gpus = {"gpus": spec.wished_gpus} if spec.wished_gpus else {}
    return {"cpus": spec.wished_cpus, "memory": spec.wished_memory, "port": spec.wished_port, **gpus}


def given_gpus(inspected: Mapping[str, Any]) -> list[str]:
    """Return the uuids of the GPUs that Docker gives a container, from its answer to an inspection."""
    host = inspected.get("HostConfig") or {}
    found = []
    for request in host.get("DeviceRequests") or []:
        if request.get("Driver") in ("cdi", "nvidia"):
            found += [str(one).replace(CDI_KIND, "", 1) for one in request.get("DeviceIDs") or []]
    return sorted(found)


def device_requests(uuids: Sequence[str], engine: EngineFacts) -> list[dict[str, Any]]:
    """Return what the engine is asked for so that a container has these GPUs and no others.

    By CDI (Docker 25 and later), which also survives a reload of systemd; else by the driver "nvidia", which
    runs the toolkit's hook. https://docs.docker.com/engine/api/v1.44/, HostConfig.DeviceRequests.
    """
    if not uuids:
        return []
    if engine.cdi:
        return [{"Driver": "cdi", "DeviceIDs": [CDI_KIND + uuid for uuid in uuids]}]
    capabilities = [["gpu", "compute", "utility"]]
    return [{"Driver": "nvidia", "Count": 0, "DeviceIDs": list(uuids), "Capabilities": capabilities}]


def environment(spec: ContainerSpec, image: ImageFacts, visible: Sequence[str] = ()) -> list[str]:
    """Return the container's environment. What we set wins over the image's and the policy's.

    ``visible``: the uuids of the GPUs that the toolkit's hook is to give it. By CDI there is no hook.
    """
    programs = f"{PROGRAMS}:" if spec.home_mode == HOST_HOME else ""
    values = {
        "LANG": "C.UTF-8",
        **dict(spec.environment),
        "HOME": spec.home,
        "USER": spec.user,
        "LOGNAME": spec.user,
        "PATH": f"{spec.home}/.local/bin:{programs}{image.path or _DEFAULT_PATH}",
        # The NVIDIA runtime gives GPUs to whoever asks in the environment; an image could ask for all.
        "NVIDIA_VISIBLE_DEVICES": ",".join(visible) or "void",
        "LD_PRELOAD": "",
        "LD_AUDIT": "",
    }
    if visible:
        values["NVIDIA_DRIVER_CAPABILITIES"] = "compute,utility"
    return [f"{name}={value}" for name, value in sorted(values.items())]


def _mount(source: str, target: str, read_only: bool) -> dict[str, Any]:
    # Mounts, not Binds: a missing source is an error here, and a new empty folder there.
    # NonRecursive: what is mounted below a read-only source would stay writable (Docker before 25).
    return {
        "Type": "bind",
        "Source": source,
        "Target": target,
        "ReadOnly": read_only,
        "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
    }


def mounts(spec: ContainerSpec) -> list[dict[str, Any]]:
    """Return the mounts: workspace, data root (read-only), the user's shares, and what else is kept."""
    found = [
        _mount(spec.workspace, WORKSPACE, read_only=False),
        _mount(spec.data_root, spec.data_root, read_only=True),
        *(_mount(share, share, read_only=False) for share in spec.shares),
        *(_mount(source, path, read_only=False) for path, source in spec.kept),
    ]
    if spec.home_source:
        found.append(_mount(spec.home_source, spec.home, read_only=False))
    if spec.home_mode == HOST_HOME:
        # The keys to other computers are not for what runs in a container, whoever made its image.
        hidden = {"SizeBytes": 4096, "Mode": 0o555}
        found.append(
            {
                "Type": "tmpfs",
                "Target": posixpath.join(spec.home, ".ssh"),
                "ReadOnly": True,
                "TmpfsOptions": hidden,
            }
        )
    return found


def fates(mounted: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the paths of a container that are kept, read_only and lost, by its mounts; the workspace first.

    Mounts are as ``mounts`` makes them or as Docker tells them of a container that is there ("Mounts" of
    GET /containers/{id}/json). What is below none of them is in the container itself, or in memory, and lost
    with it.
    """
    found: dict[str, list[str]] = {"kept": [], "read_only": [], "lost": []}
    for mount in mounted:
        path = str(mount.get("Target") or mount.get("Destination") or "")
        writable = not mount.get("ReadOnly") if "Target" in mount else bool(mount.get("RW"))
        if mount.get("Type") == "bind":
            found["kept" if writable else "read_only"].append(path)
        elif mount.get("Type") == "volume":
            found["lost"].append(path)
    return {what: sorted(paths, key=lambda path: (path != WORKSPACE, path)) for what, paths in found.items()}


def create_config(
    spec: ContainerSpec,
    image: ImageFacts,
    engine: EngineFacts,
    lease: Lease | None = None,
    device_gids: Sequence[int] = (),
) -> dict[str, Any]:
    """Return the body of POST /containers/create. Raises Refused for an image that cannot be used safely.

    ``device_gids``: the groups that may open the device files of the GPUs; without a lease nobody gets them.
    """
    check_volumes(spec, image)
    uuids = lease.uuids if lease is not None else ()
    host: dict[str, Any] = {
        "Init": True,
        "Mounts": mounts(spec),
        "Tmpfs": {"/run": f"rw,nosuid,nodev,size=16m,mode=0755,uid={spec.uid},gid={spec.gid}"},
        "GroupAdd": [str(gid) for gid in (*spec.groups, *(device_gids if uuids else ()))],
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        "NetworkMode": NETWORK,
        "PublishAllPorts": False,
        "PortBindings": {
            f"{inner}/tcp": [{"HostIp": HOST_ADDRESS, "HostPort": str(host)}] for inner, host in spec.ports
        },
        "CgroupParent": cgroup_parent(spec.uid, engine.cgroup_driver),
        "CgroupnsMode": "private",
        "IpcMode": "private",
        "Memory": spec.memory,
        "MemorySwap": spec.memory,
        # Docker refuses more cores than the host has; the spec itself must not depend on the host.
        "NanoCpus": int(min(spec.cpus, float(engine.cpus)) * 1_000_000_000),
        "PidsLimit": spec.pids,
        "ShmSize": spec.shm,
        "Ulimits": [
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "nofile", "Soft": 16384, "Hard": 16384},
        ],
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "2"}},
        # Brought back at boot by our own unit, after the mounts are checked.
        "RestartPolicy": {"Name": "no"},
        **({"DeviceRequests": device_requests(uuids, engine)} if uuids else {}),
    }
    return {
        "Image": image.id,
        "Hostname": spec.project,
        "User": f"{spec.uid}:{spec.gid}",
        "Entrypoint": ["sleep", "infinity"],
        "Cmd": [],
        # Not the project's folder: the runtime makes a missing one as root, through the user's own links.
        "WorkingDir": WORKSPACE,
        "Env": environment(spec, image, () if engine.cdi else uuids),
        "Labels": labels(spec, lease.render() if lease is not None else ""),
        "ExposedPorts": {f"{inner}/tcp": {} for inner, _host in spec.ports},
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGTERM",
        "StopTimeout": _STOP_SECONDS,
        "Tty": False,
        "OpenStdin": False,
        "HostConfig": host,
    }


def probe_config(image: str) -> dict[str, Any]:
    """Return the body of POST /containers/create for a container to look into: no mounts, never started."""
    return {
        "Image": image,
        # An image without a command of its own could not be made into a container otherwise.
        "Entrypoint": ["/none"],
        "Labels": {"lab.server.kind": "probe"},
        "NetworkDisabled": True,
        "HostConfig": {"NetworkMode": "none"},
    }


def account_files(
    spec: ContainerSpec, passwd: str, group: str, group_names: Sequence[tuple[str, int]], shell: str
) -> tuple[str, str]:
    """Return (passwd, group) of the image with the user's entries in the place of any of the same name or id.

    ``group_names`` are further groups that get a name in the container. Source: passwd(5), group(5).
    """
    kept = _without(passwd, {spec.user}, {str(spec.uid)})
    kept.append(f"{spec.user}:x:{spec.uid}:{spec.gid}::{spec.home}:{shell}")
    further = [(name, gid) for name, gid in group_names if gid != spec.gid and name != spec.user]
    groups = _without(
        group,
        {spec.user, *(name for name, _gid in further)},
        {str(spec.gid), *(str(gid) for _name, gid in further)},
    )
    groups.append(f"{spec.user}:x:{spec.gid}:")
    groups += [f"{name}:x:{gid}:{spec.user}" for name, gid in further]
    return "\n".join(kept) + "\n", "\n".join(groups) + "\n"


def _without(text: str, wrong_names: set[str], wrong_ids: set[str]) -> list[str]:
    lines = []
    for line in text.splitlines():
        parts = line.split(":")
        if line and not (parts[0] in wrong_names or (len(parts) > 2 and parts[2] in wrong_ids)):
            lines.append(line)
    return lines
