# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Retired containers: what is lost with one, and those that are kept so that it can be undone.

A kept one is a stopped container under the name ``<project>._.<uid>.retired-<seconds since 1970>``. That is
no name of a lab container, so it counts nowhere else; Docker is the database here too. What was changed in a
container is what Docker says of its layers: root never walks through a tree that a user wrote.
"""

from __future__ import annotations

import contextlib
import json
import posixpath
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from . import events, homes, journal, locks, names, state
from .engine import ADDED, DELETED, Engine, ignore
from .errors import EngineError, InvalidInput, LabError, NotFound, Refused
from .plan import Actual, actual_of
from .policy import Policy
from .protocol import UNTOUCHED
from .spec import ContainerSpec

_NAME = re.compile(r"(?P<base>.+)\.retired-(?P<seconds>[0-9]{1,12})")
#: Kept ones of one user. Each keeps its image from being removed, however little is in it.
AT_MOST = 10
# So many seconds ahead of the clock names may be, of containers that are retired one right after the other.
_BURST = 60
_SHOWN_PATHS, _SHOWN_PACKAGES = 20, 100
_DAY = 86400
# The clean-up runs daily. A longer gap is a server that was off or a clock that jumped, and ages nothing.
_LONGEST_STEP = 2 * _DAY
_RECORD = "retired.json"
# The installation of a Python package, of which this folder is the record (PEP 376, PEP 427).
_PACKAGE = re.compile(
    r"/(?P<name>[A-Za-z0-9][A-Za-z0-9._]*)-(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_]*)\.dist-info"
)


@dataclass(frozen=True)
class Kept:
    """A retired container that can be brought back. ``retired`` is in seconds since 1970."""

    container: str
    project: str
    uid: int
    retired: int
    actual: Actual


def parse_name(name: str) -> tuple[str, int]:
    """Return (name before it was retired, when that was); raise InvalidInput for another name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise InvalidInput(f"{names.printable(name)!r} is not the name of a retired container.")
    names.parse_container_name(match["base"])
    return match["base"], int(match["seconds"])


def among(listed: Iterable[dict[str, Any]], *, container: str = "", uid: int = -1) -> list[Kept]:
    """Return the kept ones of a listing of Docker's, newest first; of one container or one user, if given."""
    found = []
    for item in listed:
        name = str((item.get("Names") or ["/"])[0]).lstrip("/")
        try:
            base, seconds = parse_name(name)
        except InvalidInput:
            continue
        project, owner = names.parse_container_name(base)
        actual = actual_of(item, base)
        if actual.ours and container in ("", base) and uid in (-1, owner):
            found.append(Kept(base, project, owner, seconds, actual))
    return sorted(found, key=lambda one: (one.retired, one.actual.created, one.actual.id), reverse=True)


def kept(engine: Engine, *, container: str = "", uid: int = -1) -> list[Kept]:
    """Return the retired containers that can be brought back, newest first."""
    return among(engine.containers(), container=container, uid=uid)


def until(policy: Policy, retired: int) -> int:
    """Return until when one that was retired then can be brought back, in seconds since 1970."""
    return retired + policy.retire_keep_days * _DAY


# What is lost


def loss(engine: Engine, actual: Actual) -> dict[str, Any]:
    """Return what is in a container and nowhere else.

    ``files`` counts, ``bytes`` is the size of its writable layer, ``packages`` are Python packages that the
    image lacks, ``paths`` is some of the files, ``complete`` says whether all could be looked at. ``volumes``
    are the VOLUMEs of the image, whose files go too and of which Docker says neither names nor size.
    """
    volumes = _volumes(engine, actual)
    changes, complete = engine.changes(actual.id)
    lost = _without_ours([change for change in changes if change[0] not in volumes], actual.spec)
    return {
        "packages": _packages(changes)[:_SHOWN_PACKAGES],
        "files": len(lost),
        "bytes": engine.sizes([actual.id]).get(actual.id, 0),
        "paths": [names.printable(path) for path in _interesting(lost)[:_SHOWN_PATHS]],
        "complete": complete,
        "volumes": [names.printable(path) for path in volumes],
    }


def _volumes(engine: Engine, actual: Actual) -> list[str]:
    mounted = engine.inspect(actual.id).get("Mounts") or []
    return sorted(str(mount.get("Destination")) for mount in mounted if mount.get("Type") == "volume")


def _without_ours(changes: Sequence[tuple[str, int]], spec: ContainerSpec | None) -> list[str]:
    """Return the files that were made or changed by the user, in the order of their names.

    Docker names the folders on the way to a change too; only the ends of the paths count.
    """
    parents = {posixpath.dirname(path) for path, _kind in changes}
    ours = _ours(spec)
    return sorted(
        path for path, kind in changes if kind != DELETED and path not in parents and path not in ours
    )


