# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Quotas on all file systems of a server: a model of two disks, and shares with a size on a third."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    keptfolders,
    locks,
    mounts,
    policy,
    quota,
    quotaset,
    shares,
    sharesize,
    state,
)
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError
from ansible_collections.lab.server.plugins.module_utils._core.policy import (
    KeptFolder,
    Project,
    Quota,
    Share,
)
from ansible_collections.lab.server.plugins.module_utils._core.quotaset import Common, Place

HOME, DOCKER, DATA = "/dev/home", "/dev/docker", "/dev/data"
TEN = Quota(9 << 30, 10 << 30, 900, 1000)
ALICE = quota.Wanted("alice", 2001, TEN)
DAY = 86400


@dataclass
class Disks:
    """Keeps limits, use and graces of several devices, as quotactl(2) does; ``on`` are those with quotas."""

    on: set[str] = field(default_factory=lambda: {HOME, DOCKER})
    limits: dict[tuple[str, int, int], Quota] = field(default_factory=dict)
    used: dict[tuple[str, int, int], tuple[int, int]] = field(default_factory=dict)
    graces: tuple[int, int] = (7 * DAY, 7 * DAY)

    def __call__(self, command: int, kind: int, device: str, number: int, buffer: object) -> None:
        raw = bytearray(buffer.raw)  # type: ignore[attr-defined]  # a ctypes array
        key = (device, kind, number)
        if device not in self.on:
            raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
        if command == quota._Q_SETQUOTA:
            hard, soft, _used, inodes_hard, inodes_soft, *_rest = quota._DQBLK.unpack(raw)
            self.limits[key] = Quota(soft << 10, hard << 10, inodes_soft, inodes_hard)
        elif command == quota._Q_GETQUOTA:
            limits, (used, inodes) = self.limits.get(key, quota.NO_LIMIT), self.used.get(key, (0, 0))
            words = (
                limits.hard >> 10,
                limits.soft >> 10,
                used,
                limits.inodes_hard,
                limits.inodes_soft,
                inodes,
            )
            buffer.raw = quota._DQBLK.pack(*words, 0, 0, 0)  # type: ignore[attr-defined]  # as above
        elif command == quota._Q_SETINFO:
            space, files, _flags, valid = quota._DQINFO.unpack(raw)
            assert valid == 3
            self.graces = (space, files)
        elif command == quota._Q_GETINFO:
            buffer.raw = quota._DQINFO.pack(*self.graces, 0, 0)  # type: ignore[attr-defined]  # as above
        else:
            assert command == quota._Q_XGETQSTAT
            buffer.raw = b"\1\0" + (0x33).to_bytes(2, "little") + bytes(252)  # type: ignore[attr-defined]  # as above


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Disks:
    model = Disks()
    monkeypatch.setattr(quota, "_quotactl", model)
    table = [
        mounts.Mount(point, source, fstype, frozenset(), "0:1", "/")
        for point, source, fstype in (
            ("/", "/dev/root", "ext4"),
            (str(tmp_path / "home"), HOME, "xfs"),
            (str(tmp_path / "docker"), DOCKER, "ext4"),
            (str(tmp_path / "data"), DATA, "xfs"),
        )
    ]
    monkeypatch.setattr(mounts, "read", lambda: tuple(table))
    for name in ("home", "docker"):
        (tmp_path / name).mkdir()
    return model


Run = Callable[..., list[dict[str, object]]]


@pytest.fixture
def run(disks: Disks, tmp_path: Path) -> Run:
    def reconcile(
        layers: int = 0, *, check: bool = False, at: str = "docker", **common: object
    ) -> list[dict[str, object]]:
        limit = quota.Wanted("alice", 2001, Quota(0, layers, 0, 0))
        place = Place(str(tmp_path / at), "Docker quota", "the layers", "limits.layers_size", [limit])
        items = quotaset.reconcile(
            str(tmp_path / "home"),
            [ALICE],
            project=True,
            common=Common(**common),  # type: ignore[arg-type]  # as the tests say
            places=[place],
            check=check,
        )
        return [item.as_dict() for item in items]

    return reconcile


def test_both_disks_are_set_at_once_and_only_once(run: Run, disks: Disks) -> None:
    told = run(5 << 30, check=True, grace_days=7)
    assert disks.limits == {}
    assert run(5 << 30, grace_days=7) == told
    assert disks.limits[DOCKER, quota.USER, 2001] == Quota(0, 5 << 30, 0, 0)
    assert told[0]["diff"]["after"]["Docker quota hard"] == "5G"  # type: ignore[index]  # plain data
    assert [one["changed"] for one in run(5 << 30, grace_days=7)] == [False, False]
    # Up, down, and no limit at all, without anything else.
    assert [one["changed"] for one in run(6 << 30)] == [True, False]
    assert [one["changed"] for one in run(0)] == [True, False]
    assert disks.limits[DOCKER, quota.USER, 2001] == quota.NO_LIMIT


