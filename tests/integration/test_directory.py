# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Lab users of a directory: accounts from a source of the name service other than the files of the host.

libnss-extrausers plays the directory. What uses the name service runs in processes of its own, as the C
library reads nsswitch.conf(5) once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.filter.policy import directory as asked_filter
from ansible_collections.lab.server.plugins.filter.policy import policy as policy_filter
from private_root import PrivateRoot, tree

HERE = Path(__file__).parent
LIMITS = {"containers": 2, "cpus": 1, "memory": "64m", "pids": 64, "shm": "1m", "gpus": 0}
QUOTA = {"soft": "9m", "hard": "10m", "inodes_soft": 90, "inodes_hard": 100}
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBFsdlBIzHK2rXmV5vzZzfPqjvBzOJXYzC5zyUsJqyx7 carol"
INVENTORY = {
    "lab_groups": [{"name": "students", "gid": 3101, "limits": LIMITS, "quota": QUOTA}],
    "lab_users": [
        {"name": "carol", "group": "students", "account": "existing", "ssh_keys": [KEY]},
        {"name": "eve", "uid": 2001, "group": "students"},
    ],
    "lab_directory_groups": [{"name": "uni-students", "group": "students"}],
}
PEOPLE = {"alice": 5001, "bob": 5002, "carol": 5003}
OURS = ("/.upper/etc/passwd", "/.upper/etc/shadow", "/.upper/etc/subuid", "/.upper/etc/subgid")

MODULE = """
import json, sys
from private_root import run_module
given = json.load(sys.stdin)
print(json.dumps(run_module("users", given["arguments"], check=given["check"], call=lambda run: run())))
"""
IDENTIFY = """
import json, sys
from ansible_collections.lab.server.plugins.module_utils._core import broker, policy
from ansible_collections.lab.server.plugins.module_utils._core.errors import LabError
given = json.load(sys.stdin)
try:
    print(json.dumps(broker.identify(given["uid"], policy.parse(given["policy"])).name))
except LabError as error:
    print(json.dumps(str(error)))
"""


