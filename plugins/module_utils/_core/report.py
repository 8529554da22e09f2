# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Everything that a server holds, in one structure; nothing is changed.

``look`` asks the policy, the kernel, the workspaces and Docker; ``report`` puts together what they said.
Whether a container has drifted is not judged here: it is what ``containers.differing`` says of it.
Sizes are bytes, times seconds since 1970.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from . import (
    VERSION,
    capacity,
    containers,
    gpuidle,
    gpus,
    imagesizes,
    imagestate,
    mounts,
    names,
    quota,
    retired,
    storage,
    versions,
    workspaces,
)
from . import state as states
from .containers import Wanted
from .engine import DEFAULT_URL, Engine
from .errors import InvalidInput, LabError
from .items import ItemResult
from .plan import STARTED, STOPPED, Actual
from .policy import Policy, Project, User
from .quota import Usage
from .retired import Kept
from .versions import Version

_DAY = 86400
#: So many retired containers, the newest, are looked into.
_LOOKED_INTO = 50


@dataclass(frozen=True)
class Docker:
    """What Docker said: its listing of images, what ``containers.observe`` made of it, and the plans.

    ``plans`` holds by (user, project) what a reconciliation would do, ``sizes`` the bytes of writable layers
    by the containers' ids and ``packages`` the Python packages by the images' names, if they were asked for.
    ``problem`` says why there is nothing.
    """

    problem: str = ""
    images: Sequence[Mapping[str, Any]] = ()
    snapshot: containers.Snapshot = field(default_factory=lambda: containers.Snapshot({}, {}))
    retired: Sequence[Kept] = ()
    plans: Mapping[tuple[str, str], ItemResult] = field(default_factory=dict)
    stopped: frozenset[str] = frozenset()
    sizes: Mapping[str, int] = field(default_factory=dict)
    #: By their ids, what is in the newest retired containers, if it was asked for.
    holds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    packages: Mapping[str, Sequence[str]] = field(default_factory=dict)
    #: By the ids of containers, for how many seconds the GPUs that they hold have done nothing (``gpuidle``).
    gpu_idle: Mapping[str, int] = field(default_factory=dict)
    #: By uid, what the images of each owner hold; None if it was not asked for.
    image_sizes: Mapping[int, int] | None = None


@dataclass(frozen=True)
class Folders:
    """The projects in a user's workspace, each {"name": str, "dockerfile": bool}, or why they are unknown."""

    projects: Sequence[Mapping[str, Any]] = ()
    problem: str = ""


@dataclass(frozen=True)
class Seen:
    """What there was at one instant, ``now``. Usage and folders are by the users' names."""

    now: float
    usage: Mapping[str, Usage]
    usage_problem: str
    folders: Mapping[str, Folders]
    filesystems: Sequence[Mapping[str, Any]]
    storage_problems: Sequence[str]
    docker: Docker
    gpus: gpus.Seen = field(default_factory=gpus.Seen)
    #: By the users' names, what belongs to them on Docker's file system, where it counts.
    layers: Mapping[str, Usage] = field(default_factory=dict)


def server(
    policy: Policy, url: str = DEFAULT_URL, *, sizes: bool = False, packages: bool = False
) -> dict[str, Any]:
    """Return everything that the server holds, as plain data; ``url`` is the address of Docker Engine.

    With ``sizes`` the writable layers of containers are measured, for which Docker walks through them; with
    ``packages`` the Python packages of each image are told. What cannot be told, as when Docker is down, is
    left out with its reason. Raises HostError when even what is mounted cannot be read.
    """
    return report(policy, look(policy, url, sizes=sizes, packages=packages, holds=sizes))


# What there is


def look(policy: Policy, url: str, *, sizes: bool, packages: bool, holds: bool = False) -> Seen:
    """Ask everything once; what cannot be told is noted with its reason.

    With ``holds`` the newest of the retired containers are looked into, each by itself.
    """
    # The workspaces first: their children may not be forked once there are threads.
    folders = {user.name: _folders(policy, user) for user in policy.users}
    usage, usage_problem = _usage(policy)
    table = mounts.read()
    return Seen(
        now=time.time(),
        usage=usage,
        usage_problem=usage_problem,
        folders=folders,
        filesystems=storage.spaces(policy, table),
        storage_problems=storage.check_mounts(policy, table),
        docker=_docker(policy, url, sizes, packages, holds),
        gpus=gpus.look(out_of_service=policy.gpu.out_of_service),
        layers=_layers(policy),
    )


