# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Kept or lost: what becomes of a file, told from where it really is.

A path is followed to its end, as the kernel would (path_resolution(7)), and judged by the mount that holds
it. On the server that is ``judge``; in a container it is a program of its own (``where_inside``), for the
image's shell. Both say the same sentences: they are here.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import WORKSPACE, mounts, privatetmp
from .mounts import Mount
from .policy import HOME_ROOT, HOMES_ROOT, HOST_HOME, WORKSPACES_ROOT, Policy, User

KEPT, LOST, FOREIGN, NOTHING = "kept", "lost", "foreign", "nothing"
#: The verdict and the sentence for every kind of place. Sentences stay below 71 columns, and without quotes.
KINDS: dict[str, tuple[str, str]] = {
    "workspace": (KEPT, "It is in your workspace, which outlives every container."),
    "kept_home": (KEPT, "It is in the home that is kept for the project."),
    "kept_folder": (KEPT, "It is in a folder that is kept for the project."),
    "home": (KEPT, "It is in your home on the server, which outlives every container."),
    "group": (KEPT, "It is in a folder that a group shares, and is kept."),
    "shared": (KEPT, "It is shared data, which IT keeps; containers can only read it."),
    "layer": (LOST, "It is in the container itself, which is lost when you retire it."),
    "volume": (LOST, "It is in a volume of the image: lost when you retire the container."),
    "container_memory": (LOST, "It is in memory: lost as soon as the container stops."),
    "server_memory": (LOST, "It is in memory: lost as soon as the server restarts."),
    "temporary": (LOST, "It is a temporary file: lost when the server restarts."),
    "clutter": (LOST, "It is a temporary file: the server may remove it at any time."),
    "own_temporary": (LOST, "It is a temporary file of yours: removed when unused for 10 days."),
    "own_clutter": (LOST, "It is a temporary file of yours: removed when unused for 30 days."),
    "server": (FOREIGN, "It is part of the server itself, and not yours to change."),
    "another": (FOREIGN, "It is in the home or workspace of another user."),
    "unshared": (FOREIGN, "It is in a folder that is not shared with you."),
    "elsewhere": (FOREIGN, "It is on a file system of its own, of which the server knows nothing."),
    "kernel": (NOTHING, "It is no file on a disk, but something that the kernel shows."),
    "loop": (NOTHING, "Its links lead in a circle: there is no file behind them."),
}
#: What else there is to say of a path; the last ones are followed by a path.
UNSEEN = "No container sees it."
MISSING = "Nothing is there now."
LEADS = "A link leads to "
BLOCKED = "You may not look into "

