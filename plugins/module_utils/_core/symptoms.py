# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The facts that ``doctor`` judges, gathered once. To be run as the user, on the user's own files.

What needs root comes from the broker and is handed in. Nothing is changed, and no link is followed but to see
whether it leads anywhere.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import posixpath
import re
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import archive, context, keeping, names, quota, safefs
from .doctor import Account, Link, Project
from .errors import LabError, NotFound
from .policy import CONTAINER_HOME, Policy, User
from .spec import WORKSPACE

_SECONDS = 3.0
_TEXT_LIMIT = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
# Files whose content is nobody else's business, by their names.
_SECRETS = (
    "*.env",
    ".env.*",
    "id_rsa",
    "id_ed25519",
    "id_ecdsa",
    "id_dsa",
    "*.pem",
    "*.key",
    ".netrc",
    ".pypirc",
)
_HARMLESS = (".env.example", ".env.sample", ".env.template")
_PACKAGE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._]*)-[^-]+\.dist-info")


def account_of(policy: Policy, user: User, home: str = "") -> Account:
    """Look at a user's workspace as a whole, as the user. ``home`` is that of the policy unless given."""
    workspace = policy.workspace(user)
    usage, problem = None, ""
    try:
        usage = quota.usage(policy, user)
    except LabError as error:
        problem = error.message
    return Account(
        user=user.name,
        uid=user.uid,
        workspace=workspace,
        data_root=policy.data_root,
        bases=tuple(base.name for base in policy.base_images),
        link=_target(posixpath.join(home or user.home, "workspace")),
        usage=usage,
        usage_problem=problem,
        halves=tuple(keeping.halves(workspace)),
    )


def _target(path: str) -> str | None:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""
    except OSError:
        return None


def project_names(workspace: str) -> list[str]:
    """Return the names of the folders of a workspace that have a Dockerfile."""
    found = []
    with contextlib.suppress(OSError), os.scandir(workspace) as entries:
        for entry in entries:
            with contextlib.suppress(LabError, OSError):
                names.project_name(entry.name)
                if entry.is_dir(follow_symlinks=False) and os.path.lexists(f"{entry.path}/Dockerfile"):
                    found.append(entry.name)
    return sorted(found)


@dataclass
class _Seen:
    links: list[Link] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    exposed: list[str] = field(default_factory=list)
    complete: bool = True


def project_of(
    policy: Policy,
    user: User,
    name: str,
    *,
    container: Mapping[str, Any] | None,
    container_problem: str = "",
    lost: Mapping[str, Any] | None = None,
    lost_problem: str = "",
) -> Project:
    """Look at a project as the user; what the broker tells is handed in. Raises NotFound."""
    workspace = policy.workspace(user)
    root = safefs.open_directory(workspace)
    try:
        folder = safefs.open_beneath(root, names.project_name(name), _DIRECTORY)
    except NotFound as error:
        raise NotFound(
            f"There is no project {name} in your workspace.", f"Make it: project init {name}."
        ) from error
    finally:
        os.close(root)
    try:
        seen = _walked(folder, workspace, name, user)
        dockerfile, problem = _text(folder, "Dockerfile")
        weights, complete, why = _weighed(workspace, name)
        mode = next(
            (one.home for one in policy.projects if (one.user, one.name) == (user.name, name)), CONTAINER_HOME
        )
        return Project(
            name=name,
            container=container,
            container_problem=container_problem,
            lost=lost,
            lost_problem=lost_problem,
            mounted=mounted(name, user.uid, workspace) if container else None,
            dockerfile=dockerfile,
            dockerfile_problem=problem,
            requirements=_text(folder, "requirements.txt")[0],
            changed=max(_changed(folder, "Dockerfile"), _changed(folder, "requirements.txt")),
            weights=weights,
            weights_complete=complete,
            weights_problem=why if dockerfile is not None else "there is no Dockerfile",
            git=_owner(folder, ".git") is not None,
            git_owners=tuple(
                one for one in (os.fstat(folder).st_uid, _owner(folder, ".git")) if one is not None
            ),
            gitignore=_text(folder, ".gitignore")[0] or "",
            data=_owner(folder, "data") is not None,
            links=tuple(seen.links),
            foreign=tuple(seen.foreign),
            exposed=tuple(seen.exposed),
            complete=seen.complete,
            home=mode,
            packages=_packages(policy.home_source(user, name, mode)),
        )
    finally:
        os.close(folder)


