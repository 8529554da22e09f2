# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The policy of a server: who may use what, and how much of it.

``from_inventory`` makes it of the inventory's ``lab_*`` variables, checked as a whole; ``dump`` and ``parse``
are its form in ``/etc/lab-server/policy.json``, which broker, timers and the boot unit read with ``load``.
What lab users may read of it is in ``public.json`` beside it, and the commands read that.
Sizes are bytes.
"""

from __future__ import annotations

import ipaddress
import json
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Callable, TypeVar

from . import POLICY_PATH, backuprules, diskrules, gpurequests, liferules, names, objectrules, policy_gpus
from .backuprules import BackupRules
from .diskrules import DiskRules
from .errors import HostError, InvalidInput, NotFound, together
from .liferules import LifeRules
from .objectrules import Endpoint
from .policy_gpus import GpuPolicy
from .sizes import format_size, parse_size
from .userfiles import Row

FORMAT = 1
#: Whose an account is: made and kept by us, or somebody else's, such as that of a directory.
LOCAL, EXISTING = ACCOUNTS = ("local", "existing")
#: The gid of the group users (base-passwd), which directories like to give; others below 1000 give rights.
_USERS_GID = 100
HOME_ROOT = "/home"
#: The group in which every lab user is.
LAB_GROUP = "lab"
WORKSPACES_ROOT = "/home/.workspaces"
#: Holds the kept homes of projects, on the file system of the homes, so that the same quota holds.
HOMES_ROOT = "/home/.homes"

_FILESYSTEM_TYPES = ("ext4", "xfs")
_DEFAULT_MOUNTS = {"home": HOME_ROOT, "data": "", "docker": "/var/lib/docker"}
_SHARE_ACCESS = ("read-only", "group", "admin")
_STATES = ("started", "stopped", "retired", "absent")
_GONE = ("retired", "absent")
#: What HOME is in a container: its own, a folder kept for the project, or the user's home on the host.
CONTAINER_HOME, PERSISTENT_HOME, HOST_HOME = HOME_MODES = ("container", "persistent", "host")
#: What becomes of a container that runs when its image is newer.
REPLACE, WAIT = ON_NEW_IMAGE = ("replace", "wait")
#: The lowest port of the host that a container may have: those below are the system's.
LOWEST_PORT = 1024
# How long and how much is kept, unless the inventory says otherwise.
_KEPT: dict[str, object] = {"retire_keep": 7, "retire_size": "10g", "images_keep": 3}
# Where builds find the package cache, and what it keeps: the first network of the role docker's own pool.
_CACHE: dict[str, object] = {"size": "10g", "address": "10.213.0.1/24", "port": 80}
# A cache that is smaller than one large package keeps nothing for long.
_LEAST_CACHE = 100 << 20
# Ten years: what is to run longer has no limit.
_LONGEST_HOURS = 87600
# Ports that only root can listen on (ip(7)): a user could take the place of a cache that is down.
_HIGHEST_CACHE_PORT = 1023
_HTTPS = 443
_HOST_NAME = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)+"
# The path of a kept folder in a container. No part is hidden or goes up; '+' stands for '/' on the host.
_KEPT_PATH = re.compile(r"(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)+")
_KEPT_LIMIT = 100
# The URL of a folder. It becomes part of a web server's settings, so it holds nothing that has to be quoted.
_FOLDER_URL = re.compile(
    rf"https?://{_HOST_NAME}(?::[1-9][0-9]{{0,4}})?/(?:[A-Za-z0-9_+~-][A-Za-z0-9_.+~-]*/)*"
)
_PROJECT_TYPES = ("ml", "cv", "nlp", "stats", "custom")
_DESCRIPTION_LIMIT = 200
_NEWS_LIMIT = 2000  # characters; more than a screen is not read
# Docker refuses less than 6 MiB for a container; with less than this nothing starts in it.
_LEAST_MEMORY = 16 << 20
# Limits of disks and of time, which are none unless they are given.
_NONE_UNLESS_GIVEN = ("layers_size", "layers_files", "images_size", "data_size", "run_hours", "idle_hours")
# A quota below it is a size whose unit was forgotten.
_LEAST_QUOTA = 1 << 20
# Options that undo what lab.server needs, or that leave the file system unmounted or unwritable.
_UNUSABLE_OPTIONS = frozenset(
    (
        *("suid", "dev", "noquota", "defaults", "noauto", "ro", "user", "users", "owner", "group"),
        *("uqnoenforce", "pqnoenforce"),
    )
)
# Names of devices that change when disks come or go, and of parts of devices.
UNSTABLE_DEVICE = re.compile(r"/dev/(?:(?:sd|vd|xvd|hd|nvme|mmcblk|dm-|md|loop|sr)[a-z0-9]*)")
# Neither shared data nor Docker's may be there, nor above or below it.
_SYSTEM_PATHS = (
    *("/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib32", "/lib64", "/proc", "/root", "/run"),
    *("/sbin", "/sys", "/usr", "/workspace"),
)
_OTHERS_PATHS = ("/media", "/mnt", "/opt", "/srv", "/var", "/var/cache", "/var/lib", "/var/log")
# sshd(8), AUTHORIZED_KEYS FILE FORMAT: options may come before the type.
_PUBLIC_KEY = re.compile(
    r"(?:.* )?(?:ssh-(?:ed25519|rsa)|ecdsa-sha2-nistp(?:256|384|521)|sk-(?:ssh-ed25519|ecdsa-sha2-nistp256)"
    r"@openssh\.com) [A-Za-z0-9+/]{32,}={0,3}(?: .*)?"
)
#: Debian policy 9.2.2 gives 1000-59999 to ordinary accounts; numbers above are projects of shares.
FIRST_ID, LAST_ID = 1000, 59999

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What one user may hold at once over all containers; sizes in bytes, cpus in cores.

    The last six are no limit when they are 0: ``layers_*`` is what containers hold beyond their images,
    ``images_size`` what the images do, ``data_size`` what belongs to the user below the data root;
    ``run_hours`` is for how long a container may run, ``idle_hours`` for how long it may do nothing.
    """

    containers: int
    cpus: float
    memory: int
    pids: int
    shm: int
    gpus: int
    layers_size: int = 0
    layers_files: int = 0
    images_size: int = 0
    data_size: int = 0
    run_hours: int = 0
    idle_hours: int = 0


