# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The containers of projects: IT's list of them, and the commands of users, by the same code.

Docker is the database: one listing says what there is. A container is changed under its own lock, after a
second look. Whatever breaks off in between, the next call finds and heals.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import posixpath
import stat
import syslog
import tarfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Callable

from . import (
    brought,
    events,
    gpufiles,
    gpuleases,
    gpureserve,
    homes,
    image_install,
    images,
    jobs,
    journal,
    jupyter,
    locks,
    names,
    replacing,
    retired,
    storage,
    watermarks,
    workspaces,
)
from . import spec as specs
from . import state as states
from .engine import DOCKER, Engine, ignore
from .errors import EngineError, HostError, InvalidInput, LabError, NotFound, Refused
from .images import ProjectImage
from .items import ItemResult
from .leases import Busy, OverLimit
from .plan import (
    CREATE,
    REMOVE,
    RESTORE,
    RESTORED,
    RETIRE,
    RETIRED,
    START,
    STARTED,
    STOP,
    STOPPED,
    Actual,
    Plan,
    actual_of,
    differences,
    plan,
    refuse_foreign,
)
from .policy import CONTAINER_HOME, HOST_HOME, REPLACE, WAIT, Policy, Project, User
from .sizes import format_size
from .spec import NO_WISHES, ContainerSpec, ImageFacts, OwnWishes, Wishes

#: Actions beside those of the plan: tidy up a replacement, and note whether the boot unit starts it.
HEAL, REMEMBER = "heal", "remember"
# A container that is being replaced has one of these after its name, for as long as that takes.
_NEXT, _PREVIOUS = ".next", ".previous"
# A container of its image, without mounts and never started, in which we look around.
_LOOK = ".look"
_LOOK_FORMAT = 1
_AT_ONCE = 4
_CREATION_SECONDS = 20
# For so long a launch looks whether the image is that of the files: where there are many, it is not told.
_GLANCE_SECONDS = 0.1
_PASSWD_LIMIT = 64 << 10
_TOLD = 800  # characters of an unexpected error's trace for the log, from its end
# Of one user: what was seen of an image that is used no more is seen anew when it is.
_LOOKS = 20
_NO_ACCOUNTS = "root:x:0:0:root:/root:/bin/sh\n"
_NO_GROUPS = "root:x:0:\n"


@dataclass(frozen=True)
class Wanted:
    """A container as somebody wants it. What is None follows the user's limits (bytes, cores)."""

    user: str
    project: str
    state: str = STARTED
    cpus: float | None = None
    memory: int | None = None
    pids: int | None = None
    shm: int | None = None
    environment: tuple[tuple[str, str], ...] = ()
    home: str = CONTAINER_HOME
    ports: tuple[tuple[int, int], ...] = ()
    on_new_image: str = REPLACE
    gpus: str = ""
    #: Paths of folders in the container that are kept.
    keep: tuple[str, ...] = ()

    @classmethod
    def from_project(cls, project: Project) -> Wanted:
        """Return what a declared project wants."""
        return cls(
            user=project.user,
            project=project.name,
            state=project.state,
            cpus=project.cpus,
            memory=project.memory,
            pids=project.pids,
            shm=project.shm,
            environment=project.environment,
            home=project.home,
            ports=project.ports,
            on_new_image=project.on_new_image,
            gpus=project.gpus,
            keep=tuple(kept.path for kept in project.keep),
        )

    @property
    def waits(self) -> bool:
        """Whether a container that runs is left on its image when there is a newer one."""
        return self.on_new_image == WAIT

    @property
    def wishes(self) -> Wishes:
        """What it asks of the policy."""
        return Wishes(
            self.cpus,
            self.memory,
            self.pids,
            self.shm,
            self.environment,
            self.home,
            self.ports,
            self.gpus,
            self.keep,
        )


@dataclass(frozen=True)
class ContainerInfo:
    """A container, for people. ``created`` is in seconds since 1970; ``image`` is a reference, or an id."""

    name: str
    project: str
    user: str
    uid: int
    id: str
    image: str
    status: str
    created: int
    image_newer: bool
    digest: str

    @property
    def running(self) -> bool:
        """Whether its processes live."""
        return self.status in ("running", "paused", "restarting")


@dataclass(frozen=True)
class Snapshot:
    """What Docker holds of ours, from two listings. ``kept``: who was retired last, by container."""

    containers: dict[str, Actual]
    images: dict[tuple[int, str], ProjectImage]
    kept: dict[str, Actual] = field(default_factory=dict)


def _locked(name: str, wait: float = locks.PATIENCE) -> contextlib.AbstractContextManager[None]:
    """Hold the lock under which the container of that name is changed."""
    project, uid = names.parse_container_name(name)
    return locks.hold(locks.of_project("container", uid, project), title=project, timeout=wait)


@contextlib.contextmanager
def _locked_to_stop(name: str, by: str) -> Iterator[bool]:
    """Hold the lock of a container that is to be stopped for whom ``by`` says; say whether it is held.

    What holds it may be its user's own, for as long as that user likes: a limit and IT do not wait for that.
    A stop by the id is safe beside what is done under the lock. That was begun with a container which runs,
    and starts none that ran, except where it takes a replacement back; then the next look stops it.
    """
    with contextlib.ExitStack() as stack:
        held = True
        try:
            stack.enter_context(_locked(name, locks.PATIENCE if by == events.USER else locks.BRIEF))
        except locks.InUse:
            if by == events.USER:
                raise
            held = False
        yield held


def _owner(name: str) -> int:
    try:
        return names.parse_container_name(name)[1]
    except InvalidInput:
        return -1


def observe(engine: Engine | None, *only: str) -> Snapshot:
    """Return what there is; nothing where there is no engine yet. With names ``only`` those containers."""
    if engine is None:
        return Snapshot({}, {})
    listed = engine.containers(*only)
    found = [actual_of(item) for item in listed]
    kept = {one.container: one.actual for one in reversed(retired.among(listed))}
    return Snapshot({actual.name: actual for actual in found}, images.project_images(engine), kept)


def check_storage(policy: Policy) -> None:
    """Raise HostError unless the file systems of the policy are mounted as they must be.

    Without this check a container would get the empty folder that a missing disk leaves behind.
    """
    wrong = storage.check_mounts(policy)
    if wrong:
        raise HostError("No container is started: " + " ".join(wrong))


def _check_sources(spec: ContainerSpec, *, but: Collection[str] = ()) -> None:
    """Raise when a folder to be mounted is missing, ``but`` for some. All their parents belong to root."""
    for path in _sources(spec):
        if path not in but and not _is_folder(path):
            raise HostError(f"The folder {path} is not there.", "Let IT run the playbook for this server.")


def _sources(spec: ContainerSpec) -> list[str]:
    """Return the folders that a container mounts."""
    kept = (source for _path, source in spec.kept)
    return [spec.workspace, spec.data_root, *spec.shares, *kept, *filter(None, [spec.home_source])]


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


# IT's list


@dataclass
class _Item:
    """One item on its way: the wish, what the policy makes of it, the plan, and the result."""

    wanted: Wanted
    result: ItemResult
    user: User | None = None
    spec: ContainerSpec | None = None
    actual: Actual | None = None
    kept: Actual | None = None
    planned: Plan = field(default_factory=Plan)


def reconcile(
    engine: Engine | None, policy: Policy, wanted: Sequence[Wanted], *, check: bool
) -> list[ItemResult]:
    """Make the containers as wanted, several at once; return one result an item, in the order given.

    One failure does not stop the others, and the result of an item that failed holds what was done until
    then. With ``check`` nothing is done, and the results say what would be, or why it would be refused: see
    ``_foresee``. ``engine`` is None where Docker is not installed yet.
    """
    snapshot, items = _wished(engine, policy, wanted)
    if check:
        _tell_losses(engine, policy, items)
        _foresee(engine, policy, snapshot, _in_parts(items))
    else:
        for part in _in_parts(items):
            _carry_out(engine, policy, part)
    return [item.result for item in items]


def differing(engine: Engine | None, policy: Policy, wanted: Sequence[Wanted]) -> list[ItemResult]:
    """Return how the containers differ from what is wanted: the plan of ``reconcile`` alone, from one look.

    Whether anything would be in the way of putting it right is not asked, which takes a while for each.
    """
    return [item.result for item in _wished(engine, policy, wanted)[1]]


def _wished(engine: Engine | None, policy: Policy, wanted: Sequence[Wanted]) -> tuple[Snapshot, list[_Item]]:
    """Return what there is, and for each wish what is to be done about it."""
    items = [_Item(one, ItemResult(f"{one.user}/{one.project}")) for one in wanted]
    snapshot = observe(engine)
    _plan_all(snapshot, policy, items)
    return snapshot, items


