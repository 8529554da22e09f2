"""Quotas are enforced by the kernel, on the host and in the container alike (A16, E3)."""

from __future__ import annotations

import pytest
from conftest import ALICE, Server

FULL = "Disk quota exceeded"


@pytest.fixture
def kept(server: Server) -> Server:
    """A file of alice's that must survive her full quota."""
    server.user("alice", "echo precious > ~/workspace/my-thesis/precious.txt")
    yield server
    server.user("alice", "rm -f ~/workspace/my-thesis/big ~/big")
    assert server.user("alice", "cat ~/workspace/my-thesis/precious.txt").out == "precious"


def hard_limit(server: Server) -> int:
    """Return alice's hard limit in KiB, as the kernel has it."""
    return int(server.root("repquota -u -n -p /home | awk '$1 == \"#2001\" {print $5}'").out)


def test_a_write_past_the_limit_fails_on_the_host(kept: Server) -> None:
    failed = kept.user(
        "alice", "dd if=/dev/zero of=$HOME/workspace/my-thesis/big bs=1M count=2000", check=False
    )
    assert failed.rc != 0 and FULL in failed.err


def test_a_write_past_the_limit_fails_in_the_container(kept: Server) -> None:
    failed = kept.inside(
        "my-thesis", ALICE, "dd if=/dev/zero of=/workspace/my-thesis/big bs=1M count=2000", check=False
    )
    assert failed.rc != 0 and FULL in failed.err


def test_a_changed_project_id_does_not_help(kept: Server) -> None:
    changed = kept.user("alice", "cd ~/workspace/my-thesis && touch big && chattr -p 0 big && lsattr -p big")
    assert changed.out.split()[0] == "0"
    failed = kept.user(
        "alice", "dd if=/dev/zero of=$HOME/workspace/my-thesis/big bs=1M count=2000", check=False
    )
    assert failed.rc != 0 and FULL in failed.err


@pytest.mark.thorough
def test_the_home_counts_as_the_workspace_does(kept: Server) -> None:
    failed = kept.user("alice", "dd if=/dev/zero of=$HOME/big bs=1M count=2000", check=False)
    assert failed.rc != 0 and FULL in failed.err


def test_the_number_of_files_is_limited_too(server: Server) -> None:
    script = "mkdir ~/many; cd ~/many; python3 -c \"[open(str(n), 'w').close() for n in range(60000)]\""
    failed = server.user("alice", script, check=False)
    server.user("alice", "rm -rf ~/many")
    assert failed.rc != 0 and FULL in failed.err


def test_df_in_the_container_shows_the_users_limit(server: Server) -> None:
    shown = int(server.inside("my-thesis", ALICE, "df -k --output=size /workspace | tail -1").out)
    limit = hard_limit(server)
    assert limit > 0
    assert abs(shown - limit) <= limit * 0.01


@pytest.mark.thorough
def test_usage_shows_used_limit_and_the_largest_directories(server: Server) -> None:
    server.user(
        "alice",
        "mkdir -p ~/workspace/my-thesis/data/raw && "
        "dd if=/dev/zero of=$HOME/workspace/my-thesis/data/raw/blob bs=1M count=20 status=none",
    )
    shown = server.user("alice", "workspace usage").out
    server.user("alice", "rm ~/workspace/my-thesis/data/raw/blob")
    assert "my-thesis" in shown and "%" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


@pytest.mark.thorough
def test_root_alone_sees_the_usage_of_others(server: Server) -> None:
    assert server.user("alice", "quota -u bob", check=False).rc != 0
