# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Images that nobody uses are collected: what builds left without a name, and what is older than is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import images, locks
from .engine import Engine
from .errors import LabError
from .policy import Policy
from .versions import versions

#: A build that runs has images without a name; none runs longer than this (diskrules.py).
_DAY = 86400


@dataclass(frozen=True)
class Collected:
    """Images that went, by name or id, and why some could not be looked at."""

    gone: tuple[str, ...]
    problems: tuple[str, ...] = ()


def nameless(listed: Iterable[Mapping[str, Any]], used: frozenset[str], now: float) -> list[str]:
    """Return the ids of images without a name that are older than a day and that no container is made of."""
    return [
        str(image["Id"])
        for image in listed
        if image["Id"] not in used and now - int(image.get("Created") or 0) > _DAY
    ]


def collect(engine: Engine, policy: Policy, now: float, *, check: bool) -> Collected:
    """Remove images that nobody uses; with ``check`` say which would go. Raises EngineError."""
    gone: list[str] = []
    problems: list[str] = []
    users = {user.uid: user for user in policy.users}
    # What belongs to nobody of the policy is left for IT to look at (server_info).
    for uid, project in versions(engine.images("lab/*/*")):
        if uid in users:
            try:
                done = images.prune(engine, policy, users[uid], project, check=check, wait=locks.BRIEF)
            except LabError as error:
                problems.append(str(error))
                continue
            gone += done.facts["removed"]
    used = frozenset(str(one.get("ImageID", "")) for one in engine.containers())
    found = nameless(engine.nameless(), used, now)
    if not check:
        for image in found:
            engine.remove_image(image)
        left = {str(image["Id"]) for image in engine.nameless()}
        # One that something stands on after all is kept by Docker.
        found = [image for image in found if image not in left]
    return Collected((*gone, *(image[:19] for image in found)), tuple(problems))