def _in_parts(items: Sequence[_Item]) -> list[list[_Item]]:
    """Return the items that change something in the parts in which they are carried out, none of them empty.

    What goes makes room for what comes; last are those that need a port of another one that changes.
    """
    changing = [item for item in items if item.planned.actions and not item.result.failed]
    leaving = [item for item in changing if not {CREATE, RESTORE} & set(item.planned.actions)]
    coming = [item for item in changing if {CREATE, RESTORE} & set(item.planned.actions)]
    waiting = [item for item in coming if _waits(item, changing)]
    parts = (leaving, [item for item in coming if item not in waiting], waiting)
    return [part for part in parts if part]


def withdraw(engine: Engine | None, policy: Policy, *, check: bool) -> list[ItemResult]:
    """Stop the running containers that hold what was taken from their users; return one result for each.

    That is one whose owner the policy no longer knows, or which has a share that its owner may no longer use:
    what a container was made with it keeps for as long as it runs. Nothing in it is lost.
    """
    results = []
    for name, actual in sorted(observe(engine).containers.items()):
        why = _withdrawn(policy, actual) if actual.ours and actual.live else ""
        if not why or engine is None:
            continue
        result = ItemResult(name, changed=True, actions=[STOP], reason=why)
        result.diff = {"before": {"state": STARTED}, "after": {"state": STOPPED}}
        results.append(result)
        if not check:
            with _failing(result):
                halt(engine, name, actual.id, why)
    return results


def halt(engine: Engine, name: str, identifier: str, why: str) -> None:
    """Stop a container for IT, which is to run again when it may. Raises LabError."""
    project, uid = names.parse_container_name(name)
    with journal.acted("stop", why, container=name, owner=uid), _locked_to_stop(name, events.IT):
        engine.stop(identifier)
        events.record(uid, project, events.STOPPED, events.IT, why)


def _withdrawn(policy: Policy, actual: Actual) -> str:
    """Return why a container must not run any more, or ''."""
    _project, uid = names.parse_container_name(actual.name)
    try:
        user = policy.user_by_uid(uid)
    except NotFound:
        return "its owner is not declared any more"
    shares = tuple(policy.share_path(share) for share in policy.shares_for(user))
    lost = [share for share in actual.spec.shares if share not in shares] if actual.spec else []
    return f"{user.name} may no longer use {', '.join(lost)}" if lost else ""


def _waits(item: _Item, changing: Sequence[_Item]) -> bool:
    """Say whether the item needs a port of the host that another's container has until it is changed."""
    wanted = {host for _inner, host in item.spec.ports} if item.spec is not None else set()
    return any(
        host in wanted
        for other in changing
        if other is not item and other.actual is not None and other.actual.spec is not None
        for _inner, host in other.actual.spec.ports
    )


def _tell_losses(engine: Engine | None, policy: Policy, items: Sequence[_Item]) -> None:
    """Say of each container that would be retired or replaced what would be lost with it."""
    for item in items:
        actions = item.planned.actions
        goes = RETIRE in actions or {REMOVE, CREATE} <= set(actions)
        if engine is not None and goes and item.actual is not None and not item.actual.unfinished:
            with _failing(item.result):
                item.result.facts = retired.promised(engine, policy, item.actual)


def _plan_all(snapshot: Snapshot, policy: Policy, items: Sequence[_Item]) -> None:
    users = {user.name: user for user in policy.users}
    stopped = states.stopped_names()
    seen: set[str] = set()
    for item in items:
        with _failing(item.result):
            item.user = users.get(item.wanted.user) or policy.user(item.wanted.user)
            there = snapshot.containers.get(names.container_name(item.wanted.project, item.user.uid))
            item.spec = _decided(policy, item.user, item.wanted, there)
            item.result.name = name = item.spec.name
            if name in seen:
                raise InvalidInput(f"{name} is in the list twice.", "Remove one of them.")
            seen.add(name)
            item.actual, item.kept = snapshot.containers.get(name), snapshot.kept.get(name)
            item.planned = _planned(snapshot, stopped, item.spec, item.wanted.state, waits=item.wanted.waits)
            _fill(item.result, item.planned)
    _check_ports(snapshot, items)
    _check_rooms(snapshot, items)


def _decided(policy: Policy, user: User, wanted: Wanted, actual: Actual | None) -> ContainerSpec:
    """Return how a container is to be: as wanted, and, where that says nothing, as its user once asked."""
    own = specs.OwnWishes.of(actual.spec if actual is not None else None)
    return specs.decide(policy, user, wanted.project, wanted.wishes, own)


def _check_ports(snapshot: Snapshot, items: Sequence[_Item]) -> None:
    """Fail the items whose port on the host is another container's, in this list or already there."""
    listed = {item.spec.name for item in items if item.spec is not None}
    taken: dict[int, str] = {}
    for name, actual in snapshot.containers.items():
        if actual.ours and actual.spec is not None and name not in listed:
            taken.update({host: name for _inner, host in actual.spec.ports})
    for item in items:
        if item.spec is None or not {CREATE, START} & set(item.planned.actions):
            continue
        with _failing(item.result):
            for _inner, host in item.spec.ports:
                if taken.setdefault(host, item.spec.name) != item.spec.name:
                    raise Refused(
                        f"The port {host} of the host is that of {taken[host]}.", "Give each its own."
                    )


def _planned(
    snapshot: Snapshot, stopped: frozenset[str], spec: ContainerSpec, state: str, *, waits: bool
) -> Plan:
    """Return the plan for one container, with what is to be tidied up beside it.

    ``waits``: while it runs, a newer image is no reason to replace it.
    """
    actual = snapshot.containers.get(spec.name)
    image = snapshot.images.get((spec.uid, spec.project))
    left_alone = waits and actual is not None and actual.live
    planned = plan(
        state,
        spec,
        image.id if image and not left_alone else None,
        actual,
        kept=snapshot.kept.get(spec.name),
        restored=actual is not None and state == RESTORED and states.is_restored(spec.name, actual.id),
    )
    if planned.actions:
        return planned
    if any(spec.name + suffix in snapshot.containers for suffix in (_NEXT, _PREVIOUS, _LOOK)):
        return Plan((HEAL,), "a replacement of it was broken off", {"replacement": "broken off"}, {})
    if actual is not None and (state == STOPPED) != (spec.name in stopped):
        before, after = ("start", "stay down") if state == STOPPED else ("stay down", "start")
        return Plan((REMEMBER,), "what it does at boot differs", {"at boot": before}, {"at boot": after})
    return planned


def _check_rooms(snapshot: Snapshot, items: Sequence[_Item]) -> None:
    """Fail the items for which a user has no room, counting those that this run removes and makes."""
    held: dict[int, int] = {}
    for actual in snapshot.containers.values():
        if actual.ours:
            held[_owner(actual.name)] = held.get(_owner(actual.name), 0) + 1
    for item in items:
        if item.user is not None and item.planned.actions in ((REMOVE,), (RETIRE,)):
            held[item.user.uid] = held.get(item.user.uid, 0) - 1
    for item in items:
        if item.user is not None and item.planned.actions in ((CREATE, START), (RESTORE, START)):
            with _failing(item.result):
                _check_room(item.user, held.get(item.user.uid, 0))
                held[item.user.uid] = held.get(item.user.uid, 0) + 1


def _carry_out(engine: Engine | None, policy: Policy, items: Sequence[_Item]) -> None:
    if engine is None:
        for item in items:
            with _failing(item.result):
                raise EngineError(
                    "Docker is not installed on this server.", "Apply the role lab.server.docker first."
                )
        return
    starting = [item for item in items if START in item.planned.actions]
    if starting:
        with _failing(*(item.result for item in starting)), _telling_users(starting):
            check_storage(policy)
            engine.ensure_network()
    gpus = gpuleases.Foresight(engine, policy)
    # Before there are threads: what is done in a user's tree is done by a child of this process.
    for item in items:
        if not item.result.failed:
            with _failing(item.result), _telling_users([item]):
                _prepare(engine, policy, item, gpus)
    items = [item for item in items if not item.result.failed]
    if not items:
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=min(_AT_ONCE, len(items))) as pool:
        for item, future in [(item, pool.submit(_change, engine, policy, item)) for item in items]:
            with _failing(item.result, midway=True):
                future.result()


def _prepare(engine: Engine, policy: Policy, item: _Item, gpus: gpuleases.Foresight) -> None:
    """Raise why an item could not be brought up, before anything of it is made; make what it needs first."""
    spec = _brought_up(item)
    if item.user is None or spec is None:
        return
    _check_sources(replace(spec, home_source=""))
    homes.prepare(policy, item.user, spec, check=True)
    _count_gpus(policy, item, gpus)
    homes.prepare(policy, item.user, spec)
    if CREATE in item.planned.actions:
        item.result.facts.update(_bring(engine, policy, item.user, spec.project))


