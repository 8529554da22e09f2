"""The examples in the documentation of every module, run as they stand.

A module that changes the host runs in a private root, with what its example takes for granted (a disk, a
certificate, a group); one that needs the users' folders in Docker runs on the folders of ``conftest``. Each
task is run in check mode, for real, and once more, which must change nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.lab.server.plugins.module_utils._core import departing
from ansible_collections.lab.server.plugins.module_utils._core import policy as policies
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy
from private_root import CHECKOUT, MODULES, PACKAGE, PrivateRoot, call_in_child, next_second, run_module

LIMITS = {"containers": 5, "cpus": 2, "memory": "4g", "pids": 512, "shm": "1g", "gpus": 0}
QUOTA = {"soft": "9g", "hard": "10g", "inodes_soft": 900000, "inodes_hard": 1000000}
CAMPUS = {"name": "campus", "url": "https://s3.example.org"}
OTHERS = {"data_move", "gpu_info", "offboarding", "project_containers", "project_images", "server_info"}
IN_THE_PRIVATE_ROOT = sorted(set(MODULES) - OTHERS)


@dataclass
class Stage:
    """Where the tasks of an example run: how main() is called, and what the variables are."""

    call: Callable[[Callable[[], Any]], Any] = call_in_child
    variables: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)


def examples(name: str) -> list[dict[str, Any]]:
    """Return the tasks of a module's EXAMPLES."""
    tasks: list[dict[str, Any]] = yaml.safe_load(import_module(f"{PACKAGE}.{name}").EXAMPLES)
    return tasks


def run_examples(name: str, stage: Stage) -> list[dict[str, Any]]:
    """Run the tasks one after the other; return what the module said of each, in order."""
    answers = []
    for task in examples(name):
        arguments = {**stage.defaults, **_rendered(task[f"lab.server.{name}"], stage.variables)}
        promise = run_module(name, arguments, check=True, call=stage.call)
        assert not promise.get("failed"), (task["name"], promise)
        deed = run_module(name, arguments, check=False, call=stage.call)
        assert not deed.get("failed"), (task["name"], deed)
        assert deed["changed"] == promise["changed"], task["name"]
        again = run_module(name, arguments, check=False, call=stage.call)
        assert not again.get("failed") and not again["changed"], (task["name"], again)
        answers.append(deed)
    assert answers
    return answers