def test_below_what_is_used_is_set_with_a_warning_that_names_the_user(run: Run, disks: Disks) -> None:
    disks.used[HOME, quota.USER, 2001] = (11 << 30, 2000)
    notes = run()[0]["notes"]
    assert [str(note).partition(",")[0] for note in notes] == [  # type: ignore[union-attr]  # a list
        "alice uses 11G of the homes",
        "alice uses 2000 files of the homes",
    ]
    assert disks.limits[HOME, quota.USER, 2001] == TEN
    # It is told when it happens, not at every run.
    assert "notes" not in run()[0]


def test_a_limit_that_cannot_be_held_is_refused_before_anything_is_set(run: Run, disks: Disks) -> None:
    with pytest.raises(HostError, match=r"are on one file system, so limits\.layers_size cannot be held"):
        run(5 << 30, at="home")
    disks.on.remove(DOCKER)
    with pytest.raises(HostError, match=r"limits\.layers_size is declared, but .* enforces no user quotas"):
        run(5 << 30)
    assert disks.limits == {}
    assert run(5 << 30, check=True)[0]["changed"]
    # Where nobody is to have a limit, nothing is asked of that disk.
    assert run()[0]["changed"] and run(at="home")[0]["changed"] is False
    assert run(at="nowhere")[0]["changed"] is False


def test_the_grace_is_set_and_told(run: Run, disks: Disks) -> None:
    (_alice, everybody) = run(grace_days=3)
    assert everybody["diff"] == {"before": {"grace": "7 days"}, "after": {"grace": "3 days"}}
    assert disks.graces == (3 * DAY, 3 * DAY)
    assert run(grace_days=3)[1]["changed"] is False
    assert run()[1]["changed"] is False


def test_unknown_uids_have_the_default_of_xfs(run: Run, disks: Disks) -> None:
    default = Quota(0, 1 << 30, 0, 100)
    (_alice, everybody) = run(default=default)
    assert everybody["diff"]["after"] == {"default hard": "1G", "default inodes_hard": "100"}  # type: ignore[index]  # plain data
    assert disks.limits[HOME, quota.USER, 0] == default
    assert run(default=default)[1]["changed"] is False
    assert run()[1]["changed"] and disks.limits[HOME, quota.USER, 0] == quota.NO_LIMIT