def _brought_up(item: _Item) -> ContainerSpec | None:
    """Return the spec of the container that an item starts, None where it starts none.

    Raises Refused for one that is there and has files that its user no longer has.
    """
    if item.spec is None or START not in item.planned.actions:
        return None
    there = _started_again(item)
    if there is None:
        return item.spec
    _check_given(there, item.spec)
    return there.spec or item.spec


def _started_again(item: _Item) -> Actual | None:
    """Return the container that is there and is started by an item; None where it makes a new one."""
    if CREATE in item.planned.actions:
        return None
    return item.kept if RESTORE in item.planned.actions else item.actual


def _count_gpus(policy: Policy, item: _Item, gpus: gpuleases.Foresight) -> None:
    """Raise why an item could not have its GPUs beside those before it; count what it would be given."""
    if item.user is None or item.spec is None:
        return
    there = _started_again(item)
    if there is not None:
        gpus.gives_again(there, item.spec.name, item.user if RESTORE in item.planned.actions else None)
    elif item.spec.gpus:
        gpufiles.further_groups(policy, item.spec)
        gpus.gives(item.user, item.spec)


# What check mode foresees


def _foresee(
    engine: Engine | None, policy: Policy, snapshot: Snapshot, parts: Sequence[Sequence[_Item]]
) -> None:
    """Fail the items that would be refused, each beside what those before it would have by then.

    The tasks before this one have done nothing in check mode. So what they may make is only noted where it is
    missing: a mounted disk, and a folder that no container of this server has had and no image needed.
    """
    gpus = gpuleases.Foresight(engine, policy)
    if not any(START in item.planned.actions for part in parts for item in part):
        return
    noted = _unmounted(policy) if engine is not None else []
    had = _had(policy, snapshot)
    told: set[tuple[int, str]] = set()
    for part in parts:
        for item in part:
            if START not in item.planned.actions or item.result.failed:
                continue
            with _failing(item.result):
                notes = [*noted, *_foreseen(policy, item, gpus, None if engine is None else had)]
                if engine is not None and CREATE in item.planned.actions:
                    item.result.facts.update(_would_bring(engine, policy, snapshot, item, told))
                if notes:
                    item.result.facts["notes"] = notes
        for item in part:
            if item.spec is not None and item.planned.actions in ((REMOVE,), (RETIRE,)):
                gpus.frees(item.spec.name)


def _unmounted(policy: Policy) -> list[str]:
    try:
        check_storage(policy)
    except HostError as error:
        return [f"As the server is now, it would be refused: {error.message}"]
    return []


def _had(policy: Policy, snapshot: Snapshot) -> frozenset[str]:
    """Return the folders that were there once: of containers, and of users of whom there is an image."""
    there = [*snapshot.containers.values(), *snapshot.kept.values()]
    found = {path for one in there if one.ours and one.spec for path in _sources(one.spec)}
    having = {uid for uid, _project in snapshot.images}
    for user in policy.users:
        if user.uid in having:
            found |= {policy.workspace(user), user.home}
    return frozenset(found)


def _foreseen(
    policy: Policy, item: _Item, gpus: gpuleases.Foresight, had: frozenset[str] | None
) -> list[str]:
    """Raise why an item could not be brought up; return notes on folders that are missing yet.

    ``had``: the folders that must be there; None where nothing can be looked at yet.
    """
    spec = _brought_up(item)
    if item.user is None or spec is None:
        return []
    if had is None:
        _count_gpus(policy, item, gpus)
        return []
    needed = _sources(spec if spec.home_mode == HOST_HOME else replace(spec, home_source=""))
    missing = [path for path in needed if path not in had and not _is_folder(path)]
    _check_sources(replace(spec, home_source=""), but=missing)
    if spec.home_source not in missing:
        homes.prepare(policy, item.user, spec, check=True)
    _count_gpus(policy, item, gpus)
    return [f"It would be refused unless the folder {path} is made before." for path in missing]


def _would_bring(
    engine: Engine, policy: Policy, snapshot: Snapshot, item: _Item, told: set[tuple[int, str]]
) -> dict[str, Any]:
    """Return where the files would go that the environment brings; how many, only their image says.

    ``told``: (uid, folder) of those before it in the list. An image that is still to be built brings what
    nobody knows yet.
    """
    spec = item.spec
    image = snapshot.images.get((spec.uid, spec.project)) if spec is not None else None
    if spec is None or image is None:
        return {}

    def is_new(folder: str) -> bool:
        return (spec.uid, folder) not in told and not states.was_brought(spec.uid, folder)

    if not any(base.files and is_new(base.folder) for base in policy.base_images):
        return {}
    base = brought.base_of(engine, policy, image.id)
    if base is None or not is_new(base.folder):
        return {}
    told.add((spec.uid, base.folder))
    return {"brought": {"folder": f"/workspace/{base.folder}"}}


def _bring(engine: Engine, policy: Policy, user: User, project: str) -> dict[str, Any]:
    """Copy the files that the environment brings, once; return facts. A failure does not stop the launch."""
    if not any(base.files for base in policy.base_images):
        return {}
    image = images.project_images(engine).get((user.uid, project))
    base = brought.base_of(engine, policy, image.id) if image is not None else None
    if base is None:
        return {}
    try:
        made = brought.bring(engine, policy, user, base)
    except LabError as error:
        return {"notes": [f"The files of {base.name} were not copied: {error}"]}
    return {"brought": made} if made else {}


def _change(engine: Engine, policy: Policy, item: _Item) -> None:
    """Plan one item again under its lock, and carry that out. Called in a thread."""
    _nothing_yet(item.result)
    if item.spec is not None and item.user is not None:
        starting = START in item.planned.actions
        told = _telling(item.spec.name, events.IT) if starting else contextlib.nullcontext()
        with _locked(item.spec.name), told:
            state = item.wanted.state
            _apply(engine, policy, item.user, item.spec, state, item.result, events.IT, item.wanted)


def _held(engine: Engine, uid: int) -> int:
    """Return how many containers the user holds."""
    found = map(actual_of, engine.containers())
    return sum(1 for actual in found if actual.ours and _owner(actual.name) == uid)


def _check_room(user: User, held: int) -> None:
    if held >= user.limits.containers:
        raise Refused(
            f"{user.name} holds {held} of {user.limits.containers} containers (limit containers).",
            "Retire one that is not needed (container list shows them), or ask IT for a higher limit.",
        )


