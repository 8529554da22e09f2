"""The host: file systems, Docker, users (H1, D2, D3, E1, E2)."""

from __future__ import annotations

import json

import pytest
from conftest import ALICE, CAROL, Server


@pytest.mark.parametrize("mount", ["/home", "/srv/data", "/var/lib/docker"])
def test_each_kind_of_data_has_a_file_system_of_its_own(server: Server, mount: str) -> None:
    assert server.root(f"findmnt -n -o TARGET {mount}").out == mount


@pytest.mark.parametrize("mount", ["/home", "/srv/data"])
def test_users_file_systems_are_nosuid_and_nodev(server: Server, mount: str) -> None:
    options = server.root(f"findmnt -n -o OPTIONS {mount}").out.split(",")
    assert {"nosuid", "nodev"} <= set(options)
    fstab = server.root(f"findmnt --fstab -n -o OPTIONS {mount}").out.split(",")
    assert {"nosuid", "nodev", "nofail"} <= set(fstab)


def test_quotas_are_enforced_on_the_homes(server: Server) -> None:
    state = server.root("quotaon -pu /home", check=False).text
    assert "user quota on /home" in state and " is on" in state


def test_docker_is_configured_as_promised(server: Server) -> None:
    config = json.loads(server.root("cat /etc/docker/daemon.json").out)
    assert config["live-restore"] is True
    assert config["icc"] is False
    assert config["log-opts"]["max-size"]
    assert config["default-address-pools"]
    facts = json.loads(server.root("docker info --format '{{json .}}'").out)
    assert facts["LiveRestoreEnabled"] is True
    assert facts["CgroupVersion"] == "2"
    assert any("apparmor" in option for option in facts["SecurityOptions"])


@pytest.mark.parametrize("unit", ["docker.service", "docker.socket"])
def test_docker_waits_for_the_mounts(server: Server, unit: str) -> None:
    required = server.root(f"systemctl show -p RequiresMountsFor {unit}").out
    for mount in ("/home", "/srv/data", "/var/lib/docker"):
        assert mount in required


def test_nobody_is_in_the_group_docker(server: Server) -> None:
    assert server.root("getent group docker").out.split(":")[3] == ""
    assert server.user("alice", "docker ps", check=False).rc != 0


def test_users_have_their_own_numbers_and_no_subordinate_ones(server: Server) -> None:
    fields = server.root("getent passwd alice").out.split(":")
    assert (int(fields[2]), int(fields[3]), fields[5]) == (ALICE, ALICE, "/home/alice")
    assert set(server.root("id -Gn alice").out.split()) == {"alice", "lab", "students"}
    for table in ("/etc/subuid", "/etc/subgid"):
        assert "alice" not in server.root(f"cat {table} 2>/dev/null || true").out
    assert server.root("command -v newuidmap", check=False).rc != 0


def test_a_workspace_hangs_from_a_parent_that_only_root_can_change(server: Server) -> None:
    assert server.root("stat -c '%U:%G:%a' /home/.workspaces").out == "root:root:711"
    assert server.root("stat -c '%U:%G:%a' /home/.workspaces/alice").out == "alice:alice:700"
    assert (
        server.user("alice", "stat -Lc '%d:%i' ~/workspace").out
        == server.root("stat -c '%d:%i' /home/.workspaces/alice").out
    )


@pytest.mark.parametrize(
    "path", ["/home/bob", "/home/bob/workspace/", "/home/.workspaces/bob", "/home/.workspaces"]
)
def test_users_cannot_read_each_other(server: Server, path: str) -> None:
    denied = server.user("alice", f"ls {path}", check=False)
    assert denied.rc != 0 and "Permission denied" in denied.err


def test_shares_have_the_promised_access(server: Server) -> None:
    server.root("echo published > /srv/data/datasets/readme.txt && chmod 644 /srv/data/datasets/readme.txt")
    assert server.user("alice", "cat /srv/data/datasets/readme.txt").out == "published"
    assert server.user("alice", "touch /srv/data/datasets/mine", check=False).rc != 0
    assert server.user("alice", "ls /srv/data/vision", check=False).rc != 0
    assert server.user("carol", "ls /srv/data/vault", check=False).rc != 0


def test_in_a_group_share_one_creates_and_another_edits(server: Server) -> None:
    server.user(
        "carol", "umask 077; mkdir -p /srv/data/vision/joint && echo carol > /srv/data/vision/joint/notes.txt"
    )
    server.user("dave", "echo dave >> /srv/data/vision/joint/notes.txt")
    assert server.user("carol", "cat /srv/data/vision/joint/notes.txt").out == "carol\ndave"
    assert server.root("stat -c %G /srv/data/vision/joint/notes.txt").out == "researchers"


def test_the_slice_of_a_user_holds_the_limits_of_the_group(server: Server) -> None:
    shown = server.root("systemctl show -p MemoryMax -p TasksMax -p CPUQuotaPerSecUSec lab-2001.slice").out
    limits = server.limits("alice")
    assert f"MemoryMax={limits['memory']}" in shown
    assert f"TasksMax={limits['pids']}" in shown
    assert f"CPUQuotaPerSecUSec={limits['cpus']:.0f}s" in shown


def test_the_commands_run_the_library_of_the_collection(server: Server) -> None:
    answer = server.root(
        "python3 -I -c \"import sys; sys.path.insert(0, '/usr/local/lib/lab-server/current'); "
        'from _core import VERSION; print(VERSION)"'
    )
    assert answer.out == "0.1.0"


def test_a_key_lets_its_user_in_and_is_not_the_users_to_change(server: Server) -> None:
    for name in ("alice", "carol"):
        assert server.root(f"stat -c '%U:%a' /etc/ssh/lab_authorized_keys/{name}").out == "root:644"
    effective = server.root("sshd -T -C user=alice,host=localhost,addr=127.0.0.1").out
    assert "/etc/ssh/lab_authorized_keys/%u" in effective


def test_the_policy_is_root_s_alone_and_holds_no_keys(server: Server) -> None:
    assert server.root("stat -c '%U:%G:%a' /etc/lab-server/policy.json").out == "root:root:600"
    assert server.root("stat -c '%U:%G:%a' /etc/lab-server/public.json").out == "root:root:644"
    text = server.root("cat /etc/lab-server/policy.json").out
    assert "ssh-ed25519" not in text
    assert CAROL in [user["uid"] for user in json.loads(text)["users"]]
