# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What HOME is in a container: part of the container, a folder kept for the project, or the user's own home.

A kept one is ``/home/.homes/<user>/<project>``. Every parent of it belongs to root, so that no user can put a
link in the way of the mount. Root makes the folder; what is in it is made by a child that has become the
user, and never put there by Docker, which would write through the user's own links as root.
"""

from __future__ import annotations

import contextlib
import os
import pkgutil
import posixpath
import stat

from . import asuser, image_install, quota, safefs, where_inside
from .errors import HostError, InvalidInput, NotFound
from .policy import HOST_HOME, PERSISTENT_HOME, Policy, User
from .spec import PROGRAMS, WORKSPACE, ContainerSpec

_ROOT_MODE, _MODE = 0o711, 0o700
#: The folder of programs in a home.
_PROGRAMS = ".local/bin"

# Imported, so that Ansible puts it into the zip file that it makes of a module.
_INSTALL_FILE = f"{image_install.__name__.rpartition('.')[2]}.py"
#: The text of the program image-install. Read now, from a folder or that zip file: a child that has become
#: the user may read neither.
INSTALL_SOURCE = (pkgutil.get_data(__package__ or "", _INSTALL_FILE) or b"").decode()

_LOST = " The home is gone when the container is retired; /workspace is kept."
_PROFILE = """\
# Read by a login shell.{lost}
if [ -n "$BASH_VERSION" ] && [ -r "$HOME/.bashrc" ]; then . "$HOME/.bashrc"; fi
"""
_BASHRC = """\
# Read by an interactive shell.{lost}
case $- in *i*) ;; *) return ;; esac
PS1='\\u@\\h:\\w\\$ '
"""


def first_files(*, kept: bool) -> dict[str, str]:
    """Return the files that a new home begins with, by name."""
    lost = "" if kept else _LOST
    return {".profile": _PROFILE.format(lost=lost), ".bashrc": _BASHRC.format(lost=lost)}


def programs(folder: str = _PROGRAMS) -> dict[str, str]:
    """Return the programs for the user by their paths in ``folder``, by default one of a new home.

    That one and the one in the place of it beside the host's home are in PATH (spec.py).
    """
    return {
        posixpath.join(folder, "image-install"): f"#!/usr/bin/env python3\n{INSTALL_SOURCE}",
        posixpath.join(folder, "workspace"): where_inside.program(),
    }


def place_of_programs(spec: ContainerSpec) -> str:
    """Return where a new container gets the programs for its user; "" where the kept home has them."""
    if spec.home_mode == HOST_HOME:
        return PROGRAMS
    return "" if spec.home_source else posixpath.join(spec.home, _PROGRAMS)


def own_files(spec: ContainerSpec) -> set[str]:
    """Return the paths of all that lab.server puts into a container for its user: the home, what is in it."""
    inside = [*first_files(kept=False), *programs(), "workspace"]
    beside = programs(PROGRAMS) if spec.home_mode == HOST_HOME else {}
    return {*(posixpath.join(spec.home, name) for name in inside), *beside}


def prepare(policy: Policy, user: User, spec: ContainerSpec, *, check: bool = False) -> None:
    """Make sure that what is to be mounted at HOME is there and is the user's. Raises LabError.

    With ``check`` nothing is made: it raises what would be in the way. It may fork; call it before any thread
    is started.
    """
    if spec.home_mode == PERSISTENT_HOME and check:
        _check_kept(user, spec.home_source)
    elif spec.home_mode == PERSISTENT_HOME:
        _make_kept(policy, user, spec.home_source)
    elif spec.home_mode == HOST_HOME:
        _check_own(policy, user, spec.home_source, check=check)


def _check_kept(user: User, path: str) -> None:
    """Raise what would keep ``_make_kept`` from its work, as far as it is there already."""
    above, name = posixpath.split(path)
    try:
        for folder in (posixpath.dirname(above), above):
            _refuse_foreign(_owner(safefs.open_directory(folder)), folder)
        parent = safefs.open_directory(above)
        try:
            home = safefs.open_beneath(parent, name, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            os.close(parent)
        _refuse_owner(_owner(home), user, path)
    except NotFound:
        return  # it is made then
    except OSError as error:
        raise HostError(f"{path} could not be made: {error.strerror}.", "Tell your admins.") from error


def _owner(descriptor: int) -> int:
    """Return the uid that an open folder belongs to, and close it."""
    try:
        return os.fstat(descriptor).st_uid
    finally:
        os.close(descriptor)


def _make_kept(policy: Policy, user: User, path: str) -> None:
    if make_folder(policy, user, path):
        asuser.run_as_user(asuser.identity(policy, user), lambda: _furnish(path))


def make_folder(policy: Policy, user: User, path: str) -> bool:
    """Make a folder of the user's in a folder of root's in HOMES_ROOT; say whether it is empty.

    It counts in the user's project, by which ``df`` tells the user's limit. Raises HostError.
    """
    above, name = posixpath.split(path)
    root = posixpath.dirname(above)
    try:
        root_folder(root)
        root_folder(above)
        parent = safefs.open_directory(above)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, _MODE, dir_fd=parent)
            home = safefs.open_beneath(parent, name, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            os.close(parent)
        try:
            return _give(policy, user, home, path)
        finally:
            os.close(home)
    except OSError as error:
        raise HostError(f"{path} could not be made: {error.strerror}.", "Tell your admins.") from error


def _refuse_foreign(owner: int, path: str) -> None:
    if owner != 0:
        raise HostError(
            f"{path} belongs to uid {owner}, not to root, so nothing is put there.",
            "Let IT look at it and move it away.",
        )


def _refuse_owner(owner: int, user: User, path: str) -> None:
    # A folder that is root's is one whose making was broken off. Any other owner has files in it.
    if owner not in (0, user.uid):
        raise HostError(
            f"{path} belongs to uid {owner}, not to {user.name} ({user.uid}), so it is left alone.",
            "Let IT give it back its owner, or move it away.",
        )


def root_folder(path: str, mode: int = _ROOT_MODE) -> None:
    """Make a folder of root's, by default one through which users pass but which they cannot list.

    Its parent is root's.

    Raises HostError, OSError.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode)
    descriptor = safefs.open_directory(path)
    try:
        status = os.fstat(descriptor)
        _refuse_foreign(status.st_uid, path)
        if stat.S_IMODE(status.st_mode) != mode:
            os.fchmod(descriptor, mode)  # the umask took something away
    finally:
        os.close(descriptor)


