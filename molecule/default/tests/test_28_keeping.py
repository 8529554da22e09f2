"""Whole projects: archived, restored, carried, renamed, removed; and what the doctor finds (A17, A18)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import ALICE, Server

PAPER = "$HOME/workspace/paper"
# Every file's content, and every name's kind, mode, time and target: what is to be the same afterwards.
LOOK = (
    f"cd {PAPER} && {{ find . -type f -print0 | sort -z | xargs -0 sha256sum; "
    "find . ! -type p -printf '%p %y %m %T@ %l\\n' | LC_ALL=C sort; } | sha256sum"
)
MAKE = (
    f"chmod -Rf u+w {PAPER}; rm -rf {PAPER} && project init paper --type stats && cd {PAPER} && "
    "head -c 3000000 /dev/urandom > data/raw/noise && truncate -s 40M data/raw/sparse && "
    "ln -s ../raw data/processed/raw && ln -s /etc/passwd src/passwd && ln data/raw/noise models/again && "
    "mkfifo results/pipe && printf x > \"src/$(printf 'caf\\351')\" && chmod 500 src && "
    "touch -d 2001-09-09 README.md"
)


@pytest.fixture(scope="module")
def paper(server: Server) -> Server:
    """A project of bob's with all kinds of files, which is gone afterwards."""
    server.user("bob", MAKE)
    yield server
    server.user(
        "bob", "cd ~/workspace && chmod -R u+w paper book .trash; rm -rf paper book .trash .archive ~/filler"
    )


def archives(server: Server) -> list[str]:
    """Return the names of all that is in bob's store, hidden ones too."""
    return server.user("bob", "ls -A ~/workspace/.archive").out.split()


def test_an_archive_is_restored_with_equal_checksums(paper: Server) -> None:
    before = paper.user("bob", LOOK).out
    said = paper.user("bob", "project archive paper --yes").out
    assert "compared" in said and "results/pipe" in said
    assert paper.user("bob", f"test -e {PAPER}", check=False).rc != 0
    assert (
        "root:"
        not in paper.user("bob", "zcat ~/workspace/.archive/paper-*.tar.gz | tar xO paper/src/passwd").out
    )
    said = paper.user("bob", "project restore paper").out
    assert "every checksum is right" in said
    assert paper.user("bob", LOOK).out == before
    assert int(paper.user("bob", f"du -k {PAPER}/data/raw/sparse | cut -f1").out) < 1000


@pytest.mark.thorough
def test_a_project_with_a_container_is_not_put_away(server: Server) -> None:
    refused = server.user("alice", "project archive my-thesis --yes", check=False)
    assert refused.rc == 3 and "container retire my-thesis" in refused.err
    server.user("alice", "test -e ~/workspace/my-thesis/Dockerfile")


@pytest.mark.thorough
def test_a_full_quota_in_the_middle_loses_nothing(paper: Server) -> None:
    before, kept = paper.user("bob", LOOK).out, archives(paper)
    paper.user("bob", "dd if=/dev/zero of=$HOME/filler bs=64k count=40000", check=False)
    failed = paper.user("bob", "project archive paper --yes", check=False)
    paper.user("bob", "rm ~/filler")
    assert failed.rc == 1 and "quota" in failed.err and "Traceback" not in failed.text
    assert paper.user("bob", LOOK).out == before and archives(paper) == kept


@pytest.mark.thorough
def test_kill_in_the_middle_loses_nothing(paper: Server) -> None:
    before, kept = paper.user("bob", LOOK).out, archives(paper)
    for seconds in (2, 4, 6):
        paper.user("bob", f"timeout -s KILL {seconds} project archive paper --yes", check=False)
    # Whatever the last one came to, the next call puts it right.
    paper.user("bob", f"project archive paper --keep || project restore paper; test -e {PAPER}")
    assert paper.user("bob", LOOK).out == before
    assert not [name for name in archives(paper) if name.startswith(".")] and set(kept) <= set(
        archives(paper)
    )


@pytest.mark.thorough
def test_a_project_is_carried_through_a_pipe(paper: Server) -> None:
    paper.user("carol", "rm -rf ~/workspace/paper")
    paper.root("runuser -l bob -c 'project export paper -' | runuser -l carol -c 'project import - paper'")
    sums = "cd ~/workspace/paper && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"
    assert paper.user("carol", sums).out == paper.user("bob", sums).out
    again = paper.root(
        "runuser -l bob -c 'project export paper -' | runuser -l carol -c 'project import -'", check=False
    )
    paper.user("carol", "cd ~/workspace && chmod -R u+w paper && rm -rf paper")
    assert again.rc == 3 and "nothing is overwritten" in again.err


def test_a_removal_can_be_undone_until_it_is_for_good(paper: Server) -> None:
    before = paper.user("bob", LOOK).out
    paper.user("bob", "project rename paper book && project remove book --yes")
    assert paper.user("bob", "test -e ~/workspace/book", check=False).rc != 0
    paper.user("bob", "project restore book && project rename book paper")
    assert paper.user("bob", LOOK).out == before
    assert "gone for good" in paper.user("bob", "project remove paper --for-good --yes").out
    assert "paper" not in paper.user("bob", "ls -A ~/workspace").out.split()


def verdicts(server: Server) -> dict[str, Any]:
    """Return what the doctor says of alice's project, by check."""
    said = server.user("alice", "project doctor my-thesis --json", check=False)
    facts = json.loads(said.out.splitlines()[-1])
    assert said.rc == (0 if facts["healthy"] else 1)
    return {one["check"]: one for one in facts["checks"]}


@pytest.mark.thorough
def test_the_doctor_finds_the_documented_troubles(server: Server) -> None:
    server.inside("my-thesis", ALICE, "echo lost > ~/.aaa-forgotten")
    server.user(
        "alice",
        "cd ~/workspace/my-thesis && ln -sfn /tmp/elsewhere astray && echo TOKEN=1 > .env && chmod 644 .env",
    )
    found = verdicts(server)
    shown = server.user("alice", "project doctor my-thesis", check=False)
    server.user("alice", "cd ~/workspace/my-thesis && rm -f astray .env")
    server.inside("my-thesis", ALICE, "rm ~/.aaa-forgotten")
    wanted = {
        "link": "ok", "quota": "ok", "mount": "ok", "dockerfile": "ok", "base image": "ok", "packages": "ok",
        "outside": "warn", "links": "warn", "secrets": "warn",
    }  # fmt: skip  # read as a table, several to a line
    assert {check: found[check]["verdict"] for check in wanted} == wanted
    assert (
        "/home/alice/.aaa-forgotten" in found["outside"]["evidence"]
        and "chmod 600 .env" in found["secrets"]["fix"]
    )
    assert max(len(line) for line in shown.out.splitlines()) <= 80


@pytest.mark.thorough
def test_the_doctor_finds_a_workspace_that_leads_elsewhere(server: Server) -> None:
    server.user("alice", "mv ~/workspace ~/workspace.own")
    found = verdicts(server)["link"]
    server.user("alice", "mv ~/workspace.own ~/workspace")
    assert found["verdict"] == "bad" and found["fix"] == "ln -s /home/.workspaces/alice ~/workspace"
