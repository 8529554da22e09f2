# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Workspaces: the canonical folders, the link in the home, and the projects in them.

Root makes only what lies in folders of root's own; the link and the projects are made by a child that has
become the user. To see whether a name is there, root looks at the name itself and follows nothing, so a run
that changes nothing starts no child.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import asuser, keptfolders, quota, safefs, scaffold
from .errors import HostError, InvalidInput, LabError, NotFound
from .items import ItemResult
from .names import printable, project_name
from .policy import Policy, Project, User

_LINK = "workspace"
_ROOT_MODE, _MODE = 0o711, 0o700
_PROJECTS_LIMIT = 10_000
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


@dataclass(frozen=True)
class WantedWorkspace:
    """A user's workspace, with the projects that IT declared in it."""

    user: str
    projects: tuple[Project, ...] = ()


def reconcile(policy: Policy, wanted: Sequence[WantedWorkspace], *, check: bool) -> list[ItemResult]:
    """Make the workspaces as wanted; one result an item. One failure does not stop the others.

    With ``check`` nothing is made. A project that is there is the user's, whatever is in it.
    """
    results = []
    # The first one makes the folder of all workspaces; in check mode it is still missing for the next.
    first = True
    for item in wanted:
        result = ItemResult(item.user)
        results.append(result)
        try:
            user = policy.user(item.user)
            made = _workspace(policy, user, check, first)
            first = False
            made += _inside(policy, user, item.projects, check)
            made += keptfolders.reconcile(policy, user, item.projects, check=check)
        except LabError as error:
            result.failed, result.message = True, str(error)
        except OSError as error:
            result.failed, result.message = True, asuser.explain(error)
        else:
            _fill(result, made)
    return results


def _fill(result: ItemResult, made: Sequence[str]) -> None:
    if made:
        result.changed, result.actions, result.reason = True, list(made), "missing or different"
        result.diff = {"before": "", "after": "".join(f"{action}\n" for action in made)}


# The canonical folder


def _workspace(policy: Policy, user: User, check: bool, first: bool) -> list[str]:
    """Make the workspace as it must be, or with ``check`` say what would be done."""
    path = policy.workspace(user)
    root = posixpath.dirname(path)
    done = []
    if not os.path.isdir(root):
        done += [f"create {root}"] if first else []
        if check:
            return [*done, f"create {path}"]
        os.makedirs(root, _ROOT_MODE)
    with safefs.opened(root) as above:
        done += _corrected(above, root, 0, 0, _ROOT_MODE, check)
        try:
            os.stat(user.name, dir_fd=above, follow_symlinks=False)
        except FileNotFoundError:
            done.append(f"create {path}")
            if check:
                return done
            os.mkdir(user.name, _MODE, dir_fd=above)
    with safefs.opened(path) as workspace:
        owner = os.fstat(workspace).st_uid
        # A folder that is root's is one whose making was broken off. Any other owner has files in it.
        if owner not in (0, user.uid):
            raise HostError(
                f"{path} belongs to uid {owner}, not to {user.name} ({user.uid}), so it is left alone.",
                "Give it back its owner, or move it away.",
            )
        done += (
            _corrected(workspace, path, user.uid, user.gid, _MODE, check)
            if f"create {path}" not in done
            else []
        )
        if not check:
            os.fchown(workspace, user.uid, user.gid)
        done += _in_project(policy, user, workspace, path, check)
    return done


