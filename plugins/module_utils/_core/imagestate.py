# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the server remembers of projects' images and Docker does not: in files that only root can reach.

- how a build context looked when its fingerprint was taken, so that it need not be read again;
- the pin: that a user went back to an older image, and from which files;
- the list of Python packages in an image (``pip freeze``), by which it can be made again.

All of it may be lost: a context is read once more, an image is built from the files as they are.
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from . import STATE_DIRECTORY, safefs
from .errors import HostError, InvalidInput
from .names import project_name

_SIZE_LIMIT = 4 << 20
_FINGERPRINT = re.compile(r"[0-9a-f]{12,64}")
_LIST = ".txt"
# So many lists of images that are gone are kept of each project.
_LISTS_OF_GONE = 20


@dataclass(frozen=True)
class Known:
    """A context of which the fingerprint is known: how it looks, the build's arguments, the bases' ids."""

    look: str
    arguments: str
    bases: Mapping[str, str]
    fingerprint: str


@dataclass(frozen=True)
class Pin:
    """An image (its fingerprint) that stays the current one for as long as the files have ``files``."""

    image: str
    files: str


def known(uid: int, project: str) -> Known | None:
    """Return what is known of a project's context; None when nothing is."""
    data = _read(_path("images", uid, project, "look.json"))
    with contextlib.suppress(KeyError, TypeError, ValueError):
        bases = {str(name): str(image) for name, image in dict(data["bases"]).items()}
        return Known(str(data["look"]), str(data["arguments"]), bases, str(data["fingerprint"]))
    return None


def remember(uid: int, project: str, what: Known | None) -> None:
    """Keep what is known of a project's context, or with None forget it. Raises HostError."""
    _keep(_path("images", uid, project, "look.json"), None if what is None else asdict(what))


def pin(uid: int, project: str) -> Pin | None:
    """Return the pin of a project; None when it has none."""
    data = _read(_path("images", uid, project, "pin.json"))
    with contextlib.suppress(KeyError, TypeError):
        return Pin(str(data["image"]), str(data["files"]))
    return None


def set_pin(uid: int, project: str, what: Pin | None) -> None:
    """Set the pin of a project, or with None remove it. Raises HostError."""
    _keep(_path("images", uid, project, "pin.json"), None if what is None else asdict(what))


def packages(uid: int, project: str, fingerprint: str) -> tuple[str, ...] | None:
    """Return the packages of an image as they are installed again (``name==version``); None if not known."""
    try:
        with open(_packages_path(uid, project, fingerprint), encoding="utf-8") as file:
            return tuple(file.read(_SIZE_LIMIT).splitlines())
    except (OSError, UnicodeDecodeError):
        return None


def set_packages(uid: int, project: str, fingerprint: str, lines: tuple[str, ...] | None) -> None:
    """Keep the packages of an image, or with None forget them. Raises HostError."""
    path = _packages_path(uid, project, fingerprint)
    _write(path, None if lines is None else "".join(f"{line}\n" for line in lines))


def newest_packages(uid: int, project: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the list of packages that was kept last for a project, with the first 12 digits of its image.

    None where there is none.
    """
    for fingerprint in _lists(uid, project):
        lines = packages(uid, project, fingerprint)
        if lines is not None:
            return fingerprint, lines
    return None


def thin_out_packages(uid: int, project: str, images: Iterable[str]) -> None:
    """Keep the packages of these images of a project, by their fingerprints, and the newest of others.

    Those of an image that is gone are the lock for making it again. Raises HostError.
    """
    there = {fingerprint[:12] for fingerprint in images}
    others = [fingerprint for fingerprint in _lists(uid, project) if fingerprint not in there]
    for fingerprint in others[_LISTS_OF_GONE:]:
        set_packages(uid, project, fingerprint, None)


def forget(uid: int, project: str) -> None:
    """Forget all that is known of a project. Raises HostError."""
    remember(uid, project, None)
    set_pin(uid, project, None)
    for fingerprint in _lists(uid, project):
        set_packages(uid, project, fingerprint, None)


def _lists(uid: int, project: str) -> list[str]:
    """Return the first 12 digits of the images whose packages are kept, the newest list first."""
    try:
        with os.scandir(_packages_folder(uid, project)) as entries:
            kept = [(entry.stat().st_mtime_ns, entry.name[: -len(_LIST)]) for entry in entries]
    except OSError:
        return []
    # A temporary file that a killed process left is none.
    return [name for _when, name in sorted(kept, reverse=True) if _FINGERPRINT.fullmatch(name)]


def _path(kind: str, uid: int, project: str, ending: str) -> str:
    # A project's name has no dot, so no two projects share a file.
    return posixpath.join(STATE_DIRECTORY, kind, str(int(uid)), f"{project_name(project)}.{ending}")


def _packages_path(uid: int, project: str, fingerprint: str) -> str:
    if not _FINGERPRINT.fullmatch(fingerprint):
        raise InvalidInput("That is not the fingerprint of an image.")
    return posixpath.join(_packages_folder(uid, project), f"{fingerprint[:12]}{_LIST}")


def _packages_folder(uid: int, project: str) -> str:
    return posixpath.join(STATE_DIRECTORY, "locks", str(int(uid)), project_name(project))


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="ascii") as file:
            data = json.loads(file.read(_SIZE_LIMIT))
    except (OSError, ValueError):
        # Not there, or cut off by a disk that was full: as good as nothing known.
        return {}
    return data if isinstance(data, dict) else {}


def _keep(path: str, data: Mapping[str, Any] | None) -> None:
    _write(path, None if data is None else json.dumps(data, sort_keys=True))


def _folders(path: str) -> list[str]:
    """Return the folders between the state directory and a file in it, from above to below."""
    parts = posixpath.relpath(path, STATE_DIRECTORY).split("/")
    return [posixpath.join(STATE_DIRECTORY, *parts[:depth]) for depth in range(1, len(parts))]


def _write(path: str, text: str | None) -> None:
    try:
        os.makedirs(STATE_DIRECTORY, mode=0o700, exist_ok=True)
        # One by one: makedirs gives its mode to the last folder alone.
        for folder in _folders(path):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o700)
        if text is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
    except OSError as error:
        raise HostError(f"{path} could not be written: {error.strerror}.", "Run it as root.") from error
    safefs.write_atomically(path, text.encode("utf-8"), 0o600)
