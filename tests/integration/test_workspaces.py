"""Workspaces on the host: made by root where root owns the parents, and as the user below."""

from __future__ import annotations

import os

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import workspaces
from ansible_collections.lab.server.plugins.module_utils._core.errors import InvalidInput, NotFound
from ansible_collections.lab.server.plugins.module_utils._core.policy import Project, User
from ansible_collections.lab.server.plugins.module_utils._core.workspaces import WantedWorkspace


@pytest.fixture
def homes(root, policy, monkeypatch):
    """Give the users homes in the temporary folder, and take their workspaces away."""
    monkeypatch.setattr(User, "home", property(lambda user: str(root / "home" / user.name)))
    for user in policy.users:
        home = root / "home" / user.name
        home.mkdir(mode=0o700)
        os.chown(home, user.uid, user.gid)
        (root / "home/.workspaces" / user.name).rmdir()
    return root / "home"


def declared(name: str, **more) -> Project:
    fields = {
        "user": "alice",
        "name": name,
        "type": "ml",
        "base": "lab/python",
        "files": (),
        "state": "started",
    }
    limits = {"cpus": None, "memory": None, "pids": None, "shm": None, "environment": ()}
    return Project(**{**fields, **limits, **more})


def test_promise_equals_deed(homes, policy):
    wanted = [WantedWorkspace("alice", (declared("thesis"),)), WantedWorkspace("bob")]
    promise = workspaces.reconcile(policy, wanted, check=True)
    assert not (homes / ".workspaces/alice").exists()
    deed = workspaces.reconcile(policy, wanted, check=False)
    assert deed == promise
    assert [result.changed for result in deed] == [True, True]
    assert not any(result.changed for result in workspaces.reconcile(policy, wanted, check=False))
    workspace = homes / ".workspaces/alice"
    assert (workspace.stat().st_uid, workspace.stat().st_mode & 0o7777) == (2001, 0o700)
    assert os.readlink(homes / "alice/workspace") == str(workspace)
    assert os.lstat(homes / "alice/workspace").st_uid == 2001
    assert (workspace / "thesis/results/plots").is_dir()
    assert (workspace / "thesis/Dockerfile").stat().st_uid == 2001


def test_without_its_parent(homes, policy):
    (homes / ".workspaces").rmdir()
    wanted = [WantedWorkspace("alice")]
    promise = workspaces.reconcile(policy, wanted, check=True)
    assert promise == workspaces.reconcile(policy, wanted, check=False)
    assert (homes / ".workspaces").stat().st_mode & 0o7777 == 0o711


def test_what_the_user_did_is_left(homes, policy):
    wanted = [WantedWorkspace("alice", (declared("thesis"), declared("other")))]
    workspaces.reconcile(policy, [WantedWorkspace("alice")], check=False)
    workspace = homes / ".workspaces/alice"
    (workspace / "other").symlink_to(homes / "bob")
    (homes / "alice/workspace").unlink()
    (homes / "alice/workspace").mkdir()
    deed = workspaces.reconcile(policy, wanted, check=False)[0]
    assert deed.actions == [f"create {workspace}/thesis"]
    assert list((homes / "bob").iterdir()) == []
    assert not (homes / "alice/workspace").is_symlink()


def test_a_link_in_the_place_of_the_workspace(homes, policy, root):
    (homes / ".workspaces/alice").symlink_to(root / "srv")
    before = (root / "srv").stat()
    result = workspaces.reconcile(policy, [WantedWorkspace("alice")], check=False)[0]
    assert result.failed
    assert (root / "srv").stat() == before


def test_a_workspace_of_somebody_else(homes, policy):
    (homes / ".workspaces/alice").mkdir()
    os.chown(homes / ".workspaces/alice", 2002, 2002)
    result = workspaces.reconcile(policy, [WantedWorkspace("alice")], check=False)[0]
    assert "belongs to uid 2002" in result.message


def test_declared_files(homes, policy):
    files = (("Dockerfile", "FROM x\n"), ("src/deep/er.py", "1\n"))
    workspaces.reconcile(policy, [WantedWorkspace("alice", (declared("t", files=files),))], check=False)
    project = homes / ".workspaces/alice/t"
    assert (project / "Dockerfile").read_text() == "FROM x\n"
    assert (project / "src/deep/er.py").read_text() == "1\n"
    (project / "Dockerfile").write_text("mine\n")
    changed = (("Dockerfile", "FROM y\n"),)
    result = workspaces.reconcile(
        policy, [WantedWorkspace("alice", (declared("t", files=changed),))], check=False
    )
    assert not result[0].changed
    assert (project / "Dockerfile").read_text() == "mine\n"


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", ""])
def test_declared_files_elsewhere(homes, policy, path):
    wanted = [WantedWorkspace("alice", (declared("t", files=((path, "x"),)),))]
    assert workspaces.reconcile(policy, wanted, check=True)[0].failed
    assert workspaces.reconcile(policy, wanted, check=False)[0].failed


def test_init_and_list(policy, alice, bob):
    created = workspaces.init_project(policy, alice, "thesis", kind="stats")
    assert "thesis/Dockerfile" in created
    assert workspaces.init_project(policy, alice, "thesis") == []
    os.mkfifo(policy.workspace(alice) + "/pipe")
    os.symlink("thesis", policy.workspace(alice) + "/link")
    assert workspaces.projects(policy, alice) == [{"name": "thesis", "dockerfile": True}]
    assert workspaces.projects(policy, bob) == []
    with pytest.raises(NotFound):
        workspaces.check_project(policy, alice, "link")


def test_init_does_not_follow(policy, alice, root):
    workspace = policy.workspace(alice)
    os.symlink(str(root / "srv"), f"{workspace}/thesis")
    before = sorted(os.listdir(root / "srv"))
    with pytest.raises(InvalidInput, match="symbolic link"):
        workspaces.init_project(policy, alice, "thesis")
    os.mkdir(f"{workspace}/net")
    os.symlink(str(root / "srv"), f"{workspace}/net/data")
    os.chown(f"{workspace}/net", 2001, 2001)
    with pytest.raises(InvalidInput):
        workspaces.init_project(policy, alice, "net")
    assert sorted(os.listdir(root / "srv")) == before


def test_unknown_user(policy):
    assert workspaces.reconcile(policy, [WantedWorkspace("nobody")], check=True)[0].failed
