# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The leases of GPUs on this server: found out, given, given back, waited for.

Docker is the database: a container's label says which devices it was made with. A record of root's says the
same, and also what is given to a container that is only being made, and by which process. Where the two do
not agree, what Docker gave to the container decides. One lock (``gpus``) is held over each look and decision.

A lease is held while its container is there and not retired, or, before there is one, while the process
lives that makes it. Nothing has to be given back: a container that is gone holds nothing, and a process that
died neither. One that was made but never started, by a process that died, is removed when its devices are
needed. One that gave way to a reservation (``give_way``) holds nothing while it does not run.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import posixpath
import signal
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from . import (
    STATE_DIRECTORY,
    gpuqueue,
    gpurequests,
    gpureservations,
    gpus,
    hostfiles,
    journal,
    leases,
    locks,
    names,
    state,
)
from .engine import Engine, ignore
from .errors import EngineError, HostError, InvalidInput, LabError, NotFound, Refused
from .gpudevices import Device
from .gpuqueue import Usage, Waiting
from .gpureservations import Reservation
from .leases import Bounds, Busy, Given, Lease, OverLimit
from .plan import Actual, actual_of
from .policy import Policy, User
from .processes import alive, of_this_boot, this_process
from .spec import LABEL_GPUS, ContainerSpec, given_gpus

T = TypeVar("T")

_LOCK = "gpus"
_LEASES, _QUEUE, _USAGE = "gpus/leases.json", "gpus/queue.json", "gpus/usage.json"
_RESERVED, _YIELDED = "gpus/reservations.json", "gpus/yielded.json"
_MOST_RESERVED = 400  # that are remembered; of those that are over, the oldest are forgotten
_PAUSE = 2.0  # seconds between two looks of one who waits
_FIRST_PROCESS = "/proc/1/comm"
# What a container is called while it replaces another, or is replaced.
_SUFFIXES = (".next", ".previous")
_MOST_WAITING = 16  # of one user
_LONGEST_WAIT = 30 * 86400.0  # seconds that count after a reboot


def inventory(policy: Policy) -> list[Device]:
    """Return the devices of this server; raise a LabError that says why there are none."""
    return gpus.devices(policy.gpu.out_of_service)


@dataclass(frozen=True)
class Held:
    """A lease and where it was found. ``container`` is an id, "" where there is none yet.

    ``since``: seconds since 1970. ``abandoned``: its container was never started, and nobody does it now.
    """

    lease: Lease
    container: str = ""
    since: float = 0.0
    maker: str = ""
    abandoned: bool = False


@dataclass
class _Record:
    """What root's record says of one holder."""

    lease: Lease
    maker: str
    since: float


@dataclass(frozen=True)
class Survey:
    """What is held, who waits (next one first), what was had lately, and reserved, at one instant."""

    held: tuple[Held, ...]
    waiting: tuple[Waiting, ...] = ()
    usage: Usage = field(default_factory=Usage)
    reserved: tuple[Reservation, ...] = ()

    @property
    def leases(self) -> list[Lease]:
        """All leases; a holder that is being replaced has two."""
        return [one.lease for one in self.held]


# What is there


def base_of(name: str) -> str:
    """Return the name of the container that this one is or replaces; "" for one that holds no lease."""
    for suffix in _SUFFIXES:
        name = name[: -len(suffix)] if name.endswith(suffix) else name
    try:
        names.parse_container_name(name)
    except InvalidInput:
        return ""
    return name


def survey(engine: Engine, policy: Policy) -> Survey:
    """Return who holds what and who waits. The caller decides on nothing that is not under the lock."""
    records = _read_leases()
    found = [_held_by(engine, item, records) for item in engine.containers()]
    there = {(one.lease.holder, one.lease.devices) for one in found if one is not None}
    yielded = _read_yielded()
    held = [one for one in found if one is not None and (one.lease.live or one.container not in yielded)]
    for holder, record in records.items():
        if (holder, record.lease.devices) not in there and alive(record.maker):
            held.append(Held(record.lease, "", record.since, record.maker))
    waiting = [one for one in _read_queue() if alive(one.maker)]
    usage = _read_usage()
    ordered = gpuqueue.order(waiting, policy, usage, _up())
    known = {user.uid for user in policy.users}  # what somebody reserved who has left is for all again
    reserved = tuple(one for one in known_reserved() if one.uid in known)
    return Survey(tuple(held), tuple(ordered), usage, reserved)


