# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The images of a project over time: which there are, which may go, and which one is meant. Pure functions.

An image is a project's own by its labels, which our build sets last, and by a name that agrees with them:
``lab/<uid>/<project>:<first 12 of its fingerprint>``, and ``latest`` for the current one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import InvalidInput, NotFound
from .names import printable
from .spec import LABEL_OWNER, LABEL_PROJECT

LABEL_FINGERPRINT = "lab.server.fingerprint"
LABEL_KIND = "lab.server.kind"
#: The image that a project's image stands on; the name of a base image of the policy where it is one.
LABEL_BASE = "lab.server.base"
#: The id that the base image of the policy had then, as its name is that of a newer one one day.
LABEL_BASE_ID = "lab.server.base.id"

_PREFIX = re.compile(r"[0-9a-f]{1,64}")


@dataclass(frozen=True)
class Version:
    """One image of a project.

    ``created`` is in seconds since 1970, ``size`` in bytes, layers that it shares with others included.
    ``in_use``: a container, running or not, was made of it. ``base`` is the image that it stands on, and
    ``base_id`` the id that it had, where it is one of the policy's.
    """

    id: str
    repository: str
    fingerprint: str
    created: int = 0
    size: int = 0
    base: str = ""
    current: bool = False
    in_use: bool = False
    base_id: str = ""

    @property
    def reference(self) -> str:
        """The name that stays with this image when a newer one comes."""
        return f"{self.repository}:{self.fingerprint[:12]}"


def described(version: Version) -> dict[str, Any]:
    """Return an image of a project as plain data, for people and programs."""
    return {
        "image": version.reference,
        "fingerprint": version.fingerprint,
        "created": version.created,
        "size": version.size,
        "base": version.base,
        "current": version.current,
        "in_use": version.in_use,
    }


def versions(
    listed: Iterable[Mapping[str, Any]], used: Collection[str] = ()
) -> dict[tuple[int, str], tuple[Version, ...]]:
    """Return the images of each project by (uid, project), newest first, from Docker's listing of images.

    ``used`` holds the ids of images that containers were made of.
    """
    found: dict[tuple[int, str], dict[str, Version]] = {}
    for image in listed:
        labels = image.get("Labels") or {}
        owner, project = str(labels.get(LABEL_OWNER, "")), str(labels.get(LABEL_PROJECT, ""))
        digest = str(labels.get(LABEL_FINGERPRINT, ""))
        repository = f"lab/{owner}/{project}"
        tags = {str(name) for name in image.get("RepoTags") or []}
        current = f"{repository}:latest" in tags
        if not owner.isdigit() or not digest or not (current or f"{repository}:{digest[:12]}" in tags):
            continue
        version = Version(
            id=str(image["Id"]),
            repository=repository,
            fingerprint=digest,
            created=int(image.get("Created") or 0),
            size=int(image.get("Size") or 0),
            base=str(labels.get(LABEL_BASE, "")),
            current=current,
            in_use=image["Id"] in used,
            base_id=str(labels.get(LABEL_BASE_ID, "")),
        )
        found.setdefault((int(owner), project), {})[version.id] = version
    return {key: _newest_first(own.values()) for key, own in found.items()}


def _newest_first(found: Iterable[Version]) -> tuple[Version, ...]:
    # Docker's listing has whole seconds. Of two that were built in one, the current one came later.
    return tuple(
        sorted(found, key=lambda version: (-version.created, not version.current, version.fingerprint))
    )


def current_of(found: Iterable[Version]) -> Version | None:
    """Return the current image among those of one project; None when there is none."""
    return next((version for version in found if version.current), None)


def surplus(found: Sequence[Version], keep: int) -> tuple[Version, ...]:
    """Return what goes of one project's images (newest first): all but the newest ``keep``.

    The current one and those that containers were made of stay in any case.
    """
    return tuple(version for version in found[keep:] if not version.current and not version.in_use)


def chosen(found: Sequence[Version], project: str, to: str = "") -> Version:
    """Return the image to go back to: the newest that is older than the current one.

    With ``to`` the one whose fingerprint begins so. Raises InvalidInput or NotFound.
    """
    if to:
        return _named(found, project, to)
    current = current_of(found)
    if current is None:
        raise NotFound(f"{project} has no image yet.", f"Build it: image-update {project}.")
    older = found[found.index(current) + 1 :]
    if not older:
        raise NotFound(f"{project} has no image older than the current one.", "Older ones are gone.")
    return older[0]


def _named(found: Sequence[Version], project: str, to: str) -> Version:
    if not _PREFIX.fullmatch(to):
        raise InvalidInput(
            f"{printable(to)[:80]!r} is not the beginning of a fingerprint.",
            "Use its first digits: 0-9, a-f.",
        )
    matching = [version for version in found if version.fingerprint.startswith(to)]
    if not matching:
        here = ", ".join(version.fingerprint[:12] for version in found) or "none"
        raise NotFound(f"{project} has no image {to}.", f"Images that are kept: {here}.")
    if len(matching) > 1:
        raise InvalidInput(f"More than one image of {project} begins with {to}.", "Use more of its digits.")
    return matching[0]
