# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The containers of projects: IT's list of them, and the commands of users, by the same code.

Docker is the database: one listing says what there is. A container is changed under its own lock, after a
second look. Whatever breaks off in between, the next call finds and heals.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import stat
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Callable

from . import images, locks, names, storage, workspaces
from . import spec as specs
from . import state as states
from .engine import DOCKER, Engine, ignore
from .errors import EngineError, HostError, InvalidInput, LabError, NotFound, Refused
from .images import ProjectImage
from .items import ItemResult
from .plan import CREATE, REMOVE, START, STARTED, STOP, STOPPED, Actual, Plan, actual_of, plan, refuse_foreign
from .policy import Policy, Project, User
from .spec import ContainerSpec, ImageFacts, Wishes

#: Actions beside those of the plan: tidy up a replacement, and note whether the boot unit starts it.
HEAL, REMEMBER = "heal", "remember"
# A container that is being replaced has one of these after its name, for as long as that takes.
_NEXT, _PREVIOUS = ".next", ".previous"
_AT_ONCE = 4
_PASSWD_LIMIT = 1 << 20
_NO_ACCOUNTS = "root:x:0:0:root:/root:/bin/sh\n"
_NO_GROUPS = "root:x:0:\n"

_PROFILE = """\
# Read by a login shell. The home is gone when the container is retired; /workspace is kept.
if [ -n "$BASH_VERSION" ] && [ -r "$HOME/.bashrc" ]; then . "$HOME/.bashrc"; fi
"""
_BASHRC = """\
# Read by an interactive shell. The home is gone when the container is retired; /workspace is kept.
case $- in *i*) ;; *) return ;; esac
PS1='\\u@\\h:\\w\\$ '
"""


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
        )

    @property
    def wishes(self) -> Wishes:
        """What it asks of the policy."""
        return Wishes(self.cpus, self.memory, self.pids, self.shm, self.environment)


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
    """What Docker holds of ours, from two listings."""

    containers: dict[str, Actual]
    images: dict[tuple[int, str], ProjectImage]

    def held(self, uid: int) -> int:
        """Return how many containers the user holds."""
        return sum(1 for name, actual in self.containers.items() if actual.ours and _owner(name) == uid)


def _owner(name: str) -> int:
    try:
        return names.parse_container_name(name)[1]
    except InvalidInput:
        return -1


def observe(engine: Engine | None, *only: str) -> Snapshot:
    """Return what there is; nothing where there is no engine yet. With names ``only`` those containers."""
    if engine is None:
        return Snapshot({}, {})
    found = [actual_of(listed) for listed in engine.containers(*only)]
    return Snapshot({actual.name: actual for actual in found}, images.project_images(engine))


def check_storage(policy: Policy) -> None:
    """Raise HostError unless the file systems of the policy are mounted as they must be.

    Without this check a container would get the empty folder that a missing disk leaves behind.
    """
    wrong = storage.check_mounts(policy)
    if wrong:
        raise HostError("No container is started: " + " ".join(wrong))


def _check_sources(spec: ContainerSpec) -> None:
    """Raise when a folder to be mounted is missing. All their parents belong to root."""
    for path in (spec.workspace, spec.data_root, *spec.shares):
        try:
            there = stat.S_ISDIR(os.lstat(path).st_mode)
        except OSError:
            there = False
        if not there:
            raise HostError(f"The folder {path} is not there.", "Let IT run the playbook for this server.")


# IT's list


@dataclass
class _Item:
    """One item on its way: the wish, what the policy makes of it, the plan, and the result."""

    wanted: Wanted
    result: ItemResult
    user: User | None = None
    spec: ContainerSpec | None = None
    planned: Plan = field(default_factory=Plan)


