# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The program of ``lab-server-lifecycle.service``: containers come to their end as the policy says.

Each call looks at all of them, counts, and carries out what is decided (``lifecycle``); so does who has GPUs
that are reserved for somebody else (``gpuhandover``). When each ends is written where its user can read it
without asking root: for the greeting, and for ``container list``.
"""

from __future__ import annotations

import posixpath
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any

from . import (
    STATE_DIRECTORY,
    events,
    gpuhandover,
    gpuidle,
    gpuleases,
    journal,
    locks,
    names,
    sessions,
    state,
)
from .boot import say
from .containers import ContainerInfo, listing_all, retire, stop
from .engine import Engine
from .errors import HostError, LabError, NotFound
from .gpuhandover import Handover
from .gpuidle import Working
from .lifecycle import (
    IDLE,
    NOTHING,
    NOTICE,
    RETIRE,
    STOP,
    Counted,
    Decision,
    Look,
    Record,
    after,
    decide,
    extend,
    parse,
    run_left,
    words,
)
from .liferules import HOUR
from .notices import IDLE_GPUS, NOTICES, idle_words, notices, publish
from .policy import Policy, User, load

_RECORD = gpuidle.RECORD
_LOCK = "lifecycle"
#: What a decision is about where GPUs are handed over.
RESERVED = "reserved"
_BETWEEN = 600.0  # seconds from one look to the next, by the timer


@dataclass(frozen=True)
class Ended:
    """What was decided for a container, and what came of it: "" where nothing went wrong."""

    name: str
    decision: Decision
    problem: str = ""


def is_limited(policy: Policy, user: User, project: str) -> bool:
    """Say whether the container of a user's project can come to an end by itself."""
    limits = policy.limits_of(user, project)
    return bool(limits.run_hours or limits.idle_hours or policy.life.retire_hours)


def recorded() -> Record:
    """Return what was counted of all containers. Raises HostError for a record that is damaged."""
    return parse(state.read_record(_RECORD), posixpath.join(STATE_DIRECTORY, _RECORD))


def _now() -> tuple[str, float]:
    return events.boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME)


def _user_of(policy: Policy, info: ContainerInfo) -> User | None:
    with suppress(NotFound):
        return policy.user_by_uid(info.uid)
    return None


def _look(engine: Engine, info: ContainerInfo, typed: int) -> Look:
    used: Any = 0
    if info.running:
        with suppress(NotFound):
            used = ((engine.stats(info.id).get("cpu_stats") or {}).get("cpu_usage") or {}).get("total_usage")
    return Look(info.name, info.id, info.running, int(used or 0), typed=typed if info.running else 0)


def tick(engine: Engine, policy: Policy, *, check: bool = False) -> list[Ended]:
    """Look at all containers once, and do what is decided; with ``check`` only say it. Raises LabError."""
    with locks.hold(_LOCK):
        found = [(info, _user_of(policy, info)) for info in listing_all(engine, policy)]
        working = gpuidle.look(engine, policy)
        looked_at = {
            info.name: (info, user)
            for info, user in found
            if user and (info.id in working.containers or is_limited(policy, user, info.project))
        }
        boot, up = _now()
        typed = sessions.typed(looked_at) if looked_at else {}
        looks = [
            replace(_look(engine, info, typed.get(info.name, 0)), gpu=working.containers.get(info.id))
            for info, _user in looked_at.values()
        ]
        counted = after(recorded(), looks, boot, up)
        due: list[tuple[User, ContainerInfo, Decision]] = []
        told: dict[int, list[dict[str, Any]]] = {}
        for look in looks:
            info, user = looked_at[look.name]
            decision, counted[look.name] = decide(
                counted[look.name], policy.limits_of(user, info.project), policy.life, live=look.live
            )
            if not is_limited(policy, user, info.project):
                continue  # it is looked at for the GPUs that it holds, and comes to no end
            due.append((user, info, decision))
            told.setdefault(user.uid, []).append(_notice(policy, user, info, decision, counted[look.name]))
        handed: list[Handover] = []
        try:
            handed, heard = gpuhandover.look(engine, policy, check=check)
            for one in handed:
                _tell_first(told, one)
            if not check:
                gpuleases.forget_dead()
                # In this order: a notice that could not be published is not counted as one that stands.
                _publish({user.uid: told.get(user.uid, []) for user in policy.users})
                _publish_idle(policy, looked_at, counted, working)
                state.write_record(_RECORD, Record(boot, up, tuple(sorted(counted.items()))).render())
                gpuhandover.keep(heard)
        finally:
            # Last, since it takes as long as the programs in them: all are counted and told by then. And in
            # any case, as what is due now was told before. Who waits for GPUs comes first.
            given = [_hand_over(engine, policy, one, check=check) for one in handed]
            ended = [_ended(engine, policy, *one, check=check) for one in due]
    return [*ended, *given]