def _held_by(engine: Engine, item: dict[str, Any], records: dict[str, _Record]) -> Held | None:
    """Return what a container of Docker's listing holds; None for nothing."""
    base = base_of(str((item.get("Names") or ["/"])[0]).lstrip("/"))
    if not base or not (item.get("Labels") or {}).get(LABEL_GPUS):
        return None
    actual = actual_of(item, base)
    record = records.get(base)
    uid = names.parse_container_name(base)[1]
    lease = None
    with contextlib.suppress(InvalidInput):
        lease = leases.parse(actual.lease, base, uid, live=actual.live)
    if lease is None or not actual.ours or record is None or not lease.same(record.lease):
        lease = _inspected(engine, actual, base, uid, lease)
    if lease is None:
        return None
    matches = record is not None and lease.same(record.lease)
    maker = record.maker if record is not None else ""
    return Held(
        lease,
        actual.id,
        record.since if record is not None and matches else float(actual.created),
        maker,
        abandoned=actual.unfinished and not alive(maker),
    )


def _inspected(engine: Engine, actual: Actual, base: str, uid: int, said: Lease | None) -> Lease | None:
    """Return the lease that Docker itself gave a container, whatever its label says; None for none."""
    try:
        given = given_gpus(engine.inspect(actual.id))
    except NotFound:
        return None
    if not given:
        return None
    if said is not None and sorted(said.uuids) == sorted(given):
        return said
    # Nobody knows of which GPU an instance is; as one of its own it is given to nobody else all the same.
    return Lease(base, uid, tuple(Given(one, one) for one in sorted(given)), live=actual.live)


def recorded() -> dict[str, Lease]:
    """Return the leases of root's record, by their holders; what is damaged in it is left out."""
    return {holder: one.lease for holder, one in _read_leases().items()}


def devices_of(actual: Actual) -> list[str]:
    """Return the uuids of the devices that a container was made with, by its label."""
    with contextlib.suppress(InvalidInput):
        return list(leases.parse(actual.lease, actual.name, 0).uuids)
    return []


# Give, and give again


def obtain(
    engine: Engine, policy: Policy, user: User, spec: ContainerSpec, devices: Callable[[], list[Device]]
) -> Lease:
    """Give a container that is about to be made its devices. The caller holds the container's lock.

    Raises Busy, OverLimit, another Refused, or why no GPU of the server can be used.
    """
    request = gpurequests.parse(spec.gpus)
    found = devices()
    with locks.hold(_LOCK, title="the GPUs"):
        return _give(engine, policy, user, spec.name, request, found, last=True)


def check_now(
    engine: Engine, policy: Policy, user: User, spec: ContainerSpec, devices: Callable[[], list[Device]]
) -> None:
    """Raise why a container could not have its GPUs now, before there is work done for it."""
    if spec.gpus:
        request, limits = gpurequests.parse(spec.gpus), leases.bounds(policy, user)
        found = devices()
        seen = settled(survey(engine, policy), policy, found, write=False)
        _foreseen(
            seen,
            lambda held: _chosen(held, policy, user, spec.name, request, found, limits, last=True),
        )


def _foreseen(seen: Survey, decide: Callable[[Survey], T]) -> T:
    """Return what is decided on what is held, or else on what is left when the abandoned are removed."""
    try:
        return decide(seen)
    except Busy:
        left = _without_abandoned(seen)
        if left == seen:
            raise
        return decide(left)