def _text(folder: int, path: str) -> tuple[str | None, str]:
    """Return (the text of a file, why there is none)."""
    try:
        return safefs.read_file(folder, path, _TEXT_LIMIT).decode("utf-8", "replace"), ""
    except NotFound:
        return None, ""
    except LabError as error:
        return None, error.message
    except OSError as error:
        return None, f"{path}: {error.strerror}"


def _changed(folder: int, path: str) -> tuple[float, str]:
    with contextlib.suppress(OSError):
        return os.stat(path, dir_fd=folder, follow_symlinks=False).st_mtime, path
    return 0.0, ""


def _owner(folder: int, path: str) -> int | None:
    with contextlib.suppress(OSError):
        return os.stat(path, dir_fd=folder, follow_symlinks=False).st_uid
    return None


def _walked(folder: int, workspace: str, name: str, user: User) -> _Seen:
    seen = _Seen()
    deadline = time.monotonic() + _SECONDS
    with contextlib.suppress(LabError, OSError):
        for found in archive.walk(folder):
            if time.monotonic() > deadline:
                seen.complete = False
                break
            mode, path = found.status.st_mode, found.path
            if stat.S_ISLNK(mode):
                seen.links.append(_link_at(folder, workspace, name, path))
            elif found.status.st_uid != user.uid and not found.problem:
                seen.foreign.append(f"{path or '.'} (uid {found.status.st_uid})")
            if stat.S_ISREG(mode) and mode & 0o004 and _is_secret(posixpath.basename(path)):
                seen.exposed.append(path)
    return seen


def _is_secret(name: str) -> bool:
    return name not in _HARMLESS and any(fnmatch.fnmatchcase(name, pattern) for pattern in _SECRETS)


def _link_at(folder: int, workspace: str, name: str, path: str) -> Link:
    above = posixpath.dirname(path)
    parent = safefs.open_beneath(folder, above, _DIRECTORY) if above else os.dup(folder)
    try:
        target = os.readlink(posixpath.basename(path), dir_fd=parent)
    finally:
        os.close(parent)
    place = posixpath.join(workspace, name, above, target)
    if target == WORKSPACE or target.startswith(WORKSPACE + "/"):
        # As the container sees it.
        place = workspace + target[len(WORKSPACE) :]
    # Whether it is there, as for any program of the user's; nothing of it is read.
    return Link(path, target, os.path.exists(place))


def _weighed(workspace: str, name: str) -> tuple[tuple[tuple[str, int, int], ...], bool, str]:
    try:
        weights, complete = context.weigh(workspace, name)
    except (LabError, OSError) as error:
        return (), True, error.message if isinstance(error, LabError) else str(error.strerror)
    return tuple((path, size, files) for path, (size, files) in sorted(weights.items())), complete, ""


def _packages(home: str) -> tuple[str, ...]:
    """Return the Python packages that pip put into ~/.local of a home; none where there is no home."""
    found: set[str] = set()
    local = posixpath.join(home, ".local/lib") if home else ""
    for python in _listed(local):
        for entry in _listed(posixpath.join(local, python, "site-packages")):
            match = _PACKAGE.fullmatch(entry)
            if match:
                found.add(match["name"])
    return tuple(sorted(found, key=str.lower))


def _listed(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(path) if path else []
    return []


def mounted(name: str, uid: int, workspace: str, proc: str = "/proc") -> bool | None:
    """Say whether the container of a project has the workspace where it belongs; None when nobody can tell.

    Its processes are the user's own, so their roots can be looked at (/proc/PID/root, proc(5)). Which
    container they are of is told by its host name, which is the project's.
    """
    with contextlib.suppress(OSError):
        wanted, own = os.stat(workspace), os.readlink(f"{proc}/self/ns/mnt")
        for number in filter(str.isdigit, os.listdir(proc)):
            with contextlib.suppress(OSError):
                process = f"{proc}/{number}"
                if os.stat(process).st_uid != uid or os.readlink(f"{process}/ns/mnt") == own:
                    continue
                if _host_name(f"{process}/root") != name:
                    continue
                # A link there would be followed on the host: it is looked at itself.
                with contextlib.suppress(FileNotFoundError):
                    there = os.lstat(f"{process}/root{WORKSPACE}")
                    return (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino)
                return False
    return None


def _host_name(root: str) -> str:
    descriptor = os.open(f"{root}/etc/hostname", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(100).decode("utf-8", "replace").strip()
