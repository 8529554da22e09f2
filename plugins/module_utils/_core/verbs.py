# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the broker does for lab users: one function for each of its verbs.

Each is called as root for a user who is known, on a project's name that is one; it knows nothing of sudo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from . import buildlog, image_install, names
from .errors import EngineError, InvalidInput, LabError
from .items import ItemResult
from .policy import Policy, User, load
from .protocol import cores, gpus, job_command, memory


def nobody(_lines: Sequence[str]) -> bool:
    """Give lines to nobody."""
    return False


@dataclass(frozen=True)
class Request:
    """One call: whose it is, by what policy, on which project ("" for none), and what else it asks for."""

    policy: Policy
    user: User
    project: str
    progress: Callable[[str], None]
    options: Mapping[str, Any] = field(default_factory=dict)
    lines: Callable[[Sequence[str]], bool] = nobody
    """Gives whole lines to who asked, however many they are; says whether somebody is still there."""


def nothing(words: Sequence[str]) -> dict[str, Any]:
    """Take no further words; raise InvalidInput for any."""
    if words:
        raise InvalidInput(f"{len(words)} words more than are expected.", "Use the commands.")
    return {}


def packages(words: Sequence[str]) -> dict[str, Any]:
    """Take requirements of packages, and nothing else; raise InvalidInput."""
    try:
        return {"packages": tuple(image_install.check(words))}
    except image_install.Problem as problem:
        raise InvalidInput(str(problem)) from None


def settings(**kinds: Callable[[str], Any]) -> Callable[[Sequence[str]], dict[str, Any]]:
    """Return what takes words ``key=value``: each key at most once, its value as its function reads it."""

    def take(words: Sequence[str]) -> dict[str, Any]:
        taken: dict[str, Any] = {}
        for word in words:
            key, equals, value = word.partition("=")
            if not equals or key not in kinds or key in taken:
                raise InvalidInput(f"{names.printable(word)[:80]!r} is not expected.", "Use the commands.")
            taken[key] = kinds[key](value)
        return taken

    return take


def yes(word: str) -> bool:
    """Take the word ``yes``; raise InvalidInput for any other."""
    if word != "yes":
        raise InvalidInput("Only 'yes' is expected here.", "Use the commands.")
    return True


def _back(word: str) -> int:
    """Take a number of a retired container, 1 to 99; raise InvalidInput."""
    if not word.isascii() or not word.isdigit() or not 1 <= int(word[:9]) <= 99:
        raise InvalidInput("That is no number of a retired container.", "Use 1 for the newest, 2, and so on.")
    return int(word)


@dataclass(frozen=True)
class Verb:
    """A thing that the broker does.

    ``needs_mounts``: not while a file system of the server is missing. ``further`` takes the words after the
    project's name, and raises InvalidInput for those that it does not know.
    """

    takes_name: bool
    run: Callable[[Request], dict[str, Any]]
    needs_mounts: bool = False
    further: Callable[[Sequence[str]], dict[str, Any]] = nothing


@contextmanager
def connected() -> Iterator[Any]:
    """Be connected to the engine; raise EngineError in words for users."""
    from .engine import Engine

    try:
        connection = Engine.connect()
    except EngineError as error:
        raise EngineError(
            "The container engine of this server does not answer.", "Tell your admins."
        ) from error
    with closing(connection) as engine:
        yield engine


def answer(item: ItemResult) -> dict[str, Any]:
    """Return what is told of a deed; raise EngineError for one that failed."""
    if item.failed:
        raise EngineError(item.message)
    return {"changed": item.changed, "actions": list(item.actions), "reason": item.reason, **item.facts}


def container(info: Any) -> dict[str, Any]:
    """Return a container as it is told to its user."""
    return {
        "project": info.project,
        "container": info.name,
        "status": info.status,
        "created": info.created,
        "image": info.image,
        "image_newer": info.image_newer,
    }


def with_job(engine: Any, request: Request, info: Any) -> dict[str, Any]:
    """Return a container as it is told to its user, with the last job that ran in it."""
    from .jobs import look

    job = look(engine, request.policy, request.user, info.project)
    return {**container(info), "job": job.shown() if job and job.container == info.id else None}