class Foresight:
    """What each container of a list would be given, one after the other; nothing is given by it.

    ``engine`` is None where there is none yet: then only what the policy never gives is refused. What is held
    is looked up once, when the first container has GPUs.
    """

    def __init__(
        self, engine: Engine | None, policy: Policy, devices: Callable[[], list[Device]] | None = None
    ) -> None:
        self._engine, self._policy = engine, policy
        self._devices = devices or (lambda: inventory(policy))
        self._found: list[Device] = []
        self._seen: Survey | None = None
        self._problem: LabError | None = None
        self._gone: set[str] = set()

    def gives(self, user: User, spec: ContainerSpec) -> None:
        """Count what a container that is made now would be given; raise as ``obtain``."""
        if not spec.gpus:
            return
        request, limits = gpurequests.parse(spec.gpus), leases.bounds(self._policy, user)
        leases.check_possible(request, limits)
        if self._engine is None:
            return

        def decide(held: Survey) -> Lease:
            return _chosen(held, self._policy, user, spec.name, request, self._found, limits, last=True)

        self._count(_foreseen(self._look(self._engine), decide))

    def gives_again(self, actual: Actual, holder: str, user: User | None = None) -> None:
        """Count what a container would have that is started again or, with ``user``, brought back.

        Raises as ``hold_again``.
        """
        if not actual.lease or self._engine is None:
            return
        uid = names.parse_container_name(holder)[1]
        lease = leases.parse(actual.lease, holder, uid)
        seen = self._look(self._engine)
        if actual.id in _read_yielded() and not actual.live:
            user = user or self._policy.user_by_uid(uid)
        _foreseen(seen, lambda held: _check_again(held, self._policy, lease, self._found, user))
        self._count(lease)

    def frees(self, holder: str) -> None:
        """Count a container as removed or retired."""
        self._gone.add(holder)
        if self._seen is not None:
            self._hold([one for one in self._seen.held if one.lease.holder != holder])

    def _look(self, engine: Engine) -> Survey:
        if self._problem is not None:
            raise self._problem
        if self._seen is None:
            try:
                self._found = self._devices()
            except LabError as error:
                self._problem = error  # it takes a while to find out, and holds for all of them
                raise
            self._seen = survey(engine, self._policy)
            self._hold([one for one in self._seen.held if one.lease.holder not in self._gone])
        return self._seen

    def _count(self, lease: Lease) -> None:
        if self._seen is not None and not any(
            one.lease.holder == lease.holder and one.lease.same(lease) for one in self._seen.held
        ):
            self._hold([*self._seen.held, Held(leases_of(lease), "", time.time(), this_process())])

    def _hold(self, held: Sequence[Held]) -> None:
        if self._seen is not None:
            seen = replace(self._seen, held=tuple(held))
            self._seen = settled(seen, self._policy, self._found, write=False)


def _give(
    engine: Engine,
    policy: Policy,
    user: User,
    holder: str,
    request: gpurequests.GpuRequest,
    devices: Sequence[Device],
    *,
    last: bool,
) -> Lease:
    """Choose and record a lease, under the lock. ``last``: all who wait go first."""
    limits = leases.bounds(policy, user)
    seen = settled(survey(engine, policy), policy, devices)
    try:
        lease = _chosen(seen, policy, user, holder, request, devices, limits, last=last)
    except Busy:
        if not _remove_abandoned(engine, seen, holder):
            raise
        seen = settled(survey(engine, policy), policy, devices)
        lease = _chosen(seen, policy, user, holder, request, devices, limits, last=last)
    _record(seen, lease)
    return lease


def _chosen(
    seen: Survey,
    policy: Policy,
    user: User,
    holder: str,
    request: gpurequests.GpuRequest,
    devices: Sequence[Device],
    limits: Bounds,
    *,
    last: bool,
) -> Lease:
    mine = [one for one in seen.held if one.lease.holder == holder and not one.container]
    ahead = []
    if not mine:  # what is given to this container already is not wanted by those who wait
        ahead = _ahead(seen.waiting, policy, "" if last else holder)
    now, rules = time.time(), policy.gpu.reserve
    reserved = gpureservations.kept(seen.reserved, seen.leases, now, rules, near=True)
    kept = leases.set_aside(ahead, devices, [*seen.leases, *reserved])
    later = gpureservations.later(seen.reserved, user.uid, now, rules)
    try:
        return leases.choose(request, holder, user.uid, devices, kept, limits, later)
    except Busy as error:
        others = sum(len(one.devices) for one in reserved if user.uid not in one.kept_for)
        told = f" {others} kept for reservations of others (gpu reserve --list)." if others else ""
        waiting = f" {len(ahead)} wait before you." if ahead else ""
        hint = "Wait with them: project launch --wait." if ahead else error.hint
        raise Busy(f"{error.message}{told}{waiting}", hint) from None