def _ours(spec: ContainerSpec | None) -> frozenset[str]:
    """Return what lab.server and Docker put into every container: account files, home, and mount points."""
    # With "Init" Docker mounts its own program there, for which the runtime makes a file.
    paths = {"/etc/passwd", "/etc/group", "/sbin/docker-init", "/usr/sbin/docker-init", "/workspace", "/run"}
    paths |= {"/dev", "/proc", "/sys", "/home/.workspaces"}
    if spec is not None:
        paths |= {spec.home, spec.data_root, *spec.shares, posixpath.join("/home/.workspaces", spec.user)}
        paths |= homes.own_files(spec)
    return frozenset(paths)


def _packages(changes: Sequence[tuple[str, int]]) -> list[str]:
    """Return "name version" of the Python packages that were installed."""
    found = set()
    for path, kind in changes:
        match = _PACKAGE.fullmatch(path[path.rfind("/") :]) if kind == ADDED else None
        if match:
            found.add(f"{match['name']} {match['version']}")
    return sorted(found, key=str.lower)


def _interesting(paths: Sequence[str]) -> list[str]:
    """Return the paths with those first that somebody may have written by hand."""
    return sorted(paths, key=lambda path: ("/site-packages/" in path or "/.cache/" in path, path))


def _untouched(actual: Actual, lost: dict[str, Any]) -> bool:
    """Say whether nothing is in the container that anybody could want back: its layer is as it was made."""
    if actual.spec is None or not lost["complete"] or lost["files"]:
        return False
    return state.is_furnished(actual.name, actual.id, lost["bytes"])


# Retire and restore. The caller holds the container's lock.


def measured(engine: Engine, actual: Actual) -> dict[str, Any]:
    """Return what is lost, or, when Docker cannot count it, an answer that claims nothing."""
    try:
        return loss(engine, actual)
    except (EngineError, NotFound, Refused):
        return {
            "packages": [],
            "files": 0,
            "bytes": 0,
            "paths": [],
            "complete": False,
            "volumes": [names.printable(path) for path in _volumes(engine, actual)],
        }


def promised(engine: Engine, policy: Policy, actual: Actual) -> dict[str, Any]:
    """Return the facts of a retire: lost, undo_until (seconds since 1970, or None), not_kept (why None)."""
    lost = measured(engine, actual)
    why = _not_kept(policy, actual, lost)
    return {
        "lost": lost,
        "undo_until": None if why else until(policy, int(time.time())),
        "not_kept": why,
    }


def for_good(facts: Mapping[str, Any]) -> bool:
    """Say of the facts of ``promised`` whether there is something that nobody could bring back."""
    return facts["undo_until"] is None and facts["not_kept"] != UNTOUCHED


def _not_kept(policy: Policy, actual: Actual, lost: dict[str, Any]) -> str:
    if not lost["volumes"] and _untouched(actual, lost):
        return UNTOUCHED
    if not policy.retire_keep_days:
        return "this server keeps no retired containers"
    if lost["volumes"]:
        # Nobody could say how much is kept with it.
        return f"its image has the VOLUME {lost['volumes'][0]}, of which Docker does not say the size"
    if lost["bytes"] > policy.retire_size:
        return "it holds more than this server keeps of one user"
    return ""


def retire(engine: Engine, policy: Policy, actual: Actual, *, wait: float = locks.PATIENCE) -> dict[str, Any]:
    """Stop a container and keep it under another name, or remove it; return the facts of ``promised``.

    Only a container of ours that was started once. ``wait``: for how many seconds the lock of its user's kept
    ones is waited for. Raises EngineError, InUse.
    """
    if actual.live:
        engine.stop(actual.id)
    facts = promised(engine, policy, actual)
    if facts["undo_until"] is None:
        engine.remove(actual.id)
        return facts
    uid = names.parse_container_name(actual.name)[1]
    with locks.hold(f"user-{uid}", timeout=wait):
        seconds = _put_aside(engine, actual)
        facts["undo_until"] = until(policy, seconds)
        trim(engine, policy, uid)
        if not any(one.actual.id == actual.id for one in kept(engine, uid=uid)):
            facts.update(undo_until=None, not_kept="it holds more than this server keeps of one user")
    return facts


def _put_aside(engine: Engine, actual: Actual) -> int:
    now = int(time.time())
    # Several in one second are called by the seconds that come: the newest stays the newest, also where the
    # bounds have freed an earlier name. A name of another day's clock counts for nothing.
    ahead = [one.retired for one in kept(engine, container=actual.name) if now <= one.retired < now + _BURST]
    first = max(ahead, default=now - 1) + 1
    for seconds in range(first, first + _BURST):
        try:
            engine.rename(actual.id, f"{actual.name}.retired-{seconds}")
        except Refused:
            continue  # retired by a clock that went back
        return seconds
    raise EngineError("The container could not be put aside.", "Try again.")