def reconcile(
    engine: Engine | None, policy: Policy, wanted: Sequence[Wanted], *, check: bool
) -> list[ItemResult]:
    """Make the containers as wanted, several at once; return one result an item, in the order given.

    One failure does not stop the others. With ``check`` nothing is done, and the results say what would be.
    ``engine`` is None where Docker is not installed yet.
    """
    items = [_Item(one, ItemResult(f"{one.user}/{one.project}")) for one in wanted]
    _plan_all(observe(engine), policy, items)
    if not check:
        changing = [item for item in items if item.planned.actions and not item.result.failed]
        # What goes makes room for what comes.
        leaving = [item for item in changing if CREATE not in item.planned.actions]
        coming = [item for item in changing if CREATE in item.planned.actions]
        for part in (leaving, coming):
            if part:
                _carry_out(engine, policy, part)
    return [item.result for item in items]


def _plan_all(snapshot: Snapshot, policy: Policy, items: Sequence[_Item]) -> None:
    users = {user.name: user for user in policy.users}
    stopped = states.stopped_names()
    seen: set[str] = set()
    for item in items:
        with _failing(item.result):
            item.user = users.get(item.wanted.user) or policy.user(item.wanted.user)
            item.spec = specs.decide(policy, item.user, item.wanted.project, item.wanted.wishes)
            item.result.name = name = item.spec.name
            if name in seen:
                raise InvalidInput(f"{name} is in the list twice.", "Remove one of them.")
            seen.add(name)
            item.planned = _planned(snapshot, stopped, item.spec, item.wanted.state)
            _fill(item.result, item.planned)
    _check_rooms(snapshot, items)


def _planned(snapshot: Snapshot, stopped: frozenset[str], spec: ContainerSpec, state: str) -> Plan:
    """Return the plan for one container, with what is to be tidied up beside it."""
    actual = snapshot.containers.get(spec.name)
    image = snapshot.images.get((spec.uid, spec.project))
    planned = plan(state, spec, image.id if image else None, actual)
    if planned.actions:
        return planned
    if any(spec.name + suffix in snapshot.containers for suffix in (_NEXT, _PREVIOUS)):
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
        if item.user is not None and item.planned.actions == (REMOVE,):
            held[item.user.uid] = held.get(item.user.uid, 0) - 1
    for item in items:
        if item.user is not None and item.planned.actions == (CREATE, START):
            with _failing(item.result):
                _check_room(item.user, held.get(item.user.uid, 0))
                held[item.user.uid] = held.get(item.user.uid, 0) + 1


def _carry_out(engine: Engine | None, policy: Policy, items: Sequence[_Item]) -> None:
    if engine is None:
        raise EngineError(
            "Docker is not installed on this server.", "Apply the role lab.server.docker first."
        )
    if any(START in item.planned.actions for item in items):
        check_storage(policy)
        engine.ensure_network()
    with ThreadPoolExecutor(max_workers=min(_AT_ONCE, len(items))) as pool:
        for item, future in [(item, pool.submit(_change, engine, policy, item)) for item in items]:
            with _failing(item.result):
                future.result()


def _change(engine: Engine, policy: Policy, item: _Item) -> None:
    """Plan one item again under its lock, and carry that out. Called in a thread."""
    if item.spec is not None and item.user is not None:
        with locks.hold(item.spec.name):
            _apply(engine, policy, item.user, item.spec, item.wanted.state, item.result)


def _check_room(user: User, held: int) -> None:
    if held >= user.limits.containers:
        raise Refused(
            f"{user.name} holds {held} of {user.limits.containers} containers (limit containers).",
            "Retire one that is not needed (container list shows them), or ask IT for a higher limit.",
        )


@contextlib.contextmanager
def _failing(result: ItemResult) -> Iterator[None]:
    """Turn an error into a failed item: what was not done is not called changed."""
    try:
        yield
    except LabError as error:
        result.failed, result.message = True, str(error)
        result.changed, result.actions, result.diff = False, [], {}


def _fill(result: ItemResult, planned: Plan) -> None:
    result.actions = list(planned.actions)
    result.changed = bool(planned.actions)
    result.reason = planned.reason
    result.diff = {"before": planned.before, "after": planned.after} if planned.actions else {}


