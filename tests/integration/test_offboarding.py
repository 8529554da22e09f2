"""A user leaves a server with a real engine: retired, archived, read again, handed over, purged."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    containers,
    departing,
    formeruids,
    offboarding,
    retired,
    safefs,
    shares,
)
from ansible_collections.lab.server.plugins.module_utils._core import policy as policies
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError
from ansible_collections.lab.server.plugins.module_utils._core.offboarding import HandOver, Request
from private_root import run_module

LATER = 31 * 86400


class Host(departing.Host):
    """A server of which the accounts and processes are not those of the test computer."""

    def find(self, user: str) -> int:
        self._uid = self._policy.user(user).uid
        return self._uid

    def to_shut(self) -> list[str]:
        return [] if formeruids.read() else ["close the account"]

    def shut(self) -> None:
        formeruids.add(self._uid, self._name)

    def processes(self) -> int:
        return 0

    def _has_account(self) -> bool:
        return False


@pytest.fixture
def home(root: Path, alice, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(policies, "HOME_ROOT", str(root / "home"))
    monkeypatch.setattr(policies, "HOMES_ROOT", str(root / "home/.homes"))
    folder = root / "home/alice"
    (folder / "deep/er").mkdir(parents=True)
    (folder / "deep/er/notes").write_text("mine\n")
    (folder / "secret").symlink_to("/etc/shadow")
    kept = root / "home/.homes/alice/survey"
    kept.mkdir(parents=True)
    (kept / "history").write_text("ls\n")
    for place in (folder, kept):
        give(place, alice.uid)
    return folder


def give(top: Path, uid: int) -> None:
    os.lchown(top, uid, uid)
    for path in top.rglob("*"):
        os.lchown(path, uid, uid)


@pytest.fixture
def leave(engine, policy, root):
    """Return a function that goes on with alice's offboarding, and must not fail unless it is said."""
    asked = Request("alice", str(root / "home/.offboarded"))

    def run(now: float | None = None, *, check: bool = False, fails: str = "", **changes):
        host = Host(engine, policy, "alice")
        request = replace(asked, **changes)
        results = offboarding.reconcile(host, request, check=check, now=now or time.time())
        assert [one.message for one in results if one.failed] == ([results[-1].message] if fails else [])
        assert fails in results[-1].message
        return [(one.name, action) for one in results for action in one.actions]

    return run


def names_in(path: Path) -> set[str]:
    with tarfile.open(path) as opened:
        return set(opened.getnames())


def test_a_user_leaves(engine, policy, root, alice, bob, thesis, home, inside, leave):
    containers.launch(engine, policy, alice, "thesis")
    inside(alice, "thesis", "touch ~/mine; echo result > /workspace/thesis/result")
    over = (HandOver("thesis", "bob", "from-alice"),)
    promised = leave(check=True, hand_over=over)
    assert "thesis._.2001" in containers.observe(engine).containers
    assert not (root / "home/.offboarded").exists()

    assert leave(hand_over=over) == promised
    assert containers._held(engine, 2001) == 0
    assert len(retired.kept(engine, uid=2001)) == 1
    archives = root / "home/.offboarded"
    assert (archives.stat().st_uid, archives.stat().st_mode & 0o777) == (0, 0o700)
    assert sorted(path.name for path in archives.iterdir()) == [
        "alice-2001-home-of-survey.tar.gz",
        "alice-2001-home.tar.gz",
        "alice-2001-workspace.tar.gz",
    ]
    assert {"home/deep/er/notes", "home/secret", "home.manifest"} <= names_in(
        archives / "alice-2001-home.tar.gz"
    )
    assert "workspace/thesis/result" in names_in(archives / "alice-2001-workspace.tar.gz")
    # Bob's, with what is in it; alice's stays where it is.
    copy = Path(policy.workspace(bob)) / "from-alice/result"
    assert (copy.read_text(), copy.stat().st_uid) == ("result\n", bob.uid)
    assert (thesis.path / "result").exists()
    assert leave(hand_over=over) == []

    temporary = root / "home/.tmp/tmp-alice"
    (temporary / "deep").mkdir(parents=True)
    (temporary / "deep/x").touch()
    give(temporary / "deep", alice.uid)
    os.chown(temporary / "deep", alice.uid, alice.uid)
    temporary.chmod(0o1777)
    temporary.parent.chmod(0)
    leave(purge=True, fails="kept until")
    assert (temporary / "deep/x").exists()
    assert home.exists() and engine.images("lab/2001/*")
    promised = leave(time.time() + LATER, check=True, purge=True)
    assert leave(time.time() + LATER, purge=True) == promised
    assert not home.exists() and not Path(policy.workspace(alice)).exists()
    assert not (root / "home/.homes/alice").exists()
    assert f"remove {temporary}" in str(promised[-1]) and not temporary.exists()
    assert retired.kept(engine, uid=2001) == [] and engine.images("lab/2001/*") == []
    assert copy.exists() and len(list(archives.iterdir())) == 3
    assert leave(time.time() + LATER, purge=True) == []
    assert formeruids.read() == {2001: "alice"}


