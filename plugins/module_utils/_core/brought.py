# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files that an environment brings: a folder of a base image, copied once to a user's workspace.

They are taken from IT's base image, never from the image that the user built on it, and from a container
that has no mounts and is never started: Docker reads as root, and would follow a link of the image's into
whatever is mounted. They are written by a child that has become the user, beside what is there, and never
over it.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
import tempfile
from typing import Any, BinaryIO

from . import STATE_DIRECTORY, asuser, locks, safefs, state
from .engine import Engine
from .errors import InvalidInput, LabError, NotFound, Refused
from .policy import BaseImage, Policy, User
from .versions import LABEL_BASE, LABEL_KIND

_KIND = "files"
FILES_LIMIT, BYTES_LIMIT = 10_000, 1 << 30
# One file; the child may write none that is larger.
_FILE_LIMIT = 64 << 20
_SECONDS = 600.0


def base_of(engine: Engine, policy: Policy, image: str) -> BaseImage | None:
    """Return the base image with files that an image was built from, None when it brings none."""
    if not any(base.files for base in policy.base_images):
        return None
    inspected = engine.inspect_image(image) or {}
    name = str(((inspected.get("Config") or {}).get("Labels") or {}).get(LABEL_BASE, ""))
    for base in policy.base_images:
        if base.files and _full(base.name) == _full(name):
            return base
    return None


def _full(name: str) -> str:
    """Return the name with its tag: none means latest."""
    last = name.rsplit("/", 1)[-1]
    return name if ":" in last or "@" in last else f"{name}:latest"


def bring(engine: Engine, policy: Policy, user: User, base: BaseImage) -> dict[str, Any]:
    """Copy the files of a base image to the user's workspace, unless that was done; return what was.

    The answer is empty, or {"folder": path in the container, "files": number, "skipped": number}. Raises
    LabError; what was copied by then stays, and the next call goes on. It forks; call it before any thread is
    started.
    """
    if state.was_brought(user.uid, base.folder):
        return {}
    with locks.hold(f"files-{user.uid}"):
        if state.was_brought(user.uid, base.folder):
            return {}
        directory = posixpath.join(STATE_DIRECTORY, "tmp")
        os.makedirs(directory, mode=0o700, exist_ok=True)
        # Without a name: nothing is left over, whatever happens.
        with tempfile.TemporaryFile(dir=directory) as spool:
            _fetch(engine, user, base, spool)
            spool.flush()
            spool.seek(0)
            made = _unpack(policy, user, base, spool)
        state.mark_brought(user.uid, base.folder)
    return made


def _fetch(engine: Engine, user: User, base: BaseImage, output: BinaryIO) -> None:
    """Write the tar of the folder to ``output``."""
    name = f"lab-files-{user.uid}"
    for listed in engine.containers(name):
        if (listed.get("Labels") or {}).get(LABEL_KIND) != _KIND:
            raise Refused(f"There is a container {name} that is not ours.", "Let IT remove it by hand.")
        engine.remove(str(listed["Id"]))
    config = {
        "Image": base.name,
        # Never run; an image without a command of its own could not be made into a container otherwise.
        "Entrypoint": ["/none"],
        "Labels": {LABEL_KIND: _KIND},
        "NetworkDisabled": True,
        "HostConfig": {"NetworkMode": "none"},
    }
    made = engine.create(name, config)
    try:
        engine.copy_out(made, base.files, output, BYTES_LIMIT + (64 << 20))
    except NotFound as error:
        raise NotFound(
            f"The image {base.name} has no {base.files}.", "Let IT correct 'files' in lab_base_images."
        ) from error
    finally:
        engine.remove(made)


def _unpack(policy: Policy, user: User, base: BaseImage, spool: BinaryIO) -> dict[str, Any]:
    workspace, descriptor = policy.workspace(user), spool.fileno()

    def work() -> list[int]:
        with os.fdopen(os.dup(descriptor), "rb") as archive:
            return unpack(archive, workspace, base.folder)

    copied, skipped = asuser.run_as_user(asuser.identity(policy, user), work, _SECONDS, keep=(descriptor,))
    return {"folder": f"/workspace/{base.folder}", "files": copied, "skipped": skipped}


def unpack(archive: BinaryIO, workspace: str, folder: str) -> list[int]:
    """Write the regular files of a tar below ``workspace/folder``; return [copied, skipped].

    Called as the user. Nothing that is there is touched. Raises Refused above the limits, InvalidInput when
    the folder is a link.
    """
    copied = skipped = total = 0
    root = safefs.open_directory(workspace)
    try:
        safefs.make_directory(root, folder)
        target = safefs.open_beneath(root, folder, os.O_RDONLY | os.O_DIRECTORY)
    finally:
        os.close(root)
    try:
        with tarfile.open(fileobj=archive, mode="r:") as tar:
            for number, member in enumerate(tar):
                # The archive begins with the last part of the path that was asked for.
                first, _slash, path = member.name.partition("/")
                if not member.isreg() or not first or not path or member.size > _FILE_LIMIT:
                    skipped += not member.isdir()
                    continue
                total += member.size
                if number >= FILES_LIMIT * 4 or copied >= FILES_LIMIT or total > BYTES_LIMIT:
                    raise Refused(
                        f"The environment brings more than {FILES_LIMIT} files or {BYTES_LIMIT >> 30}G.",
                        "Tell your admins.",
                    )
                content = tar.extractfile(member)
                done = content is not None and _put(target, path, content.read(), member.mode)
                copied, skipped = copied + done, skipped + (not done)
        # Before it is noted that they are there.
        safefs.sync_all(target)
    except tarfile.TarError as error:
        raise LabError(
            f"The files of the environment cannot be read: {error}.", "Tell your admins."
        ) from error
    finally:
        os.close(target)
    return [copied, skipped]


def _put(target: int, path: str, data: bytes, mode: int) -> bool:
    """Write one file with the folders above it; say whether it is new."""
    parts = path.split("/")
    try:
        for depth in range(1, len(parts)):
            safefs.make_directory(target, "/".join(parts[:depth]))
        return safefs.create_file(target, path, data, 0o644 | (mode & 0o111))
    except InvalidInput:
        return False  # something of the user's is in its place, or it is no plain path