def _project_launch(request: Request, *, check: bool = False) -> dict[str, Any]:
    from .containers import batch, launch
    from .spec import OwnWishes

    policy, user, project = request.policy, request.user, request.project
    options = request.options
    own = OwnWishes(options.get("cpus"), options.get("memory"), options.get("gpus", ""))
    with connected() as engine, in_turn(engine, request, own, check=check):
        done = launch(
            engine,
            policy,
            user,
            project,
            own=own,
            rebuild=options.get("rebuild", False),
            with_jupyter=options.get("jupyter", False),
            progress=request.progress,
            check=check,
            waits=options.get("wait", False),
        )
        facts = answer(done)
        command = "" if check else options.get("command", "")
        return {**facts, "job": batch(engine, policy, user, project, command)} if command else facts


def _project_jupyter(request: Request) -> dict[str, Any]:
    from .containers import run_jupyter

    with connected() as engine:
        return run_jupyter(engine, request.user, request.project)


@contextmanager
def in_turn(engine: Any, request: Request, own: Any, *, check: bool = False) -> Iterator[None]:
    """Wait for the GPUs of a project's new container where that is asked for, and keep them for the block."""
    from . import containers, gpuleases, gpurequests, images

    if check or not request.options.get("wait"):
        yield
        return
    policy, user, project = request.policy, request.user, request.project
    holder = names.container_name(project, user.uid)
    spec = containers.decided(policy, user, project, own)
    there = containers.observe(engine, holder).containers.get(holder)
    if not spec.gpus or (there is not None and not there.unfinished):
        yield  # there is nothing to wait for
        return
    # Before the GPUs are given: they are not to lie idle while an image is built.
    images.build(engine, policy, user, project, progress=request.progress)
    wanted = gpurequests.parse(spec.gpus)
    gpuleases.wait(
        engine,
        policy,
        user,
        project,
        wanted,
        # Who waits for days is not to be given what was taken out of service since.
        lambda: gpuleases.inventory(_newest(policy)),
        words=launch_words(request.options),
        progress=request.progress,
    )
    try:
        yield
    finally:
        gpuleases.give_back_unused(engine, policy, holder)


def _newest(policy: Policy) -> Policy:
    """Return the policy of the server as it is by now, or else this one."""
    try:
        return load()
    except LabError:
        return policy


def _project_list(request: Request) -> dict[str, Any]:
    from .containers import listing
    from .workspaces import projects

    # First as the user: it forks, and does not need Docker.
    found = projects(request.policy, request.user)
    note = ""
    containers: dict[str, dict[str, Any]] = {}
    try:
        with connected() as engine:
            containers = {
                info.project: with_job(engine, request, info)
                for info in listing(engine, request.policy, request.user)
            }
    except EngineError as error:
        note = str(error)
    builds = buildlog.running(request.user.uid)
    listed = [
        {
            **project,
            "building": project["name"] in builds,
            "container": containers.pop(project["name"], None),
        }
        for project in found
    ]
    # A container whose folder was removed still runs, and is still somebody's to retire.
    listed += [
        {"name": name, "dockerfile": False, "folder": False, "container": containers[name]}
        for name in containers
    ]
    return {"projects": listed, "note": note}


def _project_forget(request: Request) -> dict[str, Any]:
    from .images import forget

    with connected() as engine:
        return answer(forget(engine, request.policy, request.user, request.project))


def _container_list(request: Request) -> dict[str, Any]:
    from .containers import listing
    from .notices import idle_gpus, notices

    ends, idle = notices(request.user.uid), idle_gpus(request.user.uid)
    with connected() as engine:
        own = listing(engine, request.policy, request.user)
        return {
            "containers": [
                {
                    **with_job(engine, request, info),
                    "ends": ends.get(info.project),
                    "gpu": idle.get(info.project, ""),
                }
                for info in own
            ]
        }


def _container_stop(request: Request, *, check: bool = False) -> dict[str, Any]:
    from .containers import stop

    with connected() as engine:
        return answer(stop(engine, request.user, request.project, check=check))


def _container_retire(request: Request, *, check: bool = False) -> dict[str, Any]:
    from .containers import retire

    with connected() as engine:
        asks = bool(request.options.get("ask"))
        done = retire(engine, request.policy, request.user, request.project, check=check, asks=asks)
        return answer(done)