@contextlib.contextmanager
def _failing(*results: ItemResult, midway: bool = False) -> Iterator[None]:
    """Turn an error into failed items: what was not done is not called changed.

    ``midway``: what was done until then is in the results already, and stays there.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001  # one item that is a fault of ours hides no result of the others
        message = _said(error)
        for result in results:
            result.failed, result.message = True, message
            if not midway:
                _nothing_yet(result)
            elif "brought" in result.facts:
                result.changed = True


def _said(error: Exception) -> str:
    """Return an error for people; of what is no LabError, a fault of ours, the system log says more."""
    if isinstance(error, LabError):
        return str(error)
    import traceback  # what is rarely needed is not to be waited for

    journal.record(syslog.LOG_WARNING, outcome="failed", detail=traceback.format_exc()[-_TOLD:])
    said = names.printable(str(error))
    return f"Unexpected {type(error).__name__}: {said}. The details are in the server's system log."


def _nothing_yet(result: ItemResult) -> None:
    """Begin to note what is done: so far, nothing."""
    result.changed, result.actions, result.diff = False, [], {}


def _did(result: ItemResult, action: str) -> None:
    result.changed, result.actions = True, [*result.actions, action]


def _took_back(result: ItemResult, action: str) -> None:
    result.actions = [one for one in result.actions if one != action]
    result.changed = bool(result.actions)


@contextlib.contextmanager
def _telling_users(items: Sequence[_Item]) -> Iterator[None]:
    """Write down for their users why containers are not started at all."""
    try:
        yield
    except LabError as error:
        for item in items:
            if item.spec is not None and START in item.planned.actions:
                with contextlib.suppress(LabError), _locked(item.spec.name, locks.BRIEF):
                    why = str(error)
                    events.record(item.spec.uid, item.spec.project, events.NOT_STARTED, events.IT, why)
        raise


def _fill(result: ItemResult, planned: Plan) -> None:
    result.actions = list(planned.actions)
    result.changed = bool(planned.actions)
    result.reason = planned.reason
    result.diff = {"before": planned.before, "after": planned.after} if planned.actions else {}


# One container, under its lock


def _apply(
    engine: Engine,
    policy: Policy,
    user: User,
    spec: ContainerSpec,
    state: str,
    result: ItemResult,
    by: str,
    wanted: Wanted | None = None,
    back: int = 1,
) -> None:
    """Look again, plan, and carry the plan out, for whom ``by`` says. The caller holds the lock.

    With ``wanted`` the spec is decided anew: its user may have made another one meanwhile, and asked for
    something else. ``back``: as of ``undo``. When it breaks off, ``result`` holds what was done until then.
    """
    _nothing_yet(result)
    healed = _heal(engine, policy, spec.name)
    if healed:
        _did(result, HEAL)
    # Retired ones have other names, which a look at this one alone does not show.
    snapshot = _seen_back(engine, spec, back) if state == RESTORED else observe(engine, spec.name)
    actual = snapshot.containers.get(spec.name)
    if wanted is not None:
        spec = _decided(policy, user, wanted, actual)
    waits = wanted is not None and wanted.waits
    planned = _planned(snapshot, states.stopped_names(), spec, state, waits=waits)
    _do(engine, policy, user, spec, snapshot, planned, result)
    if actual is not None and {RETIRE, REMOVE} & set(planned.actions) and CREATE not in planned.actions:
        gpuleases.end(actual)
    if state == STOPPED and actual is not None:
        states.mark_stopped(spec.name)
    else:
        states.clear_stopped(spec.name)
    _note(spec, actual, planned, by, result.facts)
    # Somebody else may have done it in the meantime; then this call changed nothing.
    _fill(result, planned)
    if healed:
        result.changed, result.actions = True, [HEAL, *planned.actions]


def _do(
    engine: Engine,
    policy: Policy,
    user: User,
    spec: ContainerSpec,
    snapshot: Snapshot,
    planned: Plan,
    result: ItemResult,
) -> None:
    """Do to one container what is planned, and note each deed in ``result`` when it is done."""
    actual = snapshot.containers.get(spec.name)
    if CREATE in planned.actions:
        _check_sources(spec)
        _create(engine, policy, user, spec, snapshot.images.get((spec.uid, spec.project)), actual, result)
    elif RESTORE in planned.actions:
        _restore(engine, policy, user, spec, snapshot.kept[spec.name], result)
    elif RETIRE in planned.actions and actual is not None:
        if actual.live:
            engine.stop(actual.id)
            _did(result, STOP)
        result.facts.update(retired.retire(engine, policy, replace(actual, state="exited")))
        _did(result, RETIRE)
    elif actual is not None:
        if START in planned.actions:
            _ready_again(engine, policy, spec, actual)
        deeds = {START: engine.start, STOP: engine.stop, REMOVE: engine.remove}
        for action in planned.actions:
            if action in deeds:
                deeds[action](actual.id)
                _did(result, action)


def _note(
    spec: ContainerSpec, actual: Actual | None, planned: Plan, by: str, facts: Mapping[str, Any]
) -> None:
    """Write down what was done to a container, for its user to ask (``container why``)."""
    deeds = {
        RESTORE: events.RESTORED,
        RETIRE: events.RETIRED,
        REMOVE: events.REMOVED,
        STOP: events.STOPPED,
        START: events.STARTED,
    }
    what = next((deeds[action] for action in planned.actions if action in deeds), "")
    why = str(facts.get("not_kept") or "")
    if CREATE in planned.actions:
        what = events.MADE
        if actual is not None and not actual.unfinished:
            told = replacing.told(facts) if "lost" in facts else ""
            what, why = events.REPLACED, "; ".join(filter(None, (planned.reason, told)))
    if what:
        events.record(spec.uid, spec.project, what, by, why)


@contextlib.contextmanager
def _telling(name: str, by: str) -> Iterator[None]:
    """Write down why a container could not be started, where its user does not see the error."""
    try:
        yield
    except LabError as error:
        project, uid = names.parse_container_name(name)
        events.record(uid, project, events.NOT_STARTED, by, str(error))
        raise


def _create(
    engine: Engine,
    policy: Policy,
    user: User,
    spec: ContainerSpec,
    image: ProjectImage | None,
    actual: Actual | None,
    result: ItemResult,
) -> None:
    """Make and start the container. One with work in it is given up only when the new one runs.

    ``result`` gets the facts of ``retire`` for the one that was replaced.
    """
    if image is None:
        raise NotFound(f"There is no image of {spec.project} yet.", f"Build it: image-update {spec.project}.")
    if actual is not None and actual.unfinished:
        engine.remove(actual.id)
        _did(result, REMOVE)
        actual = None
    if actual is not None:
        _replace(engine, policy, spec, image, actual, result)
        return
    # The count and the creation are one step for all of a user's projects.
    with locks.hold(f"user-{user.uid}"):
        _check_room(user, _held(engine, user.uid))
        made = _make(engine, policy, spec, image, spec.name)
    _did(result, CREATE)

    def give_up() -> None:
        engine.remove(made)
        _took_back(result, CREATE)

    with _without_lease(spec), _undone(give_up):
        engine.start(made)
    _did(result, START)


def _restore(
    engine: Engine, policy: Policy, user: User, spec: ContainerSpec, kept: Actual, result: ItemResult
) -> None:
    """Bring a retired container back and start it. The caller holds the container's lock."""
    # The clean-up takes this lock too: it removes nothing that is being brought back.
    with locks.hold(f"user-{user.uid}"):
        _ready_again(engine, policy, spec, kept, back_for=user)
        with _undone(lambda: gpuleases.give_back(spec.name)):
            back = retired.take_back(engine, spec.name, kept.id)
    _did(result, RESTORE)

    def put_back() -> None:
        retired.put_back(engine, back)
        _took_back(result, RESTORE)

    with _undone(lambda: gpuleases.give_back(spec.name)), _undone(put_back):
        engine.start(back.id)
    _did(result, START)


def _ready_again(
    engine: Engine,
    policy: Policy,
    spec: ContainerSpec,
    actual: Actual,
    *,
    back_for: User | None = None,
    check: bool = False,
) -> None:
    """Raise why a container that is there cannot be started again; it holds its GPUs then.

    ``spec`` is what the policy makes of it now, ``back_for`` the user of one that was retired. With ``check``
    nothing is held, and the home may be missing that ``homes.prepare`` makes first.
    """
    _check_given(actual, spec)
    made = actual.spec or spec
    _check_sources(replace(made, home_source="") if check else made)
    if back_for is not None:
        _check_room(back_for, _held(engine, back_for.uid))
    gpuleases.hold_again(
        engine,
        policy,
        actual,
        spec.name,
        lambda: gpuleases.inventory(policy),
        user=back_for,
        check=check,
    )


def _check_given(actual: Actual, spec: ContainerSpec) -> None:
    """Raise Refused when a container that is to be started again has files that its user no longer has."""
    lost = specs.no_longer_given(actual.spec, spec)
    if lost:
        raise Refused(
            f"That container of {spec.project} has {', '.join(lost)}, which you may no longer use.",
            f"Start a new one: container retire {spec.project}, then project launch {spec.project}.",
        )


def _replace(
    engine: Engine,
    policy: Policy,
    spec: ContainerSpec,
    image: ProjectImage,
    old: Actual,
    result: ItemResult,
) -> None:
    """Put a new container into the place of one, which is retired then; ``result`` gets its facts."""
    made = _make(engine, policy, spec, image, spec.name + _NEXT, replaces=old.id)
    _did(result, CREATE)
    with _without_lease(spec), _undone(lambda: _bring_back(engine, made, spec.name, old, result)):
        if old.live:
            engine.stop(old.id)
            _did(result, STOP)
        engine.rename(old.id, spec.name + _PREVIOUS)
        engine.rename(made, spec.name)
        engine.start(made)
    _did(result, START)
    result.facts.update(replacing.give_up(engine, policy, old))


def _bring_back(engine: Engine, made: str, name: str, old: Actual, result: ItemResult) -> None:
    engine.remove(made)
    _took_back(result, CREATE)
    # It may have its name still: Docker refuses to give it the same once more.
    with contextlib.suppress(LabError):
        engine.rename(old.id, name)
    if old.live:
        engine.start(old.id)
        if STOP in result.actions:
            _did(result, START)