# One container, under its lock


def _apply(
    engine: Engine, policy: Policy, user: User, spec: ContainerSpec, state: str, result: ItemResult
) -> None:
    """Look again, plan, and carry the plan out. The caller holds the container's lock."""
    healed = _heal(engine, spec.name)
    snapshot = observe(engine, spec.name)
    actual = snapshot.containers.get(spec.name)
    planned = _planned(snapshot, states.stopped_names(), spec, state)
    if START in planned.actions:
        _check_sources(spec)
    if CREATE in planned.actions:
        _create(engine, policy, user, spec, snapshot.images.get((spec.uid, spec.project)), actual)
    elif actual is not None:
        deeds = {START: engine.start, STOP: engine.stop, REMOVE: engine.remove}
        for action in planned.actions:
            deeds.get(action, ignore)(actual.id)
    if state == STOPPED and actual is not None:
        states.mark_stopped(spec.name)
    else:
        states.clear_stopped(spec.name)
    # Somebody else may have done it in the meantime; then this call changed nothing.
    _fill(result, planned)
    if healed:
        result.changed, result.actions = True, [HEAL, *planned.actions]


def _create(
    engine: Engine,
    policy: Policy,
    user: User,
    spec: ContainerSpec,
    image: ProjectImage | None,
    actual: Actual | None,
) -> None:
    """Make and start the container. One with work in it is given up only when the new one runs."""
    if image is None:
        raise NotFound(f"There is no image of {spec.project} yet.", f"Build it: image-update {spec.project}.")
    if actual is not None and actual.unfinished:
        engine.remove(actual.id)
        actual = None
    if actual is not None:
        _replace(engine, policy, spec, image, actual)
        return
    # The count and the creation are one step for all of a user's projects.
    with locks.hold(f"user-{user.uid}"):
        _check_room(user, observe(engine).held(user.uid))
        made = _make(engine, policy, spec, image, spec.name)
    with _undone(lambda: engine.remove(made)):
        engine.start(made)


def _replace(engine: Engine, policy: Policy, spec: ContainerSpec, image: ProjectImage, old: Actual) -> None:
    made = _make(engine, policy, spec, image, spec.name + _NEXT)
    with _undone(lambda: engine.remove(made)):
        if old.live:
            engine.stop(old.id)
        engine.rename(old.id, spec.name + _PREVIOUS)
        with _undone(lambda: _bring_back(engine, made, spec.name, old)):
            engine.rename(made, spec.name)
            engine.start(made)
    engine.remove(old.id)


def _bring_back(engine: Engine, made: str, name: str, old: Actual) -> None:
    engine.remove(made)
    engine.rename(old.id, name)
    if old.live:
        engine.start(old.id)


