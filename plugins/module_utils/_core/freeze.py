# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The list of Python packages in an image, as ``pip freeze`` says it, so that it can be made again the same.

What runs is the image's own python3, of which nothing is known: a container that is thrown away, as the user,
without network, mounts or rights, in the user's slice, bounded in memory, processes, time and words.

A list is the lock of a later build: pip and uv take it as constraints, which install nothing, but let nothing
be installed in another version. Both read where it is from the environment, so no Dockerfile has to name it
(https://pip.pypa.io/en/stable/user_guide/#constraints-files, the environment variables of uv).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import names
from .engine import Engine
from .errors import LabError
from .policy import User
from .spec import cgroup_parent

_SECONDS = 60.0
_OUTPUT_LIMIT = 1 << 20
_MEMORY = 512 << 20
_PIDS = 64
# What is a constraint: one version of a package by its name, no address, no path and no option.
_PINNED = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)===?([A-Za-z0-9][A-Za-z0-9.+!_-]*)")
# A package that was installed from an address or a file (PEP 440, direct references).
_ADDRESS = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*) @ (\S.*)")
#: The lock of a build in its context, where it takes the place of what the project has under this name.
LOCK_FILE = ".lab-server-lock.txt"
#: Where the image has it. A container has a file system of its own at /run, so none of them shows it.
LOCK_PLACE = "/run/lab-server/lock.txt"
ENVIRONMENT = {"PIP_CONSTRAINT": LOCK_PLACE, "UV_CONSTRAINT": LOCK_PLACE}


@dataclass(frozen=True)
class Lock:
    """The versions that a build keeps: the first 12 digits of the image whose they are, and its list."""

    image: str
    listed: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """What pip and uv take as constraints."""
        return tuple(line for line in self.listed if _PINNED.fullmatch(line))

    @property
    def left_out(self) -> tuple[str, ...]:
        """What is none, such as a package that was installed from a file: its version cannot be kept."""
        return tuple(line for line in self.listed if not _PINNED.fullmatch(line))

    def broken(self, listed: Iterable[str]) -> tuple[str, ...]:
        """Return what is of another version in this list, "name old -> new"; what is new or gone is not."""
        now = _versions(listed)
        return tuple(
            f"{name} {version} -> {now[name]}"
            for name, version in sorted(_versions(self.lines).items())
            if now.get(name, version) != version
        )


def _versions(listed: Iterable[str]) -> dict[str, str]:
    """Return what there is of each package, by the normal form of its name (PEP 503): version or address."""
    found: dict[str, str] = {}
    for line in listed:
        match = _PINNED.fullmatch(line) or _ADDRESS.fullmatch(line)
        if match is not None:
            found[re.sub(r"[-_.]+", "-", match.group(1)).lower()] = match.group(2)
    return found


def packages(engine: Engine, user: User, project: str, image: str) -> tuple[str, ...] | None:
    """Return the packages of an image (its id), one a line; None where they cannot be told.

    An image without Python or without pip is no error: there is nothing to list.
    """
    name = f"{names.container_name(project, user.uid)}.packages"
    try:
        said = engine.output_of(name, _config(engine, user, image), seconds=_SECONDS, limit=_OUTPUT_LIMIT)
    except LabError:
        return None
    if said is None:
        return None
    lines = said.decode("utf-8", "replace").splitlines()
    return tuple(names.printable(line.strip()) for line in lines if line.strip())


def _config(engine: Engine, user: User, image: str) -> dict[str, Any]:
    """Return the body of POST /containers/create."""
    memory = min(user.limits.memory, _MEMORY)
    return {
        "Image": image,
        "User": f"{user.uid}:{user.gid}",
        "Entrypoint": ["python3", "-m", "pip", "--disable-pip-version-check", "freeze"],
        "Cmd": [],
        "WorkingDir": "/",
        # The image's own environment stays, for its PATH; what could reach outside is taken out of it.
        "Env": ["HOME=/nonexistent", "NVIDIA_VISIBLE_DEVICES=void", "LD_PRELOAD=", "LD_AUDIT="],
        "Healthcheck": {"Test": ["NONE"]},
        "NetworkDisabled": True,
        "HostConfig": {
            "NetworkMode": "none",
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Privileged": False,
            "CgroupParent": cgroup_parent(user.uid, engine.facts.cgroup_driver),
            "CgroupnsMode": "private",
            "IpcMode": "private",
            "Memory": memory,
            "MemorySwap": memory,
            "PidsLimit": min(user.limits.pids, _PIDS),
            "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
            # Above the limit of what is read, and the end of what a talkative one can fill.
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "4m", "max-file": "1"}},
            "RestartPolicy": {"Name": "no"},
        },
    }
