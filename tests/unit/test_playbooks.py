# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Playbooks and tasks of roles, by Ansible itself on small inventories; this computer is not changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
ROLES = CHECKOUT / "roles"


def ansible(folder: Path, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    """Run ansible-playbook in ``folder``; return its plays as the callback ansible.posix.json has them."""
    environment = {
        **os.environ,
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_HOME": str(CHECKOUT / ".ansible"),
        "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
    }
    command = [str(Path(sys.executable).parent / "ansible-playbook"), *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    plays: list[dict[str, Any]] = json.loads(done.stdout[done.stdout.index("{") :])["plays"]
    return plays


def inventory(folder: Path, group: str = "lab_servers", **variables: Any) -> Path:
    """Write an inventory with one server, which is this computer."""
    folder.mkdir()
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, **variables}
    file = folder / "hosts.yml"
    file.write_text(yaml.safe_dump({group: {"hosts": {"server": here}}}), encoding="utf-8")
    return file


def task(role: str, file: str, name: str) -> dict[str, Any]:
    """Return a task of a role, to be played alone."""
    tasks = yaml.safe_load((ROLES / role / "tasks" / file).read_text(encoding="utf-8"))
    (found,) = (task for task in tasks if task["name"] == name)
    return {key: value for key, value in found.items() if key != "notify"}


def test_relative_paths_begin_at_the_inventorys_folder(tmp_path: Path) -> None:
    base = {"name": "lab/python", "archive": "files/python.tar"}
    hosts = inventory(
        tmp_path / "campus",
        docker_ca_certificates=["files/campus-ca.crt"],
        nvidia_container_toolkit_wheel="files/nvml.whl",
        __docker_ca_directory=str(tmp_path),
        __projects_archives=str(tmp_path),
        __projects_archived=[base],
        __projects_missing={"results": [{"name": base["name"], "changed": True}]},
    )
    (hosts.parent / "files").mkdir()
    for name in ("campus-ca.crt", "nvml.whl", "python.tar"):
        (hosts.parent / "files" / name).write_text(name, encoding="utf-8")
    tasks = [
        task("docker", "certificates.yml", "The certificates are on the server"),
        task("nvidia_container_toolkit", "toolkit.yml", "The binding to NVML is on the server"),
        task("projects", "main.yml", "The archives of base images are known by their content"),
        task("projects", "base_images.yml", "The archives of the missing base images are on the server"),
    ]
    play = tmp_path / "play.yml"
    play.write_text(yaml.safe_dump([{"hosts": "lab_servers", "gather_facts": False, "tasks": tasks}]))
    (done,) = ansible(tmp_path, "-i", str(hosts), "--check", str(play))
    certificates, wheel, known, archives = (one["hosts"]["server"] for one in done["tasks"])
    assert certificates["changed"] and wheel["changed"] and archives["changed"]
    (archive,) = known["results"]
    assert archive["stat"]["checksum"] == hashlib.sha256(b"python.tar").hexdigest()


NO_SERVERS = "The inventory has no group lab_servers with servers in it. Name "


@pytest.mark.parametrize("playbook", ["site", "offboard", "verify", "move_data"])
def test_a_playbook_without_servers_fails(tmp_path: Path, playbook: str) -> None:
    hosts = inventory(tmp_path / "campus", group="servers")
    (play,) = ansible(tmp_path, "-i", str(hosts), f"lab.server.{playbook}", "--tags", "users", code=2)
    assert play["tasks"][0]["hosts"]["localhost"]["msg"].startswith(NO_SERVERS)


def test_a_limit_changes_nothing_of_that(tmp_path: Path) -> None:
    verify = ("lab.server.verify", "--limit", "server", "--tags", "none")
    wrong, right = inventory(tmp_path / "wrong", group="servers"), inventory(tmp_path / "right")
    (play,) = ansible(tmp_path, "-i", str(wrong), *verify, code=2)
    assert play["tasks"][0]["hosts"]["server"]["msg"].startswith(NO_SERVERS)
    play, _checks = ansible(tmp_path, "-i", str(right), *verify)
    assert not play["tasks"][0]["hosts"]["server"]["changed"]


def test_a_part_brings_the_policy_with_it_and_the_readme_names_all_parts() -> None:
    *_servers, site = yaml.safe_load((CHECKOUT / "playbooks" / "site.yml").read_text(encoding="utf-8"))
    tags = {one["name"]: one["tags"] for one in site["tasks"]}
    assert tags.pop("Commands") == ["commands", "always"] and tags.pop("The inventory") == "always"
    assert tags.pop("What the roles would say no to") == "always"
    named = re.search(r"`--tags (.*?) runs a part", (CHECKOUT / "README.md").read_text("utf-8"), re.DOTALL)
    assert named and set(re.findall(r"\w+", named[1])) - {"or"} == {*tags.values(), "commands"}


def test_the_examples_of_roles_make_the_policy_that_they_hand_over(tmp_path: Path) -> None:
    plays = []
    for name in ("commands", "object_storage", "projects"):
        page = (ROLES / name / "README.md").read_text(encoding="utf-8")
        (play,) = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
        (role,) = play.pop("roles")
        assert role.pop("role") == f"lab.server.{name}"
        specs = yaml.safe_load((ROLES / name / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
        options = specs["argument_specs"]["main"]["options"]
        asked = {"argument_spec": options, "provided_arguments": role}
        tasks = [{"ansible.builtin.validate_argument_spec": asked}]
        plays.append({**play, "become": False, "gather_facts": False, "tasks": tasks})
    playbook = tmp_path / "play.yml"
    playbook.write_text(yaml.safe_dump(plays), encoding="utf-8")
    hosts = str(CHECKOUT / "inventories" / "template" / "hosts.yml")
    done = ansible(tmp_path, "-i", hosts, "-e", "vault_alice_secret_key=s", str(playbook))
    assert len(done) == len(plays) and all(play["tasks"][0]["hosts"] for play in done)


SMALL = {"containers": 1, "cpus": 1, "memory": "1g", "pids": 64, "shm": "64m", "gpus": 0}
QUOTA = {"soft": "1g", "hard": "2g", "inodes_soft": 1000, "inodes_hard": 2000}
STUDENTS = {"name": "students", "gid": 3101, "limits": SMALL, "quota": QUOTA}
ALICE = {"name": "alice", "uid": 2001, "group": "students"}
BASE = {"name": "lab/python"}
CAMPUS = {"name": "campus", "url": "https://s3.example.org"}
#: What every server has; the address needs no facts.
STANDING = {"lab_groups": [STUDENTS], "lab_users": [ALICE], "docker_repository_url": "https://example.org"}
VALID, ROLES_VALID, SECRETS, LOOK = (
    "The inventory is valid",
    "The variables of the roles are valid, and the files of this computer that are named are there",
    "There is a password that nobody guesses",
    "The file systems can be what they are declared to be",
)
#: Of each: variables of the inventory beside valid ones, the task that ends the run, and what it says.
WRONG: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "unknown_variable": ({"lab_usrs": []}, VALID, ("lab_usrs",)),
    "unknown_key": ({"lab_users": [{**ALICE, "shell": "zsh"}]}, VALID, ("lab_users[0] (alice)", "shell")),
    "size": (
        {"lab_groups": [{**STUDENTS, "limits": {**SMALL, "memory": "much"}}]},
        VALID,
        ("lab_groups[0] (students).limits.memory", "'much'"),
    ),
    "soft_above_hard": (
        {"lab_groups": [{**STUDENTS, "quota": {**QUOTA, "soft": "3g"}}]},
        VALID,
        ("lab_groups[0] (students).quota", "soft", "hard"),
    ),
    "user_name": ({"lab_users": [{**ALICE, "name": "Alice!"}]}, VALID, ("lab_users[0]", "'Alice!'")),
    "project_name": (
        {
            "lab_base_images": [{**BASE, "image": "python:3"}],
            "lab_projects": [{"user": "alice", "name": "a_b"}],
        },
        VALID,
        ("lab_projects[0]", "'a_b'"),
    ),
    "share_without_group": (
        {"lab_shares": [{"name": "vision", "access": "group", "group": "nobodys"}]},
        VALID,
        ("lab_shares[0] (vision)", "'nobodys'"),
    ),
    "backup_without_password": (
        {"lab_backup": {"repository": "/srv/backup"}},
        SECRETS,
        ("backup_password", "openssl rand -hex 32"),
    ),
    "certificate": (
        {"lab_ca_certificates": ["files/campus-ca.crt"]},
        ROLES_VALID,
        ("lab_ca_certificates[0]", "/campus/files/campus-ca.crt", "inventory's folder"),
    ),
    "archive": (
        {"lab_base_images": [{**BASE, "archive": "files/python.tar"}]},
        ROLES_VALID,
        ("lab_base_images (lab/python): archive", "/campus/files/python.tar"),
    ),
    "wheel": (
        {"nvidia_container_toolkit_wheel": "files/nvml.whl"},
        ROLES_VALID,
        ("nvidia_container_toolkit_wheel", "/campus/files/nvml.whl"),
    ),
    "types_of_role_variables": (
        {
            "docker_log_max_file": "many",
            "docker_ca_certificates": "campus-ca.crt",
            "docker_address_pools": [{"base": "10.0.0.0/8"}],
            "nvidia_container_toolkit_apply": "perhaps",
            "package_cache_resolvers": {"first": "10.0.0.1"},
            "backup_environment": ["verysecret"],
        },
        ROLES_VALID,
        (
            "docker_log_max_file: expected a whole number. How many logs of a container are kept.",
            "docker_ca_certificates: expected a list",
            "docker_address_pools: missing required arguments: size",
            "nvidia_container_toolkit_apply must be one of: auto, always, never",
            "package_cache_resolvers: expected a list",
            "backup_environment: expected a mapping",
        ),
    ),
    "keys_of_nobody": (
        {"lab_object_storage": [CAMPUS], "object_storage_credentials": {"mallory": {}}},
        ROLES_VALID,
        ("object_storage_credentials: 'mallory' is not in lab_users",),
    ),
    "no_disk": (
        {"lab_filesystems": {"home": {"device": "/dev/disk/by-id/nowhere"}}},
        LOOK,
        ("lab_filesystems.home.device: /dev/disk/by-id/nowhere is no disk of this server",),
    ),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the tasks of one run of the site for servers that are this computer, each with one mistake."""
    folder = tmp_path_factory.mktemp("site")
    hosts = inventory(folder / "campus", ansible_become=False, **STANDING)
    (group,) = yaml.safe_load(hosts.read_text(encoding="utf-8")).values()
    variables = group["hosts"]["server"]
    wrong = {name: {**variables, **mistake} for name, (mistake, _task, _said) in WRONG.items()}
    hosts.write_text(yaml.safe_dump({"lab_servers": {"hosts": wrong}}), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        # Facts of this computer would be read for each of the servers anew.
        patch.setenv("ANSIBLE_GATHERING", "explicit")
        # In a check: what is not refused must not come to this computer.
        *_begin, site = ansible(folder, "-i", str(hosts), "--check", "lab.server.site", code=2)
    tasks: list[dict[str, Any]] = site["tasks"]
    return tasks


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_told_in_a_sentence_before_anything_is_touched(
    refused: list[dict[str, Any]], name: str
) -> None:
    _mistake, task, said = WRONG[name]
    mine = [(one["task"]["name"], one["hosts"][name]) for one in refused if name in one["hosts"]]
    last, result = mine[-1]
    assert last.split(" : ")[-1] == task and result["failed"], (last, result.get("msg", result))
    assert all(part in result["msg"] for part in said), result["msg"]
    assert "\n" not in result["msg"] and "Traceback" not in result["msg"] and "secret" not in result["msg"]
    assert not any(one["changed"] for _name, one in mine)


def test_a_role_alone_says_no_before_it_touches_anything(tmp_path: Path) -> None:
    nowhere = [{"role": "home", "mount": "/home", "device": "/dev/disk/by-id/nowhere"}]
    hosts = inventory(tmp_path / "campus", ansible_become=False)
    (group,) = yaml.safe_load(hosts.read_text(encoding="utf-8")).values()
    mine: dict[str, dict[str, Any]] = {
        "disk": {"role": "lab.server.storage", "storage_filesystems": nowhere},
        "password": {"role": "lab.server.backup", "backup_repository": "/srv/backup"},
        # Before the tools of file systems are installed nobody can look: that is no reason to say no.
        "tool": {"said": "The tool dumpe2fs is missing. Install its package."},
        "no_tool": {"said": "lab_filesystems.home.device is not set."},
    }
    servers = {name: {**group["hosts"]["server"], **variables} for name, variables in mine.items()}
    hosts.write_text(yaml.safe_dump({"lab_servers": {"hosts": servers}}), encoding="utf-8")
    look = task("storage", "look.yml", LOOK)
    del look["lab.server.filesystems"]
    tasks = [
        {"ansible.builtin.include_role": {"name": "{{ role }}"}, "when": "role is defined"},
        {**look, "ansible.builtin.fail": {"msg": "{{ said }}"}, "when": "said is defined"},
    ]
    play = tmp_path / "play.yml"
    play.write_text(yaml.safe_dump([{"hosts": "lab_servers", "gather_facts": False, "tasks": tasks}]))
    (done,) = ansible(tmp_path, "-i", str(hosts), "--check", str(play), code=2)
    last = {name: one["task"]["name"] for one in done["tasks"] for name in one["hosts"]}
    failed = {name: one["hosts"][name].get("failed") for one in done["tasks"] for name in one["hosts"]}
    assert (last["disk"].split(" : ")[-1], last["password"].split(" : ")[-1]) == (LOOK, SECRETS)
    assert failed == {"disk": True, "password": True, "tool": None, "no_tool": True}