def test_a_group_goes_on_with_a_project_in_its_share(
    engine, policy, root, alice, bob, thesis, tiny, home, inside, leave, project_of
):
    share = next(one for one in policy.shares if one.name == "vision")
    with safefs.opened(policy.share_path(share)) as opened:
        shares.give(opened, share, 0, 3102)
    containers.launch(engine, policy, alice, "thesis")
    inside(
        alice,
        "thesis",
        "umask 077; mkdir sub; cp /bin/busybox sub/tool; chmod 6755 sub/tool; echo 1 > result",
    )
    over = (HandOver("thesis", "share:vision", "from-alice"),)
    promised = leave(check=True, hand_over=over)
    assert leave(hand_over=over) == promised and leave(hand_over=over) == []
    assert not (root / "srv/.handed").exists()
    copy = root / "srv/vision/from-alice"
    tool = (copy / "sub/tool").stat()
    assert (tool.st_uid, tool.st_gid, tool.st_mode & 0o7777) == (2001, 3102, 0o770)
    project_of(bob, "mine").write("Dockerfile", f"FROM {tiny}\n")
    containers.launch(engine, policy, bob, "mine")
    inside(
        bob, "mine", f"umask 077; echo 2 >> {copy}/result; mkdir {copy}/sub/new; echo 3 > {copy}/sub/new/x"
    )
    assert (copy / "result").read_text() == "1\n2\n"
    new = (copy / "sub/new").stat()
    assert (new.st_uid, new.st_gid, new.st_mode & 0o7777) == (2002, 3102, 0o2770)
    assert (copy / "sub/new/x").stat().st_mode & 0o777 == 0o660


def test_a_damaged_archive_keeps_the_files(root, home, leave):
    leave()
    archive = root / "home/.offboarded/alice-2001-home.tar.gz"
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    leave(time.time() + LATER, purge=True, fails="not as it was written")
    assert (home / "deep/er/notes").exists()


def test_what_cannot_be_read_is_told_and_nothing_half_is_left(root, home, leave):
    (home / "others").write_text("root's\n")
    (home / "others").chmod(0o600)
    leave(fails="others: it cannot be read")
    assert list((root / "home/.offboarded").iterdir()) == []
    os.chown(home / "others", 2001, 2001)
    leave()


def test_a_link_in_the_place_of_a_home_is_not_followed(root, home, leave):
    shutil.rmtree(home)
    home.symlink_to(root / "srv")
    with pytest.raises(HostError, match="is not a folder of alice"):
        leave()
    assert formeruids.read() == {}


def test_a_folder_that_others_can_change_gets_no_archive(root, home, leave):
    loose = root / "srv/loose"
    loose.mkdir()
    loose.chmod(0o777)
    leave(directory=str(loose / "archives"), fails="root alone")
    os.chown(loose, 2001, 2001)
    loose.chmod(0o755)
    leave(directory=str(loose), fails="root alone")


def test_a_copy_that_was_made_before_a_run_was_broken_off_is_known(
    engine, policy, root, alice, bob, thesis, home, leave, monkeypatch
):
    thesis.write("tool", "#!/bin/sh\n")
    (thesis.path / "tool").chmod(0o4755)
    over = (HandOver("thesis", "bob", "thesis"),)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", broken_off)
        with pytest.raises(KeyboardInterrupt):
            leave(hand_over=over)
    copy = Path(policy.workspace(bob)) / "thesis/tool"
    assert copy.stat().st_mode & 0o7777 == 0o755
    before = copy.stat()
    assert ("hand over thesis to bob", "copy thesis to bob as thesis") in leave(hand_over=over)
    assert copy.stat().st_ctime_ns == before.st_ctime_ns


unlink = os.unlink


def broken_off(path, *arguments, **options):
    if "-handed" in str(path) and "dir_fd" not in options:
        raise KeyboardInterrupt
    unlink(path, *arguments, **options)


def test_the_account_goes_and_its_number_stays_taken(private_root, policy):
    """The module itself, with real accounts; the uid is no other test's, since its processes are ended."""
    user = {"name": "zoe", "uid": 29611, "group": "students"}
    limits = {"cpus": 1, "memory": "64m", "pids": 9}
    users = {"groups": [{"name": "students", "gid": 3101}], "users": [{**user, "limits": limits}]}
    run_module("users", users, check=False, call=private_root.call)
    assert "zoe:x:29611" in (private_root.path / "etc/passwd").read_text()
    task = {"user": "zoe", "keep_days": 0, "policy": policies.dump(policy)}

    def deed(**changes):
        return run_module("offboarding", {**task, **changes}, check=False, call=private_root.call)

    session = subprocess.Popen(["sleep", "60"], user=29611, group=29611, extra_groups=[])
    done = deed()
    assert session.wait(timeout=5) == -9
    assert done.get("changed") and not done.get("failed"), done
    assert "zoe:*" in (private_root.path / "etc/shadow").read_text()
    assert not deed()["changed"]
    again = run_module("users", users, check=False, call=private_root.call)
    assert again["failed"] and "Take zoe out of lab_users" in again["msg"]
    assert deed(purge=True)["changed"]
    for name in ("passwd", "group", "shadow"):
        assert "zoe" not in (private_root.path / "etc" / name).read_text()
    assert not (private_root.path / "home/zoe").exists()
    assert (private_root.path / "home/.offboarded/zoe-29611-home.tar.gz").exists()
    assert not deed(purge=True)["changed"]
    other = {**users, "users": [{**user, "name": "yan", "limits": limits}]}
    refused = run_module("users", other, check=False, call=private_root.call)
    assert "was zoe's" in refused["msg"]
    assert deed(user="nobody-here")["failed"]