def _ahead(
    waiting: Sequence[Waiting], policy: Policy, holder: str
) -> list[tuple[gpurequests.GpuRequest, str, int, Bounds]]:
    """Return the requests of those who wait before ``holder``; of all for ''."""
    found = []
    for one in waiting:
        if one.holder == holder:
            break
        with contextlib.suppress(LabError):
            user = policy.user_by_uid(one.uid)
            found.append((gpurequests.parse(one.request), one.holder, one.uid, leases.bounds(policy, user)))
    return found


def _remove_abandoned(engine: Engine, seen: Survey, holder: str) -> bool:
    """Remove containers that hold devices and were never started, by a process that died; say if any was.

    Never waits for a container's lock: its holder may wait for the lock on the GPUs.
    """
    removed = False
    for one in seen.held:
        if not one.abandoned or not one.container:
            continue
        project, uid = names.parse_container_name(one.lease.holder)
        own = one.lease.holder == holder
        lock = locks.hold(locks.of_project("container", uid, project), timeout=0.0)
        with contextlib.suppress(LabError), contextlib.nullcontext() if own else lock:
            engine.remove(one.container)
            removed = True
    return removed


def _without_abandoned(seen: Survey) -> Survey:
    """Return what is held when those containers are removed that ``_remove_abandoned`` removes."""
    return replace(seen, held=tuple(one for one in seen.held if not (one.abandoned and one.container)))


def _record(seen: Survey, lease: Lease) -> None:
    """Write down a new lease, and what is still held beside it."""
    now = time.time()
    usage = gpuqueue.aged(seen.usage, seen.leases, now)
    before = _read_leases()
    records = {
        one.lease.holder: _Record(leases_of(one.lease), one.maker, one.since)
        for one in seen.held
        if one.lease.holder != lease.holder
    }
    for holder in set(before) - set(records) - {lease.holder}:
        usage = gpuqueue.ended(usage, max(0.0, now - before[holder].since))
    old = before.get(lease.holder)
    since = old.since if old is not None and old.lease.same(lease) else now
    records[lease.holder] = _Record(lease, this_process(), since)
    _write_leases(records)
    _write_usage(usage)


def leases_of(lease: Lease) -> Lease:
    """Return the lease as it is recorded: whether its container runs is Docker's to say."""
    return replace(lease, live=True)


def hold_again(
    engine: Engine,
    policy: Policy,
    actual: Actual,
    holder: str,
    devices: Callable[[], list[Device]],
    *,
    user: User | None = None,
    check: bool = False,
) -> None:
    """See to it that a container can be started with the devices that it was made with.

    With ``user`` it does not hold them now, as one that was retired, and is to be within the limits again; so
    is one that gave way to a reservation. The caller holds the container's lock. With ``check`` nothing is
    given. Raises Refused, Busy, or why no GPU can be used.
    """
    if not actual.lease:
        return
    uid = names.parse_container_name(holder)[1]
    lease = leases.parse(actual.lease, holder, uid)
    found = devices()
    with locks.hold(_LOCK, title="the GPUs"):
        yielded = _read_yielded()
        if actual.id in yielded and not actual.live:
            user = user or policy.user_by_uid(uid)
        seen = settled(survey(engine, policy), policy, found, write=not check)
        try:
            _check_again(seen, policy, lease, found, user)
        except Busy:
            if check:
                left = _without_abandoned(seen)
            else:
                left = survey(engine, policy) if _remove_abandoned(engine, seen, holder) else seen
            if left == seen:
                raise
            seen = settled(left, policy, found, write=not check)
            _check_again(seen, policy, lease, found, user)
        if check:
            return
        _record(seen, lease)
        if actual.id in yielded:
            _write_yielded(yielded - {actual.id})