@dataclass(frozen=True)
class Quota:
    """A user's quota on the file system of the homes: bytes and inodes; 0 means no limit."""

    soft: int
    hard: int
    inodes_soft: int
    inodes_hard: int


@dataclass(frozen=True)
class Filesystem:
    """A file system that the server stands on. An empty device means that somebody else mounts it."""

    role: str
    mount: str
    device: str
    fstype: str
    options: tuple[str, ...]
    create: bool


@dataclass(frozen=True)
class Group:
    """A group of lab users, with the limits, the quota and the environment that each of them gets."""

    name: str
    gid: int
    limits: Limits
    quota: Quota
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class User:
    """A lab user; limits, quota and environment are the group's with the user's own overrides.

    ``account`` is one of ACCOUNTS. ``main_group`` is the gid of an account that exists already; 0 for the
    private group.
    """

    name: str
    uid: int
    group: str
    groups: tuple[str, ...]
    comment: str
    limits: Limits
    quota: Quota
    account: str = LOCAL
    main_group: int = 0
    #: Variables of all the user's containers, beside those of the server and below those of a project.
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def gid(self) -> int:
        """The gid of the user's main group: the private one has the same number as the uid."""
        return self.main_group or self.uid

    @property
    def existing(self) -> bool:
        """Whether the account is somebody else's, and not to be made, changed or closed."""
        return self.account == EXISTING

    @property
    def home(self) -> str:
        """The user's home on the host, and the path of HOME in the containers."""
        return posixpath.join(HOME_ROOT, self.name)


@dataclass(frozen=True)
class Share:
    """A folder of the data root. ``group`` writes to it, and is empty where only root does.

    ``size`` is how many bytes its files may hold together; 0: as many as the disk. ``description`` is one
    line for those who may use it.
    """

    name: str
    access: str
    group: str
    size: int = 0
    description: str = ""


@dataclass(frozen=True)
class BaseImage:
    """An image that projects build on, from a registry (``image``) or an archive on the controller.

    ``files`` is a folder in it that is copied once to the workspaces of its users; empty for none.
    """

    name: str
    image: str
    archive: str
    files: str = ""

    @property
    def folder(self) -> str:
        """The folder of a workspace that its files go to: the last part of its name, without a tag."""
        return self.name.split("@")[0].rsplit("/", 1)[-1].split(":")[0]


@dataclass(frozen=True)
class KeptFolder:
    """A folder of a container, by its path there, that outlives it; ``size`` is bytes, 0 for none."""

    path: str
    size: int = 0


@dataclass(frozen=True)
class Project:
    """A project that IT declared. What is None follows the user's limits."""

    user: str
    name: str
    type: str
    base: str
    files: tuple[tuple[str, str], ...]
    state: str
    cpus: float | None
    memory: int | None
    pids: int | None
    shm: int | None
    environment: tuple[tuple[str, str], ...]
    home: str = CONTAINER_HOME
    #: (port in the container, port on the host's loopback address)
    ports: tuple[tuple[int, int], ...] = ()
    #: Whether Python packages keep their versions when the image is built again.
    locked: bool = False
    #: What becomes of a container that runs when its image is newer: one of ON_NEW_IMAGE.
    on_new_image: str = REPLACE
    #: A request for GPUs in its canonical text; "" for none.
    gpus: str = ""
    #: For how long its container may run, and do nothing, in hours; 0: without end.
    run_hours: int | None = None
    idle_hours: int | None = None
    keep: tuple[KeptFolder, ...] = ()


@dataclass(frozen=True)
class PackageCache:
    """A cache of packages for builds: ``index`` (the URL of a simple index) and the URLs of its ``files``.

    ``apt`` are hosts whose repositories are kept, too; ``size`` is bytes. ``address`` is that of the server
    on the bridge of the builds, with its prefix (10.213.0.1/24).
    """

    index: str
    files: tuple[str, ...]
    apt: tuple[str, ...]
    size: int
    address: str
    port: int

    @property
    def host(self) -> str:
        """The address of the server, without its prefix."""
        return str(ipaddress.IPv4Interface(self.address).ip)

    @property
    def network(self) -> str:
        """The network of the builds."""
        return str(ipaddress.IPv4Interface(self.address).network)


@dataclass(frozen=True)
class Policy:
    """All that a server was told by its inventory."""

    lab_gid: int
    data_root: str
    docker_root: str
    filesystems: tuple[Filesystem, ...]
    groups: tuple[Group, ...]
    users: tuple[User, ...]
    shares: tuple[Share, ...]
    base_images: tuple[BaseImage, ...]
    projects: tuple[Project, ...]
    environment: tuple[tuple[str, str], ...]
    #: Days that a retired container is kept; 0: none is. Bytes that a user's kept ones may hold together.
    retire_keep_days: int = 7
    retire_size: int = 10 << 30
    #: How many images are kept for each project, the current one among them.
    images_keep: int = 3
    #: None where builds fetch packages themselves.
    package_cache: PackageCache | None = None
    #: What lab users read when they log in, in lines; empty for nothing.
    news: str = ""
    disks: DiskRules = field(default_factory=DiskRules)
    life: LifeRules = field(default_factory=LifeRules)
    gpu: GpuPolicy = field(default_factory=GpuPolicy)
    #: None where nothing is backed up.
    backup: BackupRules | None = None
    #: S3 servers that users can push files to; none without.
    object_storage: tuple[Endpoint, ...] = ()

    @property
    def home_root(self) -> str:
        """The file system that holds the homes and the workspaces."""
        return HOME_ROOT

    def user(self, name: str) -> User:
        """Return the lab user of that name; raise NotFound."""
        return _find(
            self.users, lambda user: user.name == name, f"'{names.printable(name)}' is not a lab user."
        )

    def user_by_uid(self, uid: int) -> User:
        """Return the lab user of that uid; raise NotFound."""
        return _find(self.users, lambda user: user.uid == uid, f"uid {uid} is not a lab user's.")

    def keeps_versions(self, user: str, project: str) -> bool:
        """Say whether IT declared that a project's image keeps the versions of its Python packages."""
        return any(one.locked and (one.user, one.name) == (user, project) for one in self.projects)

    def limits_of(self, user: User, project: str) -> Limits:
        """Return the user's limits with the hours that IT declared for the container of a project."""
        for one in self.projects:
            if (one.user, one.name) == (user.name, project):
                given = {"run_hours": one.run_hours, "idle_hours": one.idle_hours}
                return replace(
                    user.limits, **{key: hours for key, hours in given.items() if hours is not None}
                )
        return user.limits

    def group(self, name: str) -> Group:
        """Return the group of that name; raise NotFound."""
        return _find(
            self.groups, lambda group: group.name == name, f"'{names.printable(name)}' is not a lab group."
        )

    def workspace(self, user: User) -> str:
        """Return the canonical path of the user's workspace; all its parents belong to root."""
        return posixpath.join(WORKSPACES_ROOT, user.name)

    def home_source(self, user: User, project: str, mode: str) -> str:
        """Return the folder of the host that is HOME in the project's container; empty where none is.

        Raises InvalidInput for an unknown mode.
        """
        if mode not in HOME_MODES:
            raise InvalidInput(
                f"home: {names.printable(mode)[:40]!r} is not known.", f"Use one of: {', '.join(HOME_MODES)}."
            )
        if mode == CONTAINER_HOME:
            return ""
        return posixpath.join(HOMES_ROOT, user.name, project) if mode == PERSISTENT_HOME else user.home

    def kept_source(self, user: User, project: str, path: str) -> str:
        """Return the folder of the host for a kept folder of a container, by its path there.

        No project's name has an '@', and no kept path a '+', so each has a folder of its own.
        """
        return posixpath.join(HOMES_ROOT, user.name, f"{project}@{path.strip('/').replace('/', '+')}")

    def share_path(self, share: Share) -> str:
        """Return the path of the share, the same on the host and in the containers."""
        return posixpath.join(self.data_root, share.name)

    def shares_for(self, user: User) -> tuple[Share, ...]:
        """Return the group shares that the user may write, in the order of the inventory."""
        mine = {user.group, *user.groups}
        return tuple(share for share in self.shares if share.access == "group" and share.group in mine)


