# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The folders of who leaves: archived, read again, handed over and removed, with those of ``keep``."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    archive,
    departing,
    names,
    offboarding,
    quota,
    sharehandover,
    shares,
    state,
)
from ansible_collections.lab.server.plugins.module_utils._core import policy as policies
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError, InvalidInput
from ansible_collections.lab.server.plugins.module_utils._core.items import ItemResult
from ansible_collections.lab.server.plugins.module_utils._core.offboarding import HandOver, Request

BEGIN = 1_700_000_000.0
LATER = BEGIN + 31 * 86400
LIMITS = {"containers": 1, "cpus": 1, "memory": "64m", "pids": 64, "shm": "1m", "gpus": 0}
QUOTA = {"soft": 0, "hard": 0, "inodes_soft": 0, "inodes_hard": 0}
KEPT = "survey@opt+packages"
ARCHIVES = [
    "alice-2001-home-of-survey.tar.gz",
    "alice-2001-home.tar.gz",
    f"alice-2001-keep-of-{KEPT}.tar.gz",
    "alice-2001-keep-of-thesis@opt+R_4.x.tar.gz",
    "alice-2001-workspace.tar.gz",
]


class BrokenOff(BaseException):
    """The power is lost."""


class Host(departing.Host):
    """A server without Docker, of which the accounts and processes are not those of the test computer."""

    def find(self, user: str) -> int:
        self._uid = self._policy.user(user).uid
        return self._uid

    def to_shut(self) -> list[str]:
        return []

    def processes(self) -> int:
        return 0

    def _is_foreign(self) -> bool:
        return True


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder that stands for /home, with the folders of alice and an empty workspace of bob's."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    top = Path(tempfile.mkdtemp(prefix="lab-server-test-"))  # tmp_path is closed to alice
    top.chmod(0o755)
    monkeypatch.setattr(policies, "HOME_ROOT", str(top))
    monkeypatch.setattr(policies, "WORKSPACES_ROOT", str(top / ".workspaces"))
    monkeypatch.setattr(policies, "HOMES_ROOT", str(top / ".homes"))
    monkeypatch.setattr(state, "STATE_DIRECTORY", str(top / "state"))
    monkeypatch.setattr(departing.journal, "record", lambda **_what: None)
    monkeypatch.setattr(departing.time, "sleep", lambda _seconds: None)
    fill(top)
    yield top
    shutil.rmtree(top)


def fill(top: Path) -> None:
    for path, text in {
        "alice/notes": "mine",
        ".workspaces/alice/survey/data": "numbers",
        ".homes/alice/survey/history": "ls",
        f".homes/alice/{KEPT}/lib/tool": "#!/bin/sh\n",
        ".homes/alice/thesis@opt+R_4.x/stats": "R",
    }.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(text)
    (top / f".homes/alice/{KEPT}/lib/tool").chmod(0o4755)
    # The making of this one was broken off.
    (top / ".homes/alice/new@opt+x").mkdir()
    (top / ".workspaces/bob").mkdir()
    os.chown(top / ".workspaces/bob", 2002, 2002)
    for tree in ("alice", ".workspaces/alice", *(f".homes/alice/{name}" for name in ("survey", KEPT))):
        give(top / tree)
    give(top / ".homes/alice/thesis@opt+R_4.x")
    for name in (".workspaces", ".homes", ".homes/alice"):
        (top / name).chmod(0o711)


def give(top: Path, uid: int = 2001) -> None:
    for path in (top, *top.rglob("*")):
        mode = path.stat().st_mode & 0o7777
        os.lchown(path, uid, uid)
        path.chmod(mode)  # which chown(2) takes the setuid bit from


def leave(top: Path, now: float = BEGIN, *, check: bool = False, **changes: Any) -> list[ItemResult]:
    groups = [{"name": "students", "gid": 3101, "limits": LIMITS, "quota": QUOTA}]
    users = [
        {"name": name, "uid": uid, "group": "students"} for name, uid in (("alice", 2001), ("bob", 2002))
    ]
    declared = [
        {"name": "vision", "access": "group", "group": "students"},
        {"name": "datasets", "access": "read-only"},
    ]
    inventory = {"lab_groups": groups, "lab_users": users, "lab_shares": declared}
    made, _keys = policies.from_inventory({**inventory, "lab_data_root": str(top / "data")})
    asked = replace(Request("alice", str(top / ".offboarded")), **changes)
    return offboarding.reconcile(Host(None, made, "alice"), asked, check=check, now=now)