def _check_again(
    seen: Survey, policy: Policy, lease: Lease, devices: Sequence[Device], user: User | None
) -> None:
    others = leases.without(seen.leases, lease.holder)
    if user is not None:
        limits, request = leases.bounds(policy, user), leases.request_of(lease)
        leases.check_possible(request, limits)
        left = leases.left_to(lease.uid, lease.holder, others, limits, request)
        held = limits.equivalents - left + lease.cost
        if held > limits.equivalents:
            raise OverLimit(
                f"gpus: with it you would hold {leases.shown(held)} of {limits.equivalents} GPUs "
                "(limit gpus).",
                "Retire another container that has one first (gpu list shows yours).",
            )
    now, near = time.time(), user is not None
    reserved = [
        one
        for one in gpureservations.kept(seen.reserved, seen.leases, now, policy.gpu.reserve, near=near)
        if lease.uid not in one.kept_for
    ]
    leases.still_there(lease, devices, others, policy.gpu.shared_by)
    try:
        leases.still_there(lease, devices, [*others, *reserved], policy.gpu.shared_by)
    except Busy:
        raise Busy(
            "Its GPU is reserved for somebody else.",
            "See until when: gpu reserve --list. Or start a new one: container retire NAME, then launch it.",
        ) from None
    if user is not None:
        waiting = leases.set_aside(_ahead(seen.waiting, policy, ""), devices, [*others, *reserved])
        leases.still_there(lease, devices, waiting, policy.gpu.shared_by)


def give_back(holder: str) -> None:
    """Forget what this process obtained for a container that was not made after all. Raises nothing."""
    with contextlib.suppress(LabError), locks.hold(_LOCK, title="the GPUs"):
        records = _read_leases()
        if holder in records and records[holder].maker == this_process():
            del records[holder]
            _write_leases(records)


def end(actual: Actual) -> None:
    """Forget the lease of a container that was retired or removed just now. Raises nothing.

    It holds nothing any more without this; but the process that made it may live on, as one that does many
    things, and then the record would stand for a container that is still being made.
    """
    if not actual.lease:
        return
    with contextlib.suppress(LabError), locks.hold(_LOCK, title="the GPUs"):
        records, now = _read_leases(), time.time()
        usage = gpuqueue.aged(_read_usage(), [one.lease for one in records.values()], now)
        gone = records.pop(actual.name, None)
        if gone is not None:
            _write_leases(records)
            _write_usage(gpuqueue.ended(usage, max(0.0, now - gone.since)))


def give_back_unused(engine: Engine, policy: Policy, holder: str) -> None:
    """Forget what this process obtained for a container, unless there is one by now. Raises nothing."""
    with contextlib.suppress(LabError):
        if not any(one.lease.holder == holder and one.container for one in survey(engine, policy).held):
            give_back(holder)


# Reservations


def settled(seen: Survey, policy: Policy, devices: Sequence[Device], *, write: bool = True) -> Survey:
    """Return what was found with the reservations as they are to be now; under the lock they are written."""
    if not seen.reserved:
        return seen
    new = gpureservations.settle(
        seen.reserved, devices, seen.leases, time.time(), policy.gpu.reserve, policy.gpu.shared_by
    )
    if write and tuple(new) != seen.reserved:
        write_reserved(new)
    return replace(seen, reserved=tuple(new))


def kept_from(seen: Survey, policy: Policy, user: User) -> frozenset[str]:
    """Return the devices (uuids) that are kept now for reservations of others than ``user``."""
    kept = gpureservations.kept(seen.reserved, seen.leases, time.time(), policy.gpu.reserve, near=True)
    return frozenset(uuid for one in kept if user.uid not in one.kept_for for uuid in one.uuids)


def with_waiting(
    seen: Survey, policy: Policy, devices: Sequence[Device], reserved: Sequence[Lease]
) -> list[Lease]:
    """Return what is held and reserved, and what must be left to those who wait."""
    return leases.set_aside(_ahead(seen.waiting, policy, ""), devices, [*seen.leases, *reserved])


