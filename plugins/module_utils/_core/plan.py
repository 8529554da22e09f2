# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What must be done to make a container as it is wanted: a pure function of wish and fact.

Drift is a different digest of the spec, or one of two live facts: whether it runs, and the id of its image.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import names
from .errors import InvalidInput, NotFound, Refused
from .spec import (
    LABEL_DIGEST,
    LABEL_GPUS,
    LABEL_OWNER,
    LABEL_PROJECT,
    LABEL_SPEC,
    LABEL_WISHES,
    ContainerSpec,
    parse,
    parse_wishes,
)

STARTED, STOPPED, RETIRED, ABSENT, RESTORED = STATES = (
    "started",
    "stopped",
    "retired",
    "absent",
    "restored",
)
CREATE, START, STOP, REMOVE = "create", "start", "stop", "remove"
#: Give a container up in a way that can be undone, and undo it.
RETIRE, RESTORE = "retire", "restore"

# Docker's states of a container in which its processes live.
_LIVE = frozenset({"running", "paused", "restarting"})
# Made but never started, or never removed to the end: nobody's work is in it.
_UNFINISHED = frozenset({"created", "dead", "removing"})


@dataclass(frozen=True)
class Actual:
    """A container as Docker lists it. ``ours``: its labels are whole and say what its name says."""

    id: str
    name: str
    state: str
    image: str
    ours: bool
    digest: str = ""
    spec: ContainerSpec | None = None
    created: int = 0
    #: The label of its lease of GPUs; "" for none.
    lease: str = ""

    @property
    def live(self) -> bool:
        """Whether its processes live."""
        return self.state in _LIVE

    @property
    def unfinished(self) -> bool:
        """Whether it was never started, so nothing is lost with it."""
        return self.state in _UNFINISHED


@dataclass(frozen=True)
class Plan:
    """Actions in their order, the reason in words, and what a diff shows."""

    actions: tuple[str, ...] = ()
    reason: str = ""
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)


def actual_of(listed: Mapping[str, Any], base_name: str = "") -> Actual:
    """Return one item of Docker's listing of containers as Actual.

    ``base_name`` is the name that its labels must agree with, where that is not the container's own.
    """
    name = str((listed.get("Names") or ["/"])[0]).lstrip("/")
    labels = listed.get("Labels") or {}
    text, digest = str(labels.get(LABEL_SPEC, "")), str(labels.get(LABEL_DIGEST, ""))
    ours, spec = False, None
    with contextlib.suppress(InvalidInput):
        project, uid = names.parse_container_name(base_name or name)
        whole = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest() == digest
        ours = whole and labels.get(LABEL_OWNER) == str(uid) and labels.get(LABEL_PROJECT) == project
    if ours:
        # The spec of another version of ours does not parse; its digest differs, and that is all we need.
        with contextlib.suppress(InvalidInput):
            spec = replace(parse(text), **parse_wishes(str(labels.get(LABEL_WISHES, ""))))
    return Actual(
        id=str(listed["Id"]),
        name=name,
        state=str(listed.get("State", "")),
        image=str(listed.get("ImageID", "")),
        ours=ours,
        digest=digest,
        spec=spec,
        created=int(listed.get("Created") or 0),
        lease=str(labels.get(LABEL_GPUS, "")),
    )


def refuse_foreign(actual: Actual) -> None:
    """Raise Refused when the container is not ours: nothing is adopted by its name."""
    if not actual.ours:
        raise Refused(
            f"There is a container {names.printable(actual.name)} whose labels are not those of lab.server.",
            f"Let IT look at it and remove it by hand: docker rm -f {actual.id[:12]}.",
        )


def plan(
    state: str,
    spec: ContainerSpec,
    image: str | None,
    actual: Actual | None,
    *,
    kept: Actual | None = None,
    restored: bool = False,
) -> Plan:
    """Return what makes ``actual`` as wanted; an empty plan when it is so already.

    ``image`` is the id of the project's image, None when there is none yet (in check mode). ``kept`` is the
    container that was retired last and could be restored; ``restored`` says that ``actual`` was. Raises
    Refused for a container that is not ours or is in the way, NotFound when there is none to restore,
    InvalidInput for an unknown state.
    """
    if state not in STATES:
        raise InvalidInput(f"{names.printable(state)!r} is not a state.", f"Use one of: {', '.join(STATES)}.")
    if actual is not None:
        refuse_foreign(actual)
    if state in (RETIRED, ABSENT):
        return _plan_gone(actual, state)
    if state == STOPPED:
        return _plan_stopped(actual)
    if state == RESTORED:
        return _plan_restored(spec, actual, kept, restored)
    return _plan_started(spec, image, actual)


def _word(actual: Actual | None) -> str:
    if actual is None:
        return ABSENT
    return STARTED if actual.live else STOPPED


def _plan_gone(actual: Actual | None, state: str) -> Plan:
    if actual is None:
        return Plan()
    # One that never ran has nothing in it to keep.
    action = RETIRE if state == RETIRED and not actual.unfinished else REMOVE
    return Plan((action,), f"it is to be {state}", {"state": _word(actual)}, {"state": state})


def _plan_restored(spec: ContainerSpec, actual: Actual | None, kept: Actual | None, restored: bool) -> Plan:
    if actual is None:
        if kept is None:
            raise NotFound(
                f"There is no retired container of {spec.project} to bring back.",
                f"Start a new one: project launch {spec.project}.",
            )
        return Plan((RESTORE, START), "it was retired", {"state": RETIRED}, {"state": STARTED})
    if kept is not None and not restored:
        raise Refused(
            f"There is a container of {spec.project}, which is in the way of the retired one.",
            f"Retire it first: container retire {spec.project}. If there is work in it, it is kept, too, and "
            f"the one before it comes back by: container undo {spec.project} --back 2.",
        )
    if actual.live or actual.unfinished or not restored:
        return Plan()
    return Plan((START,), "it does not run", {"state": STOPPED}, {"state": STARTED})


def _plan_stopped(actual: Actual | None) -> Plan:
    if actual is None or not actual.live:
        return Plan()
    return Plan((STOP,), "it runs", {"state": STARTED}, {"state": STOPPED})


def _plan_started(spec: ContainerSpec, image: str | None, actual: Actual | None) -> Plan:
    after: dict[str, Any] = {"state": STARTED}
    if actual is None:
        shown = {**after, "image": image or "(to be built)", **spec.shown()}
        return Plan((CREATE, START), "there is none", {"state": ABSENT}, shown)
    if actual.unfinished:
        reason = "it was made but never started"
        return Plan((REMOVE, CREATE, START), reason, {"state": actual.state}, after)
    before: dict[str, Any] = {"state": _word(actual)}
    reasons = []
    if actual.digest != spec.digest():
        changed = differences(actual.spec, spec)
        before.update({key: old for key, (old, _new) in changed.items()})
        after.update({key: new for key, (_old, new) in changed.items()})
        reasons.append(f"the policy changed ({', '.join(changed) or 'version'})")
    if image is not None and actual.image != image:
        before["image"], after["image"] = actual.image, image
        reasons.append("the image is newer")
    if reasons:
        return Plan((REMOVE, CREATE, START), " and ".join(reasons), before, after)
    if actual.live:
        return Plan()
    return Plan((START,), "it does not run", before, after)


def differences(old: ContainerSpec | None, new: ContainerSpec) -> dict[str, tuple[object, object]]:
    """Return (before, after) of what differs between two specs, by the names that ``shown`` gives."""
    if old is None:
        return {}
    before, after = old.shown(), new.shown()
    return {key: (before[key], after[key]) for key in after if before[key] != after[key]}
