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