def overdue(seen: Survey, policy: Policy, devices: Sequence[Device], uid: int, now: float) -> list[Lease]:
    """Return what others than ``uid`` have waited for so long that nobody may reserve it any more.

    Who waits for the own limit keeps nothing.
    """
    long = [one for one in seen.waiting if one.uid != uid and waited(one) >= gpuqueue.PATIENCE]
    found = []
    for request, holder, whose, limits in _ahead(long, policy, ""):
        with contextlib.suppress(OverLimit):
            left = leases.left_to(whose, holder, seen.leases, limits, request)
            if gpurequests.least(request) <= left:
                found.append((request, holder, whose, limits))
    return gpureservations.overdue(found, devices, seen.reserved, now, policy.gpu.reserve)


def give_way(held: Held, there: Collection[str]) -> None:
    """Remember that a container, which is to be stopped now, holds its GPUs no longer while it is down.

    ``there``: the ids of all containers; what was remembered of others is forgotten.
    """
    with locks.hold(_LOCK, title="the GPUs"):
        _write_yielded({*(_read_yielded() & set(there)), held.container})
        records = _read_leases()
        if records.pop(held.lease.holder, None) is not None:
            _write_leases(records)


# Wait


def wait(
    engine: Engine,
    policy: Policy,
    user: User,
    project: str,
    request: gpurequests.GpuRequest,
    devices: Callable[[], list[Device]],
    *,
    words: Sequence[str] = (),
    progress: Callable[[str], None] = ignore,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until the project's container can have its devices; they are its own then, to be made with.

    ``words``: see Waiting. While Docker does not answer the place is kept, also for after a reboot. Raises
    Refused for what can never be had, and when the place in the queue was given up (``leave``).
    """
    holder = names.container_name(project, user.uid)
    join(engine, policy, user, project, request, words)
    try:
        said = ""
        while True:
            try:
                if turn(engine, policy, user, project, request, devices()):
                    return
                text = place_words(survey(engine, policy), holder, time.time())
            except EngineError:
                text = "waiting for GPUs, and for the container engine, which does not answer"
            if text != said:
                progress(text)
                said = text
            if _goes_down():
                # Ended as by force, so that the place is kept for after the start. Else systemd, which has
                # asked to end what is left of processes, would wait 90 seconds for it.
                os.kill(os.getpid(), signal.SIGKILL)
            pause(_PAUSE)
    finally:
        with contextlib.suppress(LabError):
            leave(holder)


def _goes_down() -> bool:
    """Say whether all units of the server have ended, and the rest is about to (systemd-shutdown(8))."""
    # As long as the kernel keeps a name of a process (proc(5)).
    return (hostfiles.read_text(_FIRST_PROCESS) or "").strip() == "systemd-shutdown"[:15]


def join(
    engine: Engine,
    policy: Policy,
    user: User,
    project: str,
    request: gpurequests.GpuRequest,
    words: Sequence[str] = (),
) -> None:
    """Take a place in the queue, which is held for as long as this process lives. Raises Refused.

    One that waited when the server went down has waited since then.
    """
    leases.check_possible(request, leases.bounds(policy, user))
    holder = names.container_name(project, user.uid)
    with locks.hold(_LOCK, title="the GPUs"):
        seen = survey(engine, policy)
        if any(one.holder == holder for one in seen.waiting):
            raise Refused(f"{project} waits already.", "See: gpu queue. Give it up: gpu release NAME.")
        if sum(one.uid == user.uid for one in seen.waiting) >= _MOST_WAITING:
            raise Refused(f"{_MOST_WAITING} of your projects wait already.", "See: gpu queue.")
        _write_usage(gpuqueue.aged(seen.usage, seen.leases, time.time()))
        now, others = time.time(), interrupted()
        at = next((one.at for one in others if one.holder == holder), now)
        # A clock that was put back makes nobody wait longer, and one that was put forward gives a place.
        since = _up() - min(max(0.0, now - at), _LONGEST_WAIT)
        entry = Waiting(holder, user.uid, project, request.render(), since, this_process(), at, tuple(words))
        left = [one for one in others if one.holder != holder]
        _write_queue([*seen.waiting, *left, entry])


def forget_dead() -> None:
    """Forget who does not wait any more though the server did not go down: those are not taken up again."""
    found = _read_queue()
    if any(of_this_boot(one.maker) and not alive(one.maker) for one in found):
        with locks.hold(_LOCK, title="the GPUs"):
            _write_queue([one for one in _read_queue() if not of_this_boot(one.maker) or alive(one.maker)])


def interrupted() -> list[Waiting]:
    """Return those who waited when the server went down, and whose launch was not taken up again yet.

    Of an entry without its words nobody knows what was to be launched.
    """
    return [one for one in _read_queue() if one.words and not of_this_boot(one.maker)]


def turn(
    engine: Engine,
    policy: Policy,
    user: User,
    project: str,
    request: gpurequests.GpuRequest,
    devices: Sequence[Device],
) -> bool:
    """Give one who waits what was asked for, if it is there and nobody comes first; say whether it was.

    Raises Refused where the place was given up, or it can never be had any more.
    """
    holder = names.container_name(project, user.uid)
    with locks.hold(_LOCK, title="the GPUs"):
        if not any(one.holder == holder for one in _read_queue()):
            raise Refused(f"The place of {project} in the queue was given up.")
        with contextlib.suppress(Busy, OverLimit):
            _give(engine, policy, user, holder, request, devices, last=False)
            _write_queue([one for one in _read_queue() if one.holder != holder])
            return True
    return False


def leave(holder: str) -> bool:
    """Give up a place in the queue; say whether there was one."""
    with locks.hold(_LOCK, title="the GPUs"):
        waiting = _read_queue()
        left = [one for one in waiting if one.holder != holder]
        if len(left) < len(waiting):
            _write_queue(left)
    return len(left) < len(waiting)


def place(seen: Survey, holder: str, now: float) -> tuple[int, int]:
    """Return (place from 1, seconds that it may take or -1) of one who waits; (0, -1) for nobody."""
    for number, one in enumerate(seen.waiting, 1):
        if one.holder == holder:
            since = {held.lease.holder: held.since for held in seen.held}
            return number, gpuqueue.estimate(number, seen.leases, seen.usage, since, now)
    return 0, -1


def place_words(seen: Survey, holder: str, now: float) -> str:
    """Return how one who waits stands, in words."""
    from .terminal import duration

    number, seconds = place(seen, holder, now)
    # In steps, so that it is not said anew each second.
    when = "" if seconds < 0 else f", about {duration(max(60, seconds // 60 * 60))} if all goes as lately"
    return f"waiting for GPUs: place {number} of {len(seen.waiting)}{when}"


def waited(one: Waiting) -> int:
    """Return for how many seconds one waits."""
    return int(max(0.0, _up() - one.since))


def tried(
    engine: Engine,
    policy: Policy,
    user: User,
    request: gpurequests.GpuRequest,
    devices: Sequence[Device],
) -> tuple[bool, Lease | None, LabError | None]:
    """Say whether a request can ever be had, what it would be given now, and why it is not given.

    Nothing is given, and no lock is taken: a moment later it may be otherwise.
    """
    seen = settled(survey(engine, policy), policy, devices, write=False)
    limits = leases.bounds(policy, user)
    try:
        # A name that no container has: as for a new one.
        lease = _chosen(seen, policy, user, "", request, devices, limits, last=True)
    except Refused as error:
        return isinstance(error, (Busy, OverLimit)), None, error
    return True, lease, None


# The records


def _up() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _load(name: str) -> Any:
    """Return a record; None for one that is missing or damaged, which Docker's labels make good."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(state.read_record(name) or "null")
    return None


def _store(name: str, data: Any) -> None:
    """Write a record. Where it takes the place of a damaged one, the audit log tells: that was forgotten."""
    text = state.read_record(name)
    try:
        json.loads("null" if text is None else text)
    except (ValueError, RecursionError):
        journal.damaged("gpu-record", name, "was damaged and is begun anew")
    state.write_record(name, json.dumps(data, sort_keys=True))


def _read_leases() -> dict[str, _Record]:
    data = _load(_LEASES)
    found = {}
    for holder, one in data.items() if isinstance(data, dict) else ():
        with contextlib.suppress(InvalidInput, ValueError, TypeError, KeyError, AttributeError):
            uid = names.parse_container_name(holder)[1]
            found[holder] = _Record(
                leases.parse(one["lease"], holder, uid), str(one["maker"]), float(one["since"])
            )
    return found


def _write_leases(records: dict[str, _Record]) -> None:
    data = {
        holder: {"lease": one.lease.render(), "maker": one.maker, "since": round(one.since, 3)}
        for holder, one in records.items()
    }
    _store(_LEASES, data)


def _read_queue() -> list[Waiting]:
    data = _load(_QUEUE)
    found = []
    for one in data if isinstance(data, list) else ():
        with contextlib.suppress(TypeError, ValueError, AttributeError, InvalidInput):
            entry = Waiting(**{**one, "words": tuple(map(str, one.get("words") or ()))})
            gpurequests.parse(entry.request)
            if names.container_name(entry.project, entry.uid) == entry.holder:
                found.append(entry)
    return found


def _write_queue(waiting: Sequence[Waiting]) -> None:
    _store(_QUEUE, [vars(one) for one in waiting])


def read_reserved() -> list[Reservation]:
    """Return all reservations that are remembered, in the order in which they were made.

    Raises HostError for a record that is damaged: nobody else knows what is in it.
    """
    text = state.read_record(_RESERVED)
    if text is None:
        return []
    try:
        data = json.loads(text)
        if not isinstance(data, list):
            raise TypeError("no list")
        return sorted(map(_reservation, data), key=lambda one: one.number)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, InvalidInput):
        path = posixpath.join(STATE_DIRECTORY, _RESERVED)
        raise HostError(
            f"{path} is damaged, so it is not known who reserved which GPUs.",
            f"Bring it back from a backup, or move it away: mv {path} {path}.damaged. Without it all "
            "reservations are lost, and their numbers begin at 1.",
        ) from None


