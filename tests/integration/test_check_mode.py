"""Every module in check mode: it changes nothing, and what it promises is what it then does.

Each module takes a few steps, one after the other. Of every step are compared: the world before and after the
promise, the promise and the deed, and a second deed, which must change nothing. What a module hands back must
be what its documentation says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.lab.server.plugins.module_utils._core import gpuleases, locks
from ansible_collections.lab.server.plugins.module_utils._core import policy as policies
from ansible_collections.lab.server.plugins.module_utils._core.engine import Engine
from ansible_collections.lab.server.plugins.module_utils._core.gpudevices import Device
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, User
from private_root import MODULES, PACKAGE, PrivateRoot, call_in_child, next_second, run_module, tree

LIMITS = {"containers": 2, "cpus": 1, "memory": "64m", "pids": 64, "shm": "1m", "gpus": 0}
QUOTA = {"soft": "9m", "hard": "10m", "inodes_soft": 90, "inodes_hard": 100}
ALICE = {"name": "alice", "uid": 2001, "group": "students"}
HOME = {"role": "home", "mount": "/home", "device": "/dev/disk/by-id/lab-home", "create": True}


@dataclass(frozen=True)
class Step:
    """Arguments of a module, whether they change something, and whether the task, or a part of it, fails."""

    arguments: dict[str, Any]
    changes: bool = True
    fails: bool = False


def keep_promises(
    name: str,
    steps: list[Step],
    look: Callable[[], Any],
    call: Callable[[Callable[[], Any]], Any] = call_in_child,
) -> None:
    """Go through the steps of a module; ``look`` returns all that it could change."""
    for step in steps:
        before = look()
        promise = run_module(name, step.arguments, check=True, call=call)
        assert _differences(look(), before) == {}, f"check mode changed something: {step}"
        deed = run_module(name, step.arguments, check=False, call=call)
        after = look()
        assert _without_clock(deed) == _without_clock(promise), step
        assert (bool(deed.get("changed")), bool(deed.get("failed"))) == (step.changes, step.fails), deed
        assert (_effects(after, before) != {}) == step.changes, step
        again = run_module(name, step.arguments, check=False, call=call)
        assert not again.get("changed"), again
        assert bool(again.get("failed")) == step.fails
        assert _effects(look(), after) == {}, f"a second run changed something: {step}"
        if not step.fails:
            check_documented(name, deed)


def _without_clock(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer with the times that depend on when it was asked only said to be there."""
    results = [
        {key: value is not None if key == "undo_until" else value for key, value in item.items()}
        for item in answer.get("results", [])
    ]
    told = {**answer, "results": results}
    if "server" in answer:
        # How full the disks of this computer are moves with whatever else is done on it.
        told["server"] = {**answer["server"], "storage": _without_use(answer["server"]["storage"])}
    return told


def _without_use(told: Any) -> Any:
    """Return what was told of disks, with numbers of their use only said to be there."""
    if isinstance(told, list):
        return [_without_use(one) for one in told]
    if not isinstance(told, dict):
        return told
    moving = ("free", "available", "inodes_free", "used", "used_percent", "ratio", "level", "sentence")
    return {key: value is not None if key in moving else _without_use(value) for key, value in told.items()}


