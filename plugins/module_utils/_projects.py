# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the modules for projects share: their arguments, and how these become values of the library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import _core
from ._core import plan, policy
from ._core.containers import Wanted
from ._core.engine import DEFAULT_URL, Engine
from ._core.errors import EngineError
from ._core.gpurequests import text_of
from ._core.names import environment_name
from ._core.policy import Policy, Project
from ._core.scaffold import TYPES
from ._core.sizes import parse_size

PROJECT = {
    "user": {"type": "str", "required": True},
    "name": {"type": "str", "required": True},
    "type": {"type": "str", "choices": list(TYPES), "default": "custom"},
    "base": {"type": "str"},
    "files": {"type": "dict", "default": {}},
    "state": {"type": "str", "choices": list(plan.STATES), "default": plan.STARTED},
    "cpus": {"type": "float"},
    "memory": {"type": "str"},
    "pids": {"type": "int"},
    "shm": {"type": "str"},
    "environment": {"type": "dict", "default": {}},
    "home": {"type": "str", "choices": list(policy.HOME_MODES), "default": policy.CONTAINER_HOME},
    "ports": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "container": {"type": "int", "required": True},
            "host": {"type": "int", "required": True},
        },
    },
    "locked": {"type": "bool", "default": False},
    "on_new_image": {"type": "str", "choices": list(policy.ON_NEW_IMAGE), "default": policy.REPLACE},
    "gpus": {"type": "raw"},
    "run_hours": {"type": "int"},
    "idle_hours": {"type": "int"},
    "keep": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"path": {"type": "str", "required": True}, "size": {"type": "str"}},
    },
}
PROJECTS = {"projects": {"type": "list", "elements": "dict", "default": [], "options": PROJECT}}
POLICY = {"policy": {"type": "dict"}}
DOCKER = {"docker_host": {"type": "str", "default": DEFAULT_URL}}


def policy_of(given: Mapping[str, Any]) -> Policy:
    """Return the policy that a module was given, or else the server's. Raises LabError."""
    return policy.load(_core.POLICY_PATH) if given["policy"] is None else policy.parse(given["policy"])


def engine_of(given: Mapping[str, Any], *, check: bool) -> Engine | None:
    """Return the engine; None in check mode where Docker is not installed yet. Raises EngineError."""
    try:
        return Engine.connect(given["docker_host"])
    except EngineError:
        if check and not Engine.is_installed(given["docker_host"]):
            return None
        raise


def wanted_of(given: Mapping[str, Any]) -> Wanted:
    """Return what one project of a module's list asks for its container. Raises InvalidInput."""
    where = f"{given['user']}/{given['name']}"
    return Wanted(
        user=given["user"],
        project=given["name"],
        state=given["state"],
        cpus=given["cpus"],
        memory=_size(given, "memory", where),
        pids=given["pids"],
        shm=_size(given, "shm", where),
        environment=environment_of(given["environment"], where),
        home=given["home"],
        ports=tuple((port["container"], port["host"]) for port in given["ports"]),
        on_new_image=given["on_new_image"],
        gpus=text_of(given["gpus"], f"{where}: gpus"),
        keep=tuple(kept["path"] for kept in given["keep"]),
    )


def _size(given: Mapping[str, Any], key: str, where: str) -> int | None:
    return None if given[key] is None else parse_size(given[key], f"{where}: {key}")


def project_of(given: Mapping[str, Any], known: Policy) -> Project:
    """Return one project of a module's list as the policy has it. Raises InvalidInput."""
    wanted, where = wanted_of(given), f"{given['user']}/{given['name']}"
    first = known.base_images[0].name if known.base_images else ""
    return Project(
        user=wanted.user,
        name=wanted.project,
        type=given["type"],
        base=given["base"] or first,
        files=_pairs(given["files"]),
        state=wanted.state,
        cpus=wanted.cpus,
        memory=wanted.memory,
        pids=wanted.pids,
        shm=wanted.shm,
        environment=wanted.environment,
        home=wanted.home,
        ports=wanted.ports,
        locked=given["locked"],
        on_new_image=wanted.on_new_image,
        gpus=wanted.gpus,
        run_hours=given["run_hours"],
        idle_hours=given["idle_hours"],
        keep=tuple(
            policy.KeptFolder(kept["path"], parse_size(kept["size"] or 0, f"{where}: keep.size"))
            for kept in given["keep"]
        ),
    )


def environment_of(given: Mapping[str, Any], where: str) -> tuple[tuple[str, str], ...]:
    """Return environment variables as sorted pairs. Raises InvalidInput for a name that is none."""
    for name in given:
        environment_name(name, f"{where}: environment")
    return _pairs(given)


def _pairs(given: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((str(name), str(value)) for name, value in given.items()))


def by_user(projects: Iterable[Project]) -> dict[str, tuple[Project, ...]]:
    """Return the projects of each user, in their order."""
    found: dict[str, list[Project]] = {}
    for project in projects:
        found.setdefault(project.user, []).append(project)
    return {user: tuple(own) for user, own in found.items()}