def _hand_over(engine: Engine, policy: Policy, one: Handover, *, check: bool) -> Ended:
    """Stop a container whose notice has stood, so that its GPUs are free for who reserved them."""
    name, uid = one.held.lease.holder, one.held.lease.uid
    decision = Decision(NOTICE if one.left > 0 else STOP, RESERVED, one.left)
    if check or decision.do != STOP:
        return Ended(name, decision)
    try:
        gpuleases.give_way(one.held, [str(item["Id"]) for item in engine.containers()])
        if one.held.lease.live:
            stop(engine, policy.user_by_uid(uid), one.project, by=events.LIMIT, why=one.end.why)
    except LabError as error:
        return Ended(name, decision, str(error))
    journal.record(uid=0, user="root", verb="hand-over", container=name, owner=uid, outcome="done")
    return Ended(name, decision)


def _tell_first(told: dict[int, list[dict[str, Any]]], one: Handover) -> None:
    """Add the notice of a hand-over to a user's, unless the container ends before that."""
    mine = told.setdefault(one.held.lease.uid, [])
    at = int(time.time() + one.left)
    before = next((notice for notice in mine if notice["project"] == one.project), None)
    if before is not None:
        if before["at"] is not None and before["at"] <= at:
            return
        mine.remove(before)
    mine.append(
        {"project": one.project, "do": STOP, "at": at, "noticed": True, "why": one.end.why, "firm": True}
    )


def _ended(
    engine: Engine, policy: Policy, user: User, info: ContainerInfo, decision: Decision, *, check: bool
) -> Ended:
    return Ended(info.name, decision, "" if check else _do(engine, policy, user, info, decision))


def _do(engine: Engine, policy: Policy, user: User, info: ContainerInfo, decision: Decision) -> str:
    """Carry out a decision; return what went wrong, "" for nothing. The next look tries again."""
    why = words(decision.about, policy.limits_of(user, info.project), policy.life)
    try:
        if decision.do == STOP:
            stop(engine, user, info.project, by=events.LIMIT, why=why)
        elif decision.do == RETIRE:
            retire(engine, policy, user, info.project, by=events.LIMIT, why=why)
        else:
            return ""
    except LabError as error:
        return str(error)
    journal.record(uid=0, user="root", verb=decision.do, container=info.name, owner=user.uid, outcome="done")
    return ""


def _notice(
    policy: Policy, user: User, info: ContainerInfo, decision: Decision, counted: Counted
) -> dict[str, Any]:
    latest = run_left(counted, policy.limits_of(user, info.project))
    return {
        "project": info.project,
        "do": RETIRE if decision.about == "down" else STOP,
        "at": None if decision.left is None else int(time.time() + decision.left),
        "noticed": decision.do != NOTHING,
        # Who uses it puts that end off, but not the one after the time that it may run at all.
        "idle": decision.about == IDLE,
        "latest": None if latest is None else int(time.time() + latest),
        "why": words(decision.about, policy.limits_of(user, info.project), policy.life),
    }


def _publish(told: Mapping[int, list[dict[str, Any]]]) -> None:
    """Write each user's file; it is root's, and its user's to read. Raises HostError."""
    _write({uid: [one for one in found if one["at"] is not None] for uid, found in told.items()})


