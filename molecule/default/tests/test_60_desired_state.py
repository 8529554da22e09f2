"""The second run changes nothing, check mode is true, bad input touches nothing (F1, H1, E1, E4)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml
from conftest import ALICE, INVENTORY, PlayOutcome, Server

Play = Callable[..., PlayOutcome]


def variables() -> dict[str, Any]:
    """Return the users and groups of the example inventory as they are written."""
    merged: dict[str, Any] = {}
    for file in sorted((INVENTORY / "group_vars").rglob("*.yml")):
        merged.update(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    return merged


@pytest.fixture(scope="module")
def with_erin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Variables with a new user, and with twice the quota for the group of alice."""
    written = variables()
    groups, users = written["lab_groups"], written["lab_users"]
    students = next(group for group in groups if group["name"] == "students")
    students["quota"].update(soft="400m", hard="500m")
    users.append({"name": "erin", "uid": 2005, "group": "students"})
    file = tmp_path_factory.mktemp("variables") / "erin.json"
    file.write_text(json.dumps({"lab_groups": groups, "lab_users": users}), encoding="utf-8")
    return file


@pytest.mark.thorough
def test_a_new_user_and_a_raised_quota_need_one_run_and_no_restart(
    server: Server, play: Play, with_erin: Path
) -> None:
    server.user("alice", "container retire my-thesis; project launch my-thesis --detach")
    started = server.inspect("my-thesis", ALICE)["State"]["StartedAt"]
    promised = play("--check", "--diff", "-e", f"@{with_erin}")
    assert promised.rc == 0, promised.text[-3000:]
    assert "erin" in promised.text and promised.count("changed") > 0
    assert server.root("getent passwd erin", check=False).rc != 0

    done = play("--diff", "-e", f"@{with_erin}")
    assert done.rc == 0, done.text[-3000:]
    # Task by task, what check mode said would change did change, and nothing else.
    assert done.changed() == promised.changed() != []
    assert server.root("stat -c %U:%a /home/.workspaces/erin").out == "erin:700"
    assert server.user("erin", "touch ~/workspace/mine && workspace usage").rc == 0
    assert server.root("repquota -u -n -p /home | awk '$1 == \"#2001\" {print $5}'").out == str(500 << 10)
    assert server.inspect("my-thesis", ALICE)["State"]["StartedAt"] == started
    assert int(server.inside("my-thesis", ALICE, "df -k --output=size /workspace | tail -1").out) == 500 << 10


@pytest.mark.thorough
def test_who_is_not_declared_any_more_is_shut_out_and_keeps_the_files(server: Server, play: Play) -> None:
    gone = play("--diff")
    assert gone.rc == 0, gone.text[-3000:]
    assert "1970" in server.root("LC_ALL=C chage -l erin | grep '^Account expires'").out
    assert server.root("id -nG erin").out == "erin"
    assert server.root("stat -c %U:%a /home/.workspaces/erin").out == "erin:700"
    assert server.root("ls /home/.workspaces/erin/mine").rc == 0
    assert server.user("erin", "project list", check=False).rc != 0


@pytest.mark.thorough
def test_what_a_run_that_was_cut_off_did_not_restart_the_next_one_does(server: Server, play: Play) -> None:
    server.user("alice", "project launch my-thesis --detach")
    started = server.inspect("my-thesis", ALICE)["State"]["StartedAt"]
    # As it is when a run has written the files and has come no further.
    server.root('sed -i \'s/"digest": "/&0/\' /run/lab-server/loaded/*.json')
    late = [
        "lab.server.docker : Docker runs by its settings and behind its firewall, also after the next boot",
        "lab.server.package_cache : The cache runs by its settings, also after the next boot",
        "lab.server.users : The ssh server knows",
    ]
    promised, done, again = play("--check"), play(), play()
    assert [one.rc for one in (promised, done, again)] == [0, 0, 0], done.text[-3000:]
    assert sorted(promised.changed()) == sorted(done.changed()) == late
    assert again.changed() == []
    assert server.inspect("my-thesis", ALICE)["State"]["StartedAt"] == started
    assert "LAB-SERVER" in server.root("iptables -w -S DOCKER-USER").out


def test_bad_input_is_one_sentence_and_nothing_is_changed(server: Server, play: Play) -> None:
    before = server.root("sha256sum /etc/lab-server/policy.json /etc/passwd /etc/fstab").out
    refused = play("-e", json.dumps({"lab_shares": [{"name": "x", "access": "group", "group": "nobodys"}]}))
    assert refused.rc != 0
    # As Ansible shows a text in YAML: lines are broken, and quotes are there twice.
    said = " ".join(refused.text.replace("''", "'").split())
    assert "lab_shares[0] (x).group: 'nobodys' is not in lab_groups." in said
    assert refused.count("changed") == 0
    assert server.root("sha256sum /etc/lab-server/policy.json /etc/passwd /etc/fstab").out == before