def ok(results: list[ItemResult]) -> list[tuple[str, list[str]]]:
    assert not any(one.failed for one in results), [one.message for one in results]
    return [(one.name, one.actions) for one in results]


def names_in(path: Path) -> set[str]:
    with tarfile.open(path) as opened:
        return set(opened.getnames())


OVER = (HandOver("survey", "bob", "mine"),)


def is_handed_over(top: Path) -> bool:
    kept = top / ".homes/bob/mine@opt+packages"
    assert sorted(path.name for path in (top / ".homes/bob").iterdir()) == [kept.name]
    assert list((top / ".homes/.handed").iterdir()) == []
    tool = (kept / "lib/tool").stat()
    assert ((kept / "lib/tool").read_text(), tool.st_uid, tool.st_mode & 0o7777) == (
        "#!/bin/sh\n",
        2002,
        0o755,
    )
    return (top / ".workspaces/bob/mine/data").read_text() == "numbers"


def is_purged(top: Path) -> bool:
    assert not (top / "alice").exists() and not (top / ".workspaces/alice").exists()
    assert sorted(path.name for path in (top / ".offboarded").iterdir()) == ARCHIVES
    return not (top / ".homes/alice").exists()


def test_kept_folders_are_archived_handed_over_and_removed(disk: Path) -> None:
    promised = ok(leave(disk, check=True, hand_over=OVER))
    done = ok(leave(disk, hand_over=OVER))
    assert done == promised and f"archive keep-of-{KEPT}" in dict(done)
    archives = disk / ".offboarded"
    assert sorted(path.name for path in archives.iterdir()) == ARCHIVES
    found = {name for path in archives.iterdir() for name in names_in(path) if name.endswith("lib/tool")}
    (tool,) = found
    assert names.project_name(tool.split("/")[0]).startswith("of-survey-opt-packages-")
    assert is_handed_over(disk)
    assert not any(actions for _name, actions in ok(leave(disk, hand_over=OVER)))
    promised = ok(leave(disk, LATER, check=True, purge=True))
    assert ok(leave(disk, LATER, purge=True)) == promised
    assert is_purged(disk) and is_handed_over(disk)


def test_what_changed_in_a_kept_folder_is_not_purged(disk: Path) -> None:
    ok(leave(disk))
    (disk / f".homes/alice/{KEPT}/lib/more").write_text("new")
    give(disk / f".homes/alice/{KEPT}")
    assert leave(disk, LATER, purge=True)[-1].failed
    assert (disk / f".homes/alice/{KEPT}/lib/more").exists()


def test_what_is_in_an_older_archive_alone_is_not_lost(disk: Path) -> None:
    ok(leave(disk))
    older, newer = (disk / ".offboarded" / f"alice-2001-home{number}.tar.gz" for number in ("", "~2"))
    packed = older.read_bytes()
    # Room is made by hand, since it is archived.
    (disk / "alice/notes").unlink()
    promised = [one.as_dict() for one in leave(disk, check=True)]
    done = leave(disk)
    assert [one.as_dict() for one in done] == promised
    assert dict(ok(done))["archive home"][0] == f"archive {disk}/alice as {newer}"
    assert str(older) in done[0].facts["notes"][0]
    assert older.read_bytes() == packed and "home/notes" in names_in(older)
    assert "home/notes" not in names_in(newer)
    assert not any(actions for _name, actions in ok(leave(disk)))
    ok(leave(disk, LATER, purge=True))
    assert older.exists() and newer.exists() and not (disk / "alice").exists()


@pytest.mark.parametrize("name", ["Thesis", "thesis@", "thesis@..", "@opt", "a b", ".old", "thesis@opt+"])
def test_what_we_never_make_is_told_and_keeps_everything(disk: Path, name: str) -> None:
    ok(leave(disk))
    (disk / ".homes/alice" / name).mkdir()
    with pytest.raises(HostError, match=r"is nothing that lab\.server makes"):
        leave(disk, LATER, purge=True)
    assert (disk / "alice/notes").exists()


