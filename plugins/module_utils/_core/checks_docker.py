# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Checks of Docker: the engine's settings, the network, and each container and image of a lab user."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from . import containers, daemon, gpufiles, hostfiles, mounts, names, rules, safefs, spec, versions
from .errors import InvalidInput, LabError, NotFound
from .inspection import FAIL, PASS, PLAYBOOK, WARN, Check, Outcome, Server, judged
from .plan import Actual
from .policy import Policy
from .spec import BRIDGE, WORKSPACE

_APPARMOR = "/sys/module/apparmor/parameters/enabled"
_ANEW = "Make it anew: container retire and project launch, as its user."


# ---- the engine ------------------------------------------------------------------------------------------


def _docker(server: Server) -> Outcome:
    problem = server.docker_problem
    if problem:
        return Outcome(FAIL, problem, "Look at: systemctl status docker.")
    return Outcome(PASS, f"Docker Engine answers, {len(server.listed)} containers")


def settings(text: str | None, policy: Policy) -> list[str]:
    """Return what is wrong in a daemon.json."""
    given = daemon.parse(text)
    problems = []
    for key, wanted in (("live-restore", True), ("icc", False), ("data-root", policy.docker_root)):
        if given.get(key) != wanted:
            problems.append(f"{key} is {given.get(key)!r}, not {wanted!r}")
    if "hosts" in given:
        problems.append("hosts opens Docker to others")
    # The other drivers that are bounded without being told to are in IT's hands.
    options = given.get("log-opts") or {}
    if given.get("log-driver", "json-file") == "json-file" and not options.get("max-size"):
        problems.append("the logs of containers are not bounded (log-opts.max-size)")
    return problems


def _daemon(server: Server) -> Outcome:
    problems = [f"{daemon.PATH}: {one}" for one in settings(hostfiles.read_text(daemon.PATH), server.policy)]
    if daemon.outdated():
        problems.append("dockerd started before its settings were written")
    problems += live_settings(server.engine.info(), server.policy, apparmor=_has_apparmor())
    return judged(problems, "dockerd runs with the settings of the policy")


def live_settings(info: Mapping[str, Any], policy: Policy, *, apparmor: bool) -> list[str]:
    """Return what is wrong with a running engine, by what it says of itself."""
    problems = []
    if not info.get("LiveRestoreEnabled"):
        problems.append("a restart of Docker ends the containers (no live-restore)")
    if info.get("DockerRootDir") != policy.docker_root:
        problems.append(f"its data is in {info.get('DockerRootDir')}, not {policy.docker_root}")
    options = " ".join(str(one) for one in info.get("SecurityOptions") or ())
    if "name=seccomp" not in options or "profile=unconfined" in options:
        problems.append("containers have no seccomp profile")
    if apparmor and "name=apparmor" not in options:
        problems.append("containers have no AppArmor profile")
    if str(info.get("CgroupVersion", "")) != "2":
        problems.append("control groups are not of version 2")
    return problems


def _has_apparmor() -> bool:
    try:
        return (hostfiles.read_text(_APPARMOR) or "").strip() == "Y"
    except LabError:
        return False