@contextlib.contextmanager
def _undone(undo: Callable[[], None]) -> Iterator[None]:
    """Call ``undo`` when the block fails; its own failure does not hide the first one."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(LabError):
            undo()
        raise


def _heal(engine: Engine, name: str) -> bool:
    """Finish or take back a replacement that was broken off; say whether there was one."""
    listed = engine.containers(name, name + _NEXT, name + _PREVIOUS)
    found = {actual.name: actual for actual in (actual_of(item, name) for item in listed) if actual.ours}
    main, following, previous = (found.get(name + suffix) for suffix in ("", _NEXT, _PREVIOUS))
    if following is not None:
        engine.remove(following.id)
    if previous is not None and main is not None and main.live:
        engine.remove(previous.id)
    elif previous is not None:
        # The new one never ran: the old one, with what is in it, takes its place again.
        if main is not None:
            engine.remove(main.id)
        engine.rename(previous.id, name)
    return following is not None or previous is not None


def _make(engine: Engine, policy: Policy, spec: ContainerSpec, image: ProjectImage, name: str) -> str:
    """Create the container under ``name`` with everything in it, not started; return its id."""
    inspected = engine.inspect_image(image.id)
    if inspected is None:
        raise NotFound(f"The image of {spec.project} is gone.", f"Build it: image-update {spec.project}.")
    facts = specs.image_facts(inspected)
    config = specs.create_config(spec, ImageFacts(image.reference, facts.path, facts.volumes), engine.facts)
    made = engine.create(name, config)
    with _undone(lambda: engine.remove(made)):
        _furnish(engine, policy, spec, made)
    return made


def _furnish(engine: Engine, policy: Policy, spec: ContainerSpec, container: str) -> None:
    """Put the user's account and home into the file system of a container that was never started."""
    if not any(engine.file_status(container, path) for path in ("/bin/sleep", "/usr/bin/sleep")):
        raise EngineError(
            f"The image of {spec.project} has no 'sleep', with which a container is kept running.",
            "Start from another base image.",
        )
    shell = "/bin/bash" if engine.file_status(container, "/bin/bash") else "/bin/sh"
    # Docker resolves links among the container's mounts as root: through an image's link at /etc it would
    # read a file named passwd from a folder that the user may not read.
    trusted = _is_directory(engine, container, "/etc")
    found = [
        engine.read_file(container, path, _PASSWD_LIMIT) if trusted else None
        for path in ("/etc/passwd", "/etc/group")
    ]
    own_home = _is_directory(engine, container, "/home") and _is_directory(engine, container, spec.home)
    groups = sorted(
        {(share.group, policy.group(share.group).gid) for share in policy.shares_for(policy.user(spec.user))}
    )
    passwd, group = specs.account_files(
        spec,
        (found[0] or _NO_ACCOUNTS.encode()).decode("utf-8", "replace"),
        (found[1] or _NO_GROUPS.encode()).decode("utf-8", "replace"),
        groups,
        shell,
    )
    engine.put(container, _account_archive(spec, passwd, group, with_profile=not own_home))


def _is_directory(engine: Engine, container: str, path: str) -> bool:
    """Say whether the path is a folder itself, not a link. Go's FileMode has ModeDir as its highest bit."""
    status = engine.file_status(container, path)
    return status is not None and bool(int(status["mode"]) & 1 << 31) and not status.get("linkTarget")