def _rendered(value: Any, variables: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _rendered(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_rendered(item, variables) for item in value]
    if isinstance(value, str) and "{{" in value:
        return Templar(loader=DataLoader(), variables=variables).template(trust_as_template(value))
    return value


def _policy(**changes: Any) -> dict[str, Any]:
    made, _keys = policies.from_inventory(
        {
            "lab_groups": [{"name": "students", "gid": 3101, "limits": LIMITS, "quota": QUOTA}],
            "lab_users": [
                {"name": "alice", "uid": 2001, "group": "students"},
                {"name": "bob", "uid": 2002, "group": "students"},
            ],
            "lab_base_images": [{"name": "lab/python", "archive": "/python.tar"}],
            **changes,
        }
    )
    return policies.dump(made)


# In a private root


def _archive_and_certificate(root: PrivateRoot, docker: Any, tiny: str) -> None:
    archive = root.path / "var/lib/lab-server/archives/python.tar"
    archive.parent.mkdir(parents=True)
    docker("tag", tiny, "lab-test/source")
    docker("save", "-o", str(archive), "lab-test/source")
    docker("rmi", "lab-test/source")
    # What it certifies is of no interest here; a build with it only copies it.
    certificate = root.path / "usr/local/share/ca-certificates/campus.crt"
    certificate.write_text("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")


def _group(root: PrivateRoot) -> None:
    with (root.path / "etc/group").open("a") as groups:
        groups.write("researchers:x:3102:\n")


def _packages(root: PrivateRoot) -> None:
    root.add_packages("quota", "acl", "uidmap")
    root.run("dpkg", "-i", "/srv/packages/uidmap.deb")


def _homes(root: PrivateRoot) -> None:
    for name, uid in (("alice", 2001), ("bob", 2002)):
        (root.path / "home" / name).mkdir(mode=0o700)
        os.chown(root.path / "home" / name, uid, uid)


def _ssh_server(root: PrivateRoot) -> None:
    """Play a systemd whose ssh server runs since before its settings were written."""
    settings = root.path / "etc/ssh/sshd_config.d/lab.conf"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text("X11Forwarding no\n")
    (root.path / "run/systemd/system").mkdir(parents=True)
    state = "LoadState=loaded\\nActiveState=active\\nInvocationID=1\\nInactiveExitTimestampMonotonic=1\\n\\n"
    program = root.path / "usr/bin/systemctl"
    program.unlink(missing_ok=True)
    program.write_text(f"#!/bin/sh\n[ \"$1\" != show ] || printf '{state}'\n")
    program.chmod(0o755)


@pytest.mark.parametrize("name", IN_THE_PRIVATE_ROOT)
def test_in_a_private_root(private_root: PrivateRoot, docker: Any, tiny: str, name: str) -> None:
    taken_for_granted: dict[str, Callable[[PrivateRoot], None]] = {
        "base_images": lambda root: _archive_and_certificate(root, docker, tiny),
        "filesystems": lambda root: root.add_disk("/dev/disk/by-id/virtio-lab-home"),
        "packages": _packages,
        "shares": _group,
        "units": _ssh_server,
        "workspaces": _homes,
    }
    taken_for_granted.get(name, lambda root: None)(private_root)
    try:
        answers = run_examples(
            name,
            Stage(
                private_root.call,
                variables={
                    "lab_policy": {"policy": _policy(lab_object_storage=[CAMPUS])},
                    "vault_alice_secret_key": "secret-of-alice",
                },
            ),
        )
    finally:
        if name == "base_images":
            docker("rmi", "-f", "lab/python")
    assert all(answer["changed"] for answer in answers)


def test_data_move(writable_root: PrivateRoot) -> None:
    old, new = "/dev/disk/by-id/lab-data", "/dev/disk/by-id/virtio-lab-archive"
    for disk in (old, new):
        writable_root.add_disk(disk)
    data = {"role": "data", "mount": "/srv/data", "device": old, "create": True}
    made = run_module("filesystems", {"filesystems": [data]}, check=False, call=writable_root.call)
    assert made["changed"], made
    (writable_root.path / "srv/data/file").write_text("content")
    moved, released = run_examples(
        "data_move",
        Stage(writable_root.call, defaults={"policy": _policy(), "docker_host": "unix:///run/docker.sock"}),
    )
    assert moved["changed"] and released["changed"]
    assert (writable_root.path / "srv/data/file").read_text() == "content"


def test_offboarding(private_root: PrivateRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    # Processes of who leaves are ended, so these are numbers that nobody has.
    people = [
        {"name": name, "uid": 29620 + n, "group": "students"} for n, name in enumerate(("alice", "bob"))
    ]
    shares = [{"name": "vision", "access": "group", "group": "students"}]
    policy = _policy(lab_users=people, lab_shares=shares)
    accounts = {
        "groups": [{"name": "students", "gid": 3101}],
        "users": [{**one, "limits": {"cpus": 2, "memory": "4g", "pids": 512}} for one in people],
    }
    survey = {"user": "alice", "name": "survey"}
    for name, arguments in (
        ("users", accounts),
        ("workspaces", {"policy": policy, "projects": [survey]}),
        ("shares", {"shares": shares}),
        ("commands", {"policy": policy}),
    ):
        made = run_module(name, arguments, check=False, call=private_root.call)
        assert not made.get("failed"), made
    stage = Stage(private_root.call)
    leaves, shared, purge = examples("offboarding")
    monkeypatch.setattr(sys.modules[__name__], "examples", lambda _name: [leaves])
    (left,) = run_examples("offboarding", stage)
    assert left["changed"] and (private_root.path / "home/.workspaces/bob/survey").is_dir()
    assert len(list((private_root.path / "home/.offboarded").iterdir())) == 2
    monkeypatch.setattr(sys.modules[__name__], "examples", lambda _name: [shared])
    (handed,) = run_examples("offboarding", stage)
    assert handed["changed"] and (private_root.path / "srv/data/vision/survey-of-alice").is_dir()
    # A month later.
    now = time.time() + 32 * 86400
    later = SimpleNamespace(time=lambda: now, monotonic=time.monotonic, sleep=time.sleep)
    monkeypatch.setattr(departing, "time", later)
    monkeypatch.setattr(sys.modules[__name__], "examples", lambda _name: [purge])
    (purged,) = run_examples("offboarding", stage)
    assert purged["changed"] and not (private_root.path / "home/alice").exists()


# On the folders of conftest


@pytest.fixture
def stage(
    root: Path, policy: Policy, url: str, monkeypatch: pytest.MonkeyPatch, project_of: Any, tiny: str
) -> Stage:
    """Return a stage with the projects that the examples speak of, none of them built yet."""
    monkeypatch.setattr(policies, "HOMES_ROOT", str(root / "home/.homes"))
    limits = replace(policy.users[0].limits, memory=4 << 30, containers=5)
    roomy = replace(policy, users=tuple(replace(user, limits=limits) for user in policy.users))
    for user, project in (("alice", "my-thesis"), ("bob", "survey"), ("bob", "notebooks")):
        project_of(policy.user(user), project).write("Dockerfile", f"FROM {tiny}\nCOPY . /x\n")
    return Stage(
        variables={"lab_policy": {"policy": policies.dump(roomy)}},
        defaults={"docker_host": url},
    )


def _run(stage: Stage, name: str, *projects: tuple[str, str], **more: Any) -> dict[str, Any]:
    """Run a module on some projects, for what an example takes for granted."""
    arguments = {
        **stage.defaults,
        "policy": stage.variables["lab_policy"]["policy"],
        "projects": [{"user": user, "name": project} for user, project in projects],
        **more,
    }
    answer = run_module(name, arguments, check=False)
    assert not answer.get("failed"), answer
    return answer


def test_project_images(engine: Any, stage: Stage, policy: Policy, alice: Any) -> None:
    word = Path(policy.workspace(alice)) / "my-thesis/word"
    word.write_text("one\n")
    os.chown(word, alice.uid, alice.gid)
    _run(stage, "project_images", ("alice", "my-thesis"))
    word.write_text("two\n")
    next_second()
    built, locked, back, _pruned = run_examples("project_images", stage)
    assert built["changed"] and back["changed"]
    # A lock makes no build needed.
    assert not locked["changed"]


def test_project_containers(engine: Any, stage: Stage, bob: Any, inside: Any) -> None:
    _run(stage, "project_images", ("alice", "my-thesis"), ("bob", "survey"), ("bob", "notebooks"))
    _run(stage, "project_containers", ("bob", "survey"))
    inside(bob, "survey", "echo hello > ~/kept")
    answers = run_examples("project_containers", stage)
    assert all(answer["changed"] for answer in answers)


def test_gpu_info(tmp_path: Path) -> None:
    (info, shown) = ansible_playbook(tmp_path, examples("gpu_info"))
    assert not info["changed"] and info["gpu"]["problem"] and info["gpu"]["gpus"] == []
    assert shown["skipped"]


def test_server_info(engine: Any, stage: Stage, tmp_path: Path) -> None:
    _run(stage, "project_images", ("alice", "my-thesis"))
    _run(stage, "project_containers", ("alice", "my-thesis"))
    # Through Ansible itself, and with the address of Docker from the action group.
    defaults = {
        "group/lab.server.docker": stage.defaults,
        "lab.server.server_info": {"policy": stage.variables["lab_policy"]["policy"]},
    }
    said = ansible_playbook(tmp_path, examples("server_info"), module_defaults=defaults)
    found = said[0]["server"]
    assert found["docker"] == {"answers": True, "problem": ""}
    (container,) = found["containers"]
    assert (container["name"], container["user"], container["running"]) == (
        "my-thesis._.2001",
        "alice",
        True,
    )
    # That process does not know that the workspaces are elsewhere in this test, so the container differs.
    assert (container["drift"], container["reason"]) == (True, "the policy changed (workspace)")
    assert said[1]["results"][0]["msg"] == "my-thesis._.2001 differs: the policy changed (workspace)"


def test_every_module_is_here() -> None:
    others = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(MODULES) <= {*IN_THE_PRIVATE_ROOT, *others}


# Through Ansible itself


def ansible_playbook(
    folder: Path, tasks: list[dict[str, Any]], *options: str, **play: Any
) -> list[dict[str, Any]]:
    """Run tasks on this computer by ansible-playbook; return what each said."""
    whole = {"name": "Examples", "hosts": "localhost", "gather_facts": False, "tasks": tasks, **play}
    playbook = folder / "play.yml"
    playbook.write_text(yaml.safe_dump([whole]))
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "localhost,", "-c", "local"]
    command += ["-e", f"ansible_python_interpreter={sys.executable}", *options, str(playbook)]
    environment = {
        **os.environ,
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_HOME": str(CHECKOUT / ".ansible"),
        "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
    }
    done = subprocess.run(
        command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if "--syntax-check" in options:
        return []
    answers = json.loads(done.stdout[done.stdout.index("{") :])["plays"][0]["tasks"]
    return [task["hosts"]["localhost"] for task in answers]


def test_ansible_takes_all_examples(tmp_path: Path) -> None:
    every = [task for name in MODULES for task in examples(name)]
    ansible_playbook(tmp_path, every, "--syntax-check", module_defaults={"group/lab.server.all": {}})