def test_ext4_has_no_default(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = mounts.Mount(str(tmp_path), HOME, "ext4", frozenset(), "0:1", "/")
    monkeypatch.setattr(mounts, "read", lambda: (home,))
    with pytest.raises(HostError, match="ext4, which has no default"):
        run(default=Quota(0, 1 << 30, 0, 0))


def test_a_check_says_nothing_of_disks_that_are_not_mounted_yet(
    run: Run, disks: Disks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = mounts.Mount("/", "/dev/root", "ext4", frozenset(), "0:1", "/")
    monkeypatch.setattr(mounts, "read", lambda: (root,))
    (alice, everybody) = run(5 << 30, check=True, default=Quota(0, 1 << 30, 0, 0), overcommit=0.1)
    assert alice["changed"] and "notes" not in everybody
    assert everybody["diff"] == {"before": {"default hard": "no limit"}, "after": {"default hard": "1G"}}
    with pytest.raises(HostError):
        run(5 << 30)
    assert disks.limits == {}


def test_too_much_promised_is_a_warning(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    small = os.statvfs_result((1024, 1024, 1 << 20, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(quotaset.os, "statvfs", lambda _path: small)
    assert "is overcommitted: 10G promised of 1G" in str(run(overcommit=1.5)[1]["notes"])
    assert "notes" not in run(overcommit=10.0)[1]
    assert "notes" not in run()[1]


# Shares


@dataclass
class Projects:
    """Keeps the projects of files by their inodes, as the file system does."""

    given: dict[int, tuple[int, bool]] = field(default_factory=dict)

    def get(self, descriptor: int) -> tuple[int, bool]:
        return self.given.get(os.fstat(descriptor).st_ino, (0, False))

    def set(self, descriptor: int, project: int, *, inherit: bool = True) -> bool:
        self.given[os.fstat(descriptor).st_ino] = (project, inherit)
        return True


@pytest.fixture
def projects(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> Projects:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    disks.on.add(DATA)
    model = Projects()
    monkeypatch.setattr(quota, "get_project", model.get)
    monkeypatch.setattr(quota, "set_project", model.set)
    return model


def sized(tmp_path: Path, *sizes: int, check: bool = False) -> list[dict[str, object]]:
    declared = [Share(f"share{number}", "admin", "", size) for number, size in enumerate(sizes)]
    items = shares.reconcile(str(tmp_path / "data"), declared, mounted=False, check=check)
    return [item.as_dict() for item in items]


def test_each_share_has_a_project_of_its_own(projects: Projects, disks: Disks, tmp_path: Path) -> None:
    told = sized(tmp_path, 1 << 30, 0, 2 << 30, check=True)
    assert sized(tmp_path, 1 << 30, 0, 2 << 30) == told
    assert told[0]["diff"]["after"]["size"] == "1G"  # type: ignore[index]  # plain data
    first, second = sharesize.FIRST, sharesize.FIRST + 1
    assert {key[2]: one.hard for key, one in disks.limits.items()} == {first: 1 << 30, second: 2 << 30}
    assert not any(one["changed"] for one in sized(tmp_path, 1 << 30, 0, 2 << 30))
    # Live, up and off again; the number stays.
    sized(tmp_path, 3 << 30, 0, 0)
    assert disks.limits[DATA, quota.PROJECT, first].hard == 3 << 30
    assert disks.limits[DATA, quota.PROJECT, second] == quota.NO_LIMIT
    sized(tmp_path, 3 << 30, 1 << 30, 4 << 30)
    assert {key[2]: one.hard >> 30 for key, one in disks.limits.items()} == {
        first: 3,
        second: 4,
        second + 1: 1,
    }


def test_what_is_in_a_share_is_given_to_its_project(projects: Projects, disks: Disks, tmp_path: Path) -> None:
    sized(tmp_path, 0)
    share, outside = tmp_path / "data" / "share0", tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (share / "a" / "b").mkdir(parents=True)
    (share / "a" / "file").touch()
    (share / "link").symlink_to(outside)
    os.mkfifo(share / "fifo")
    sized(tmp_path, 1 << 30)
    number = sharesize.FIRST
    inodes = {str(path.relative_to(share)): path.lstat().st_ino for path in share.rglob("*")}
    given = {name: projects.given[inode] for name, inode in inodes.items() if inode in projects.given}
    assert given == {"a": (number, True), "a/b": (number, True), "a/file": (number, False)}
    assert outside.stat().st_ino not in projects.given


def test_a_tree_that_was_given_by_half_is_given_again(
    projects: Projects, disks: Disks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized(tmp_path, 0)
    (tmp_path / "data" / "share0" / "file").touch()

    def fail(*_words: object) -> None:
        raise HostError("broken off")

    with monkeypatch.context() as patch:
        patch.setattr(quota, "write", fail)
        assert sized(tmp_path, 1 << 30)[0]["failed"]
    projects.given = {inode: one for inode, one in projects.given.items() if one[1]}
    assert sized(tmp_path, 1 << 30)[0]["changed"]
    assert (tmp_path / "data" / "share0" / "file").stat().st_ino in projects.given


def test_a_size_below_what_is_there_is_told(projects: Projects, disks: Disks, tmp_path: Path) -> None:
    sized(tmp_path, 4 << 30)
    disks.used[DATA, quota.PROJECT, sharesize.FIRST] = (3 << 30, 5)
    (item,) = sized(tmp_path, 2 << 30)
    assert "It holds 3G, more than its new size of 2G. Nothing is deleted" in str(item["notes"])
    assert disks.limits[DATA, quota.PROJECT, sharesize.FIRST].hard == 2 << 30


def test_a_size_needs_project_quotas(projects: Projects, disks: Disks, tmp_path: Path) -> None:
    disks.on.remove(DATA)
    (item,) = sized(tmp_path, 1 << 30)
    assert item["failed"] and "enforces no project quotas" in str(item["msg"])
    assert not sized(tmp_path, 0)[0]["changed"]


# Kept folders of projects


@pytest.fixture
def kept(projects: Projects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that makes the kept folders of alice's project with these sizes."""
    given, _keys = policy.from_inventory(INVENTORY)
    for module in (policy, keptfolders):
        monkeypatch.setattr(module, "HOME_ROOT", str(tmp_path / "home"))
    monkeypatch.setattr(policy, "HOMES_ROOT", str(tmp_path / "home" / ".homes"))
    for module in (state, keptfolders):
        monkeypatch.setattr(module, "STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setattr(locks, "RUN_DIRECTORY", str(tmp_path / "run"))

    def make(check: bool = False, **sizes: int) -> list[str]:
        keep = tuple(KeptFolder(f"/opt/{name}", size) for name, size in sizes.items())
        fields = dict.fromkeys(("cpus", "memory", "pids", "shm"))
        thesis = Project("alice", "thesis", "ml", "", (), "started", **fields, environment=(), keep=keep)
        return keptfolders.reconcile(given, given.user("alice"), [thesis], check=check)

    return make


LIMITS = {"containers": 1, "cpus": 1, "memory": "1g", "pids": 64, "shm": "64m", "gpus": 0}
NONE = dict.fromkeys(("soft", "hard", "inodes_soft", "inodes_hard"), 0)
INVENTORY = {
    "lab_gid": 3000,
    "lab_filesystems": {"home": {"device": "/dev/disk/by-id/home", "fstype": "ext4"}},
    "lab_groups": [{"name": "students", "gid": 3101, "limits": LIMITS, "quota": NONE}],
    "lab_users": [{"name": "alice", "uid": 2001, "group": "students"}],
}


def test_kept_folders_are_made_and_their_sizes_set_live(
    kept: Callable[..., list[str]], projects: Projects, disks: Disks, tmp_path: Path
) -> None:
    above = tmp_path / "home" / ".homes" / "alice"
    one, two = (above / f"thesis@opt+{name}" for name in ("one", "two"))
    promised = kept(check=True, one=1 << 30, two=0)
    assert promised == [f"create {one}", f"set size of {one} to 1G", f"create {two}"]
    assert not above.exists()
    assert kept(one=1 << 30, two=0) == promised
    assert kept(one=1 << 30, two=0) == kept(check=True, one=1 << 30, two=0) == []
    assert [(path.stat().st_uid, path.stat().st_mode & 0o777) for path in (above, one)] == [
        (0, 0o711),
        (2001, 0o700),
    ]
    number = keptfolders.FIRST
    assert projects.given[one.stat().st_ino] == (number, True)
    assert projects.given[two.stat().st_ino] == (2001, True)
    assert {key[2]: limit.hard for key, limit in disks.limits.items()} == {number: 1 << 30}
    # Live: larger, and the other one gets a size while there is something in it.
    (two / "file").touch()
    promised = kept(check=True, one=2 << 30, two=3 << 30)
    assert (
        kept(one=2 << 30, two=3 << 30)
        == promised
        == [
            f"set size of {one} to 2G",
            f"set size of {two} to 3G",
        ]
    )
    assert projects.given[(two / "file").stat().st_ino] == (number + 1, False)
    assert kept(one=0, two=3 << 30) == [f"set size of {one} to no limit"]
    assert disks.limits[HOME, quota.PROJECT, number] == quota.NO_LIMIT


def test_the_project_of_a_kept_folder_is_never_what_its_owner_says(
    kept: Callable[..., list[str]], projects: Projects, disks: Disks, tmp_path: Path
) -> None:
    kept(one=1 << 30, two=1 << 30)
    one, two = (tmp_path / "home" / ".homes" / "alice" / f"thesis@opt+{name}" for name in ("one", "two"))
    # As if alice had put the first into the project of the second, which could be somebody else's.
    projects.given[one.stat().st_ino] = projects.given[two.stat().st_ino]
    kept(one=5 << 30, two=1 << 30)
    assert {key[2]: limit.hard >> 30 for key, limit in disks.limits.items()} == {
        keptfolders.FIRST: 5,
        keptfolders.FIRST + 1: 1,
    }
    assert projects.given[one.stat().st_ino] == (keptfolders.FIRST, True)


def test_a_kept_folder_that_was_removed_gets_its_size_again(
    kept: Callable[..., list[str]], projects: Projects, tmp_path: Path
) -> None:
    kept(one=1 << 30)
    one = tmp_path / "home" / ".homes" / "alice" / "thesis@opt+one"
    one.rename(tmp_path / "away")
    assert kept(one=1 << 30) == [f"create {one}", f"set size of {one} to 1G"]
    assert projects.given[one.stat().st_ino] == (keptfolders.FIRST, True)


@pytest.mark.parametrize("planted", ["link", "file", "other"])
def test_what_is_no_folder_of_the_users_is_not_kept(
    kept: Callable[..., list[str]], tmp_path: Path, planted: str
) -> None:
    above = tmp_path / "home" / ".homes" / "alice"
    above.mkdir(parents=True)
    above.parent.chmod(0o711)
    one = above / "thesis@opt+one"
    if planted == "link":
        one.symlink_to(tmp_path)
    elif planted == "file":
        one.touch()
    else:
        one.mkdir()
        os.chown(one, 2002, 2002)
    for check in (True, False):
        with pytest.raises(HostError, match="is not a folder of alice"):
            kept(check=check, one=1 << 30)


def test_a_damaged_record_of_kept_folders_fails_closed(
    kept: Callable[..., list[str]], tmp_path: Path
) -> None:
    kept(one=1 << 30)
    state.write_record("kept-folders.json", "[1]")
    with pytest.raises(HostError, match=r"kept-folders\.json is damaged"):
        kept(one=2 << 30)