def _differences(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    return {key: (old.get(key), new.get(key)) for key in {*old, *new} if old.get(key) != new.get(key)}


def _effects(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """Return the differences without notes of what was looked at, which only save the next run time.

    Nor do those count that tell users why a container of theirs was not started (``container why``), and
    the folder of locks, which is made by the first who needs it, and stays.
    """
    return {
        key: pair
        for key, pair in _differences(new, old).items()
        if not key.endswith(".look.json")
        and "/state/events" not in key
        and key != "/run/lab-server"
        and not key.startswith("/run/lab-server/locks")
    }


# What is handed back is what is documented

_TYPES = {"bool": bool, "int": int, "float": float, "str": str, "list": list, "dict": dict}


def check_documented(name: str, answer: dict[str, Any]) -> None:
    """Compare an answer with the documentation of the module, to the last key."""
    documented = yaml.safe_load(import_module(f"{PACKAGE}.{name}").RETURN)
    # Ansible's own, the same for all modules.
    ours = {key: value for key, value in answer.items() if key not in ("changed", "diff")}
    _check_keys(name, ours, documented)


def _check_keys(where: str, given: dict[str, Any], documented: dict[str, Any]) -> None:
    always = {key for key, value in documented.items() if value["returned"] == "always"}
    assert always <= set(given) <= set(documented), where
    for key, value in given.items():
        inner, place = documented[key], f"{where}.{key}"
        if value is None:
            continue
        assert isinstance(value, _TYPES[inner["type"]]), place
        for one in value if isinstance(value, list) else [value]:
            if inner["type"] == "list":
                assert isinstance(one, _TYPES[inner["elements"]]), place
            if "contains" in inner:
                _check_keys(place, one, inner["contains"])


# Modules that change the host, in a private root


def _policy(**changes: Any) -> dict[str, Any]:
    made, _keys = policies.from_inventory(
        {
            "lab_groups": [{"name": "students", "gid": 3101, "limits": LIMITS, "quota": QUOTA}],
            "lab_users": [ALICE, {**ALICE, "name": "bob", "uid": 2002}],
            "lab_base_images": [{"name": "lab/python", "image": "lab/python"}],
            **changes,
        }
    )
    return policies.dump(made)


def _user(**changes: Any) -> dict[str, Any]:
    limits = {key: LIMITS[key] for key in ("cpus", "memory", "pids")}
    return {**ALICE, "limits": limits, "ssh_keys": ["ssh-ed25519 AAAA alice"], **changes}


def _users(**changes: Any) -> dict[str, Any]:
    groups = [{"name": "students", "gid": 3101}, {"name": "vision", "gid": 3102}]
    return {"groups": groups, "users": [_user()], "closed_groups": ["docker"], **changes}


def _prepare_shares(root: PrivateRoot) -> None:
    with (root.path / "etc/group").open("a") as groups:
        groups.write("researchers:x:3102:\n")
    (root.path / "srv/data").mkdir()
    (root.path / "srv/data/file").touch()


def _prepare_packages(root: PrivateRoot) -> None:
    root.add_packages("quota", "acl", "uidmap", "toolkit=1.17.8-1", "toolkit=1.18.0-1", "toolkit=1.18.1-2")
    root.run("dpkg", "-i", "/srv/packages/uidmap.deb")


def _prepare_homes(root: PrivateRoot) -> None:
    for name, uid in (("alice", 2001), ("bob", 2002)):
        home = root.path / "home" / name
        home.mkdir(mode=0o700)
        os.chown(home, uid, uid)


def _prepare_leaving(root: PrivateRoot) -> None:
    # Its processes would be ended, so it is a number that no other test has.
    user = {**_user(), "name": "zoe", "uid": 29612}
    run_module("users", _users(users=[user]), check=False, call=root.call)
    with (root.path / "home/zoe/notes").open("w") as notes:
        notes.write("mine")
    os.chown(root.path / "home/zoe/notes", 29612, 29612)


def _nothing(root: PrivateRoot) -> None:
    """Prepare nothing."""


_SHARE = {"name": "vision", "access": "group", "group": "researchers"}
_PROJECT = {"user": "alice", "name": "thesis", "type": "ml"}
_STORAGE = {"lab_object_storage": [{"name": "campus", "url": "https://s3.example.org"}]}
_KEYS = {"campus": {"access_key": "AKCAMPUS", "secret_key": "not-to-be-shown-1"}}
_OTHER_KEYS = {"campus": {"access_key": "AKCAMPUS", "secret_key": "not-to-be-shown-2"}}
ON_THE_HOST: dict[str, tuple[Callable[[PrivateRoot], None], list[Step]]] = {
    "commands": (
        _nothing,
        [
            Step({"policy": _policy()}),
            Step({"policy": _policy(lab_environment={"A": "b"})}),
            Step({"policy": {"format": 0}}, changes=False, fails=True),
        ],
    ),
    "daemon_config": (
        _nothing,
        [
            Step({"settings": {"log-driver": "json-file", "log-opts": {"max-size": "10m"}}}),
            Step({"settings": {"log-opts": {"max-file": "3"}, "log-driver": None}}),
            Step({"settings": {"no-such-setting": 1}}, changes=False, fails=True),
            # Whatever runs on this computer has been started with a file of its own.
            Step({"certificates": "/etc/no-such-file"}, changes=False),
        ],
    ),
    "filesystems": (
        lambda root: root.add_disk("/dev/disk/by-id/lab-home"),
        [
            Step({"filesystems": [{**HOME, "create": False}]}, changes=False, fails=True),
            Step({"filesystems": [HOME]}),
            Step({"filesystems": [{**HOME, "options": ["noatime"]}]}),
            Step({"filesystems": [{**HOME, "device": "/dev/none"}]}, changes=False, fails=True),
        ],
    ),
    "offboarding": (
        _prepare_leaving,
        [
            Step({"user": "zoe", "policy": _policy()}),
            Step({"user": "zoe", "policy": _policy(), "purge": True}, changes=False, fails=True),
            Step({"user": "zoe", "policy": _policy(), "purge": True, "keep_days": 0}),
            Step({"user": "nobody-here", "policy": _policy()}, changes=False, fails=True),
        ],
    ),
    "object_storage": (
        _nothing,
        [
            Step({"policy": _policy(**_STORAGE), "credentials": {"alice": _KEYS, "bob": _KEYS}}),
            Step({"policy": _policy(**_STORAGE), "credentials": {"alice": _OTHER_KEYS, "bob": _KEYS}}),
            Step({"policy": _policy(**_STORAGE), "credentials": {"alice": _OTHER_KEYS}}),
            Step({"policy": _policy(**_STORAGE), "credentials": {"eve": _KEYS}}, changes=False, fails=True),
            Step({"policy": _policy()}),
        ],
    ),
    "packages": (
        _prepare_packages,
        [
            Step({"present": ["quota", "acl"], "absent": ["uidmap"]}),
            Step({"present": ["acl"], "absent": ["quota", "never-there"]}),
            Step({"present": ["toolkit"], "versions": {"toolkit": "1.18.0"}}),
            Step({"present": ["toolkit"], "versions": {"toolkit": "1.17.8-1"}}),
            Step({"present": ["toolkit"], "versions": {"toolkit": "1.18.1"}}),
            Step({"present": ["toolkit"], "versions": {"toolkit": ""}}, changes=False),
            Step({"present": ["toolkit"], "versions": {"toolkit": "-o x"}}, changes=False, fails=True),
        ],
    ),
    "quotas": (
        _nothing,
        [
            Step({"users": [{"name": "alice", "uid": 2001, "quota": QUOTA}]}),
            Step({"users": [{"name": "alice", "uid": 2001, "quota": {**QUOTA, "hard": "20m"}}]}),
            Step({"users": [{"name": "alice", "uid": 2001, "quota": {}}], "project": False}),
            Step({"users": [], "grace_days": 3, "default": {}, "overcommit": 1.5}),
            Step({"users": [], "grace_days": 3, "default": {"hard": "1g"}}, changes=False, fails=True),
            Step(
                {"users": [{"name": "alice", "uid": 2001, "quota": {**QUOTA, "hard": "1m"}}]},
                changes=False,
                fails=True,
            ),
        ],
    ),
    "shares": (
        _prepare_shares,
        [
            Step({"shares": [_SHARE, {"name": "datasets", "access": "read-only"}]}),
            Step({"shares": [{**_SHARE, "access": "read-only"}]}),
            Step({"shares": [{"name": "admin", "access": "admin"}]}),
            Step({"shares": [{"name": "file", "access": "admin"}]}, changes=False, fails=True),
        ],
    ),
    "units": (
        _nothing,
        [
            Step({"units": {"a.service": "[Unit]\n", "docker.service.d/b.conf": "[Unit]\n"}}),
            Step({"units": {"a.service": "[Unit]\nDescription=a\n"}}),
            Step({"units": {"../a.service": ""}}, changes=False, fails=True),
        ],
    ),
    "users": (
        _nothing,
        [
            Step(_users()),
            Step(_users(users=[_user(comment="Alice", ssh_keys=[], groups=["vision"])])),
            Step(_users(users=[_user(limits={"cpus": 2, "memory": "1g", "pids": 9})])),
            Step(_users(users=[_user(name="carol")]), changes=False, fails=True),
        ],
    ),
    "workspaces": (
        _prepare_homes,
        [
            Step({"policy": _policy()}),
            Step({"policy": _policy(), "projects": [_PROJECT]}),
            Step({"policy": _policy(), "users": ["alice"], "projects": [{**_PROJECT, "name": "b"}]}),
            Step({"policy": _policy(), "users": ["nobody-here"]}, changes=False, fails=True),
        ],
    ),
}


#: Those of which each reads what is there, and writes it back.
ALONE = {"commands", "daemon_config", "filesystems", "object_storage", "quotas", "shares", "units", "users"}


@pytest.mark.parametrize("name", ON_THE_HOST)
def test_on_the_host(private_root: PrivateRoot, name: str) -> None:
    prepare, steps = ON_THE_HOST[name]
    prepare(private_root)
    keep_promises(name, steps, private_root.content, private_root.call)


@pytest.mark.parametrize("name", sorted(ALONE))
def test_two_runs_at_once_do_not_mix(
    private_root: PrivateRoot, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "SET_UP", 0.1)
    prepare, steps = ON_THE_HOST[name]
    prepare(private_root)
    arguments = next(step.arguments for step in steps if step.changes)
    folder = private_root.path / "run/lab-server/locks"
    folder.mkdir(parents=True)
    before = private_root.content()
    with locks.hold("host", directory=str(folder)):
        promise = run_module(name, arguments, check=True, call=private_root.call)
        refused = run_module(name, arguments, check=False, call=private_root.call)
    assert promise["changed"] and not promise.get("failed")
    assert refused["msg"] == (
        "Somebody else is at work on the set-up of this server, such as another run of ansible-playbook. "
        "Wait until that is done, then try again."
    )
    assert _effects(private_root.content(), before) == {}
    assert run_module(name, arguments, check=False, call=private_root.call)["changed"]


def test_data_move(writable_root: PrivateRoot) -> None:
    old, new = "/dev/disk/by-id/lab-old", "/dev/disk/by-id/lab-new"
    for disk in (old, new):
        writable_root.add_disk(disk)
    data = {"role": "data", "mount": "/srv/data", "device": old, "create": True}
    made = run_module("filesystems", {"filesystems": [data]}, check=False, call=writable_root.call)
    assert made["changed"], made
    (writable_root.path / "srv/data/file").write_text("content")

    def look() -> dict[str, Any]:
        # A disk that is mounted is written by itself, too; of that what is on it counts.
        found = writable_root.content()
        used = {loop for loop in writable_root.loops if any(loop in line for line in found["mounts"])}
        # The folder of locks is made by the first who needs it, and stays.
        seen = {
            key: value
            for key, value in found.items()
            if key not in used and not key.startswith("/run/lab-server")
        }
        return {**seen, "data": writable_root.call(lambda: tree("/srv/data"))}

    to, task = {"device": new}, {"policy": _policy()}
    steps = [
        Step({**task, "to": {**to, "device": "/dev/none"}}, changes=False, fails=True),
        Step({**task, "to": to}, changes=False, fails=True),
        Step({**task, "to": {"device": old}}, changes=False),
        Step({**task, "to": {**to, "create": True}}),
        Step({**task, "to": to, "release": True}),
        Step({**task, "to": to, "release": True}, changes=False),
    ]
    keep_promises("data_move", steps, look, writable_root.call)


def test_no_key_is_shown(private_root: PrivateRoot) -> None:
    for keys in (_KEYS, _OTHER_KEYS):
        arguments = {"policy": _policy(**_STORAGE), "credentials": {"alice": keys}}
        for check in (True, False):
            answer = run_module("object_storage", arguments, check=check, call=private_root.call)
            assert answer["changed"] and answer["diff"] and "not-to-be-shown" not in str(answer)
    made = private_root.path / "etc/lab-server/object-storage/alice.conf"
    status = made.stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o640, 0, 2001)
    assert "not-to-be-shown-2" in made.read_text()
    # One that others could read is made anew, and a link in its place is not followed.
    made.chmod(0o644)
    assert run_module("object_storage", arguments, check=False, call=private_root.call)["changed"]
    assert made.stat().st_mode & 0o7777 == 0o640
    made.unlink()
    made.symlink_to("../shown")
    assert run_module("object_storage", arguments, check=False, call=private_root.call)["changed"]
    assert not made.is_symlink() and not (private_root.path / "etc/lab-server/shown").exists()


# Modules that change Docker


@pytest.fixture
def look(engine: Engine, docker: Any, root: Path) -> Callable[[], dict[str, Any]]:
    """Return a function that returns all that a module can change in Docker and in the users' folders."""

    def looked() -> dict[str, Any]:
        found: dict[str, Any] = {
            f"container {one['Id']}": (one["Names"], one["State"] == "running") for one in engine.containers()
        }
        found.update({f"image {one['Id']}": one["RepoTags"] for one in engine.images()})
        found.update({kind: docker(kind, "ls", "-q").split() for kind in ("volume", "network")})
        found.update(tree(str(root)))
        # The folders of locks and of temporary files are made by the first who needs them, and stay.
        passing = [path for path in found if path == f"{root}/state/tmp" or path.startswith(f"{root}/run/")]
        return {key: value for key, value in found.items() if key not in passing}

    return looked


@pytest.fixture
def given(url: str, policy: Policy) -> dict[str, Any]:
    """Return the arguments that the modules on Docker share."""
    return {"docker_host": url, "policy": policies.dump(policy)}


def test_base_images(look: Any, url: str, docker: Any, tiny: str, tmp_path: Path) -> None:
    docker("tag", tiny, "lab-test/source")
    docker("save", "-o", str(tmp_path / "tiny.tar"), "lab-test/source")
    image = {"name": "lab-test/module", "archive": str(tmp_path / "tiny.tar")}
    task = {"docker_host": url, "images": [image]}
    steps = [Step(task), Step({**task, "environment": {"A": "b"}})]
    wrong = {**image, "image": "lab-test/source"}
    steps.append(Step({**task, "images": [wrong]}, changes=False, fails=True))
    try:
        keep_promises("base_images", steps, look)
    finally:
        docker("rmi", "-f", "lab-test/module", "lab-test/source")


def test_project_images(look: Any, given: dict[str, Any], thesis: Any) -> None:
    task = {**given, "projects": [{"user": "alice", "name": "thesis"}]}
    keep_promises("project_images", [Step(task)], look)
    thesis.write("word", "two\n")
    next_second()
    keep_promises("project_images", [Step(task)], look)
    next_second()
    keep_promises("project_images", [Step({**task, "build_args": {"A": "b"}})], look)
    missing = {**given, "projects": [{"user": "nobody-here", "name": "thesis"}]}
    steps = [
        Step({**task, "state": "rolled_back", "build_args": {"A": "b"}}),
        Step({**task, "build_args": {"A": "b"}}, changes=False),
        Step({**task, "state": "pruned"}, changes=False),
        Step({**task, "state": "pruned", "policy": {**given["policy"], "images_keep": 1}}),
        Step(missing, changes=False, fails=True),
    ]
    keep_promises("project_images", steps, look)


def test_project_containers(look: Any, given: dict[str, Any], thesis: Any, alice: User, inside: Any) -> None:
    def task(**project: Any) -> dict[str, Any]:
        return {**given, "projects": [{"user": "alice", "name": "thesis", **project}]}

    run_module("project_images", task(), check=False)
    steps = [
        Step(task()),
        Step(task(pids=32)),
        Step(task(pids=32, environment={"A": "b"})),
        Step(task(state="stopped")),
        Step(task()),
        Step(task(memory="1t"), changes=False, fails=True),
    ]
    keep_promises("project_containers", steps, look)
    inside(alice, "thesis", "echo hello > ~/made")
    steps = [
        Step(task(state="retired")),
        Step(task(state="stopped"), changes=False),
        Step(task(state="restored")),
        Step(task(state="absent")),
        Step(task()),
        # Nobody has written anything into this one.
        Step(task(state="retired")),
        Step(task(state="restored"), changes=False, fails=True),
    ]
    keep_promises("project_containers", steps, look)


def test_project_containers_that_are_refused(
    look: Any,
    given: dict[str, Any],
    thesis: Any,
    policy: Policy,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the deed refuses, the promise refuses in the same words, and nothing was made for it."""
    monkeypatch.setattr(policies, "HOMES_ROOT", str(root / "home/.homes"))
    (root / "home/.homes/alice").mkdir(parents=True)
    (root / "home/.homes/alice/thesis").touch()

    def step(**project: Any) -> Step:
        task = {**given, "projects": [{"user": "alice", "name": "thesis", **project}]}
        return Step(task, changes=False, fails=True)

    run_module("project_images", step().arguments, check=False)
    keep_promises("project_containers", [step(home="persistent"), step(gpus="1")], look)
    Path(policy.workspace(policy.user("alice"))).rename(root / "away")
    keep_promises("project_containers", [step()], look)


def test_project_containers_whose_gpus_are_taken(
    look: Any,
    engine: Engine,
    given: dict[str, Any],
    policy: Policy,
    project_of: Any,
    tiny: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a list each is promised what those before it leave, of the server and of what its user may have."""
    folders = engine.info().get("CDISpecDirs")
    if not folders:
        pytest.skip("this engine does not know CDI, and no other way gives simulated GPUs (Docker 25 does)")
    told = json.loads((Path(folders[0]) / "simulated.json").read_text())["devices"][:3]
    cards = [Device(one["name"], "GPU (simulated)", 80 << 30, index=str(n)) for n, one in enumerate(told)]
    monkeypatch.setattr(gpuleases, "inventory", lambda _policy: list(cards))
    users = tuple(replace(user, limits=replace(user.limits, gpus=2)) for user in policy.users)
    shared = {**given, "policy": policies.dump(replace(policy, users=users))}

    def task(*projects: tuple[str, str, str]) -> dict[str, Any]:
        return {**shared, "projects": [{"user": u, "name": p, "gpus": gpus} for u, p, gpus in projects]}

    every = [("alice", "a"), ("alice", "b"), ("bob", "a"), ("bob", "b")]
    for user, project in every:
        project_of(policy.user(user), project).write("Dockerfile", f"FROM {tiny}\n")
    run_module("project_images", task(*((user, project, "") for user, project in every)), check=False)
    steps = [
        Step(task(("alice", "a", "3")), changes=False, fails=True),
        Step(task(("alice", "a", "2"), ("alice", "b", "1"), ("bob", "a", "2"), ("bob", "b", "")), fails=True),
        Step(task(("bob", "a", "2")), changes=False, fails=True),
        Step(task(("bob", "a", "1"))),
    ]
    keep_promises("project_containers", steps, look)


def test_server_info(look: Any, given: dict[str, Any], thesis: Any) -> None:
    task = {**given, "projects": [{"user": "alice", "name": "thesis"}]}
    nowhere = {**given, "docker_host": "unix:///nonexistent/docker.sock"}
    keep_promises("server_info", [Step(given, changes=False), Step(nowhere, changes=False)], look)
    run_module("project_images", task, check=False)
    run_module("project_containers", task, check=False)
    keep_promises("server_info", [Step(given, changes=False)], look)


def test_gpu_info() -> None:
    # NVIDIA's library makes its device nodes where it finds none (nvidia-modprobe); a look is to make none.
    def nodes() -> dict[str, bool]:
        return {name: True for name in os.listdir("/dev") if name.startswith("nvidia")}

    keep_promises("gpu_info", [Step({}, changes=False)], nodes)


def test_every_module_is_here() -> None:
    others = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(MODULES) <= {*ON_THE_HOST, *others}
