# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the images of one owner hold together: each layer once, without those of base images.

Docker's own size of an image counts every layer that it shares with others. The classic builder keeps an
image for each step, whose id is in the history of whatever was built on it, so that layers can be told apart
(GET /images/{name}/history).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .engine import Engine
from .errors import NotFound, Refused
from .policy import Policy, User
from .sizes import format_size
from .versions import LABEL_BASE_ID, Version, versions

#: What Docker calls a step that was not done on this server.
_ELSEWHERE = "<missing>"

History = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Held:
    """What the images of one user hold: bytes together, and the limit, 0 for none."""

    size: int
    limit: int


def steps(history: History, bases: Collection[str]) -> dict[str, int]:
    """Return the bytes of each step of an image down to the base image that it stands on, by its id.

    ``history`` begins with the newest step. Steps done elsewhere are told apart by the image above them.
    """
    found: dict[str, int] = {}
    above = ""
    for number, step in enumerate(history):
        name = str(step.get("Id") or _ELSEWHERE)
        if name in bases:
            break
        if name == _ELSEWHERE:
            name = f"{above}/{number}"
        else:
            above = name
        found[name] = max(0, int(step.get("Size") or 0))
    return found


def together(histories: Iterable[History], bases: Collection[str]) -> int:
    """Return the bytes of all these images, each step counted once, without base images."""
    every: dict[str, int] = {}
    for history in histories:
        every.update(steps(history, bases))
    return sum(every.values())


def bases_of(policy: Policy, listed: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the ids of the base images of the policy, from Docker's listing of images."""
    wanted = set()
    for base in policy.base_images:
        plain = ":" in base.name.rpartition("/")[2] or "@" in base.name
        wanted.add(base.name if plain else f"{base.name}:latest")
    return frozenset(
        str(image["Id"])
        for image in listed
        if wanted & {*(image.get("RepoTags") or []), *(image.get("RepoDigests") or [])}
    )


def held(
    engine: Engine, policy: Policy, user: User, *, without: Collection[str] = (), also: str = ""
) -> Held:
    """Return what the images of a user hold, but for those in ``without`` (ids), and with ``also``."""
    listed = engine.images()
    every = [one for (uid, _project), found in versions(listed).items() if uid == user.uid for one in found]
    own = {one.id for one in every} - set(without) | ({also} if also else set())
    bases = bases_of(policy, listed) | _bases_then(every) | _base_then(engine, also)
    return Held(together(_histories(engine, own), bases), user.limits.images_size)


def by_owner(engine: Engine, policy: Policy, listed: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Return what the images of each owner (a uid) hold, from Docker's listing of images."""
    owners: dict[int, list[Version]] = {}
    for (uid, _project), found in versions(listed).items():
        owners.setdefault(uid, []).extend(found)
    return {
        uid: together(
            _histories(engine, {one.id for one in own}), bases_of(policy, listed) | _bases_then(own)
        )
        for uid, own in sorted(owners.items())
    }


def _bases_then(found: Iterable[Version]) -> frozenset[str]:
    """Return the ids of the base images that images were built on, which may be newer ones by name today.

    The labels are ours; nothing in an image that a user can write says so.
    """
    return frozenset(one.base_id for one in found if one.base_id)


def _base_then(engine: Engine, image: str) -> frozenset[str]:
    inspected = (engine.inspect_image(image) if image else None) or {}
    name = ((inspected.get("Config") or {}).get("Labels") or {}).get(LABEL_BASE_ID)
    return frozenset({str(name)} if name else ())


def _histories(engine: Engine, images: Iterable[str]) -> list[History]:
    found: list[History] = []
    for image in sorted(images):
        try:
            found.append(engine.history(image))
        except NotFound:
            continue  # it was removed meanwhile
    return found


def removable(engine: Engine, user: User, used: Collection[str]) -> list[Version]:
    """Return the images of a user that can go: neither current nor in use, the largest first."""
    found = versions(engine.images(f"lab/{user.uid}/*"), used)
    free = [
        one
        for (uid, _project), own in found.items()
        if uid == user.uid
        for one in own
        if not one.current and not one.in_use
    ]
    return sorted(free, key=lambda one: -one.size)


def check(now: Held, removable_ones: Sequence[Version], *, after: bool) -> None:
    """Raise Refused where the images hold more than they may, with what can be removed.

    ``after``: the new image is in it; else it is what there was before the build.
    """
    if not now.limit or now.size < now.limit or (after and now.size == now.limit):
        return
    would = "would hold" if after else "hold"
    raise Refused(
        f"The images of your projects {would} {format_size(now.size)} together, and may hold "
        f"{format_size(now.limit)}: " + ("the new one was not kept." if after else "nothing was built."),
        _advice(removable_ones),
    )


def _advice(free: Sequence[Version], most: int = 3) -> str:
    if not free:
        return (
            "No older image can go. Install less, start from a base image that has it, or retire a container "
            "and remove its project's image (image remove NAME --all)."
        )
    shown = []
    for one in free[:most]:
        project = one.repository.rpartition("/")[2]  # lab/UID/PROJECT
        shown.append(f"image remove {project} --to {one.fingerprint[:12]} ({format_size(one.size)})")
    return f"Older images that can go: {'; '.join(shown)}. Or install less."