def _give(policy: Policy, user: User, home: int, path: str) -> bool:
    """Make an open folder the user's, with the user's project for ``df``; say whether it is empty."""
    owner = os.fstat(home).st_uid
    _refuse_owner(owner, user, path)
    if any(filesystem.role == "home" for filesystem in policy.filesystems):
        quota.set_project(home, user.uid)
    if owner == 0:
        os.fchown(home, user.uid, user.gid)
    # Its names only: what they are is the user's, and is looked at by the child.
    with os.scandir(home) as entries:
        return next(entries, None) is None


def _furnish(path: str) -> None:
    """Put the first files into an empty home. Called as the user."""
    home = safefs.open_directory(path)
    try:
        for name, text in first_files(kept=True).items():
            safefs.create_file(home, name, text.encode("utf-8"))
        for path, text in programs().items():
            parts = path.split("/")
            for depth in range(1, len(parts)):
                safefs.make_directory(home, "/".join(parts[:depth]))
            safefs.create_file(home, path, text.encode("utf-8"), 0o755)
        with contextlib.suppress(FileExistsError):
            os.symlink(WORKSPACE, "workspace", dir_fd=home)
    finally:
        os.close(home)


def _check_own(policy: Policy, user: User, path: str, *, check: bool) -> None:
    """Check that the user's home can be mounted; see to it that there is a folder where .ssh is hidden."""
    try:
        status = os.lstat(path)
    except OSError as error:
        raise HostError(
            f"The home {path} is not there.", "Let IT run the playbook for this server."
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != user.uid:
        raise HostError(f"{path} is not the home of {user.name}.", "Let IT look at it.")
    asuser.run_as_user(asuser.identity(policy, user), lambda: _make_ssh(path, check=check))


def _make_ssh(path: str, *, check: bool) -> None:
    """See to it that .ssh is a folder, as the user: else the runtime would make it, as root."""
    home = safefs.open_directory(path)
    try:
        if check:
            safefs.is_there(home, ".ssh", folder=True)
        else:
            safefs.make_directory(home, ".ssh", 0o700)
    except InvalidInput as error:
        raise InvalidInput(
            "~/.ssh is not a folder of your home, so it cannot be hidden from the container.",
            "Make it a plain folder, not a link.",
        ) from error
    finally:
        os.close(home)
