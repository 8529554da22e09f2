# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What becomes of a container when another one has taken its place: it is retired, not thrown away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from . import events, locks, names, quota, retired
from .engine import Engine
from .errors import LabError
from .plan import Actual
from .policy import Policy
from .protocol import UNTOUCHED
from .sizes import format_size

#: So much of what a user's containers may hold is left to those that run, when a replaced one is kept.
_LEFT = 0.10
_NO_ROOM = "your containers would have no room left beside it (limit layers_size)"
_SHOWN_PACKAGES = 3


def give_up(engine: Engine, policy: Policy, old: Actual, *, wait: float = locks.PATIENCE) -> dict[str, Any]:
    """Keep a container that was stopped and replaced, as ``container retire`` does; return the same facts.

    ``old`` bears the plain name, whatever Docker calls it by now. ``wait``: as of ``retired.retire``. The
    caller holds the container's lock. Raises EngineError, InUse.
    """
    facts = retired.retire(engine, policy, replace(old, state="exited"), wait=wait)
    if facts["undo_until"] is not None:
        uid = names.parse_container_name(old.name)[1]
        with locks.hold(f"user-{uid}", timeout=wait):
            gone = _make_room(engine, policy, uid)
        if old.id in gone:
            facts.update(undo_until=None, not_kept=_NO_ROOM)
    return facts


def _make_room(engine: Engine, policy: Policy, uid: int) -> list[str]:
    """Remove a user's kept containers, the oldest first, while those that run lack room; return their ids."""
    gone: list[str] = []
    for one in reversed(retired.kept(engine, uid=uid)):
        if not _is_full(policy, uid):
            break
        engine.remove(one.actual.id)
        events.record(uid, one.project, events.GONE, events.CLEANUP, _NO_ROOM)
        gone.append(one.actual.id)
    return gone


def _is_full(policy: Policy, uid: int) -> bool:
    """Say whether a user's quota on Docker's file system is nearly used up, where that counts for itself."""
    try:
        device = quota.device_of(policy.docker_root)
        if device == quota.device_of(policy.home_root) or not quota.enforced(device):
            return False
        usage = quota.read(device, quota.USER, uid)
    except LabError:
        return False
    limits = usage.quota
    return any(
        limit and used > (1 - _LEFT) * limit
        for used, limit in (
            (usage.used, limits.hard or limits.soft),
            (usage.inodes, limits.inodes_hard or limits.inodes_soft),
        )
    )


def told(facts: Mapping[str, Any]) -> str:
    """Return in words what became of what was in a replaced container; "" where there was nothing."""
    if not facts or facts.get("not_kept") == UNTOUCHED:
        return ""
    lost = facts["lost"]
    least = "" if lost["complete"] else "at least "
    files = f"{least}{lost['files']} file{'' if lost['files'] == 1 else 's'}"
    parts = [files, format_size(lost["bytes"]), *lost["packages"][:_SHOWN_PACKAGES]]
    more = len(lost["packages"]) - _SHOWN_PACKAGES
    what = ", ".join([*parts, *([f"{more} packages more"] if more > 0 else [])])
    if facts.get("not_kept"):
        return f"what was in the old one alone ({what}) is gone for good, as {facts['not_kept']}"
    return f"the old one is kept, with what was in it alone ({what})"


def last(uid: int, project: str) -> events.Event | None:
    """Return the event by which the project's container was put into the place of another; None if not."""
    whole = (events.MADE, events.REPLACED, events.RETIRED, events.RESTORED, events.REMOVED)
    found = next((one for one in reversed(events.read(uid, project)) if one.what in whole), None)
    return found if found is not None and found.what == events.REPLACED else None


def note(uid: int, project: str) -> list[str]:
    """Return a sentence for a launch that leads into a container which is not the user's own making."""
    event = last(uid, project)
    if event is None:
        return []
    why = f": {event.reason}" if event.reason else ""
    return [
        f"IT's run made this container anew{why}. When, and how to have the old one back: "
        f"container why {project}"
    ]