def test_a_folder_of_roots_with_something_in_it_is_told(disk: Path) -> None:
    (disk / ".homes/alice/new@opt+x/data").write_text("whose?")
    with pytest.raises(HostError, match="is not a folder of alice"):
        leave(disk)


def test_what_is_left_of_a_purge_is_told(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ok(leave(disk))
    with monkeypatch.context() as patch:
        patch.setattr(departing.os, "rmdir", left)
        last = leave(disk, LATER, purge=True)[-1]
    assert last.failed and ".homes/alice cannot be removed: Directory not empty" in last.message
    ok(leave(disk, LATER, purge=True))
    assert is_purged(disk)


rmdir = os.rmdir


def left(path: str, *, dir_fd: int | None = None) -> None:
    if path == "alice" and ".homes" in os.readlink(f"/proc/self/fd/{dir_fd}"):
        raise OSError(39, "Directory not empty")
    rmdir(path, dir_fd=dir_fd)


def test_a_kept_folder_of_the_other_user_is_not_written_over(disk: Path) -> None:
    place = disk / ".homes/bob/mine@opt+packages"
    place.mkdir(parents=True)
    promised = [one.as_dict() for one in leave(disk, check=True, hand_over=OVER)]
    results = leave(disk, hand_over=OVER)
    assert [one.as_dict() for one in results] == promised
    assert results[-1].failed and "is there already" in results[-1].message
    assert not (disk / ".workspaces/bob/mine").exists()


class Power:
    """Is lost before the deed of a number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: int = -1) -> None:
        self.deeds, self.fails_at = 0, fails_at
        for where, name in (
            (departing.Host, "save"),
            (departing, "_remove_folder"),
            (departing, "_move"),
            (departing, "_become"),
            (departing.homes, "make_folder"),
            (sharehandover, "_become"),
            (sharehandover, "_clear"),
            (sharehandover.shares, "give"),
            (sharehandover, "_place"),
        ):
            monkeypatch.setattr(where, name, self._around(getattr(where, name)))

    def _around(self, deed: Callable[..., Any]) -> Callable[..., Any]:
        def done(*arguments: Any) -> Any:
            self.deeds += 1
            if self.deeds == self.fails_at:
                raise BrokenOff
            return deed(*arguments)

        return done


def broken_off(disk: Path, monkeypatch: pytest.MonkeyPatch, number: int, now: float, **asked: Any) -> int:
    """Break a run off before a deed, and repeat it; return how many deeds a run has that is not (0)."""
    with monkeypatch.context() as patch:
        power = Power(patch, number)
        if number:
            with pytest.raises(BrokenOff):
                leave(disk, now, **asked)
        else:
            ok(leave(disk, now, **asked))
    ok(leave(disk, now, **asked))
    return power.deeds


def test_a_hand_over_is_repeated_after_it_was_broken_off_anywhere(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok(leave(disk))
    record = disk / "state/offboarding/2001.json"
    before = record.read_text()
    deeds = broken_off(disk, monkeypatch, 0, BEGIN, hand_over=OVER)
    assert deeds > 5
    for number in range(1, deeds + 1):
        for path in (disk / ".workspaces/bob/mine", disk / ".homes/bob"):
            shutil.rmtree(path)
        record.write_text(before)
        broken_off(disk, monkeypatch, number, BEGIN, hand_over=OVER)
        assert is_handed_over(disk), number


def test_a_purge_is_repeated_after_it_was_broken_off_anywhere(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok(leave(disk))
    deeds = broken_off(disk, monkeypatch, 0, LATER, purge=True)
    assert deeds > 5 and is_purged(disk)
    for number in range(1, deeds + 1):
        for path in disk.iterdir():
            shutil.rmtree(path)
        fill(disk)
        ok(leave(disk))
        broken_off(disk, monkeypatch, number, LATER, purge=True)
        assert is_purged(disk), number


def test_labels_are_names_in_archives_and_no_two_the_same() -> None:
    long = f"keep-of-{'a' * 32}@{'x' * 60}+{'_' * 30}"
    labels = ["home", "workspace", "home-of-thesis", f"home-of-{'p' * 32}", long, long.replace("a", "b", 1)]
    labels += ["keep-of-a@b+c", "keep-of-a@b_c", "keep-of-a@b.c", "keep-of-a@B+c", "home-of-a-b-c"]
    made = [departing._top(label) for label in labels]
    assert len(set(made)) == len(made) and made[:3] == labels[:3]
    assert [names.project_name(name) for name in made] == made
    assert len(f".{'u' * 32}-59999-{long}{archive.SUFFIX}.part") < 255


def test_the_name_of_a_kept_folder_is_read_as_it_was_made() -> None:
    made, _keys = policies.from_inventory({"lab_groups": []})
    user = policies.User("alice", 2001, "", (), "", None, None)  # type: ignore[arg-type]  # no limits are asked for
    source = Path(made.kept_source(user, "thesis", "/opt/R_4.x/lib"))
    assert policies.kept_name(source.name) == ("thesis", "/opt/R_4.x/lib")
    with pytest.raises(InvalidInput):
        policies.kept_name("thesis")


# To a share


TO_SHARE = (HandOver("survey", "share:vision", "from-alice"),)
VISION = policies.Share("vision", "group", "students")


@pytest.fixture
def vision(disk: Path) -> Path:
    """Return the folder of a group share; alice's project has what a project can have."""
    share = disk / "data/vision"
    share.mkdir(parents=True)
    make_share(share)
    project = disk / ".workspaces/alice/survey"
    (project / "deep/er").mkdir(parents=True)
    (project / "deep/er/tool").write_text("#!/bin/sh\n")
    (project / "deep/er/key").write_text("secret")
    (project / "deep/er/same").hardlink_to(project / "deep/er/key")
    (project / "shadow").symlink_to("/etc/shadow")
    os.mkfifo(project / "waits")
    for path in (project, *project.rglob("*")):
        os.lchown(path, 2001, 2001)
    (project / "deep/er/tool").chmod(0o6755)
    (project / "deep/er/key").chmod(0o600)
    (project / "deep").chmod(0o3700)
    return share


def make_share(share: Path) -> None:
    opened = os.open(share, os.O_RDONLY)
    shares.give(opened, VISION, 0, 3101)
    os.close(opened)


def is_in_share(share: Path) -> bool:
    assert [path.name for path in share.iterdir()] == ["from-alice"]
    assert [path.name for path in share.parent.iterdir()] == ["vision"]
    top = share / "from-alice"
    for path in (top, *top.rglob("*")):
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (2001, 3101), path
        if path.is_dir():
            assert status.st_mode & 0o7777 == 0o2770, path
            acl = os.getxattr(path, "system.posix_acl_default")
            assert shares.decode_acl(acl) == "u::rwx,g::rwx,o::---"
    assert sorted(path.name for path in top.iterdir()) == ["data", "deep", "shadow"]
    assert os.readlink(top / "shadow") == "/etc/shadow"
    modes = {name: (top / "deep/er" / name).stat().st_mode & 0o7777 for name in ("tool", "key", "same")}
    assert modes == {"tool": 0o770, "key": 0o660, "same": 0o660}
    assert (top / "deep/er/key").stat().st_nlink == 2
    return (top / "data").read_text() == "numbers"


def test_a_project_goes_to_a_share_with_the_rights_of_the_share(disk: Path, vision: Path) -> None:
    promised = ok(leave(disk, check=True, hand_over=TO_SHARE))
    assert list(vision.iterdir()) == []
    done = ok(leave(disk, hand_over=TO_SHARE))
    assert done == promised
    assert dict(done)["hand over survey to the share vision"] == [
        "copy survey to the share vision as from-alice"
    ]
    assert is_in_share(vision)
    assert not any(actions for _name, actions in ok(leave(disk, hand_over=TO_SHARE)))
    ok(leave(disk, LATER, purge=True))
    assert is_in_share(vision)


def test_a_hand_over_to_a_share_is_repeated_after_it_was_broken_off_anywhere(
    disk: Path, vision: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok(leave(disk))
    record = disk / "state/offboarding/2001.json"
    before = record.read_text()
    deeds = broken_off(disk, monkeypatch, 0, BEGIN, hand_over=TO_SHARE)
    assert deeds > 8
    for number in range(1, deeds + 1):
        shutil.rmtree(vision / "from-alice")
        record.write_text(before)
        broken_off(disk, monkeypatch, number, BEGIN, hand_over=TO_SHARE)
        assert is_in_share(vision), number


def test_half_a_project_that_a_lost_server_left_is_made_anew(disk: Path, vision: Path) -> None:
    half = disk / "data/.handed/2001-vision"
    (half / "deep").mkdir(parents=True)
    (half / "deep/x").write_text("half")
    give(half)
    ok(leave(disk, hand_over=TO_SHARE))
    assert is_in_share(vision)


@pytest.mark.parametrize(
    ("to", "told"),
    [
        ("share:datasets", "The share datasets has 'access: read-only'"),
        ("share:nothing", "There is no share nothing."),
        ("share:vision", "vision/from-alice is there already."),
    ],
)
def test_what_cannot_go_to_a_share_is_told_before_and_changes_nothing(
    disk: Path, vision: Path, to: str, told: str
) -> None:
    (vision / "from-alice").symlink_to("/nowhere")
    over = (HandOver("survey", to, "from-alice"),)
    promised = [one.as_dict() for one in leave(disk, check=True, hand_over=over)]
    results = leave(disk, hand_over=over)
    assert [one.as_dict() for one in results] == promised
    assert results[-1].failed and told in results[-1].message
    assert [path.name for path in vision.iterdir()] == ["from-alice"]
    assert (vision / "from-alice").is_symlink()


@pytest.mark.parametrize("damage", ["mode", "group", "acl", "link", "gone"])
def test_a_share_that_is_not_as_declared_gets_nothing(disk: Path, vision: Path, damage: str) -> None:
    if damage == "mode":
        vision.chmod(0o2777)
    elif damage == "group":
        os.chown(vision, 0, 3102)
        vision.chmod(0o2770)
    elif damage == "acl":
        os.removexattr(vision, "system.posix_acl_default")
    else:
        vision.rename(disk / "elsewhere")
        if damage == "link":
            vision.symlink_to(disk / "elsewhere")
    for check in (True, False):
        last = leave(disk, check=check, hand_over=TO_SHARE)[-1]
        assert last.failed and "The share vision is" in last.message, last.message
    assert not list((vision if vision.is_dir() else disk / "elsewhere").iterdir())


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (quota.PROJECT, "and the share vision has room for 10."),
        (quota.USER, "and the quota of uid 2001 there has room for 10."),
        (None, "and the disk of the shares has room for 0."),
    ],
)
def test_a_share_without_room_is_told_before(
    disk: Path, vision: Path, monkeypatch: pytest.MonkeyPatch, kind: int | None, told: str
) -> None:
    if kind is None:
        full = os.statvfs_result((4096, 4096, 10, 0, 0, 10, 10, 10, 0, 255))
        monkeypatch.setattr(sharehandover.os, "fstatvfs", lambda _number: full)
    else:
        used = quota.Usage(90, 1, policies.Quota(0, 100, 0, 0))
        asked = {quota.PROJECT: 100_007, quota.USER: 2001}
        monkeypatch.setattr(sharehandover.sharesize, "numbers", lambda _root: {"vision": 100_007})
        monkeypatch.setattr(sharehandover.quota, "enforced", lambda _device: frozenset({kind}))
        monkeypatch.setattr(
            sharehandover.quota, "read", lambda _device, of, number: used if asked[of] == number else None
        )
    last = leave(disk, check=True, hand_over=TO_SHARE)[-1]
    assert last.failed and told in last.message, last.message
    assert list(vision.iterdir()) == []


def test_colleagues_work_on_what_was_handed_over_and_others_do_not(disk: Path, vision: Path) -> None:
    ok(leave(disk, hand_over=TO_SHARE))
    (disk / "data").chmod(0o755)
    key = vision / "from-alice/deep/er/key"

    def as_bob(group: int, command: str) -> bool:
        who = {"user": 2002, "group": group, "extra_groups": []}
        return subprocess.run(["sh", "-c", command], check=False, capture_output=True, **who).returncode == 0

    assert as_bob(3101, f"umask 077; echo more >> {key} && mkdir {key.parent}/new")
    assert (key.parent / "new").stat().st_mode & 0o2070 == 0o2070
    assert not as_bob(3102, f"cat {key}")