@contextlib.contextmanager
def _undone(undo: Callable[[], None]) -> Iterator[None]:
    """Call ``undo`` when the block fails; its own failure does not hide the first one."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(LabError):
            undo()
        raise


def _heal(engine: Engine, policy: Policy | None, name: str, wait: float = locks.PATIENCE) -> bool:
    """Finish or take back a replacement that was broken off; say whether there was one.

    Without a ``policy`` one that is to be retired waits for a later call. ``wait``: as of ``retired.retire``.
    """
    listed = engine.containers(name, name + _NEXT, name + _PREVIOUS, name + _LOOK)
    for item in listed:
        if actual_of(item).name == name + _LOOK:
            engine.remove(str(item["Id"]))
    found = {actual.name: actual for actual in (actual_of(item, name) for item in listed) if actual.ours}
    main, following, previous = (found.get(name + suffix) for suffix in ("", _NEXT, _PREVIOUS))
    if following is not None:
        engine.remove(following.id)
    # One that ever ran may have work in it, even if it does not run now.
    if previous is not None and main is not None and not main.unfinished:
        if policy is not None:
            _retire_replaced(engine, policy, replace(previous, name=name), wait)
    elif previous is not None:
        # The new one never ran: the old one, with what is in it, takes its place again.
        if main is not None:
            engine.remove(main.id)
        engine.rename(previous.id, name)
    return following is not None or previous is not None


def _retire_replaced(engine: Engine, policy: Policy, old: Actual, wait: float) -> None:
    """Retire a container whose successor runs or ran already, as what replaced it was broken off then."""
    project, uid = names.parse_container_name(old.name)
    told = replacing.told(replacing.give_up(engine, policy, old, wait=wait))
    events.record(uid, project, events.REPLACED, events.IT, told)


def _make(
    engine: Engine, policy: Policy, spec: ContainerSpec, image: ProjectImage, name: str, *, replaces: str = ""
) -> str:
    """Create the container under ``name`` with everything in it, not started; return its id."""
    inspected = engine.inspect_image(image.id)
    if inspected is None:
        raise NotFound(f"The image of {spec.project} is gone.", f"Build it: image-update {spec.project}.")
    facts = specs.image_facts(inspected)
    specs.check_volumes(spec, facts)  # nothing is kept of an image that cannot be used
    gids = gpufiles.further_groups(policy, spec)
    archive = _furniture(engine, policy, spec, image, facts.volumes, gids)
    known = ImageFacts(image.reference, facts.path, facts.volumes)
    with _without_lease(spec):
        lease = None
        if spec.gpus:
            user = policy.user(spec.user)
            lease = gpuleases.obtain(engine, policy, user, spec, lambda: gpuleases.inventory(policy))
        made = _created(engine, spec, name, specs.create_config(spec, known, engine.facts, lease, gids))
        with _undone(lambda: engine.remove(made)):
            engine.put(made, archive)
            size = engine.sizes([made]).get(made, 0)
            states.mark_furnished(spec.name, made, size, replaces=replaces)
    return made


@contextlib.contextmanager
def _without_lease(spec: ContainerSpec) -> Iterator[None]:
    """Give its GPUs back when a container was not made after all, before this process ends."""
    with _undone(lambda: gpuleases.give_back(spec.name)) if spec.gpus else contextlib.nullcontext():
        yield


def _created(engine: Engine, spec: ContainerSpec, name: str, config: Mapping[str, Any]) -> str:
    """Create a container of a project and return its id. The caller holds the lock of the project.

    Docker goes on with a creation whose caller was killed: the name is taken at once, and listed at the end.
    What comes of it is waited for, and gives way.
    """
    end = time.monotonic() + _CREATION_SECONDS
    while True:
        try:
            return engine.create(name, config)
        except Refused as error:
            if "already in use" not in error.message or time.monotonic() > end:
                raise
            for item in engine.containers(name):
                found = actual_of(item, spec.name)
                if not found.unfinished or not (found.ours or name == spec.name + _LOOK):
                    raise
                engine.remove(found.id)
        time.sleep(0.05)


@dataclass(frozen=True)
class _Look:
    """What matters of an image's file system: its shell, account files, and whether it brings the home."""

    shell: str
    passwd: str
    group: str
    own_home: bool


def _furniture(
    engine: Engine,
    policy: Policy,
    spec: ContainerSpec,
    image: ProjectImage,
    volumes: Sequence[str],
    device_gids: Sequence[int],
) -> bytes:
    """Return a tar with the user's account and home, fit for the image."""
    look = _look(engine, spec, image, volumes)
    groups = sorted(
        {(share.group, policy.group(share.group).gid) for share in policy.shares_for(policy.user(spec.user))}
    )
    # Shells of some distributions complain of a group without a name.
    groups += [(f"gpus{gid}", gid) for gid in device_gids]
    passwd, group = specs.account_files(spec, look.passwd, look.group, groups, look.shell)
    return _account_archive(spec, passwd, group, with_profile=not look.own_home)


def _look(engine: Engine, spec: ContainerSpec, image: ProjectImage, volumes: Sequence[str]) -> _Look:
    """Look into the image, once: an image never changes, so what was seen is kept by its id.

    It is looked at through a container without any mounts. Docker mounts what a container has for each look
    into it, as root and along the links in it: one that leads into the workspace, where its user changes what
    is behind it meanwhile, would lead such a mount anywhere (CVE-2026-41568). So an image with a link on the
    way to a mount is refused, and a container that ever ran is never looked into.
    """
    asked = [_LOOK_FORMAT, image.id, spec.data_root, spec.home, bool(spec.home_source), sorted(volumes)]
    # What was kept of images before there were kept folders counts still.
    asked += [[path for path, _source in spec.kept]] if spec.kept else []
    records = f"looks/{spec.uid}"
    record = posixpath.join(records, hashlib.sha256(json.dumps(asked).encode("ascii")).hexdigest())
    with contextlib.suppress(ValueError, TypeError):
        return _Look(**json.loads(states.read_record(record) or ""))
    seen = _looked(engine, spec, image, volumes)
    states.write_record(record, json.dumps(asdict(seen)))
    states.thin_out(records, _LOOKS)
    states.clear("looks")  # they were not kept by user before
    return seen


def _looked(engine: Engine, spec: ContainerSpec, image: ProjectImage, volumes: Sequence[str]) -> _Look:
    probe = _created(engine, spec, spec.name + _LOOK, specs.probe_config(image.reference))
    try:
        _check_ways(engine, probe, spec, volumes)
        if not any(engine.file_status(probe, path) for path in ("/bin/sleep", "/usr/bin/sleep")):
            raise EngineError(
                f"The image of {spec.project} has no 'sleep', with which a container is kept running.",
                "Start from another base image.",
            )
        trusted = _is_directory(engine, probe, "/etc")
        passwd, group = (
            engine.read_file(probe, path, _PASSWD_LIMIT) if trusted else None
            for path in ("/etc/passwd", "/etc/group")
        )
        # A home that is mounted is the user's own tree, in which root has nothing to write.
        own_home = bool(spec.home_source) or (
            _is_directory(engine, probe, "/home") and _is_directory(engine, probe, spec.home)
        )
        return _Look(
            shell="/bin/bash" if engine.file_status(probe, "/bin/bash") else "/bin/sh",
            passwd=(passwd or _NO_ACCOUNTS.encode()).decode("utf-8", "replace"),
            group=(group or _NO_GROUPS.encode()).decode("utf-8", "replace"),
            own_home=own_home,
        )
    finally:
        engine.remove(probe)


def _check_ways(engine: Engine, probe: str, spec: ContainerSpec, volumes: Sequence[str]) -> None:
    """Raise Refused when the image has a link, or a file, on the way to something that will be mounted."""
    targets = [specs.WORKSPACE, "/run", spec.data_root, *volumes, *(path for path, _source in spec.kept)]
    if spec.home_source:
        targets.append(spec.home)
    ways = {path for target in targets for path in _way(target)}
    for path in sorted(ways):
        if engine.file_status(probe, path) is not None and not _is_directory(engine, probe, path):
            raise Refused(
                f"In the image of {spec.project}, {names.printable(path)} is no plain folder.",
                "Change the Dockerfile so that it is one, or is not there.",
            )


def _way(path: str) -> list[str]:
    """Return the path and the folders that it is in, but for the root."""
    parts = posixpath.normpath("/" + path.lstrip("/")).split("/")[1:]
    return ["/" + "/".join(parts[: number + 1]) for number in range(len(parts))]


def _is_directory(engine: Engine, container: str, path: str) -> bool:
    """Say whether the path is a folder itself, not a link. Go's FileMode has ModeDir as its highest bit."""
    status = engine.file_status(container, path)
    return status is not None and bool(int(status["mode"]) & 1 << 31) and not status.get("linkTarget")


