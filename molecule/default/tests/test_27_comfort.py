"""What makes the commands pleasant: kept or lost, greeting, completion, manual, cleaning (A8, B6, E7, E9)."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ALICE, CAROL, MACHINES, Server

WORKSPACE = "It is in your workspace, which outlives every container."
SHARED = "It is shared data, which IT keeps; containers can only read it."
LOGIN = "printf 'exit\\n' | TERM=dumb script -qec 'runuser -l {}' /dev/null"


def verdicts(text: str) -> dict[str, tuple[str, str]]:
    """Return verdict and first sentence of each path that 'workspace where --json' told of."""
    return {one["path"]: (one["verdict"], one["why"][0]) for one in json.loads(text)["paths"]}


@pytest.mark.thorough
def test_kept_or_lost_is_told_in_the_same_words_on_both_sides(server: Server) -> None:
    server.user("alice", "ln -sfn /tmp ~/workspace/my-thesis/scratch")
    asked = server.user(
        "alice",
        "cd ~/workspace/my-thesis && "
        "workspace where --json . scratch ~ ~/none /srv/data/datasets /srv/data/vision /home/bob /etc/passwd",
        check=False,
    )
    assert asked.rc == 4  # one of them is not there
    outside = verdicts(asked.out)
    assert outside["."] == ("kept", WORKSPACE)
    assert outside["scratch"][0] == "lost"
    assert outside["/srv/data/datasets"] == ("kept", SHARED)
    assert outside["/home/alice"][0] == outside["/home/alice/none"][0] == "kept"
    assert {outside[path][0] for path in ("/srv/data/vision", "/home/bob", "/etc/passwd")} == {"foreign"}

    inside = verdicts(
        server.inside(
            "my-thesis",
            ALICE,
            "cd my-thesis && "
            "workspace where --json . scratch ~ ~/workspace /srv/data/datasets /run /etc/hosts && rm scratch",
        ).out
    )
    assert inside["."] == inside["/home/alice/workspace"] == ("kept", WORKSPACE)
    assert inside["/srv/data/datasets"] == ("kept", SHARED)
    assert {inside[path][0] for path in ("scratch", "/home/alice", "/run", "/etc/hosts")} == {"lost"}


@pytest.mark.thorough
def test_a_share_is_kept_in_the_container_of_a_member(server: Server) -> None:
    told = verdicts(server.inside("vision", CAROL, "workspace where --json /srv/data/vision /srv/data").out)
    assert told["/srv/data/vision"] == ("kept", "It is in a folder that a group shares, and is kept.")
    assert told["/srv/data"] == ("kept", SHARED)


@pytest.mark.thorough
def test_the_greeting_tells_what_runs_what_is_full_and_what_is_kept(server: Server) -> None:
    shown = server.root(LOGIN.format("alice")).out.replace("\r", "")
    assert re.search(r"my-thesis +for [0-9]+ (s|min|h)\n", shown)
    assert "of 250M" in shown and "/workspace (here: ~/workspace)" in shown
    assert "the first Monday of a month" in shown  # lab_news of the inventory

    fill = "fallocate -l 215M ~/fill"
    full = server.root(f"runuser -l bob -c '{fill}'; {LOGIN.format('bob')}; rm -f /home/bob/fill").out
    assert "of your space is used" in full and "my-thesis" not in full


def test_nobody_else_and_no_program_is_greeted(server: Server) -> None:
    assert server.user("alice", "true").text == ""
    said = server.root(
        f"{LOGIN.format('root')}; runuser -u alice -- sh -c '. /etc/profile' </dev/null 2>&1"
    ).out
    assert "Welcome" not in said and "my-thesis" not in said


def test_an_admin_is_told_what_is_bad_and_a_user_is_not(server: Server) -> None:
    place = "/run/lab-server-notices/admins"
    made = (
        "install -d -m 755 /run/lab-server-notices; "
        f"printf '[\"the backup of nemo failed\"]' >{place}; chmod 640 {place}"
    )
    # In one call, as the look of every ten minutes removes it where all is well.
    said = server.root(
        f"{made}; {LOGIN.format('alice')}; echo BETWEEN; {LOGIN.format('root')}; rm -f {place}"
    ).out
    user, between, admin = said.partition("BETWEEN")
    assert between and "nemo" not in user and "Welcome" in user
    assert "bad   the backup of nemo failed" in admin and "see: lab status" in admin


def test_the_shell_completes_projects_and_the_manual_is_there(server: Server) -> None:
    # The loader has another name in each release of bash-completion.
    typed = (
        ". /usr/share/bash-completion/bash_completion; loader=$(complete -p -D); loader=${loader#*-F }; "
        "${loader%% *} project; COMP_LINE='project launch my-t' COMP_POINT=19; _lab_server_project; "
        "echo ${COMPREPLY[*]}; grep -A1 '^.SH NAME' /usr/local/share/man/man1/project-launch.1"
    )
    completed, _heading, name = server.user("alice", typed).out.splitlines()
    assert completed == "my-thesis"
    assert "build, start and enter" in name


@pytest.fixture
def upload(server: Server, tmp_path: Path) -> Iterator[Path]:
    """Return a folder of this computer to upload, with an empty one to fetch it back into."""
    (tmp_path / "data/deep").mkdir(parents=True)
    (tmp_path / "data/deep/a b.bin").write_bytes(os.urandom(300_000))
    (tmp_path / "data/notes").write_text("n\n")
    (tmp_path / "back").mkdir()
    yield tmp_path
    server.user("bob", "rm -rf ~/workspace/uploads")


@pytest.mark.parametrize("way", ["scp", "sftp", "rsync"])
def test_files_come_and_go_by_what_people_know(server: Server, upload: Path, way: str) -> None:
    config = MACHINES / os.environ["LAB_VM_NAME"] / "ssh_config"
    place, there, back = "workspace/uploads", "bob@server:workspace/uploads", upload / "back"
    commands = {
        "scp": [
            ["scp", "-q", "-F", str(config), "-r", f"{upload}/data", f"{there}/"],
            ["scp", "-q", "-F", str(config), "-r", f"{there}/data", str(back)],
        ],
        "sftp": [["sftp", "-q", "-F", str(config), "-b", f"{upload}/batch", "bob@server"]],
        "rsync": [
            ["rsync", "-a", "-e", f"ssh -F {config}", f"{upload}/data", f"{there}/"],
            ["rsync", "-a", "-e", f"ssh -F {config}", f"{there}/data", str(back)],
        ],
    }
    batch = f"put -R {upload}/data {place}\nget -R {place}/data {back}\n"
    (upload / "batch").write_text(batch, encoding="utf-8")
    server.user("bob", f"rm -rf ~/{place} && mkdir ~/{place}")
    for command in commands[way]:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        # Nothing of ours is said in between, which would break the protocol.
        assert done.returncode == 0 and "Welcome" not in done.stdout + done.stderr, done.stderr
    for path in ("deep/a b.bin", "notes"):
        assert (back / "data" / path).read_bytes() == (upload / "data" / path).read_bytes()
    owner = server.root("stat -c %U /home/.workspaces/bob/uploads/data/deep/*").out
    assert owner == "bob"


@pytest.mark.thorough
def test_clean_removes_what_can_be_made_again(server: Server) -> None:
    made = (
        "mkdir -p ~/workspace/tidy/src/__pycache__ && cd ~/workspace/tidy/src && touch a.py __pycache__/a.pyc"
    )
    said = server.user(
        "bob", f"{made} && workspace clean --yes --json && ls -A && rm -rf ~/workspace/tidy"
    ).out
    told, left = said.splitlines()
    assert "~/workspace/tidy/src/__pycache__" in [one["path"] for one in json.loads(told)["folders"]]
    assert left == "a.py"