def trim(engine: Engine, policy: Policy, uid: int) -> list[Kept]:
    """Remove the oldest of a user's kept containers until they are within the bounds; return those.

    The caller holds the lock ``user-<uid>``, under which nobody brings one back meanwhile.
    """
    gone = _beyond(engine, policy, kept(engine, uid=uid))
    for one in gone:
        engine.remove(one.actual.id)
        events.record(uid, one.project, events.GONE, events.CLEANUP, "no more room is kept for you")
    return gone


def _beyond(engine: Engine, policy: Policy, found: Sequence[Kept]) -> list[Kept]:
    """Return those of a user's kept containers, the newest first, for which there is no room."""
    # What cannot be measured counts as all that may be kept: nobody gains by what Docker cannot count.
    sizes = {one.actual.id: policy.retire_size for one in found}
    with contextlib.suppress(EngineError):
        sizes.update(engine.sizes(list(sizes)))
    gone, total = [], 0
    for number, one in enumerate(found):
        total += sizes[one.actual.id]
        if number >= AT_MOST or total > policy.retire_size or not policy.retire_keep_days:
            gone.append(one)
    return gone


def take_back(engine: Engine, container: str, wanted: str = "") -> Actual:
    """Give the newest kept container (or the one with the id ``wanted``) its name again; return it.

    The caller holds the locks of the container and of its user. Raises NotFound.
    """
    for one in kept(engine, container=container):
        if wanted in ("", one.actual.id):
            state.mark_restored(container, one.actual.id)
            engine.rename(one.actual.id, container)
            return one.actual
    raise NotFound("There is no retired container to bring back.")


def put_back(engine: Engine, actual: Actual) -> None:
    """Make it retired again, since when it was: the opposite of ``take_back``."""
    engine.rename(actual.id, actual.name)


# The clean-up


def clean_up(
    engine: Engine,
    policy: Policy,
    now: float,
    *,
    check: bool = False,
    tell: Callable[[str], None] = ignore,
) -> list[Kept]:
    """Remove the kept containers that are too old or beyond the bounds; return them.

    How old one is follows from the clean-ups that saw it, not from its name: a clock that jumps a year makes
    nothing a year older. With ``check`` nothing is removed. ``tell`` is called with a sentence for each user
    whose containers are left for the next time: nobody's lock or broken container keeps those of others.
    """
    record = _aged(_read(), [one.actual.name for one in kept(engine)], now)
    limit = policy.retire_keep_days * _DAY
    gone: list[Kept] = []
    for uid in sorted({one.uid for one in kept(engine)}):
        try:
            with locks.hold(f"user-{uid}", timeout=locks.BRIEF):
                left: list[Kept] = []
                for one in kept(engine, uid=uid):
                    if record["clock"] - record["seen"].get(one.actual.name, record["clock"]) >= limit:
                        if not check:
                            engine.remove(one.actual.id)
                            events.record(uid, one.project, events.GONE, events.CLEANUP, "its time was over")
                        gone.append(one)
                    else:
                        left.append(one)
                gone += _beyond(engine, policy, left) if check else trim(engine, policy, uid)
        except LabError as error:
            tell(f"The retired containers of uid {uid} were not cleaned up: {error}")
    if not check:
        there = {one.actual.name for one in kept(engine)}
        record["seen"] = {one: since for one, since in record["seen"].items() if one in there}
        state.write_record(_RECORD, json.dumps(record, sort_keys=True))
    return gone


def _aged(record: dict[str, Any], present: Sequence[str], now: float) -> dict[str, Any]:
    """Return the record after a clean-up at ``now``: its own clock moved on, and who was seen since when.

    By the names of the kept ones, with the time of the retire in them: who is retired again begins anew.
    """
    step = min(max(now - record["last"], 0.0), float(_LONGEST_STEP)) if record["last"] else 0.0
    clock = record["clock"] + step
    return {"last": now, "clock": clock, "seen": {one: record["seen"].get(one, clock) for one in present}}


def _read() -> dict[str, Any]:
    """Return the record of the last clean-up. One that is damaged is begun anew: then all is young."""
    empty: dict[str, Any] = {"last": 0.0, "clock": 0.0, "seen": {}}
    text = state.read_record(_RECORD)
    if text is None:
        return empty
    try:
        data = json.loads(text)
        seen = {str(key): float(value) for key, value in data["seen"].items()}
        return {"last": float(data["last"]), "clock": float(data["clock"]), "seen": seen}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        journal.damaged("cleanup", _RECORD, "is damaged, so the time of retired containers begins anew")
        return empty