def _folders(policy: Policy, user: User) -> Folders:
    try:
        return Folders(workspaces.projects(policy, user))
    except LabError as error:
        return Folders(problem=str(error))


def _usage(policy: Policy) -> tuple[dict[str, Usage], str]:
    """Return what each user uses of the file system of the homes, or why nobody knows."""
    try:
        device = quota.device_of(policy.home_root)
        return {user.name: quota.read(device, quota.USER, user.uid) for user in policy.users}, ""
    except LabError as error:
        return {}, str(error)


def _layers(policy: Policy) -> dict[str, Usage]:
    """Return what each user uses of Docker's file system; nothing where that does not count for itself."""
    try:
        device = quota.device_of(policy.docker_root)
        if device == quota.device_of(policy.home_root) or not quota.enforced(device):
            return {}
        return {user.name: quota.read(device, quota.USER, user.uid) for user in policy.users}
    except LabError:
        return {}


def _docker(policy: Policy, url: str, sizes: bool, packages: bool, holds: bool) -> Docker:
    try:
        engine = Engine.connect(url)
        snapshot = containers.observe(engine)
        stopped = states.stopped_names()
        wanted = list(wishes(policy, snapshot.containers.values(), stopped))
        planned = containers.differing(engine, policy, wanted)
        kept = retired.kept(engine)
        ours = [one.id for one in snapshot.containers.values() if one.ours] + [one.actual.id for one in kept]
        pictures = engine.images()
        return Docker(
            images=pictures,
            snapshot=snapshot,
            retired=kept,
            plans={(one.user, one.project): result for one, result in zip(wanted, planned)},
            stopped=stopped,
            sizes=engine.sizes(ours) if sizes else {},
            holds={
                one.actual.id: retired.measured(engine, one.actual) for one in kept[:_LOOKED_INTO] if holds
            },
            packages=_packages(pictures) if packages else {},
            gpu_idle=gpuidle.idle(),
            image_sizes=imagesizes.by_owner(engine, policy, pictures) if sizes else None,
        )
    except LabError as error:
        return Docker(problem=str(error))


def _packages(pictures: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[str]]:
    """Return the Python packages of each image of a project of which they are known, by its name."""
    found: dict[str, Sequence[str]] = {}
    for (uid, project), own in versions.versions(pictures).items():
        for version in own:
            listed = imagestate.packages(uid, project, version.fingerprint)
            if listed is not None:
                found[version.reference] = listed
    return found


def wishes(policy: Policy, there: Iterable[Actual], stopped: frozenset[str]) -> Iterable[Wanted]:
    """Return how every container should be: as declared, and as its user left it where nobody declared it."""
    declared = {(one.user, one.name): one for one in policy.projects}
    yield from (Wanted.from_project(one) for one in declared.values())
    users = {user.uid: user for user in policy.users}
    for actual in there:
        project, uid = _owner_of(actual)
        user = users.get(uid)
        if user is not None and (user.name, project) not in declared:
            state = STOPPED if actual.name in stopped else STARTED
            yield Wanted(user.name, project, state=state)


def _owner_of(actual: Actual) -> tuple[str, int]:
    """Return (project, uid) of a container of ours, ("", -1) for any other."""
    try:
        return names.parse_container_name(actual.name) if actual.ours else ("", -1)
    except InvalidInput:
        return "", -1


# What is told of it


def report(policy: Policy, seen: Seen) -> dict[str, Any]:
    """Return what was seen, as plain data: a pure function."""
    docker = seen.docker
    shown_containers = _containers(policy, docker)
    shown_images = _images(policy, docker, seen.now)
    return {
        "version": VERSION,
        "docker": {"answers": not docker.problem, "problem": docker.problem},
        "users": [_user(policy, user, seen, shown_containers) for user in policy.users],
        "projects": _projects(policy, seen, shown_images, shown_containers),
        "images": shown_images,
        "base_images": _base_images(policy, docker, seen.now),
        "containers": shown_containers,
        "retired": [_retired(policy, one, docker) for one in docker.retired],
        "other_containers": _others(docker),
        "storage": {
            "problems": list(seen.storage_problems),
            "filesystems": [dict(one) for one in seen.filesystems],
            "capacity": [capacity.shown(one) for one in capacity.survey(policy, seen.filesystems)],
        },
        **_gpus(seen.gpus),
    }