def _publish_idle(
    policy: Policy,
    there: Mapping[str, tuple[ContainerInfo, User]],
    counted: Mapping[str, Counted],
    working: Working,
) -> None:
    """Write what each user is told of GPUs that do nothing. Raises HostError."""
    told: dict[int, list[dict[str, Any]]] = {user.uid: [] for user in policy.users}
    for name, (info, user) in there.items():
        waiting = working.others(user.uid)
        held = info.id in working.containers
        said = idle_words(counted[name].gpu_idle, waiting, stopped=not info.running) if held else ""
        if said:
            told[user.uid].append({"project": info.project, "words": said})
    _write(told, IDLE_GPUS)


def _write(told: Mapping[int, list[dict[str, Any]]], suffix: str = "") -> None:
    try:
        for uid, found in told.items():
            # The user's own group has the same number.
            publish(posixpath.join(NOTICES, f"{int(uid)}{suffix}"), found, uid)
    except OSError as error:
        raise HostError(f"{NOTICES} could not be written: {error.strerror}.") from error


def put_off(
    engine: Engine, policy: Policy, user: User, project: str, hours: int | None, *, check: bool
) -> dict[str, Any]:
    """Put off the stop of a user's container; return facts: changed, hours, at (seconds since 1970), left.

    Raises NotFound when there is no container that runs, Refused where it may not be put off.
    """
    name = names.container_name(project, user.uid)
    with locks.hold(_LOCK):
        info = next((one for one in listing_all(engine, policy) if one.name == name), None)
        if info is None or not info.running:
            raise NotFound(f"No container of {project} runs.", f"Start it: project launch {project}.")
        record = recorded()
        counted = dict(record.counted)
        now = counted.get(name)
        if now is None or now.container != info.id:
            now = Counted(info.id)
        limits = policy.limits_of(user, project)
        longer = extend(now, limits, policy.life, hours)
        decision, longer = decide(longer, limits, policy.life, live=True)
        notice = _notice(policy, user, info, decision, longer)
        if not check:
            counted[name] = longer
            boot, up = (record.boot, record.up) if record.boot else _now()
            state.write_record(_RECORD, Record(boot, up, tuple(sorted(counted.items()))).render())
            told = notices(user.uid)
            firm = told.pop(project, {})
            # When GPUs are handed over is nothing that their user puts off.
            sooner = firm.get("firm") and (notice["at"] is None or firm["at"] <= notice["at"])
            _publish({user.uid: [*told.values(), firm if sooner else notice]})
            events.record(user.uid, project, events.EXTENDED, events.USER)
    return {
        "changed": not check,
        "project": project,
        "hours": int((longer.granted - now.granted) / HOUR),
        "at": notice["at"],
        "why": notice["why"],
        "left": policy.life.extend_times - longer.extended,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Look once; return 0, 1 when something could not be done, 2 for arguments that it does not know."""
    given = list(sys.argv if argv is None else argv)[1:]
    if given not in ([], ["--check"]):
        say("usage: lab-lifecycle [--check]")
        return 2
    from . import adminnotes

    check = bool(given)
    try:
        policy = load()
        if not check:
            adminnotes.refresh(policy)
        with closing(Engine.connect()) as engine:
            ended = tick(engine, policy, check=check)
            last = time.monotonic() + _BETWEEN
            while not check and (left := _next(ended)) is not None and time.monotonic() + left < last:
                # A window begins before the next look: its owner is not to wait for that.
                time.sleep(left + 1)
                _say_ended(ended, check=check)
                ended = tick(engine, policy)
    except (LabError, OSError) as error:
        say(str(error))
        return 1
    _say_ended(ended, check=check)
    return 1 if any(one.problem for one in ended) else 0


def _next(ended: Sequence[Ended]) -> float | None:
    """Return in how many seconds the next GPUs are handed over; None where nobody was told of that."""
    waits = [one.decision for one in ended if one.decision.about == RESERVED and one.decision.do == NOTICE]
    return min((one.left for one in waits if one.left is not None), default=None)


def _say_ended(ended: Sequence[Ended], *, check: bool) -> None:
    past = {STOP: "stopped", RETIRE: "retired"}
    for one in ended:
        if one.problem:
            say(f"{one.name} could not be {past[one.decision.do]}: {one.problem}")
        elif one.decision.do in past:
            say(f"{one.name} {'would be' if check else 'is'} {past[one.decision.do]} ({one.decision.about}).")
