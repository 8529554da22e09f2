"""Workspaces and persistence (A1 to A7, A14)."""

from __future__ import annotations

import json

import pytest
from conftest import ALICE, BOB, Server

TREE = "find /home/.workspaces/alice/my-thesis -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"


def test_init_lays_out_the_documented_structure_once(server: Server) -> None:
    server.user("bob", "rm -rf ~/workspace/essay")
    server.user("bob", "project init essay")
    listed = server.user("bob", "cd ~/workspace/essay && find . -mindepth 1 | sed 's,^./,,'").out.split()
    expected = {
        "Dockerfile", "requirements.txt", "pyproject.toml", "README.md", ".gitignore", "data", "data/raw",
        "data/processed", "notebooks", "src", "models", "results", "results/logs", "results/plots", "tests",
    }  # fmt: skip  # read as a table, several to a line
    assert expected <= set(listed)
    server.user("bob", "echo mine > ~/workspace/essay/README.md")
    before = server.user("bob", "cd ~/workspace/essay && find . -type f -exec sha256sum {} + | sort").out
    server.user("bob", "project init essay")
    assert (
        server.user("bob", "cd ~/workspace/essay && find . -type f -exec sha256sum {} + | sort").out == before
    )


@pytest.mark.thorough
def test_two_users_have_one_project_name_without_a_clash(server: Server) -> None:
    server.user("bob", "project init my-thesis && project launch my-thesis --detach")
    assert {f"my-thesis._.{ALICE}", f"my-thesis._.{BOB}"} <= server.containers()
    server.user("bob", "container retire my-thesis")
    assert f"my-thesis._.{ALICE}" in server.containers()


def test_both_sides_see_the_same_files_at_once(server: Server) -> None:
    server.inside("my-thesis", ALICE, "echo inside > /workspace/my-thesis/both.txt")
    outside = server.user(
        "alice", "stat -c '%d:%i' ~/workspace/my-thesis/both.txt && cat ~/workspace/my-thesis/both.txt"
    )
    inside = server.inside(
        "my-thesis",
        ALICE,
        "stat -c '%d:%i' /workspace/my-thesis/both.txt && cat /workspace/my-thesis/both.txt",
    )
    assert outside.out == inside.out
    server.user("alice", "echo outside > ~/workspace/my-thesis/both.txt")
    assert server.inside("my-thesis", ALICE, "cat /workspace/my-thesis/both.txt").out == "outside"


def test_workspace_has_one_name_inside_and_outside(server: Server) -> None:
    outside = server.user("alice", "ls ~/workspace/").out
    assert server.inside("my-thesis", ALICE, "ls ~/workspace/").out == outside
    assert server.inside("my-thesis", ALICE, "ls /home/alice/workspace/").out == outside


def test_retire_loses_the_container_and_keeps_the_workspace(server: Server) -> None:
    server.inside(
        "my-thesis", ALICE, "mkdir -p ~/x && touch ~/x/marker /tmp/marker && echo m > ~/.local-marker"
    )
    server.inside(
        "my-thesis",
        ALICE,
        "mkdir -p /workspace/my-thesis/models && echo w > /workspace/my-thesis/models/checkpoint.pt",
    )
    before, old = server.root(TREE).out, server.inspect("my-thesis", ALICE)["Id"]

    retired = server.user("alice", "container retire my-thesis")
    assert f"my-thesis._.{ALICE}" not in server.containers(everything=True)
    assert server.root(TREE).out == before
    assert "workspace" in retired.text
    again = json.loads(server.user("alice", "container retire my-thesis --json").out.splitlines()[-1])
    assert again["changed"] is False

    server.user("alice", "project launch my-thesis --detach")
    assert server.inspect("my-thesis", ALICE)["Id"] != old
    assert server.root(TREE).out == before
    assert server.inside("my-thesis", ALICE, "cat /workspace/my-thesis/models/checkpoint.pt").out == "w"
    gone = server.inside("my-thesis", ALICE, "ls ~/x ~/.local-marker /tmp/marker", check=False)
    assert gone.rc != 0 and "marker" not in gone.out


def test_the_workspace_survives_a_restart_of_the_daemon_while_containers_run(server: Server) -> None:
    before, started = server.root(TREE).out, server.inspect("my-thesis", ALICE)["State"]["StartedAt"]
    server.root("systemctl restart docker && docker version >/dev/null")
    assert server.inspect("my-thesis", ALICE)["State"]["StartedAt"] == started
    assert server.root(TREE).out == before


@pytest.mark.thorough
def test_launch_twice_makes_one_container(server: Server) -> None:
    identity = server.inspect("my-thesis", ALICE)["Id"]
    server.user("alice", "project launch my-thesis --detach & project launch my-thesis --detach & wait")
    assert server.inspect("my-thesis", ALICE)["Id"] == identity


@pytest.mark.thorough
def test_stop_keeps_the_container_and_launch_brings_it_back(server: Server) -> None:
    server.inside("my-thesis", ALICE, "touch ~/still-here")
    identity = server.inspect("my-thesis", ALICE)["Id"]
    server.user("alice", "container stop my-thesis")
    assert f"my-thesis._.{ALICE}" not in server.containers()
    server.user("alice", "project launch my-thesis --detach")
    assert server.inspect("my-thesis", ALICE)["Id"] == identity
    server.inside("my-thesis", ALICE, "ls ~/still-here")


@pytest.mark.thorough
def test_a_retired_container_can_be_brought_back(server: Server) -> None:
    server.inside("my-thesis", ALICE, "echo mine > ~/notes")
    identity = server.inspect("my-thesis", ALICE)["Id"]
    assert "container undo" in server.user("alice", "container retire my-thesis").text
    assert f"my-thesis._.{ALICE}" not in server.containers(everything=True)
    server.user("alice", "container undo my-thesis")
    assert server.inspect("my-thesis", ALICE)["Id"] == identity
    assert server.inside("my-thesis", ALICE, "cat ~/notes").out == "mine"
    assert server.root("systemctl is-active lab-server-cleanup.timer").out == "active"
    assert "removed" in server.root("/usr/local/sbin/lab-cleanup --check").text


@pytest.mark.thorough
def test_the_lists_show_what_is_there_and_nothing_of_others(server: Server) -> None:
    listed = server.user("alice", "container list && project list").out
    assert "my-thesis" in listed and "essay" not in listed
    assert max(len(line) for line in listed.splitlines()) <= 80