def _container_lost(request: Request) -> dict[str, Any]:
    from .containers import lost

    with connected() as engine:
        return lost(engine, request.policy, request.user, request.project)


def _container_undo(request: Request, *, check: bool = False) -> dict[str, Any]:
    from .containers import undo

    with connected() as engine:
        back = request.options.get("back", 1)
        return answer(undo(engine, request.policy, request.user, request.project, back=back, check=check))


def _image_update(
    request: Request, *, locked: bool = False, rebuild: bool = False, check: bool = False
) -> dict[str, Any]:
    from .images import build

    with connected() as engine:
        done = build(
            engine,
            request.policy,
            request.user,
            request.project,
            progress=request.progress,
            locked=locked,
            rebuild=rebuild,
            check=check,
        )
        return answer(done) if check else {**answer(done), "in_use": runs_another(engine, request)}


def runs_another(engine: Any, request: Request) -> bool:
    """Say whether the project's container was made of another image than the current one."""
    from .containers import listing

    own = listing(engine, request.policy, request.user)
    return any(info.project == request.project and info.image_newer for info in own)


def _image_install(request: Request) -> dict[str, Any]:
    return _installed(request, dry_run=False)


def _image_install_check(request: Request) -> dict[str, Any]:
    return _installed(request, dry_run=True)


def _installed(request: Request, *, dry_run: bool) -> dict[str, Any]:
    from .containers import install

    with connected() as engine:
        return answer(
            install(
                engine,
                request.user,
                request.project,
                request.options["packages"],
                dry_run=dry_run,
                progress=request.progress,
            )
        )


_LAUNCH_WORDS = settings(
    command=job_command, cpus=cores, memory=memory, gpus=gpus, wait=yes, rebuild=yes, jupyter=yes
)


def launch_words(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the words that ask for the options of a launch; ``_LAUNCH_WORDS`` of them gives the same."""
    return tuple(f"{key}={'yes' if value is True else value}" for key, value in sorted(options.items()))


def launch_again(
    policy: Policy, user: User, project: str, words: Sequence[str], progress: Callable[[str], None]
) -> dict[str, Any]:
    """Launch a project as it was asked for before; raise what the launch raises."""
    return _project_launch(Request(policy, user, project, progress, _LAUNCH_WORDS(words)))


#: What it does with projects and containers, and what builds; ``broker.VERBS`` is all of it.
VERBS: dict[str, Verb] = {
    "project-launch": Verb(True, _project_launch, True, _LAUNCH_WORDS),
    "project-launch-check": Verb(True, partial(_project_launch, check=True), True, _LAUNCH_WORDS),
    "project-jupyter": Verb(True, _project_jupyter),
    "project-list": Verb(False, _project_list),
    "project-forget": Verb(True, _project_forget, needs_mounts=True),
    "container-list": Verb(False, _container_list),
    "container-stop": Verb(True, _container_stop),
    "container-stop-check": Verb(True, partial(_container_stop, check=True)),
    "container-retire": Verb(True, _container_retire, further=settings(ask=yes)),
    "container-retire-check": Verb(True, partial(_container_retire, check=True)),
    "container-lost": Verb(True, _container_lost),
    "container-undo": Verb(True, _container_undo, needs_mounts=True, further=settings(back=_back)),
    "container-undo-check": Verb(
        True, partial(_container_undo, check=True), needs_mounts=True, further=settings(back=_back)
    ),
    "image-update": Verb(True, _image_update, needs_mounts=True),
    "image-update-locked": Verb(True, partial(_image_update, locked=True), needs_mounts=True),
    "image-rebuild": Verb(True, partial(_image_update, rebuild=True), needs_mounts=True),
    "image-rebuild-locked": Verb(True, partial(_image_update, locked=True, rebuild=True), needs_mounts=True),
    "image-update-check": Verb(True, partial(_image_update, check=True), needs_mounts=True),
    "image-rebuild-check": Verb(True, partial(_image_update, rebuild=True, check=True), needs_mounts=True),
    "image-install": Verb(True, _image_install, needs_mounts=True, further=packages),
    "image-install-check": Verb(True, _image_install_check, further=packages),
}