class Campus:
    """A server, and a directory that can lose people and go away."""

    def __init__(self, root: PrivateRoot) -> None:
        self.root = root
        self._at = root.path / "var/lib/extrausers"
        lines = "".join(f"{what}: files extrausers\n" for what in ("passwd", "group", "shadow"))
        (root.path / "etc/nsswitch.conf").write_text(lines)

    def knows(self, *people: str) -> None:
        self._at.mkdir(exist_ok=True)
        rows = (f"{name}:x:{PEOPLE[name]}:10000::/home/{name}:/bin/sh\n" for name in people)
        (self._at / "passwd").write_text("".join(rows))
        members = ",".join(name for name in people if name != "carol")
        (self._at / "group").write_text(f"everybody:x:10000:\nuni-students:x:20000:{members}\n")

    def is_away(self) -> None:
        for name in ("passwd", "group"):
            (self._at / name).unlink()
        self._at.rmdir()

    def getent(self, what: str, names: list[str]) -> str:
        def ask() -> list[Any]:
            done = subprocess.run(["getent", what, *names], capture_output=True, text=True, check=False)
            return [done.returncode, done.stdout]

        code, text = self.root.call(ask)
        assert code in (0, 2)
        return str(text)

    def policy(self) -> dict[str, Any]:
        """Return what the playbook makes of the inventory and of what the server answers."""
        groups = self.getent("group", asked_filter(INVENTORY)["groups"])
        accounts = self.getent("passwd", asked_filter(INVENTORY, groups=groups)["users"])
        return policy_filter(INVENTORY, strict=False, groups=groups, accounts=accounts)

    def python(self, program: str, **given: Any) -> Any:
        def run() -> str:
            places = [str(HERE), *sys.path]
            command = [sys.executable, "-c", f"import sys; sys.path[:] = {places}\n{program}"]
            done = subprocess.run(
                command, input=json.dumps(given), capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        return json.loads(self.root.call(run))

    def provision(self) -> dict[str, Any]:
        """Run the module users as the playbook does: in check mode, in earnest, and once more."""
        made = self.policy()
        assert made["problem"] == ""
        given = {
            "gid": made["gid"],
            "groups": made["groups"],
            "users": made["users"],
            "closed_groups": ["docker"],
        }
        before = self.files()
        promise = self.python(MODULE, arguments=given, check=True)
        assert self.files() == before
        deed = self.python(MODULE, arguments=given, check=False)
        assert deed == promise and not deed.get("failed"), deed
        again = self.python(MODULE, arguments=given, check=False)
        assert not again.get("failed") and not again["changed"], again
        return made

    def files(self) -> dict[str, str]:
        found: dict[str, str] = self.root.call(lambda: tree("/.upper"))
        return found

    def groups_of(self, name: str) -> set[str]:
        return set(self.root.run("id", "-nG", name).split())

    def identify(self, made: dict[str, Any], name: str) -> str:
        return str(self.python(IDENTIFY, policy=made["policy"], uid=PEOPLE[name]))


@pytest.fixture
def campus() -> Iterator[Campus]:
    if os.geteuid() != 0:
        pytest.skip("a root file system of its own needs root")
    root = PrivateRoot()
    try:
        made = Campus(root)
        made.knows(*PEOPLE)
        # Without the plug-in nothing below would tell anything.
        assert made.getent("passwd", ["bob"]).startswith("bob:x:5002:"), "libnss-extrausers is not installed"
        yield made
    finally:
        root.close()


def text(campus: Campus, path: str) -> str:
    return (campus.root.path / path).read_text()


def test_people_of_the_directory_have_all_that_lab_users_have(campus: Campus) -> None:
    before = {path: campus.files().get(path) for path in OURS}
    made = campus.provision()
    assert [user["name"] for user in made["users"]] == ["carol", "eve", "alice", "bob"]
    # The account of eve alone is ours.
    assert [line.split(":")[0] for line in text(campus, "etc/passwd").splitlines()] == ["root", "_apt", "eve"]
    assert "alice" not in text(campus, "etc/shadow") and text(campus, "etc/subuid") == ""
    assert before["/.upper/etc/subuid"] == campus.files()["/.upper/etc/subuid"]
    for name, uid in PEOPLE.items():
        home = (campus.root.path / "home" / name).stat()
        assert (home.st_uid, home.st_gid, home.st_mode & 0o777) == (uid, 10000, 0o700)
        assert {"everybody", "lab", "students"} <= campus.groups_of(name)
        assert f"of the lab user {name}\n" in text(campus, f"etc/systemd/system/lab-{uid}.slice")
        assert campus.identify(made, name) == name
    assert text(campus, "etc/ssh/lab_authorized_keys/carol") == KEY + "\n"
    # Groups that the directory gives beside the lab's stay.
    assert "uni-students" in campus.groups_of("alice")
    assert "docker" not in {name for person in PEOPLE for name in campus.groups_of(person)}


def test_who_vanished_is_shut_out_and_comes_back(campus: Campus) -> None:
    campus.provision()
    (campus.root.path / "home/bob/notes").write_text("mine")
    slice_ = text(campus, "etc/systemd/system/lab-5002.slice")
    campus.knows("alice", "carol")
    made = campus.provision()
    assert [user["name"] for user in made["users"]] == ["carol", "eve", "alice"]
    assert "bob" not in text(campus, "etc/group") and "not a lab user" in campus.identify(made, "bob")
    # What was bob's is there, and so is what holds the number.
    assert text(campus, "home/bob/notes") == "mine"
    assert text(campus, "etc/systemd/system/lab-5002.slice") == slice_
    campus.knows("alice", "bob")
    made = campus.provision()
    assert made["notes"] == ["carol is not in the directory: shut out, as if taken out of lab_users."]
    assert not (campus.root.path / "etc/ssh/lab_authorized_keys/carol").exists()
    assert {"lab", "students"} <= campus.groups_of("bob") and campus.identify(made, "bob") == "bob"


@pytest.mark.parametrize("away", [Campus.is_away, lambda campus: campus.knows()])
def test_a_directory_that_does_not_answer_changes_nothing(
    campus: Campus, away: Callable[[Campus], None]
) -> None:
    made = campus.provision()
    before = campus.files()
    away(campus)
    problem = campus.policy()
    assert list(problem) == ["problem"] and "getent group uni-students" in problem["problem"]
    campus.knows(*PEOPLE)
    assert campus.provision()["users"] == made["users"]
    kept = {path: value for path, value in campus.files().items() if "extrausers" not in path}
    assert kept == {path: value for path, value in before.items() if "extrausers" not in path}