def _account_archive(spec: ContainerSpec, passwd: str, group: str, *, with_profile: bool) -> bytes:
    """Return a tar with the account files and the home.

    It names every folder on the way: Docker's extraction follows a link among the parents, but replaces one
    that the archive itself has as a folder.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:

        def add(path: str, content: str | None, mode: int, owner: int, link: str = "") -> None:
            member = tarfile.TarInfo(path.lstrip("/"))
            member.mode, member.uid, member.gid = mode, owner, owner
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
        add(spec.home, None, 0o700, spec.uid)
        add(posixpath.join(spec.home, "workspace"), None, 0o777, spec.uid, link=specs.WORKSPACE)
        if with_profile:
            add(posixpath.join(spec.home, ".profile"), _PROFILE, 0o644, spec.uid)
            add(posixpath.join(spec.home, ".bashrc"), _BASHRC, 0o644, spec.uid)
    return buffer.getvalue()


# The commands of users


def launch(
    engine: Engine, policy: Policy, user: User, project: str, *, progress: Callable[[str], None] = ignore
) -> ItemResult:
    """Bring a user's project up: build its image if needed, make its container, or start the one there is.

    Never discards a container. ``facts`` of the result: container, id, image, status ("created", "started" or
    "running"), notes (sentences for people), kept, read_only (paths in the container). Raises LabError.
    """
    spec = specs.decide(policy, user, project, _declared(policy, user, project))
    check_storage(policy)
    _check_sources(spec)
    notes: list[str] = []
    result = ItemResult(spec.name)
    with locks.hold(spec.name):
        workspaces.check_project(policy, user, project)
        _heal(engine, spec.name)
        actual = observe(engine, spec.name).containers.get(spec.name)
        if actual is not None:
            refuse_foreign(actual)
        if actual is None or actual.unfinished:
            if actual is None:
                _check_room(user, observe(engine).held(user.uid))
            notes += _image_for(engine, policy, user, project, progress)
            engine.ensure_network()
            _apply(engine, policy, user, spec, STARTED, result)
            status = "created"
        elif actual.live:
            status = "running"
        else:
            engine.start(actual.id)
            status, result.changed, result.actions = "started", True, [START]
        states.clear_stopped(spec.name)
        snapshot = observe(engine, spec.name)
    now = snapshot.containers.get(spec.name)
    if now is None:
        raise NotFound(
            f"The container {spec.name} is gone again.", "Somebody removed it; launch it once more."
        )
    if not now.live:
        raise EngineError(
            f"The container {spec.name} ended as soon as it was started.",
            f"Correct the Dockerfile, then: container retire {project}, and launch again.",
        )
    info = _info(policy, snapshot, now)
    if info.image_newer:
        notes.append(
            f"The image is newer than this container. To use it: container retire {project}, then launch."
        )
    if now.digest != spec.digest():
        notes.append(
            f"The policy changed since it was made. To follow it: container retire {project}, then launch."
        )
    result.facts = {
        "container": spec.name,
        "id": now.id,
        "image": info.image,
        "status": status,
        "notes": notes,
        "kept": [specs.WORKSPACE, *spec.shares],
        "read_only": [spec.data_root],
    }
    return result


def _declared(policy: Policy, user: User, project: str) -> Wishes:
    """Return what IT declared for the project, so that both doors make the same container."""
    for declared in policy.projects:
        if declared.user == user.name and declared.name == project:
            return Wanted.from_project(declared).wishes
    return Wishes()


def _image_for(
    engine: Engine, policy: Policy, user: User, project: str, progress: Callable[[str], None]
) -> list[str]:
    """Build the project's image if needed; return notes. An older image serves where a build fails."""
    try:
        images.build(engine, policy, user, project, progress=progress)
    except LabError as error:
        if (user.uid, project) not in images.project_images(engine):
            raise
        return [f"The image is the older one: {error}"]
    return []


def stop(engine: Engine, user: User, project: str) -> ItemResult:
    """Stop a user's container, to stay down through a reboot too. Raises NotFound when there is none."""
    name = names.container_name(project, user.uid)
    result = ItemResult(name)
    with locks.hold(name):
        _heal(engine, name)
        actual = _mine(engine, name)
        if actual is None:
            raise NotFound(f"There is no container of {project}.", f"Start one: project launch {project}.")
        states.mark_stopped(name)
        if actual.live:
            engine.stop(actual.id)
            result.changed, result.actions, result.reason = True, [STOP], "it ran"
    return result


def retire(engine: Engine, user: User, project: str) -> ItemResult:
    """Remove a user's container, with what is in it alone; the workspace and the images stay."""
    name = names.container_name(project, user.uid)
    result = ItemResult(name)
    with locks.hold(name):
        _heal(engine, name)
        actual = _mine(engine, name)
        if actual is not None:
            engine.remove(actual.id)
            result.changed, result.actions, result.reason = True, [REMOVE], "it is to be retired"
        states.clear_stopped(name)
    return result


def _mine(engine: Engine, name: str) -> Actual | None:
    for listed in engine.containers(name):
        actual = actual_of(listed)
        refuse_foreign(actual)
        return actual
    return None


def start_existing(engine: Engine, policy: Policy, info: ContainerInfo) -> ItemResult:
    """Start a container that is there, for the boot unit. One that was stopped on purpose stays down.

    Raises NotFound when the policy no longer knows the user.
    """
    result = ItemResult(info.name)
    user = policy.user_by_uid(info.uid)
    check_storage(policy)
    with locks.hold(info.name):
        _heal(engine, info.name)
        actual = _mine(engine, info.name)
        if actual is None or actual.live or actual.unfinished:
            return result
        if states.is_stopped(info.name):
            result.reason = "it was stopped on purpose"
            return result
        _check_sources(specs.decide(policy, user, info.project))
        engine.start(actual.id)
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
