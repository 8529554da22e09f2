"""A build goes on when ssh is lost, and is watched again from another session; its log is its user's."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator

import pexpect
import pytest
from conftest import BOB, MACHINES, PATIENCE, Server

FOLDER = f"/var/lib/lab-server/build-logs/{BOB}/cut"
# It says a line each second, so that there is time to lose the connection and to come back.
SLOW = 'RUN echo begun; i=0; while [ $i -lt 90 ]; do i=$((i+1)); echo "tick $i."; sleep 1; done; echo is-over'


@pytest.fixture(scope="module", autouse=True)
def project(server: Server) -> Iterator[None]:
    """A project of bob's that is built slowly."""
    server.user("bob", "rm -rf ~/workspace/cut && project init cut --base lab/python")
    server.user("bob", f"printf '%s\\n' 'FROM lab/python' '{SLOW}' > ~/workspace/cut/Dockerfile")
    yield
    server.user("bob", "image remove cut --all --yes", check=False)
    server.user("bob", "rm -rf ~/workspace/cut")


def log_of(server: Server, name: str = "bob") -> dict[str, object]:
    """Return the log of the last build and how that ended."""
    told: dict[str, object] = json.loads(server.user(name, "image log cut --json").out.splitlines()[-1])
    return told


@pytest.mark.thorough
def test_a_build_outlives_its_session_and_is_watched_from_another(server: Server) -> None:
    config = MACHINES / os.environ["LAB_VM_NAME"] / "ssh_config"
    # A connection of its own, which is lost without a word.
    options = ["-F", str(config), "-o", "ControlPath=none", "-tt", "-l", "bob", "server", "image update cut"]
    environment = {**os.environ, "TERM": "xterm-256color"}
    session = pexpect.spawn(
        "ssh", options, dimensions=(24, 80), encoding="utf-8", timeout=PATIENCE, env=environment
    )
    session.expect(r"\[[0-9]+:[0-9]{2}\] step [0-9]+ of [0-9]+: tick 3\.")
    session.kill(signal.SIGKILL)
    session.close(force=True)
    status = json.loads(server.user("bob", "project status cut --json").out.splitlines()[-1])
    assert status["build"]["outcome"] == "running"
    watched = server.user("bob", "image log cut --follow")
    lines = watched.out.splitlines()
    assert [line for line in lines if re.fullmatch(r"tick [0-9]+\.", line)] == [
        f"tick {number}." for number in range(1, 91)
    ]
    assert "is-over" in lines and "was done" in watched.text
    told = log_of(server)
    assert told["outcome"] == "done" and told["lines"] == lines
    assert "build:" in server.user("bob", "image show cut").out
    # Nothing is built again: the image is that of the build that was left alone.
    again = json.loads(server.user("bob", "image update cut --json").out.splitlines()[-1])
    assert again["changed"] is False


@pytest.mark.thorough
def test_all_that_a_failed_build_said_is_there_for_its_user_alone(server: Server) -> None:
    server.user(
        "bob",
        "printf '%s\\n' 'FROM lab/python' "
        "'RUN echo the-reason; echo more of it; echo the-end >&2; exit 3' > ~/workspace/cut/Dockerfile",
    )
    failed = server.user("bob", "image update cut", check=False)
    assert failed.rc == 1 and "image log cut" in failed.text
    shown = server.user("bob", "image log cut")
    assert {"the-reason", "more of it", "the-end"} <= set(shown.out.splitlines())
    assert server.user("bob", "image log cut --follow", check=False).rc == 1
    others = server.user("carol", "image log cut", check=False)
    nothing = server.user("carol", "image log nothing", check=False)
    assert others.rc == nothing.rc == 4
    assert others.text.replace("cut", "nothing") == nothing.text
    assert server.root(f"stat -c %U:%a {FOLDER} {FOLDER}/build.json").out.split() == ["root:700", "root:600"]
    assert server.user("bob", f"cat {FOLDER}/build.json", check=False).rc != 0