#: File systems that hold no files (``/proc/filesystems`` calls most of them nodev), and those in memory.
KERNEL_TYPES = (
    *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs"),
    *("efivarfs", "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "securityfs", "sysfs"),
    "tracefs",
)
MEMORY_TYPES = ("ramfs", "tmpfs")
#: As many links as the kernel follows in one path (path_resolution(7)).
LINKS = 40


@dataclass(frozen=True)
class Place:
    """Where a path leads: ``real``, without links.

    ``led``: a link leads there, other than ``~/workspace``. ``loop``: the links never end. ``blocked``: the
    folder that keeps us from seeing what is in it, or "".
    """

    real: str
    exists: bool = True
    led: bool = False
    loop: bool = False
    blocked: str = ""


def resolve(path: str, workspace_link: str = "") -> Place:
    """Follow ``path`` (from the working directory if it is relative) to where it leads.

    What is behind a folder that is missing or closed is taken as it is written. ``workspace_link`` is the
    link that everybody knows. Raises OSError when there is no working directory any more.
    """
    waiting = posixpath.join(os.getcwd(), path).split("/")[::-1]
    real, links, led, exists, blocked = "", 0, False, True, ""
    while waiting:
        part = waiting.pop()
        if part in ("", "."):
            continue
        if part == "..":
            real = posixpath.dirname(real)
            continue
        here, real = real or "/", f"{real.rstrip('/')}/{part}"
        if not exists:
            continue
        if os.path.islink(real):
            links += 1
            if links > LINKS:
                return Place(real, exists=False, led=True, loop=True)
            led = led or real != workspace_link
            try:
                target = os.readlink(real)
            except OSError:  # one of /proc, which is not for everybody
                exists, blocked = False, real
                continue
            waiting += target.split("/")[::-1]
            real = "" if target.startswith("/") else here
        elif not os.path.lexists(real):
            exists = False
            blocked = here if os.path.isdir(here) and not os.access(here, os.X_OK) else ""
    return Place(real or "/", exists, led, False, blocked)


def below(path: str, folder: str) -> bool:
    """Say whether a path is that folder or in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def kind_inside(mount: Mount, folder: bool) -> str:
    """Return the kind of place (a key of KINDS) that a mount of a container is; ``folder``: not of a file.

    The program for containers decides the same way (``where_inside``).
    """
    if mount.fstype in KERNEL_TYPES:
        return "kernel"
    if mount.fstype in MEMORY_TYPES:
        return "container_memory"
    if mount.point == "/":
        return "layer"
    read_only = "ro" in mount.options
    if not folder:
        # Docker mounts a few files of each container's own; those of the server are read-only.
        return "server" if read_only else "layer"
    if mount.point == WORKSPACE:
        return "workspace"
    if mount.root.endswith("/_data") and "/volumes/" in mount.root:
        return "volume"
    if read_only:
        return "shared"
    if posixpath.dirname(mount.point) == HOME_ROOT:
        return "kept_home" if "/.homes/" in mount.root else "home"
    return "kept_folder" if "/.homes/" in mount.root else "group"


def judge(policy: Policy, user: User, place: Place, table: Iterable[Mount]) -> str:
    """Return the kind of place (a key of KINDS) where a user's path leads on the server. Raises HostError."""
    if place.loop:
        return "loop"
    mount = mounts.holding(place.real, table)
    if mount.fstype in KERNEL_TYPES:
        return "kernel"
    if mount.fstype in MEMORY_TYPES:
        return "server_memory"
    if privatetmp.holds(mount):
        return _OWN_TEMPORARY[mount.point]
    own = {
        policy.workspace(user): "workspace",
        posixpath.join(HOMES_ROOT, user.name): "kept_home",
        user.home: "home",
    }
    for folder, kind in own.items():
        if below(place.real, folder):
            strange = mount.point != folder and below(mount.point, folder)
            if strange:
                return "elsewhere"
            inner = place.real[len(folder) :].lstrip("/").partition("/")[0]
            return "kept_folder" if kind == "kept_home" and "@" in inner else kind
    for root in (WORKSPACES_ROOT, HOMES_ROOT, HOME_ROOT):
        if below(place.real, root):
            return "server" if place.real == root else "another"
    if below(place.real, policy.data_root):
        return _of_data(policy, user, place.real)
    return next((kind for folder, kind in _TEMPORARY.items() if below(place.real, folder)), "server")


#: tmpfiles.d(5): distributions empty the first at every start, and the second when they like.
_TEMPORARY = {"/tmp": "temporary", "/var/tmp": "clutter"}  # noqa: S108  # told of, not written to
#: The same where they are the user's own (privatetmp).
_OWN_TEMPORARY = dict(zip(privatetmp.FOLDERS, ("own_temporary", "own_clutter")))


def _of_data(policy: Policy, user: User, real: str) -> str:
    mine = policy.shares_for(user)
    for share in policy.shares:
        if below(real, policy.share_path(share)):
            if share in mine:
                return "group"
            return "shared" if share.access == "read-only" else "unshared"
    return "shared"


def seen_by(policy: Policy, user: User) -> list[str]:
    """Return the user's declared projects whose containers have the home of the server."""
    return [one.name for one in policy.projects if one.user == user.name and one.home == HOST_HOME]


def told(policy: Policy, user: User, path: str, table: Iterable[Mount]) -> dict[str, Any]:
    """Return what is to be said of a path on the server, as plain data: path, real, exists, verdict, why."""
    place = resolve(path, posixpath.join(user.home, "workspace"))
    kind = judge(policy, user, place, table)
    verdict, sentence = KINDS[kind]
    why = [sentence]
    if kind == "home":
        seeing = seen_by(policy, user)
        why.append(f"Only containers of {', '.join(seeing)} see it." if seeing else UNSEEN)
    if place.led and not place.loop:
        why.append(f"{LEADS}{_for_people(policy, user, place.real)}")
    if place.blocked:
        why.append(f"{BLOCKED}{_for_people(policy, user, place.blocked)}")
    elif not place.exists and not place.loop:
        why.append(MISSING)
    return {"path": path, "real": place.real, "exists": place.exists, "verdict": verdict, "why": why}


def _for_people(policy: Policy, user: User, real: str) -> str:
    for folder, name in ((policy.workspace(user), "~/workspace"), (user.home, "~")):
        if below(real, folder):
            return name + real[len(folder) :]
    return real