def _corrected(descriptor: int, path: str, uid: int, gid: int, mode: int, check: bool) -> list[str]:
    """Give an open folder its owner and mode; return what was done."""
    status = os.fstat(descriptor)
    if (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (uid, gid, mode):
        return []
    if not check:
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
    return [f"set owner and mode of {path}"]


def _in_project(policy: Policy, user: User, descriptor: int, path: str, check: bool) -> list[str]:
    """Give the workspace its project, by which ``df`` in a container shows the user's limit."""
    if not any(filesystem.role == "home" for filesystem in policy.filesystems):
        return []
    if check:
        return [] if quota.get_project(descriptor) == (user.uid, True) else [f"set project of {path}"]
    return [f"set project of {path}"] if quota.set_project(descriptor, user.uid) else []


# What is the user's


def _inside(policy: Policy, user: User, projects: Sequence[Project], check: bool) -> list[str]:
    """Make the link and the missing projects as the user; return what was done."""
    workspace = policy.workspace(user)
    for project in projects:
        if project.user != user.name:
            raise InvalidInput(f"{project.name} is a project of {project.user}, not of {user.name}.")
        scaffold.layout(project.name, kind=project.type, base=project.base, files=dict(project.files))
    link = posixpath.join(user.home, _LINK)
    wants_link = not _is_there(link)
    missing = [project for project in projects if not _is_there(posixpath.join(workspace, project.name))]
    done = [f"create {link}"] if wants_link else []
    done += [f"create {posixpath.join(workspace, project.name)}" for project in missing]
    if check or not done:
        return done
    if not os.path.isdir(user.home):
        raise HostError(f"The home {user.home} is not there.", "Apply the role lab.server.users first.")

    def make() -> None:
        if wants_link:
            _make_link(user.home, workspace)
        for project in missing:
            files = dict(project.files)
            scaffold.init_project(workspace, project.name, kind=project.type, base=project.base, files=files)

    asuser.run_as_user(asuser.identity(policy, user), make)
    return done


def _make_link(home: str, workspace: str) -> None:
    with safefs.opened(home) as descriptor, contextlib.suppress(FileExistsError):
        os.symlink(workspace, _LINK, dir_fd=descriptor)


def _is_there(path: str) -> bool:
    """Say whether the name is taken, by whatever; nothing is followed at its end."""
    return os.path.lexists(path)


def init_project(
    policy: Policy,
    user: User,
    name: str,
    *,
    kind: str = "custom",
    base: str = "",
    files: Mapping[str, str] | None = None,
) -> list[str]:
    """Create, as the user, what is missing of a project's layout; return the created paths. Raises LabError.

    Without ``base`` it starts from the server's first base image.
    """
    workspace = policy.workspace(user)
    chosen = base or (policy.base_images[0].name if policy.base_images else "")
    contents = dict(files or {})
    scaffold.layout(name, kind=kind, base=chosen, files=contents)
    return asuser.run_as_user(
        asuser.identity(policy, user),
        lambda: scaffold.init_project(workspace, name, kind=kind, base=chosen, files=contents),
    )


def has_project(policy: Policy, user: User, project: str) -> bool:
    """Say whether the user has a folder for the project; a link is none."""
    try:
        status = os.lstat(posixpath.join(policy.workspace(user), project_name(project)))
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode)


def check_project(policy: Policy, user: User, project: str) -> None:
    """Raise NotFound unless the user has a folder for the project."""
    if not has_project(policy, user, project):
        raise NotFound(
            f"There is no project {printable(project)} in your workspace.",
            f"Make it: project init {project}.",
        )


def projects(policy: Policy, user: User) -> list[dict[str, Any]]:
    """Return, read as the user, the folders of the workspace that can be projects.

    Each is {"name": str, "dockerfile": bool}; sorted by name.
    """
    workspace = policy.workspace(user)
    return asuser.run_as_user(asuser.identity(policy, user), lambda: _projects(workspace))


def _projects(workspace: str) -> list[dict[str, Any]]:
    found = []
    with safefs.opened(workspace) as root:
        for name in sorted(os.listdir(root))[:_PROJECTS_LIMIT]:
            with contextlib.suppress(LabError, OSError):
                folder = safefs.open_beneath(root, project_name(name), _DIRECTORY)
                try:
                    found.append({"name": name, "dockerfile": _has_file(folder, "Dockerfile")})
                finally:
                    os.close(folder)
    return found


def _has_file(folder: int, name: str) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    return False