def _gpus(seen: gpus.Seen) -> dict[str, Any]:
    told = gpus.told(seen)
    return {
        "gpus": told["gpus"],
        "gpus_problem": seen.problem,
        "gpu_driver": seen.driver,
        "gpu_cuda": seen.cuda,
    }


def _user(policy: Policy, user: User, seen: Seen, held: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    usage, layers = seen.usage.get(user.name), seen.layers.get(user.name)
    images = seen.docker.image_sizes
    return {
        "name": user.name,
        "uid": user.uid,
        "group": user.group,
        "groups": list(user.groups),
        "comment": user.comment,
        "home": user.home,
        "workspace": policy.workspace(user),
        "limits": asdict(user.limits),
        "quota": asdict(user.quota),
        "usage": None if usage is None else asdict(usage),
        "usage_problem": seen.usage_problem,
        "layers": None if layers is None else asdict(layers),
        "images_size": None if images is None else images.get(user.uid, 0),
        "containers": [one["name"] for one in held if one["uid"] == user.uid],
    }


def _projects(
    policy: Policy, seen: Seen, shown_images: Sequence[Mapping[str, Any]], held: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return every project that is declared, or of which there is a folder, an image or a container."""
    declared = {(one.user, one.name): one for one in policy.projects}
    folders = {
        (user, str(one["name"])): one for user, found in seen.folders.items() for one in found.projects
    }
    current = {(one["user"], one["project"]): one["name"] for one in shown_images if one["current"]}
    running = {(one["user"], one["project"]): one["name"] for one in held}
    # A project of somebody who is no user any more is among the images and containers alone.
    every = sorted(key for key in {*declared, *folders, *current, *running} if key[0])
    return [
        {
            "user": key[0],
            "name": key[1],
            "declared": key in declared,
            "state": declared[key].state if key in declared else "",
            "folder": key in folders,
            "folder_problem": seen.folders.get(key[0], Folders()).problem,
            "dockerfile": bool(folders.get(key, {}).get("dockerfile")),
            "image": current.get(key, ""),
            "container": running.get(key, ""),
            **_drift(declared.get(key), seen.docker.plans.get(key)),
        }
        for key in every
    ]


def _drift(declared: Project | None, planned: ItemResult | None) -> dict[str, Any]:
    """Return what a run of IT's would do to the container of a project; nothing to one of the user's own."""
    if declared is None or planned is None:
        return {"drift": False, "reason": ""}
    return {
        "drift": planned.changed or planned.failed,
        "reason": planned.message if planned.failed else planned.reason,
    }


def _containers(policy: Policy, docker: Docker) -> list[dict[str, Any]]:
    users = {user.uid: user.name for user in policy.users}
    declared = {(one.user, one.name) for one in policy.projects}
    shown = []
    for actual in sorted(docker.snapshot.containers.values(), key=lambda one: one.name):
        project, uid = _owner_of(actual)
        if not project:
            continue
        user = users.get(uid, "")
        image = docker.snapshot.images.get((uid, project))
        shown.append(
            {
                "name": actual.name,
                "user": user,
                "uid": uid,
                "project": project,
                "id": actual.id,
                "status": actual.state,
                "running": actual.live,
                "stopped_on_purpose": actual.name in docker.stopped,
                "created": actual.created,
                "size": docker.sizes.get(actual.id),
                "image": image.named(actual.image) if image else actual.image,
                "image_newer": image is not None and image.id != actual.image,
                "gpu_idle": docker.gpu_idle.get(actual.id) if actual.lease else None,
                "declared": (user, project) in declared,
                "spec": _spec(actual),
                **_container_drift(user, docker.plans.get((user, project))),
            }
        )
    return shown


def _spec(actual: Actual) -> dict[str, Any] | None:
    """Return the spec in a container's labels; None where another version of ours wrote it."""
    if actual.spec is None:
        return None
    ports = [{"container": inner, "host": host} for inner, host in actual.spec.ports]
    return {**asdict(actual.spec), "environment": dict(actual.spec.environment), "ports": ports}


def _container_drift(user: str, planned: ItemResult | None) -> dict[str, Any]:
    """Return how a container differs from what the policy makes of it today."""
    if planned is None or not user:
        return {
            "drift": True,
            "reason": "its user is not in the policy",
            "actions": [],
            "diff": {},
        }
    return {
        "drift": planned.changed or planned.failed,
        "reason": planned.message if planned.failed else planned.reason,
        "actions": list(planned.actions),
        "diff": dict(planned.diff),
    }


def _retired(policy: Policy, kept: Kept, docker: Docker) -> dict[str, Any]:
    """Return a container that was retired and can still be brought back."""
    return {
        "name": kept.actual.name,
        "container": kept.container,
        "user": _name_of(policy, kept.uid),
        "uid": kept.uid,
        "project": kept.project,
        "id": kept.actual.id,
        "retired": kept.retired,
        "undo_until": retired.until(policy, kept.retired),
        "size": docker.sizes.get(kept.actual.id),
        "holds": docker.holds.get(kept.actual.id),
    }


def _name_of(policy: Policy, uid: int) -> str:
    return next((user.name for user in policy.users if user.uid == uid), "")


def _others(docker: Docker) -> list[dict[str, Any]]:
    """Return the containers that are no project's: somebody else's, or left by what was broken off."""
    ours = {one.actual.id for one in docker.retired}
    return [
        {"name": actual.name, "id": actual.id, "status": actual.state}
        for actual in sorted(docker.snapshot.containers.values(), key=lambda one: one.name)
        if not actual.ours and actual.id not in ours
    ]


def _images(policy: Policy, docker: Docker, now: float) -> list[dict[str, Any]]:
    """Return the images of projects, the newest of each project first."""
    using = _using(docker)
    found = versions.versions(docker.images, using)
    return [
        {
            **_image(policy, owner, project, version, using, now),
            "packages": docker.packages.get(version.reference),
        }
        for (owner, project), own in sorted(found.items())
        for version in own
    ]


def _image(
    policy: Policy, uid: int, project: str, version: Version, using: Mapping[str, list[str]], now: float
) -> dict[str, Any]:
    return {
        "name": version.reference,
        "user": _name_of(policy, uid),
        "uid": uid,
        "project": project,
        "fingerprint": version.fingerprint,
        "base": version.base,
        "current": version.current,
        "in_use": version.in_use,
        "containers": using.get(version.id, []),
        **_size_and_age(version.id, version.size, version.created, now),
    }


def _base_images(policy: Policy, docker: Docker, now: float) -> list[dict[str, Any]]:
    """Return the base images: those of the policy, here or not, and those that were made by us before."""
    here: dict[str, Mapping[str, Any]] = {}
    made = set()
    for image in docker.images:
        for tag in image.get("RepoTags") or []:
            name = str(tag)[: -len(":latest")] if str(tag).endswith(":latest") else str(tag)
            here[name] = image
            if (image.get("Labels") or {}).get(versions.LABEL_KIND) == "base":
                made.add(name)
    declared = {base.name: base for base in policy.base_images}
    return [
        {
            "name": name,
            "declared": name in declared,
            "source": (declared[name].image or declared[name].archive) if name in declared else "",
            "here": name in here,
            **_size_and_age(
                str(here.get(name, {}).get("Id", "")),
                int(here.get(name, {}).get("Size") or 0),
                int(here.get(name, {}).get("Created") or 0),
                now,
            ),
        }
        for name in [*declared, *sorted(made - set(declared))]
    ]


def _size_and_age(image: str, size: int, created: int, now: float) -> dict[str, Any]:
    age = max(0, int(now) - created) // _DAY if created else 0
    return {"id": image, "size": size, "created": created, "age_days": age}


def _using(docker: Docker) -> dict[str, list[str]]:
    """Return the names of the containers made of each image, by the image's id."""
    found: dict[str, list[str]] = {}
    for actual in sorted(docker.snapshot.containers.values(), key=lambda one: one.name):
        found.setdefault(actual.image, []).append(actual.name)
    return found