def known_reserved() -> list[Reservation]:
    """Return the same, none where the record is damaged.

    For what must go on all the same, as launches: once the record is brought back, who is in the way of a
    reservation gives way with notice, as ever.
    """
    with contextlib.suppress(HostError):
        return read_reserved()
    return []


def _reservation(one: dict[str, Any]) -> Reservation:
    start, end, used = float(one["start"]), float(one["end"]), float(one["used"])
    # json takes NaN and Infinity.
    if not all(map(math.isfinite, (start, end, used))):
        raise ValueError("no time")
    return Reservation(
        int(one["number"]),
        int(one["uid"]),
        gpurequests.parse(one["request"]).render(),
        start,
        end,
        tuple(Given(str(uuid), str(card)) for uuid, card in one["devices"]),
        bool(one["shared"]),
        used,
    )


def write_reserved(reserved: Collection[Reservation]) -> None:
    """Write them down. The caller holds the lock on the GPUs (``locked``).

    Of those that were given up, the last is kept for its number, so that none is given again.
    """
    newest = max((one.number for one in reserved), default=0)
    there = [one for one in reserved if one.end > one.start or one.number == newest]
    last = sorted(there, key=lambda one: (one.number == newest, one.end))[-_MOST_RESERVED:]
    data = [
        {**vars(one), "devices": [[each.uuid, each.card] for each in one.devices]}
        for one in sorted(last, key=lambda one: one.number)
    ]
    _store(_RESERVED, data)


def locked() -> contextlib.AbstractContextManager[None]:
    """Hold the lock on the GPUs for a block."""
    return locks.hold(_LOCK, title="the GPUs")


def _read_yielded() -> set[str]:
    data = _load(_YIELDED)
    return {str(one) for one in data} if isinstance(data, list) else set()


def _write_yielded(containers: Collection[str]) -> None:
    _store(_YIELDED, sorted(containers))


def _read_usage() -> Usage:
    data = _load(_USAGE)
    with contextlib.suppress(TypeError, ValueError, KeyError, AttributeError):
        had = tuple((int(uid), float(amount)) for uid, amount in data["had"])
        return Usage(float(data["at"]), had, float(data["length"]))
    return Usage()


def _write_usage(usage: Usage) -> None:
    _store(_USAGE, vars(usage))