def _account_archive(spec: ContainerSpec, passwd: str, group: str, *, with_profile: bool) -> bytes:
    """Return a tar with the account files and, unless one is mounted there, the home.

    The programs for the user are in it also where the image brings the home, or it is that of the host.

    It names every folder on the way: Docker's extraction follows a link among the parents, but replaces one
    that the archive itself has as a folder.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:

        def add(path: str, content: str | None, mode: int, owner: int, link: str = "") -> None:
            member = tarfile.TarInfo(path.lstrip("/"))
            member.mode, member.uid, member.gid = mode, owner, spec.gid if owner == spec.uid else owner
            if link:
                member.type, member.linkname = tarfile.SYMTYPE, link
                archive.addfile(member)
            elif content is None:
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
            else:
                data = content.encode("utf-8")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))

        add("/etc", None, 0o755, 0)
        add("/etc/passwd", passwd, 0o644, 0)
        add("/etc/group", group, 0o644, 0)
        add("/home", None, 0o755, 0)
        add("/home/.workspaces", None, 0o755, 0)
        # On the host this is the workspace's own path, so absolute links in it resolve here too.
        add(posixpath.join("/home/.workspaces", spec.user), None, 0o777, 0, link=specs.WORKSPACE)
        if not spec.home_source:
            add(spec.home, None, 0o700, spec.uid)
            add(posixpath.join(spec.home, "workspace"), None, 0o777, spec.uid, link=specs.WORKSPACE)
        if with_profile:
            for name, text in homes.first_files(kept=False).items():
                add(posixpath.join(spec.home, name), text, 0o644, spec.uid)
        programs = homes.place_of_programs(spec)
        if programs:
            owner = spec.uid if programs.startswith(f"{spec.home}/") else 0
            for folder in (posixpath.dirname(programs), programs):
                add(folder, None, 0o755, owner)
            for path, text in homes.programs(programs).items():
                add(path, text, 0o755, owner)
    return buffer.getvalue()


# The commands of users


def launch(
    engine: Engine,
    policy: Policy,
    user: User,
    project: str,
    *,
    own: OwnWishes = NO_WISHES,
    rebuild: bool = False,
    with_jupyter: bool = False,
    progress: Callable[[str], None] = ignore,
    check: bool = False,
    waits: bool = False,
) -> ItemResult:
    """Bring a user's project up: build its image if needed, make its container, or start the one there is.

    Never discards a container: ``own`` holds for one that is made now, and so does the port for Jupyter that
    it gets by ``with_jupyter``. ``rebuild`` builds the image in any case. With ``check`` nothing is done, and
    the result tells what would be; with ``waits`` beside it, that GPUs which are taken would be waited for.
    ``facts`` of the result: container, id, image, status ("created", "started" or "running"), build (why its
    image is built, "" where it is not), notes (sentences for people), kept, read_only, lost (paths in the
    container, by its mounts), limits (cpus, memory), gpus (uuids). Raises LabError.
    """
    declared = _declared(policy, user, project)
    spec = decided(policy, user, project, own)
    check_storage(policy)
    _check_sources(replace(spec, home_source=""))
    notes: list[str] = []
    build = ""
    result = ItemResult(spec.name)
    with _locked(spec.name):
        workspaces.check_project(policy, user, project)
        if not check:
            _heal(engine, policy, spec.name)
        actual = _mine(engine, spec.name)
        before = _launch_status(actual)
        if actual is None:
            _check_room(user, _held(engine, user.uid))
        if before == "created":
            notes += _gpus_now(engine, policy, user, spec, would_wait=check and waits)
            notes += watermarks.check(policy)
    if before == "created" or rebuild:
        # Without the lock: a build takes long, and its user is to be able to stop the container meanwhile.
        build, told = _image_for(engine, policy, user, project, progress, rebuild=rebuild, check=check)
        # Both say it where the disk fills.
        notes = list(dict.fromkeys([*notes, *told]))
        check_storage(policy)
        workspaces.check_project(policy, user, project)
    with _locked(spec.name):
        actual = _mine(engine, spec.name)
        status = _launch_status(actual)
        _check_unchanged(project, before, status)
        if actual is not None and status != "created":
            # What it was made with is what its user asked for then.
            spec = specs.decide(policy, user, project, declared, OwnWishes.of(actual.spec))
        if with_jupyter:
            spec = _with_port(engine, spec, actual if status != "created" else None)
        if check:
            notes += _unlike(project, actual, own)
            if status != "created" and not rebuild:
                notes += _outdated(engine, policy, user, project)
            return _would_launch(engine, policy, user, spec, actual, result, build, notes)
        extra = _bring_up(engine, policy, user, spec, actual, result)
        notes += extra.pop("notes", [])
        states.clear_stopped(spec.name)
        snapshot = observe(engine, spec.name)
    now = _came_up(snapshot, spec)
    info = _info(policy, snapshot, now)
    if info.image_newer:
        notes.append(
            f"The image is newer than this container. To use it: container retire {project}, then launch."
        )
    elif status != "created" and not rebuild:
        notes += _outdated(engine, policy, user, project)
    notes += replacing.note(user.uid, project)
    notes += _unlike(project, now, own)
    notes += gpureserve.until(policy, user, gpuleases.devices_of(now))
    if now.digest != spec.digest():
        notes.append(
            f"The policy changed since it was made. To follow it: container retire {project}, then launch."
        )
    result.facts = {
        "container": spec.name,
        "id": now.id,
        "image": info.image,
        **_launch_facts(now.spec or spec, status, build, notes),
        **fates_of(engine, now),
        "gpus": gpuleases.devices_of(now),
        **extra,
    }
    return result


def _outdated(engine: Engine, policy: Policy, user: User, project: str) -> list[str]:
    """Return a sentence where the image is not that of the files any more, if that is quickly seen."""
    matches = None
    with contextlib.suppress(LabError):
        matches = images.matches_files(engine, policy, user, project, seconds=_GLANCE_SECONDS)
    if matches is not False:
        return []
    return [
        "The Dockerfile, its files or its base image have changed since the image of this container: "
        f"image update {project} builds a new one; container retire {project}, then launch, uses it."
    ]


def _gpus_now(
    engine: Engine, policy: Policy, user: User, spec: ContainerSpec, *, would_wait: bool
) -> list[str]:
    """Raise why a new container could not have its GPUs now; return it as a note where one would wait."""
    gpufiles.further_groups(policy, spec)
    try:
        gpuleases.check_now(engine, policy, user, spec, lambda: gpuleases.inventory(policy))
    except (Busy, OverLimit) as error:
        if not would_wait:
            raise
        return [f"{error.message} It would wait for them."]
    return []


def _bring_up(
    engine: Engine,
    policy: Policy,
    user: User,
    spec: ContainerSpec,
    actual: Actual | None,
    result: ItemResult,
) -> dict[str, Any]:
    """Make a container or start the one there is, fill in what was done, and return further facts."""
    status = _launch_status(actual)
    if status == "created":
        homes.prepare(policy, user, spec)
        extra = _bring(engine, policy, user, spec.project)
        engine.ensure_network()
        _apply(engine, policy, user, spec, STARTED, result, events.USER)
        return extra
    if actual is not None and status == "started":
        _start_again(engine, policy, user, spec, actual)
        events.record(user.uid, spec.project, events.STARTED, events.USER)
        result.changed, result.actions, result.reason = True, [START], "it did not run"
    return {}


def _with_port(engine: Engine, spec: ContainerSpec, there: Actual | None) -> ContainerSpec:
    """Return a spec that has a port of the server for Jupyter, where it had none.

    Raises Refused where the container is there already and was made without.
    """
    if there is not None:
        _port_of(there, spec.project)
        return spec
    if jupyter.port_of(spec):
        return spec
    others = [actual.spec for actual in observe(engine).containers.values() if actual.ours and actual.spec]
    port = jupyter.choose_port(spec.name, [host for one in others for _inner, host in one.ports])
    return replace(spec, ports=tuple(sorted((*spec.ports, (specs.JUPYTER_PORT, port)))), wished_port=port)


def run_jupyter(engine: Engine, user: User, project: str) -> dict[str, Any]:
    """Have Jupyter run in a user's running container; return its port of the server, and its token.

    Raises NotFound when no container runs, Refused for one that was made without a port for it, EngineError.
    """
    name = names.container_name(project, user.uid)
    with _locked(name):
        actual = _mine(engine, name)
        if actual is None or not actual.live:
            raise NotFound(f"No container of {project} runs.", f"Start it: project launch {project}.")
        port = _port_of(actual, project)
        return {"port": port, "token": jupyter.start(engine, user, project, actual.id)}


def _port_of(actual: Actual, project: str) -> int:
    """Return the port of the server for Jupyter that a container has; raise Refused where it has none."""
    port = jupyter.port_of(actual.spec)
    if not port:
        raise Refused(
            f"The container of {project} was made without a port for Jupyter.",
            f"Make it anew: container retire {project}, then project launch {project} --jupyter",
        )
    return port


def _came_up(snapshot: Snapshot, spec: ContainerSpec) -> Actual:
    """Return the container that runs now; raise NotFound or EngineError if it does not."""
    now = snapshot.containers.get(spec.name)
    if now is None:
        raise NotFound(
            f"The container {spec.name} is gone again.", "Somebody removed it; launch it once more."
        )
    if not now.live:
        raise EngineError(
            f"The container {spec.name} ended as soon as it was started.",
            f"Correct the Dockerfile, then: container retire {spec.project}, and launch again.",
        )
    return now


def _launch_status(actual: Actual | None) -> str:
    """Return what a launch makes of a container: "created", "started", or "running" where it runs."""
    if actual is None or actual.unfinished:
        return "created"
    return "running" if actual.live else "started"


def _check_unchanged(project: str, before: str, status: str) -> None:
    """Raise Refused where a container was stopped or retired while its image was built: that was meant so.

    Where there was none, or it did not run, another launch may have come first.
    """
    if status not in (before, "running"):
        raise Refused(
            f"The container of {project} was stopped or retired meanwhile, so it is not started.",
            f"See why: container why {project}. To start it all the same, launch it again.",
        )


def _would_launch(
    engine: Engine,
    policy: Policy,
    user: User,
    spec: ContainerSpec,
    actual: Actual | None,
    result: ItemResult,
    build: str,
    notes: list[str],
) -> ItemResult:
    """Fill in what a launch would do; the container itself, and its image, are not there yet.

    Raises LabError where it could not.
    """
    status = _launch_status(actual)
    made, fates = spec, _promised_fates(spec)
    if status == "created":
        homes.prepare(policy, user, spec, check=True)
        _fill(result, plan(STARTED, spec, None, actual))
    elif actual is not None:
        made, fates = actual.spec or spec, fates_of(engine, actual)
    if actual is not None and status == "started":
        _start_again(engine, policy, user, spec, actual, check=True)
        result.actions, result.reason = [START], "it did not run"
    result.changed = bool(result.actions or build)
    result.facts = {"container": spec.name, **_launch_facts(made, status, build, notes), **fates}
    return result


def _launch_facts(spec: ContainerSpec, status: str, build: str, notes: list[str]) -> dict[str, Any]:
    return {
        "status": status,
        "build": build,
        "notes": notes,
        "ports": _ports(spec),
        "limits": {"cpus": spec.cpus, "memory": spec.memory},
    }


def _unlike(project: str, actual: Actual | None, own: OwnWishes) -> list[str]:
    """Return a note where a container that was there has other limits than are asked for now."""
    spec, asked, options = actual.spec if actual is not None else None, [], ""
    if spec is not None and own.cpus is not None and own.cpus != spec.cpus:
        asked.append(f"{spec.cpus:g} cpus, not {own.cpus:g}")
        options += f" --cpus {own.cpus:g}"
    if spec is not None and own.memory is not None and own.memory != spec.memory:
        asked.append(f"{format_size(spec.memory)} of memory, not {format_size(own.memory)}")
        options += f" --memory {format_size(own.memory)}"
    if spec is not None and own.gpus and own.gpus != spec.gpus:
        asked.append(f"{spec.gpus or 'no'} GPUs, not {own.gpus}")
        options += f" --gpus {own.gpus}"
    if not asked:
        return []
    return [
        f"This container was made with {' and '.join(asked)}. To change over: container retire {project}, "
        f"then project launch {project}{options}."
    ]


def _start_again(
    engine: Engine,
    policy: Policy,
    user: User,
    spec: ContainerSpec,
    actual: Actual,
    *,
    check: bool = False,
) -> None:
    """Start a container that is there; with ``check`` only raise why it could not be.

    ``spec`` is what the policy makes of it now.
    """
    homes.prepare(policy, user, actual.spec or spec, check=check)
    _ready_again(engine, policy, spec, actual, check=check)
    if not check:
        engine.start(actual.id)


def start(engine: Engine, policy: Policy, user: User, project: str, *, check: bool = False) -> ItemResult:
    """Start a user's container that is there and does not run; only say so with ``check``.

    Raises NotFound when there is none, Refused.
    """
    spec = specs.decide(policy, user, project, _declared(policy, user, project))
    check_storage(policy)
    result = ItemResult(spec.name)
    with _locked(spec.name):
        if not check:
            _heal(engine, policy, spec.name)
        actual = _mine(engine, spec.name)
        if actual is None or actual.unfinished:
            raise NotFound(f"There is no container of {project}.", f"Make one: project launch {project}.")
        if not actual.live:
            result.changed, result.actions, result.reason = True, [START], "it did not run"
            result.facts = {"gpus": gpuleases.devices_of(actual)}
            if not check:
                engine.ensure_network()
            _start_again(engine, policy, user, spec, actual, check=check)
        if check:
            return result
        if result.changed:
            events.record(user.uid, project, events.STARTED, events.USER)
        states.clear_stopped(spec.name)
    return result


def batch(engine: Engine, policy: Policy, user: User, project: str, command: str) -> dict[str, Any]:
    """Start a job in a user's running container, which outlives the caller; return ``Job.shown``.

    Raises NotFound when no container runs, Refused while another job does.
    """
    name = names.container_name(project, user.uid)
    with _locked(name):
        actual = _mine(engine, name)
        if actual is None or not actual.live:
            raise NotFound(f"No container of {project} runs.", f"Start it: project launch {project}.")
        return jobs.start(engine, policy, user, project, actual.id, command).shown()


def drift(policy: Policy, user: User, project: str, actual: Actual) -> dict[str, tuple[object, object]]:
    """Return (is, would be) of what the policy makes differently today of a user's container, by name."""
    own = OwnWishes.of(actual.spec)
    spec = specs.decide(policy, user, project, _declared(policy, user, project), own)
    if actual.digest == spec.digest():
        return {}
    return differences(actual.spec, spec) or {"version": ("an older one", "this one")}