def network_problems(network: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the network of the containers."""
    options = network.get("Options") or {}
    problems = []
    if options.get("com.docker.network.bridge.enable_icc") != "false":
        problems.append("containers reach each other")
    if options.get("com.docker.network.bridge.name") != BRIDGE:
        problems.append(f"its bridge is not {BRIDGE}, by which the firewall knows it")
    if network.get("Driver") != "bridge":
        problems.append(f"its driver is {network.get('Driver')}")
    return problems


def _network(server: Server) -> Outcome:
    network = server.engine.network()
    if network is None:
        return Outcome(PASS, "it is made with the first container")
    fix = "Retire the containers and run: docker network rm lab."
    return judged(network_problems(network), "containers do not reach each other", fix)


# ---- containers ------------------------------------------------------------------------------------------


def _options(server: Server) -> Outcome:
    driver, apparmor, gids = server.engine.facts.cgroup_driver, _has_apparmor(), gpufiles.gids()
    problems = []
    for one in server.containers:
        if one.spec is None:
            problems.append(f"{one.name} was made by another version")
            continue
        parent = spec.cgroup_parent(one.spec.uid, driver)
        subject = rules.Subject(one.spec, parent, server.inspected[one.name], apparmor, gids)
        problems += [f"{one.name}: {what}" for what in rules.violations(subject)]
    return judged(problems, f"{len(server.containers)} containers are closed as they must be", _ANEW)


def _labels(server: Server) -> Outcome:
    """Compare the spec in each container's labels with the identity that the policy gives to its user."""
    problems = []
    users = {user.uid: user for user in server.policy.users}
    for one in server.containers:
        if one.spec is None:
            continue
        user = users.get(one.spec.uid)
        if user is None:
            continue
        expected = (user.name, user.gid, server.policy.workspace(user), server.policy.data_root)
        if (one.spec.user, one.spec.gid, one.spec.workspace, one.spec.data_root) != expected:
            problems.append(f"{one.name} was made for another user or another place of the data")
        if not set(one.spec.groups) <= {group.gid for group in server.policy.groups}:
            problems.append(f"{one.name} has a group that the policy does not know")
    withdrawn = containers.withdraw(server.engine, server.policy, check=True)
    problems += [f"{item.name}: {item.reason}" for item in withdrawn]
    return judged(problems, "each container is its user's, with what the user may have now")


def _data(server: Server) -> Outcome:
    """D1: the policy, the host and every container that runs mean the same folder (device and inode)."""
    policy = server.policy
    here = _identity(policy.data_root)
    if here is None:
        return Outcome(FAIL, f"{policy.data_root} is not there", PLAYBOOK)
    problems = []
    declared = next((one for one in policy.filesystems if one.role == "data"), None)
    mount = mounts.holding(policy.data_root, server.mounts)
    if declared is not None and mount.point != policy.data_root:
        problems.append(f"{policy.data_root} is on the disk of {mount.point}, not on one of its own")
    running = [one for one in server.containers if one.state == "running" and one.spec is not None]
    for one in running:
        problems += _seen_by(server, one)
    return judged(
        problems,
        f"{policy.data_root} (device {here[0]}, inode {here[1]}) is the same in {len(running)} containers",
        _ANEW,
    )


def _seen_by(server: Server, one: Actual) -> list[str]:
    """Return which folders a container sees that are not those of the host."""
    if one.spec is None:
        return []
    pid = int((server.inspected[one.name].get("State") or {}).get("Pid") or 0)
    places = {WORKSPACE: one.spec.workspace, **{share: share for share in one.spec.shares}}
    places[one.spec.data_root] = server.policy.data_root
    found = {inner: _identity(inner, pid) for inner in places} if pid else {}
    if not found:
        return []  # it ended meanwhile
    return [
        f"{inner} in {one.name} is not {outer} of the host"
        for inner, outer in places.items()
        if found[inner] != _identity(outer)
    ]


def _identity(path: str, pid: int = 0) -> tuple[int, int] | None:
    """Return (device, inode) of a folder, for a process in what is its root; None where there is none.

    No link is followed on the way: in a container, the image's author could have put one.
    """
    try:
        root = os.open(f"/proc/{pid}/root" if pid else "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = safefs.open_beneath(root, path.strip("/"), os.O_PATH | os.O_DIRECTORY)
    except (LabError, OSError):
        return None
    finally:
        os.close(root)
    try:
        status = os.fstat(found)
        return status.st_dev, status.st_ino
    finally:
        os.close(found)


# ---- images ----------------------------------------------------------------------------------------------


def image_problems(listed: Sequence[Mapping[str, Any]], used: Collection[str] = ()) -> list[str]:
    """Return which names of projects' images do not belong to what carries them, from Docker's listing.

    Where all that is left of a project's images is in use (``used`` holds their ids), as by a container that
    is kept for undo, its user removed the others, and none need be current.
    """
    problems = []
    current: set[str] = set()
    loose: set[str] = set()
    for image in listed:
        labels = image.get("Labels") or {}
        for tag in image.get("RepoTags") or ():
            repository, _colon, version = str(tag).rpartition(":")
            if not _is_projects(repository):
                continue
            said = f"lab/{labels.get(spec.LABEL_OWNER)}/{labels.get(spec.LABEL_PROJECT)}"
            digest = str(labels.get(versions.LABEL_FINGERPRINT, ""))
            if version == "latest":
                current.add(repository)
            elif image.get("Id") not in used:
                loose.add(repository)
            if said != repository:
                problems.append(f"{tag} names an image that is not of that project")
            elif version not in ("latest", digest[:12]):
                problems.append(f"{tag} names an image with another fingerprint")
    problems += [f"{name} has no current image" for name in sorted(loose - current)]
    return problems


def _is_projects(repository: str) -> bool:
    parts = repository.split("/")
    if len(parts) != 3 or parts[0] != "lab" or not parts[1].isdigit():
        return False
    with suppress(InvalidInput):
        return bool(names.project_name(parts[2]))
    return False


def _images(server: Server) -> Outcome:
    listed = server.engine.images()
    problems = image_problems(listed, {str(one.get("ImageID")) for one in server.listed})
    here = {str(tag) for image in listed for tag in image.get("RepoTags") or ()}
    missing = [base.name for base in server.policy.base_images if not _is_here(base.name, here)]
    problems += [f"the base image {name} is not here" for name in missing]
    return judged(problems, f"{len(listed)} images, their names agree with what they are")


def _is_here(name: str, here: Iterable[str]) -> bool:
    return name in here or f"{name}:latest" in here


def _strangers(server: Server) -> Outcome:
    """Name containers that are nobody's project: they have none of the limits."""
    known = {one.id for one in server.containers}
    others = []
    for item in server.listed:
        name = str((item.get("Names") or ["/"])[0]).lstrip("/")
        kind = (item.get("Labels") or {}).get(versions.LABEL_KIND, "")
        if item["Id"] not in known and "._." not in name and not kind and item.get("State") == "running":
            others += [] if _is_held(server, item["Id"]) else [name]
    if not others:
        return Outcome(PASS, "all that run are projects' containers")
    shown = ", ".join(names.printable(name) for name in sorted(others)[:5])
    return Outcome(WARN, f"these run beside them, without limits: {shown}", "Look at: docker ps.")


def _is_held(server: Server, container: str) -> bool:
    """Say whether a container is in a user's slice, as the steps of a build are, or is gone by now."""
    try:
        parent = str((server.engine.inspect(container).get("HostConfig") or {}).get("CgroupParent", ""))
    except NotFound:
        return True
    driver = server.engine.facts.cgroup_driver
    return any(parent == spec.cgroup_parent(user.uid, driver) for user in server.policy.users)


CHECKS: tuple[Check, ...] = (
    Check("docker", "Docker Engine answers", _docker),
    Check("daemon", "Docker runs with the settings of the policy", _daemon, docker=True),
    Check("network", "containers do not reach each other", _network, docker=True),
    Check("options", "every container is confined, limited and on loopback", _options, docker=True),
    Check("owners", "every container holds what its user may have, and no more", _labels, docker=True),
    Check("data", "host, policy and containers see the same files", _data, docker=True),
    Check("images", "the names of images belong to what they name", _images, docker=True),
    Check("strangers", "no other containers run", _strangers, docker=True),
)
