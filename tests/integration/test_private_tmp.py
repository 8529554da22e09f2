"""Lab users have /tmp and /var/tmp of their own: the real PAM, in a private root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from private_root import PrivateRoot, run_module

LIMITS = {"cpus": 1, "memory": "1g", "pids": 64}
STACK = "etc/pam.d/common-session"


@pytest.fixture
def lab(private_root: PrivateRoot):
    """Return a function that runs the module of users, and returns what it did to /tmp."""

    def run(wanted: bool = True, *, check: bool = False) -> dict[str, Any]:
        arguments = {
            "groups": [{"name": "students", "gid": 3101}],
            "users": [
                {"name": name, "uid": uid, "group": "students", "limits": LIMITS}
                for name, uid in (("alice", 2001), ("bob", 2002))
            ],
            "private_tmp": wanted,
        }
        done = run_module("users", arguments, check=check, call=private_root.call)
        found: dict[str, Any] = next(one for one in done["results"] if one["name"] == "private /tmp")
        return found

    private_root.run("useradd", "--no-create-home", "visitor")
    return run


def said(root: PrivateRoot, user: str, command: str) -> list[str]:
    """Return the words that a command says in a session of that user."""
    return root.run("su", "-s", "/bin/sh", user, "-c", command).split()


def test_a_session_has_its_own_and_everybody_else_the_servers(private_root: PrivateRoot, lab) -> None:
    done = lab()
    assert done["changed"] and not done.get("failed")
    said(private_root, "alice", "echo secret > /tmp/a; echo more > /var/tmp/b")
    assert said(private_root, "alice", "cat /tmp/a /var/tmp/b") == ["secret", "more"]
    assert said(private_root, "alice", "stat -c %a:%u /tmp") == ["1777:0"]
    for other in ("bob", "visitor", "root"):
        assert said(private_root, other, "ls /tmp/a /var/tmp/b 2>/dev/null; echo none") == ["none"]
    # What it is to others: root's, and nothing that anybody passes through.
    kept = private_root.path / "home/.tmp"
    assert kept.stat().st_mode & 0o7777 == 0 and kept.stat().st_uid == 0
    assert (kept / "tmp-alice/a").stat().st_uid == 2001 and (kept / "var-tmp-alice/b").exists()
    assert "denied" in " ".join(said(private_root, "bob", "ls /home/.tmp/tmp-alice 2>&1 || true"))
    # The server's own is as ever, for who is in no lab group.
    said(private_root, "visitor", "echo public > /tmp/c")
    assert said(private_root, "root", "cat /tmp/c") == ["public"]


def test_the_second_run_changes_nothing_and_a_check_tells_the_truth(private_root: PrivateRoot, lab) -> None:
    before = private_root.content()
    told = lab(check=True)
    after = private_root.content()
    assert told["changed"] and {name for name in after if before.get(name) != after[name]} <= {"mounts"}
    done = lab()
    assert (done["actions"], done["diff"]) == (told["actions"], told["diff"])
    assert not lab()["changed"] and not lab(check=True)["changed"]
    told = lab(wanted=False, check=True)
    assert said(private_root, "alice", "echo kept > /tmp/a; cat /tmp/a") == ["kept"]
    done = lab(wanted=False)
    assert done["changed"] and done["actions"] == told["actions"]
    assert not lab(wanted=False)["changed"]
    # The server's again; what was in the other is not thrown away.
    assert said(private_root, "alice", "ls /tmp/a 2>/dev/null; echo none") == ["none"]
    assert (private_root.path / "home/.tmp/tmp-alice/a").read_text() == "kept\n"


def test_what_an_admin_changed_by_hand_is_left_alone_and_told(private_root: PrivateRoot, lab) -> None:
    stack: Path = private_root.path / STACK
    mine = stack.read_text().replace("# end of", "session optional pam_umask.so\n# end of")
    stack.write_text(mine)
    done = lab()
    assert done["failed"] and stack.read_text() == mine
    assert "/etc/pam.d/common-session" in done["msg"] and "was changed by hand" in done["msg"]
    assert "session optional pam_namespace.so" in done["msg"] and "lab_private_tmp: false" in done["msg"]
    # As it is said, it works.
    for name in (STACK, f"{STACK}-noninteractive"):
        with (private_root.path / name).open("a") as file:
            file.write(
                "session [success=1 default=ignore] pam_succeed_if.so quiet user notingroup lab\n"
                "session optional pam_namespace.so\n"
            )
    assert not lab()["changed"]
    said(private_root, "alice", "echo secret > /tmp/a")
    assert said(private_root, "bob", "ls /tmp/a 2>/dev/null; echo none") == ["none"]