def _promised_fates(spec: ContainerSpec) -> dict[str, list[str]]:
    """Return the same of a container that is not made yet; which volumes its image has is not known."""
    found = specs.fates(specs.mounts(spec))
    return {what: found[what] for what in ("kept", "read_only")}


def fates_of(engine: Engine, actual: Actual) -> dict[str, list[str]]:
    """Return which paths of a container are kept, read_only and lost with it, by the mounts that it has."""
    return specs.fates(engine.inspect(actual.id).get("Mounts") or [])


def decided(policy: Policy, user: User, project: str, own: OwnWishes) -> ContainerSpec:
    """Return how a new container of a project is to be; raise Refused where ``own`` asks for too much."""
    declared = _declared(policy, user, project)
    specs.check_own(user, project, declared, own)
    specs.check_gpus(policy, user, own)
    return specs.decide(policy, user, project, declared, own)


def _ports(spec: ContainerSpec) -> list[dict[str, int]]:
    return [{"container": inner, "host": host} for inner, host in spec.ports]


def _declared(policy: Policy, user: User, project: str) -> Wishes:
    """Return what IT declared for the project, so that both doors make the same container."""
    for declared in policy.projects:
        if declared.user == user.name and declared.name == project:
            return Wanted.from_project(declared).wishes
    return Wishes()


def _image_for(
    engine: Engine,
    policy: Policy,
    user: User,
    project: str,
    progress: Callable[[str], None],
    *,
    rebuild: bool,
    check: bool,
) -> tuple[str, list[str]]:
    """Build the project's image if needed; return why it was, and notes. If that fails, an older one serves.

    With ``check``, return why it would be built, and build nothing.
    """
    try:
        done = images.build(engine, policy, user, project, progress=progress, rebuild=rebuild, check=check)
    except LabError as error:
        if (user.uid, project) not in images.project_images(engine):
            raise
        return "", [f"The image is the older one: {error}"]
    return done.reason if done.changed else "", list(done.facts.get("notes", []))


def stop(
    engine: Engine,
    user: User,
    project: str,
    *,
    by: str = events.USER,
    why: str = "",
    check: bool = False,
) -> ItemResult:
    """Stop a user's container, to stay down through a reboot too; only say so with ``check``.

    ``by`` and ``why`` are for its user. Raises NotFound when there is none.
    """
    name = names.container_name(project, user.uid)
    result = ItemResult(name)
    with _locked_to_stop(name, by) as held:
        if held and not check:
            _heal(engine, None, name)
        actual = _mine(engine, name)
        if actual is None:
            raise NotFound(f"There is no container of {project}.", f"Start one: project launch {project}.")
        if actual.live:
            result.changed, result.actions, result.reason = True, [STOP], "it ran"
        if check:
            return result
        states.mark_stopped(name)
        if actual.live:
            engine.stop(actual.id)
            events.record(user.uid, project, events.STOPPED, by, why)
    return result


def retire(
    engine: Engine,
    policy: Policy,
    user: User,
    project: str,
    *,
    by: str = events.USER,
    why: str = "",
    check: bool = False,
    asks: bool = False,
) -> ItemResult:
    """Give a user's container up; the workspace and the images stay. ``undo`` brings it back for a while.

    ``by`` and ``why`` are for its user to read. With ``check`` it is only told what would be. With ``asks``
    nothing is done where something would be gone for good: ``facts`` have ``asks`` then. A limit does not
    wait for locks, as it comes again.

    ``facts`` of the result, when there was one that ran: lost (packages, files, bytes, paths, complete),
    undo_until (seconds since 1970, None when it was not kept) and not_kept (why).
    """
    name = names.container_name(project, user.uid)
    result = ItemResult(name)
    wait = locks.BRIEF if by == events.LIMIT else locks.PATIENCE
    with _locked(name, wait):
        if not check:
            _heal(engine, policy, name, wait)
        actual = _mine(engine, name)
        if actual is not None and actual.unfinished:
            result.changed, result.actions, result.reason = True, [REMOVE], "it was made but never started"
        elif actual is not None:
            result.changed, result.actions, result.reason = True, [RETIRE], f"it is to be {RETIRED}"
        if check:
            if RETIRE in result.actions and actual is not None:
                result.facts = retired.promised(engine, policy, actual)
            return result
        if asks and RETIRE in result.actions and actual is not None:
            promised = retired.promised(engine, policy, actual)
            if retired.for_good(promised):
                return ItemResult(name, facts={**promised, "asks": True})
        if actual is not None and actual.unfinished:
            engine.remove(actual.id)
        elif actual is not None:
            result.facts = retired.retire(engine, policy, actual, wait=wait)
            told = "; ".join(filter(None, (why, result.facts["not_kept"])))
            events.record(user.uid, project, events.RETIRED, by, told)
        if actual is not None:
            gpuleases.end(actual)
        states.clear_stopped(name)
    return result