def overlaid(*layers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return the variables of all layers of an environment by their names; a later layer wins."""
    return tuple(sorted({name: text for layer in layers for name, text in layer}.items()))


def _find(items: Iterable[T], wanted: Callable[[T], bool], message: str) -> T:
    for item in items:
        if wanted(item):
            return item
    raise NotFound(message)


class _Table:
    """A mapping of the inventory that is read key by key; a key that nobody read is unknown."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, Mapping):
            raise InvalidInput(f"{where}: expected a mapping of keys to values.", "See docs/variables.md.")
        self.where = where
        self.further: frozenset[str] = frozenset()
        self._left = dict(value)
        self._known: list[str] = []

    def at(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def take(self, key: str, default: object = None) -> object:
        self._known.append(key)
        value = self._left.pop(key, None)
        return default if value is None else value

    def required(self, key: str) -> object:
        value = self.take(key)
        if value is None:
            raise InvalidInput(
                f"{self.at(key)} is missing.", "Set it in the inventory; see docs/variables.md."
            )
        return value

    def text(self, key: str, default: str = "") -> str:
        value = self.take(key, default)
        if not isinstance(value, str):
            raise InvalidInput(f"{self.at(key)}: expected text.", "Quote the value.")
        # Ansible hands out marked subclasses of str; the policy is plain data.
        return str(value)

    def line(self, key: str, default: str = "") -> str:
        value = self.text(key, default)
        if not value.isprintable() or ":" in value:
            raise InvalidInput(
                f"{self.at(key)}: a ':' or a control character is not allowed.", "Use plain text."
            )
        return value

    def lines(self, key: str) -> str:
        value = self.text(key).strip("\n")
        if len(value) > _NEWS_LIMIT:
            raise InvalidInput(
                f"{self.at(key)}: more than {_NEWS_LIMIT} characters.", "Write less, and where to read on."
            )
        if not all(line.isprintable() for line in value.split("\n")):
            raise InvalidInput(f"{self.at(key)}: holds a control character.", "Use plain lines of text.")
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str = "") -> str:
        value = self.take(key, default)
        if value == "":
            raise InvalidInput(f"{self.at(key)} is missing.", f"Use one of: {', '.join(choices)}.")
        if value not in choices:
            raise InvalidInput(
                f"{self.at(key)}: {names.printable(str(value))[:40]!r} is not known.",
                f"Use one of: {', '.join(choices)}.",
            )
        return str(value)

    def boolean(self, key: str, default: bool = False) -> bool:
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise InvalidInput(f"{self.at(key)}: expected true or false.", "Do not quote it.")
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        value = self.required(key)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidInput(
                f"{self.at(key)}: expected a whole number from {low} to {high}, not {_shown(value)}.",
                "Correct the value; a number is not quoted.",
            )
        return int(value)

    def number(self, key: str, low: float, high: float) -> float:
        value = self.required(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise InvalidInput(
                f"{self.at(key)}: expected a number from {low} to {high}, not {_shown(value)}.",
                "Correct the value; a number is not quoted.",
            )
        return float(value)

    def size(self, key: str) -> int:
        return parse_size(self.required(key), self.at(key))

    def path(self, key: str, default: str = "") -> str:
        value = self.text(key, default)
        if value and (posixpath.normpath(value) != value or not value.startswith("/") or value == "/"):
            raise InvalidInput(
                f"{self.at(key)}: {value!r} is not a plain absolute path.", "Write it as /a/b."
            )
        if any(c.isspace() for c in value) or not value.isprintable():
            raise InvalidInput(
                f"{self.at(key)}: a path with white space is not supported.", "Choose another path."
            )
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.take(key, [])
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise InvalidInput(f"{self.at(key)}: expected a list.", "Write it as a YAML list.")
        for number, item in enumerate(value):
            if not isinstance(item, str):
                raise InvalidInput(f"{self.at(key)}[{number}]: expected text.", "Quote the value.")
        return tuple(str(item) for item in value)

    def pairs(self, key: str) -> tuple[tuple[str, str], ...]:
        value = self.take(key, {})
        if not isinstance(value, Mapping):
            raise InvalidInput(
                f"{self.at(key)}: expected a mapping of names to text.", "See docs/variables.md."
            )
        for name, text in value.items():
            if not isinstance(name, str) or not isinstance(text, str):
                raise InvalidInput(f"{self.at(key)}.{name}: expected text.", "Quote the value.")
            if "\0" in text:
                raise InvalidInput(f"{self.at(key)}.{name}: holds a NUL character.", "Remove it.")
        return tuple(sorted((str(name), str(text)) for name, text in value.items()))

    def environment(self, key: str) -> tuple[tuple[str, str], ...]:
        pairs = self.pairs(key)
        for name, text in pairs:
            names.environment_name(name, f"{self.at(key)}")
            if "\n" in text:
                raise InvalidInput(f"{self.at(key)}.{name}: holds a line break.", "Write it on one line.")
            if name.startswith(("NVIDIA_", "LD_")) or name in ("PATH", "HOME", "USER", "LOGNAME"):
                raise InvalidInput(f"{self.at(key)}.{name}: is set by lab.server.", "Remove it.")
        return pairs

    def tables(self, key: str) -> list[_Table]:
        value = self.take(key, [])
        if isinstance(value, (str, Mapping)) or not isinstance(value, (list, tuple)):
            raise InvalidInput(f"{self.at(key)}: expected a list.", "Write it as a YAML list of mappings.")
        return [_Table(item, f"{self.at(key)}[{number}]{_named(item)}") for number, item in enumerate(value)]

    def table(self, key: str, default: object = None) -> _Table:
        return _Table(self.take(key, {} if default is None else default), self.at(key))

    def overlaid(self, key: str, base: Mapping[str, object]) -> _Table:
        """Return the table under ``key`` with the values of ``base`` where it has none."""
        own = self.table(key)
        for name in own._left:
            if name not in base:
                raise InvalidInput(f"{own.at(name)}: unknown key.", f"Use one of: {', '.join(sorted(base))}.")
        return _Table({**base, **{k: v for k, v in own._left.items() if v is not None}}, own.where)

    def fill(self, prefix: str, values: Mapping[str, object]) -> None:
        """Take ``values`` for the keys that are not there."""
        for key, value in values.items():
            self._left.setdefault(prefix + key, value)

    @property
    def keys(self) -> list[str]:
        """The keys that are there and were not read yet."""
        return list(self._left)

    def done(self) -> None:
        for key in self._left:
            raise InvalidInput(
                f"{self.at(names.printable(str(key)))}: unknown key.",
                f"Use one of: {', '.join(sorted({*self._known, *self.further}))}.",
            )


def _shown(value: object) -> str:
    return names.printable(repr(value))[:40]


def _named(item: object) -> str:
    """Return the name of an item of a list for a message, where it has one: nobody counts to 37."""
    name = item.get("name") if isinstance(item, Mapping) else None
    return f" ({names.printable(name)[:32]})" if isinstance(name, str) and name else ""


def _limits(table: _Table) -> Limits:
    table.fill("", dict.fromkeys(_NONE_UNLESS_GIVEN, 0))
    limits = Limits(
        containers=table.integer("containers", 0, 1000),
        cpus=table.number("cpus", 0.01, 4096),
        memory=table.size("memory"),
        pids=table.integer("pids", 16, 1 << 22),
        shm=table.size("shm"),
        gpus=table.integer("gpus", 0, 1024),
        layers_size=table.size("layers_size"),
        layers_files=table.integer("layers_files", 0, 1 << 40),
        images_size=table.size("images_size"),
        data_size=table.size("data_size"),
        run_hours=table.integer("run_hours", 0, _LONGEST_HOURS),
        idle_hours=table.integer("idle_hours", 0, _LONGEST_HOURS),
    )
    table.done()
    for key in ("layers_size", "images_size", "data_size"):
        if 0 < getattr(limits, key) < _LEAST_QUOTA:
            raise InvalidInput(
                f"{table.at(key)}: {getattr(limits, key)} bytes hold nothing.",
                "Give it a unit, such as 10g; 0 is no limit.",
            )
    if limits.memory < _LEAST_MEMORY:
        raise InvalidInput(f"{table.at('memory')}: less than 16m holds no container.", "Give more memory.")
    if limits.shm > limits.memory:
        raise InvalidInput(
            f"{table.at('shm')}: shm counts as memory and is above it.", "Lower shm or raise memory."
        )
    return limits


def _quota(table: _Table) -> Quota:
    quota = Quota(
        soft=table.size("soft"),
        hard=table.size("hard"),
        inodes_soft=table.integer("inodes_soft", 0, 1 << 40),
        inodes_hard=table.integer("inodes_hard", 0, 1 << 40),
    )
    table.done()
    for kind, soft, hard, shown in (
        ("", quota.soft, quota.hard, format_size),
        ("inodes_", quota.inodes_soft, quota.inodes_hard, str),
    ):
        if hard and soft > hard:
            raise InvalidInput(
                f"{table.at(kind + 'soft')}: the soft limit {shown(soft)} is above "
                f"the hard limit {shown(hard)}.",
                f"Lower it, or raise {table.at(kind + 'hard')}.",
            )
    for key, size in (("soft", quota.soft), ("hard", quota.hard)):
        if 0 < size < _LEAST_QUOTA:
            raise InvalidInput(
                f"{table.at(key)}: {size} bytes hold nothing.", "Give it a unit, such as 10g; 0 is no limit."
            )
    return quota


def _as_dict(value: Any) -> dict[str, Any]:
    return {one.name: getattr(value, one.name) for one in fields(value)}


def _unique(what: str, values: Iterable[tuple[object, str]]) -> None:
    seen: dict[object, str] = {}
    mistakes = []
    for value, where in values:
        if value in seen:
            mistakes.append(
                InvalidInput(
                    f"{where}: {what} {value} is also that of {seen[value]}.", "Each must be there once."
                )
            )
        seen.setdefault(value, where)
    if mistakes:
        raise together(mistakes)


def _each(tables: Iterable[_Table], make: Callable[[_Table], T]) -> tuple[T, ...]:
    """Return what ``make`` makes of each table; raise InvalidInput with what is wrong in all of them."""
    made, mistakes = [], []
    for table in tables:
        try:
            made.append(make(table))
        except InvalidInput as mistake:
            mistakes.append(mistake)
    if mistakes:
        raise together(mistakes)
    return tuple(made)


def _filesystem(role: str, table: _Table, data_root: str) -> Filesystem:
    default = data_root if role == "data" else _DEFAULT_MOUNTS[role]
    filesystem = Filesystem(
        role=role,
        mount=table.path("mount", default),
        device=table.text("device"),
        fstype=table.choice("fstype", _FILESYSTEM_TYPES, "ext4"),
        options=table.texts("options"),
        create=table.boolean("create"),
    )
    table.done()
    _device(filesystem.device, table.at("device"))
    if filesystem.create and not filesystem.device.startswith("/dev/"):
        raise InvalidInput(
            f"{table.at('create')}: needs a device under /dev.", "Set device, or create: false."
        )
    if role == "home" and filesystem.mount != HOME_ROOT:
        raise InvalidInput(f"{table.at('mount')}: the homes are at {HOME_ROOT}.", "Remove the key.")
    if role == "data" and filesystem.mount != data_root:
        raise InvalidInput(f"{table.at('mount')}: differs from lab_data_root.", "Set lab_data_root alone.")
    for option in filesystem.options:
        if option in _UNUSABLE_OPTIONS or not re.fullmatch(r"[!-+\--~]+", option) or "#" in option:
            raise InvalidInput(
                f"{table.at('options')}: {option!r} cannot be used.", "Name one plain option an item."
            )
    return filesystem


def _device(device: str, where: str) -> None:
    path = device.startswith("/dev/") and posixpath.normpath(device) == device
    if (device and not (path or re.fullmatch(r"(?:UUID|LABEL)=.+", device))) or not _plain(device):
        raise InvalidInput(
            f"{where}: {_shown(device)} is no device.", "Use /dev/disk/by-id/..., UUID=... or LABEL=..."
        )
    if UNSTABLE_DEVICE.fullmatch(device):
        raise InvalidInput(
            f"{where}: {device} can be another disk after the next boot.",
            "Use its name in /dev/disk/by-id, /dev/mapper or /dev/VG/LV, or UUID=...",
        )


def _plain(text: str) -> bool:
    return text.isprintable() and not any(c.isspace() or c in "#\\" for c in text)


def _check_places(filesystems: Iterable[Filesystem], data_root: str, prefix: str) -> None:
    """Raise InvalidInput when shared data or Docker's would be in the way of something else."""
    docker = next((fs.mount for fs in filesystems if fs.role == "docker"), _DEFAULT_MOUNTS["docker"])
    for where, path, other in (
        (prefix + "data_root", data_root, docker),
        (prefix + "filesystems.docker.mount", docker, data_root),
    ):
        taken = [place for place in (*_SYSTEM_PATHS, other) if _overlaps(path, place)]
        taken += [place for place in _OTHERS_PATHS if path == place]
        if taken:
            raise InvalidInput(f"{where}: {path} is in the way of {taken[0]}.", "Choose a path of its own.")
    _unique(
        "the device",
        [(fs.device, f"{prefix}filesystems.{fs.role}.device") for fs in filesystems if fs.device],
    )


def _overlaps(one: str, other: str) -> bool:
    return one == other or one.startswith(other + "/") or other.startswith(one + "/")


def _group(table: _Table) -> Group:
    group = Group(
        name=names.group_name(table.required("name"), table.at("name")),
        gid=table.integer("gid", FIRST_ID, LAST_ID),
        limits=_limits(table.table("limits", table.required("limits"))),
        quota=_quota(table.table("quota", table.required("quota"))),
        environment=table.environment("environment"),
    )
    table.done()
    return group


def _user(table: _Table, groups: Mapping[str, Group]) -> User:
    name = names.user_name(table.required("name"), table.at("name"))
    group = str(table.required("group"))
    further = table.texts("groups")
    for key, value in [("group", group)] + [("groups", item) for item in further]:
        if value not in groups:
            raise InvalidInput(
                f"{table.at(key)}: '{names.printable(value)}' is not in lab_groups.",
                f"Use one of: {', '.join(sorted(groups)) or 'none is declared'}.",
            )
    table.fill("", {"main_group": 0})
    account = table.choice("account", ACCOUNTS, LOCAL)
    main_group = table.integer("main_group", 0, (1 << 32) - 2)
    if main_group and (account != EXISTING or (main_group < FIRST_ID and main_group != _USERS_GID)):
        raise InvalidInput(
            f"{table.at('main_group')}: {main_group} cannot be the main group of a lab user.",
            f"Give the account one from {FIRST_ID} on where it is kept.",
        )
    return User(
        name=name,
        account=account,
        main_group=main_group,
        uid=table.integer("uid", FIRST_ID, LAST_ID),
        group=group,
        groups=tuple(sorted(set(further) - {group})),
        comment=table.line("comment"),
        limits=_limits(table.overlaid("limits", _as_dict(groups[group].limits))),
        quota=_quota(table.overlaid("quota", _as_dict(groups[group].quota))),
        environment=overlaid(groups[group].environment, table.environment("environment")),
    )


def _share(table: _Table, groups: Mapping[str, Group], users: Iterable[User]) -> Share:
    share = Share(
        name=names.share_name(table.required("name"), table.at("name")),
        access=table.choice("access", _SHARE_ACCESS),
        group=table.text("group"),
        size=parse_size(table.take("size", 0), table.at("size")),
        description=table.text("description"),
    )
    table.done()
    if len(share.description) > _DESCRIPTION_LIMIT or not share.description.isprintable():
        raise InvalidInput(
            f"{table.at('description')}: must be one line of at most {_DESCRIPTION_LIMIT} characters.",
            "Say in a few words what is there.",
        )
    if 0 < share.size < _LEAST_QUOTA:
        raise InvalidInput(
            f"{table.at('size')}: {share.size} bytes hold nothing.", "Give it a unit, such as 100g."
        )
    if share.access == "group" and not share.group:
        raise InvalidInput(
            f"{table.at('group')} is missing.", "A group share names the group that writes to it."
        )
    if share.access == "admin" and share.group:
        raise InvalidInput(f"{table.at('group')}: an admin share belongs to root alone.", "Remove the key.")
    if share.group and share.group not in groups:
        raise InvalidInput(
            f"{table.at('group')}: '{names.printable(share.group)}' is not in lab_groups.",
            f"Use one of: {', '.join(sorted(groups)) or 'none is declared'}.",
        )
    if share.group and not any(share.group in (user.group, *user.groups) for user in users):
        raise InvalidInput(
            f"{table.at('group')}: nobody is in the group '{share.group}'.",
            "Add it to a user's groups in lab_users, or remove the share.",
        )
    return share


def _base_image(table: _Table) -> BaseImage:
    base = BaseImage(
        name=names.image_reference(table.required("name"), table.at("name")),
        image=table.text("image"),
        archive=table.text("archive"),
        files=table.path("files"),
    )
    table.done()
    if bool(base.image) == bool(base.archive):
        raise InvalidInput(f"{table.where}: needs either 'image' or 'archive'.", "Set exactly one of them.")
    if base.image:
        names.image_reference(base.image, table.at("image"))
    parts = base.name.split("/")
    if parts[0] == "lab" and (len(parts) > 2 or parts[-1].split(":")[0].isdigit()):
        raise InvalidInput(
            f"{table.at('name')}: lab/<uid>/... holds the users' images.", "Use a name such as lab/python."
        )
    return base


def _relative_file(path: str, where: str) -> None:
    parts = path.split("/")
    if not path.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise InvalidInput(
            f"{where}: {names.printable(path)!r} is not a path in the project.", "Write it as src/a.py."
        )


def _port(table: _Table) -> tuple[int, int]:
    port = (table.integer("container", 1, 65535), table.integer("host", LOWEST_PORT, 65535))
    table.done()
    return port


def _project(
    table: _Table, users: Mapping[str, User], bases: tuple[BaseImage, ...], data_root: str
) -> Project:
    owner = str(table.required("user"))
    if owner not in users:
        raise InvalidInput(
            f"{table.at('user')}: '{names.printable(owner)}' is not in lab_users.", "Add the user first."
        )
    limits = users[owner].limits

    def within(key: str, reader: Callable[[], T], limit: T, shown: Callable[[Any], str] = str) -> T | None:
        if table._left.get(key) is None:
            table.take(key)
            return None
        value = reader()
        if value > limit:  # type: ignore[operator]  # int or float, the same type on both sides
            raise InvalidInput(
                f"{table.at(key)}: {shown(value)} is above the limit of the user {owner}.",
                f"At most {shown(limit)}.",
            )
        return value

    project = Project(
        user=owner,
        name=names.project_name(table.required("name"), table.at("name")),
        type=table.choice("type", _PROJECT_TYPES, "custom"),
        base=table.text("base", bases[0].name if bases else ""),
        files=table.pairs("files"),
        state=table.choice("state", _STATES, "started"),
        cpus=within("cpus", lambda: table.number("cpus", 0.01, 4096), limits.cpus),
        memory=within("memory", lambda: table.size("memory"), limits.memory, format_size),
        pids=within("pids", lambda: table.integer("pids", 16, 1 << 22), limits.pids),
        shm=within("shm", lambda: table.size("shm"), limits.shm, format_size),
        environment=table.environment("environment"),
        home=table.choice("home", HOME_MODES, CONTAINER_HOME),
        ports=tuple(sorted(_port(port) for port in table.tables("ports"))),
        locked=table.boolean("locked"),
        on_new_image=table.choice("on_new_image", ON_NEW_IMAGE, REPLACE),
        gpus=gpurequests.text_of(table.take("gpus"), table.at("gpus")),
        run_hours=_hours(table, "run_hours"),
        idle_hours=_hours(table, "idle_hours"),
        keep=kept_folders([_kept(one, data_root) for one in table.tables("keep")], table.at("keep")),
    )
    table.done()
    request = gpurequests.requested(project.gpus)
    if request is not None and not gpurequests.least(request) <= limits.gpus > 0:
        raise InvalidInput(
            f"{table.at('gpus')}: {project.gpus} is above the limit of the user {owner}.",
            f"At most {limits.gpus} (limits.gpus).",
        )
    _unique("the port of the container", [(inner, table.at("ports")) for inner, _host in project.ports])
    memory = limits.memory if project.memory is None else project.memory
    if memory < _LEAST_MEMORY:
        raise InvalidInput(f"{table.at('memory')}: less than 16m holds no container.", "Give more memory.")
    if project.shm is not None and project.shm > memory:
        raise InvalidInput(
            f"{table.at('shm')}: shm counts as memory and is above it.", "Lower shm or raise memory."
        )
    for path, _text in project.files:
        _relative_file(path, table.at("files"))
    if project.base not in {base.name for base in bases}:
        raise InvalidInput(
            f"{table.at('base')}: '{names.printable(project.base)}' is not in lab_base_images.",
            f"Use one of: {', '.join(base.name for base in bases) or 'none is declared'}.",
        )
    return project


def _kept(table: _Table, data_root: str) -> KeptFolder:
    table.fill("", {"size": 0})
    kept = KeptFolder(kept_path(table.required("path"), data_root, table.at("path")), table.size("size"))
    table.done()
    if 0 < kept.size < _LEAST_QUOTA:
        raise InvalidInput(f"{table.at('size')}: {kept.size} bytes hold nothing.", "Give it a unit: 10g.")
    return kept


def kept_folders(given: Iterable[KeptFolder], where: str) -> tuple[KeptFolder, ...]:
    """Return the kept folders of one container in their order; raise InvalidInput where one is in another."""
    kept = tuple(sorted(given, key=lambda one: one.path))
    for one, other in ((one, other) for one in kept for other in kept if one is not other):
        if _overlaps(one.path, other.path):
            raise InvalidInput(f"{where}: {other.path} would hide {one.path}.", "Keep one of them.")
    return kept


def kept_path(value: object, data_root: str, where: str) -> str:
    """Return the path of a kept folder in a container; raise InvalidInput where there can be none."""
    if not isinstance(value, str) or len(value) > _KEPT_LIMIT or not _KEPT_PATH.fullmatch(value):
        raise InvalidInput(
            f"{where}: {_shown(value)} is no path of a folder in a container.",
            "Begin with '/'; letters, digits, '_', '-' and '.' otherwise.",
        )
    taken = [place for place in (*_SYSTEM_PATHS, "/tmp", data_root) if _overlaps(value, place)]  # noqa: S108  # refused
    taken += [place for place in _OTHERS_PATHS if value == place]
    if taken:
        raise InvalidInput(
            f"{where}: {value} would hide {taken[0]} of the container.", "Choose one like /opt/packages."
        )
    return str(value)


def kept_name(name: str) -> tuple[str, str]:
    """Return (project, path) of the name of a kept folder (``Policy.kept_source``); raise InvalidInput."""
    project, found, rest = name.partition("@")
    path = "/" + rest.replace("+", "/")
    if not found or len(path) > _KEPT_LIMIT or not _KEPT_PATH.fullmatch(path):
        raise InvalidInput(f"{names.printable(name)[:80]!r} is not the name of a kept folder.")
    return names.project_name(project), path


def _hours(table: _Table, key: str) -> int | None:
    if table._left.get(key) is None:
        table.take(key)
        return None
    return table.integer(key, 0, _LONGEST_HOURS)


def _package_cache(table: _Table) -> PackageCache:
    table.fill("", _CACHE)
    cache = PackageCache(
        index=str(table.required("index")),
        files=table.texts("files"),
        apt=table.texts("apt"),
        size=table.size("size"),
        address=table.text("address"),
        port=table.integer("port", 1, _HIGHEST_CACHE_PORT),
    )
    table.done()
    for key, urls in (("index", (cache.index,)), ("files", cache.files)):
        for url in urls:
            if not _FOLDER_URL.fullmatch(url):
                raise InvalidInput(
                    f"{table.at(key)}: {_shown(url)} is no plain URL of a folder.",
                    "Write it as https://index.example.org/simple/, with a '/' at its end.",
                )
    if not cache.files:
        raise InvalidInput(
            f"{table.at('files')} is missing.",
            "Name the URLs that the files on the pages of the index begin with.",
        )
    for url in cache.files:
        if any(url != other and url.startswith(other) for other in cache.files):
            raise InvalidInput(f"{table.at('files')}: {url} is part of another one.", "Remove it.")
    for host in cache.apt:
        if not re.fullmatch(_HOST_NAME, host):
            raise InvalidInput(
                f"{table.at('apt')}: {_shown(host)} is no name of a host.",
                "Write it as packages.example.org.",
            )
    _unique("the URL", [(url, table.at("files")) for url in cache.files])
    _unique("the host", [(host, table.at("apt")) for host in cache.apt])
    if cache.size < _LEAST_CACHE:
        raise InvalidInput(
            f"{table.at('size')}: less than 100m keeps no package for long.", "Give it more room."
        )
    if cache.apt and cache.port == _HTTPS:
        raise InvalidInput(
            f"{table.at('port')}: 443 is that of the hosts of apt.", "Use another one, such as 80."
        )
    _bridge_address(cache.address, table.at("address"))
    return cache


def _bridge_address(address: str, where: str) -> None:
    try:
        parsed = ipaddress.IPv4Interface(address)
        network = parsed.network
        usable = parsed.ip not in (network.network_address, network.broadcast_address)
        private = parsed.ip.is_private and not parsed.ip.is_loopback and not parsed.ip.is_link_local
    except ValueError:
        usable = private = False
    if not usable or not private or not 8 <= network.prefixlen <= 29:
        raise InvalidInput(
            f"{where}: {_shown(address)} is no private address with the prefix of its network.",
            "Write it as 10.213.0.1/24.",
        )


def _read(root: _Table, prefix: str, rows: Iterable[Row] = ()) -> tuple[Policy, dict[str, tuple[str, ...]]]:
    """Return the policy in ``root``, whose keys begin with ``prefix``, and the ssh keys of its users.

    ``rows`` are further users.
    """
    root.fill(prefix, _KEPT)
    lab_gid = root.integer(prefix + "gid", FIRST_ID, LAST_ID)
    data_root = root.path(prefix + "data_root", "/srv/data")
    file_systems = root.table(prefix + "filesystems")
    roles = [role for role in _DEFAULT_MOUNTS if role in file_systems.keys]
    filesystems = tuple(_filesystem(role, file_systems.table(role), data_root) for role in roles)
    for role in _DEFAULT_MOUNTS:
        file_systems.take(role)
    file_systems.done()
    _check_places(filesystems, data_root, prefix)
    group_tables = root.tables(prefix + "groups")
    groups = tuple(_group(table) for table in group_tables)
    by_group = {group.name: group for group in groups}
    user_tables = root.tables(prefix + "users") + [_Table(row.user, row.where) for row in rows]
    users = _each(user_tables, lambda table: _user(table, by_group))
    keys = {user.name: table.texts("ssh_keys") for user, table in zip(users, user_tables)}
    for table in user_tables:
        table.done()
    by_user = {user.name: user for user in users}
    shares = tuple(_share(table, by_group, users) for table in root.tables(prefix + "shares"))
    bases = tuple(_base_image(table) for table in root.tables(prefix + "base_images"))
    project_tables = root.tables(prefix + "projects")
    projects = tuple(_project(table, by_user, bases, data_root) for table in project_tables)
    environment = root.environment(prefix + "environment")
    cache = root.take(prefix + "package_cache")

    ids = [(lab_gid, prefix + "gid")]
    ids += [(group.gid, table.at("gid")) for group, table in zip(groups, group_tables)]
    ids += [(user.uid, table.at("uid")) for user, table in zip(users, user_tables)]
    _unique("the number", ids)
    accounts = [(group.name, table.at("name")) for group, table in zip(groups, group_tables)]
    accounts += [(user.name, table.at("name")) for user, table in zip(users, user_tables)]
    _unique("the name", accounts)
    _unique(
        "the share", [(share.name, f"{prefix}shares[{number}].name") for number, share in enumerate(shares)]
    )
    _unique(
        "the image", [(base.name, f"{prefix}base_images[{number}].name") for number, base in enumerate(bases)]
    )
    _unique("the project", [(f"{p.user}/{p.name}", t.at("name")) for p, t in zip(projects, project_tables)])
    _unique(
        "the port of the host",
        [(host, t.at("ports")) for p, t in zip(projects, project_tables) for _inner, host in p.ports],
    )
    _unique(
        "the folder of files",
        [(base.folder, f"{prefix}base_images[{n}].files") for n, base in enumerate(bases) if base.files],
    )
    for user, table in zip(users, user_tables):
        mine = [project for project in projects if project.user == user.name and project.state not in _GONE]
        if len(mine) > user.limits.containers:
            raise InvalidInput(
                f"{prefix}projects: {len(mine)} containers are declared for {user.name}, who may have "
                f"{user.limits.containers}.",
                f"Raise {table.at('limits')}.containers, or declare fewer.",
            )
        for number, key in enumerate(keys[user.name]):
            if not key.isprintable() or not _PUBLIC_KEY.fullmatch(key):
                raise InvalidInput(
                    f"{table.at('ssh_keys')}[{number}]: {_shown(key)} is no public key.",
                    "Write the line of the .pub file itself, or read the file with lookup('file', ...).",
                )

    docker_root = next((fs.mount for fs in filesystems if fs.role == "docker"), "/var/lib/docker")
    policy = Policy(
        lab_gid=lab_gid,
        data_root=data_root,
        docker_root=docker_root,
        filesystems=filesystems,
        groups=groups,
        users=users,
        shares=shares,
        base_images=bases,
        projects=projects,
        environment=environment,
        retire_keep_days=root.integer(prefix + "retire_keep", 0, 3650),
        retire_size=root.size(prefix + "retire_size"),
        images_keep=root.integer(prefix + "images_keep", 1, 1000),
        package_cache=None if cache is None else _package_cache(_Table(cache, prefix + "package_cache")),
        news=root.lines(prefix + "news"),
        disks=diskrules.read(root, prefix, _quota),
        life=liferules.read(root, prefix),
        gpu=policy_gpus.read(root.table(prefix + "gpu"), by_group, by_user),
        backup=backuprules.read(root, prefix),
        object_storage=objectrules.read(root, prefix),
    )
    diskrules.check_default(policy.disks, users, filesystems, prefix)
    return policy, keys


#: Variables of the inventory that concern the playbooks alone and are not part of the policy.
_PLAYBOOK_VARIABLES = frozenset(
    {"lab_docker_source", "lab_ca_certificates", "lab_users_from", "lab_directory_groups", "lab_policy"}
)


def from_inventory(
    variables: Mapping[str, object], rows: Iterable[Row] = ()
) -> tuple[Policy, dict[str, tuple[str, ...]]]:
    """Return the policy that the ``lab_*`` variables mean, and each user's ssh public keys.

    ``variables`` may hold other variables, which are left alone; an unknown ``lab_*`` variable is an error.
    ``rows`` are the users in the files of ``lab_users_from`` (``userfiles.read``).
    Raises InvalidInput, which names the variable and the fix.
    """
    mine = {
        key: value
        for key, value in variables.items()
        if key.startswith("lab_") and key not in _PLAYBOOK_VARIABLES
    }
    mine.setdefault("lab_gid", 3000)
    root = _Table(mine, "")
    root.further = _PLAYBOOK_VARIABLES - {"lab_policy"}
    playbook = _Table({key: variables[key] for key in _PLAYBOOK_VARIABLES & set(variables)}, "")
    playbook.choice("lab_docker_source", ("upstream", "distribution"), "upstream")
    for number, path in enumerate(playbook.texts("lab_ca_certificates")):
        if not path:
            raise InvalidInput(f"lab_ca_certificates[{number}] is empty.", "Name a PEM file.")
    policy, keys = _read(root, "lab_", rows)
    root.done()
    return policy, keys


def _record(value: Any) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for one in fields(value):
        item = getattr(value, one.name)
        if isinstance(item, (Limits, Quota)):
            record[one.name] = _as_dict(item)
        elif one.name in ("files", "environment") and isinstance(value, (Group, User, Project)):
            record[one.name] = dict(item)
        elif one.name == "keep":
            record[one.name] = [asdict(kept) for kept in item]
        elif one.name == "ports":
            record[one.name] = [{"container": inner, "host": host} for inner, host in item]
        elif isinstance(item, tuple):
            record[one.name] = list(item)
        else:
            record[one.name] = item
    return record


def dump(policy: Policy) -> dict[str, Any]:
    """Return the policy as plain data; ``parse`` of it gives an equal policy."""
    return {
        "format": FORMAT,
        "gid": policy.lab_gid,
        "data_root": policy.data_root,
        "filesystems": {
            fs.role: {key: value for key, value in _record(fs).items() if key != "role"}
            for fs in policy.filesystems
        },
        "groups": [_record(group) for group in policy.groups],
        "users": [_record(user) for user in policy.users],
        "shares": [_record(share) for share in policy.shares],
        "base_images": [_record(base) for base in policy.base_images],
        "projects": [_record(project) for project in policy.projects],
        "environment": dict(policy.environment),
        "retire_keep": policy.retire_keep_days,
        "retire_size": policy.retire_size,
        "images_keep": policy.images_keep,
        "package_cache": _record(policy.package_cache) if policy.package_cache else None,
        "news": policy.news,
        **diskrules.dump(policy.disks),
        "lifecycle": asdict(policy.life),
        "gpu": policy_gpus.dump(policy.gpu),
        "backup": backuprules.dump(policy.backup),
        "object_storage": objectrules.dump(policy.object_storage),
    }


def parse(data: object) -> Policy:
    """Return the policy of its plain form; raise InvalidInput."""
    root = _Table(data, "")
    if root.take("format") != FORMAT:
        raise InvalidInput(
            "The policy was written by another version of lab.server.",
            "Run the playbook lab.server.site again.",
        )
    policy, _keys = _read(root, "")
    root.done()
    return policy


def public(policy: Policy) -> Policy:
    """Return what every user of the server may read: no environment, which may hold secrets, no files."""
    return replace(
        policy,
        environment=(),
        groups=tuple(replace(group, environment=()) for group in policy.groups),
        users=tuple(replace(user, environment=()) for user in policy.users),
        projects=tuple(replace(project, environment=(), files=()) for project in policy.projects),
        backup=None,
    )


def load(path: str = POLICY_PATH) -> Policy:
    """Return the policy of the server; raise HostError if it is missing or damaged."""
    try:
        with open(path, encoding="utf-8") as stream:
            return parse(json.load(stream))
    except FileNotFoundError:
        raise HostError(
            f"{path} is missing: this server is not provisioned.", "Run the playbook lab.server.site."
        ) from None
    except (OSError, ValueError, InvalidInput) as error:
        raise HostError(
            f"{path} cannot be used: {error}", "Run the playbook lab.server.site again."
        ) from error