def lost(engine: Engine, policy: Policy, user: User, project: str) -> dict[str, Any]:
    """Return what a retire of a user's container would lose: the facts of ``retire``. Raises NotFound."""
    actual = _mine(engine, names.container_name(project, user.uid))
    if actual is None or actual.unfinished:
        raise NotFound(f"There is no container of {project}.", f"Start one: project launch {project}.")
    return retired.promised(engine, policy, actual)


def undo(
    engine: Engine, policy: Policy, user: User, project: str, *, back: int = 1, check: bool = False
) -> ItemResult:
    """Bring the container back that was retired last, and start it; only plan it with ``check``.

    With ``back`` it is the one that was retired as the last but one (2), and so on. ``facts``: gpus (uuids)
    and holds (what is in it, as ``lost`` of ``retire``). Raises NotFound, Refused.
    """
    spec = specs.decide(policy, user, project, _declared(policy, user, project))
    check_storage(policy)
    result = ItemResult(spec.name)
    with _locked(spec.name):
        snapshot = _seen_back(engine, spec, back)
        actual = snapshot.containers.get(spec.name) or snapshot.kept.get(spec.name)
        kept = None if spec.name in snapshot.containers else snapshot.kept.get(spec.name)
        holds = {} if kept is None else {"holds": retired.measured(engine, kept)}
        if check:
            _fill(result, _planned(snapshot, states.stopped_names(), spec, RESTORED, waits=False))
        if actual is not None and actual.ours:
            homes.prepare(policy, user, actual.spec or spec, check=check)
        if not check:
            engine.ensure_network()
            _apply(engine, policy, user, spec, RESTORED, result, events.USER, back=back)
        elif actual is not None and START in result.actions:
            back_for = user if RESTORE in result.actions else None
            _ready_again(engine, policy, spec, actual, back_for=back_for, check=True)
        if actual is not None and START in result.actions:
            result.facts = {"gpus": gpuleases.devices_of(actual)}
        if RESTORE in result.actions:
            result.facts.update(holds)
    return result


def _seen_back(engine: Engine, spec: ContainerSpec, back: int) -> Snapshot:
    """Return what there is, with the retired container ``back`` of a project as the one that is kept."""
    snapshot = observe(engine)
    if back == 1:
        return snapshot
    if spec.name in snapshot.containers:
        raise Refused(
            f"There is a container of {spec.project}, which is in the way of the retired one.",
            f"Retire it first: container retire {spec.project}.",
        )
    kept = retired.kept(engine, container=spec.name)
    if len(kept) < back:
        raise NotFound(
            f"There are {len(kept)} retired containers of {spec.project}.",
            f"Count from the newest, which is 1: container undo {spec.project} --back {max(1, len(kept))}.",
        )
    return replace(snapshot, kept={**snapshot.kept, spec.name: kept[back - 1].actual})


def install(
    engine: Engine,
    user: User,
    project: str,
    packages: Sequence[str],
    *,
    dry_run: bool = False,
    progress: Callable[[str], None] = ignore,
) -> ItemResult:
    """Install Python packages in a user's running container, and record them in its requirements.txt.

    The image's own Python does it, as the user, in the container. ``facts``: packages (requirement: version)
    and dockerfile (whether the project's Dockerfile mentions requirements.txt), as the container says it.
    Raises InvalidInput for what is no requirement, NotFound when no container runs, EngineError.
    """
    try:
        image_install.check(packages)
    except image_install.Problem as problem:
        raise InvalidInput(str(problem)) from None
    name = names.container_name(project, user.uid)
    result = ItemResult(name)
    actual = _mine(engine, name)
    if actual is None or not actual.live:
        raise NotFound(f"No container of {project} runs.", f"Start it: project launch {project}.")
    said: list[str] = []

    def listen(line: str) -> None:
        said.append(line)
        if not line.startswith(image_install.REPORT):
            progress(line)

    flags = ["--dry-run"] if dry_run else ["--report"]
    command = ["python3", "-c", homes.INSTALL_SOURCE, *flags, *packages]
    code = engine.execute(actual.id, command, user=f"{user.uid}:{user.gid}", listen=listen)
    if code in (126, 127):  # sh(1): it cannot be run, or is not there
        raise EngineError(
            f"The image of {project} has no python3 to install packages with.",
            "Start from another base image, or install what you need in the Dockerfile.",
        )
    if code != 0:
        why = said[-1].partition("image-install: ")[2] if said else ""
        raise EngineError(f"Nothing of it is recorded: {why or 'python3 failed in the container.'}")
    result.changed, result.actions = not dry_run, [] if dry_run else ["install"]
    if said and said[-1].startswith(image_install.REPORT):
        with contextlib.suppress(ValueError):
            told = json.loads(said[-1][len(image_install.REPORT) :])
            result.facts = {"packages": dict(told["packages"]), "dockerfile": bool(told["dockerfile"])}
    return result


def _mine(engine: Engine, name: str) -> Actual | None:
    for listed in engine.containers(name):
        actual = actual_of(listed)
        refuse_foreign(actual)
        return actual
    return None


def start_existing(
    engine: Engine, policy: Policy, info: ContainerInfo, *, wait: float = locks.PATIENCE
) -> ItemResult:
    """Start a container that is there, for the boot unit. One that was stopped on purpose stays down.

    ``wait``: for how many seconds its lock is waited for. Raises NotFound when the policy no longer knows the
    user, InUse.
    """
    result = ItemResult(info.name)
    user = policy.user_by_uid(info.uid)
    check_storage(policy)
    with _locked(info.name, wait):
        _heal(engine, policy, info.name, wait)
        actual = _mine(engine, info.name)
        if actual is None or actual.live or actual.unfinished:
            return result
        if states.is_stopped(info.name):
            result.reason = "it was stopped on purpose"
            return result
        spec = specs.decide(policy, user, info.project, _declared(policy, user, info.project))
        with _telling(info.name, events.BOOT):
            _start_again(engine, policy, user, spec, actual)
        events.record(user.uid, info.project, events.STARTED, events.BOOT)
        result.changed, result.actions, result.reason = True, [START], "it is to run"
    return result


def listing(engine: Engine, policy: Policy, user: User) -> list[ContainerInfo]:
    """Return the user's containers, by name."""
    return [info for info in listing_all(engine, policy) if info.uid == user.uid]


def listing_all(engine: Engine, policy: Policy) -> list[ContainerInfo]:
    """Return all containers that are ours, by name."""
    snapshot = observe(engine)
    found = sorted(snapshot.containers.values(), key=lambda actual: actual.name)
    return [_info(policy, snapshot, actual) for actual in found if actual.ours]


def _info(policy: Policy, snapshot: Snapshot, actual: Actual) -> ContainerInfo:
    project, uid = names.parse_container_name(actual.name)
    try:
        user = policy.user_by_uid(uid).name
    except NotFound:
        user = ""
    image = snapshot.images.get((uid, project))
    return ContainerInfo(
        name=actual.name,
        project=project,
        user=user,
        uid=uid,
        id=actual.id,
        image=image.named(actual.image) if image else actual.image,
        status=actual.state,
        created=actual.created,
        image_newer=image is not None and image.id != actual.image,
        digest=actual.digest,
    )


def shell_arguments(user: User, project: str, *, command: Sequence[str] = (), tty: bool) -> list[str]:
    """Return the arguments of ``docker exec`` for a shell (or ``command``) in the project's folder.

    To be run as root with an environment of its own; in the container it is the user's process.
    """
    arguments = [DOCKER, "exec", "--interactive"]
    if tty:
        arguments.append("--tty")
    arguments += [
        f"--user={user.uid}:{user.gid}",
        f"--workdir={specs.WORKSPACE}/{names.project_name(project)}",
    ]
    arguments.append(names.container_name(project, user.uid))
    # The image decides which shells there are. No login shell: /etc/profile would replace the image's PATH.
    shell = ["/bin/sh", "-c", "if [ -x /bin/bash ]; then exec /bin/bash; else exec /bin/sh; fi"]
    return arguments + (list(command) or shell)
