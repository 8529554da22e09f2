# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a move of the shared data takes along of quotas, on two file systems whose kernel is played."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import datamove, mounts, quota
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError, InvalidInput, Refused
from ansible_collections.lab.server.plugins.module_utils._core.policy import Filesystem, Quota, from_inventory

SIZE, DATA = Quota(0, 16 << 20, 0, 0), Quota(1 << 20, 2 << 20, 0, 100)


class Kernel:
    """Plays the quotas of /dev/old and /dev/new, and the projects of folders, by their inode."""

    def __init__(self) -> None:
        self.limits: dict[tuple[str, int, int], Quota] = {}
        self.projects: dict[int, int] = {}
        self.graces = {"/dev/old": 3, "/dev/new": 7}
        self.enforced = {quota.USER, quota.PROJECT}
        self.forgets = False

    def read(self, device: str, kind: int, number: int) -> quota.Usage:
        return quota.Usage(0, 0, self.limits.get((device, kind, number), quota.NO_LIMIT))

    def write(self, device: str, kind: int, number: int, limit: Quota) -> None:
        if not self.forgets:
            self.limits[device, kind, number] = limit

    def get_project(self, descriptor: int) -> tuple[int, bool]:
        number = self.projects.get(os.fstat(descriptor).st_ino, 0)
        return number, number > 0

    def set_project(self, descriptor: int, number: int) -> bool:
        self.projects[os.fstat(descriptor).st_ino] = number
        return True


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    for name in ("read", "write", "get_project", "set_project"):
        monkeypatch.setattr(quota, name, getattr(made, name))
    monkeypatch.setattr(quota, "enforced", lambda _device: frozenset(made.enforced))
    monkeypatch.setattr(quota, "read_graces", lambda device: (made.graces[device], made.graces[device]))
    monkeypatch.setattr(quota, "write_graces", lambda device, days: made.graces.update({device: days}))
    monkeypatch.setattr(datamove.pwd, "getpwall", list)
    return made


@pytest.fixture
def host(tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> datamove.Host:
    """Return a server with a share of a size, one without, and a link that looks like one."""
    old, new = tmp_path / "data", tmp_path / "state/data-move/new"
    for folder in (old / "vision", old / "datasets", new):
        folder.mkdir(parents=True)
    (old / "zeta").symlink_to(old / "vision")
    kernel.projects[(old / "vision").stat().st_ino] = 100_007
    kernel.limits = {
        ("/dev/old", quota.PROJECT, 100_007): SIZE,
        ("/dev/old", quota.USER, 2001): DATA,
    }
    monkeypatch.setattr(datamove, "STATE_DIRECTORY", str(tmp_path / "state"))
    options = frozenset({"rw"})
    table = (
        mounts.Mount("/", "/dev/sda", "ext4", options, "8:0", "/"),
        mounts.Mount(str(old), "/dev/old", "xfs", options, "8:1", "/"),
        mounts.Mount(str(new), "/dev/new", "ext4", options, "8:2", "/"),
    )
    monkeypatch.setattr(mounts, "read", lambda: table)
    limits = {"containers": 1, "cpus": 1, "memory": "1g", "pids": 64, "shm": "1m", "gpus": 0}
    none = {"soft": 0, "hard": 0, "inodes_soft": 0, "inodes_hard": 0}
    policy, _keys = from_inventory(
        {
            "lab_data_root": str(old),
            "lab_groups": [{"name": "students", "gid": 3101, "limits": limits, "quota": none}],
            "lab_users": [
                {"name": name, "uid": uid, "group": "students"}
                for name, uid in (("alice", 2001), ("bob", 2002))
            ],
        }
    )
    to = Filesystem("data", str(old), "/dev/disk/by-id/new", "ext4", (), create=True)
    return datamove.Host(None, policy, to)


def test_folders_of_shares_are_in_their_projects_before_anything_is_copied(
    host: datamove.Host, kernel: Kernel, tmp_path: Path
) -> None:
    assert host.to_number() == ["give the folder vision to project 100007"]
    host.number()
    new = tmp_path / "state/data-move/new"
    assert [path.name for path in new.iterdir()] == ["vision"]
    assert (new / "vision").stat().st_mode & 0o777 == 0o700
    assert kernel.projects[(new / "vision").stat().st_ino] == 100_007
    assert host.to_number() == []


def test_the_limits_of_shares_and_users_are_on_the_new_one(host: datamove.Host, kernel: Kernel) -> None:
    assert host.to_limit() == ["limit the folder vision to 16M", "limit alice to 2M"]
    host.limit()
    assert kernel.limits["/dev/new", quota.PROJECT, 100_007] == SIZE
    assert kernel.limits["/dev/new", quota.USER, 2001] == DATA
    assert ("/dev/new", quota.USER, 2002) not in kernel.limits
    assert kernel.graces == {"/dev/old": 3, "/dev/new": 3}


def test_limits_that_are_not_kept_stop_the_move(host: datamove.Host, kernel: Kernel) -> None:
    kernel.forgets = True
    with pytest.raises(HostError, match="does not keep the limit of the folder vision"):
        host.limit()


def test_a_limit_of_a_share_does_not_keep_root_from_copying(
    host: datamove.Host, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.limit()
    seen: list[Quota] = []
    limit = "/dev/new", quota.PROJECT, 100_007
    monkeypatch.setattr(host, "_rsync", lambda _further, *, partly: seen.append(kernel.limits[limit]))
    host.copy(last=True)
    assert seen == [quota.NO_LIMIT]


def test_a_file_system_without_quotas_has_none_to_take_along(host: datamove.Host, kernel: Kernel) -> None:
    kernel.enforced = set()
    assert (host.to_number(), host.to_limit()) == ([], [])


def test_the_policy_of_the_server_names_the_new_disk_and_nothing_else_is_changed(host: datamove.Host) -> None:
    before = host._policy
    after = host._with_new(before)
    assert [one.device for one in after.filesystems] == ["/dev/disk/by-id/new"]
    assert host._with_new(after) == after
    assert (after.users, after.data_root) == (before.users, before.data_root)


def test_too_many_files_for_ext4_are_refused(host: datamove.Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def numbers(path: str) -> os.statvfs_result:
        files, free = (100, 10) if path.endswith("data") else (80, 70)
        return os.statvfs_result((4096, 4096, 9, 9, 9, files, free, free, 0, 255))

    monkeypatch.setattr(datamove.os, "statvfs", numbers)
    with pytest.raises(Refused, match=r"holds 90 files, and /dev/disk/by-id/new can hold 80"):
        host._check_files()


def test_where_to_is_said(host: datamove.Host) -> None:
    nowhere = Filesystem("data", "/srv/data", "", "ext4", (), create=False)
    with pytest.raises(InvalidInput, match=r"lab_filesystems\.data\.device"):
        datamove.move(None, host._policy, nowhere, release=False, check=True)


def test_holes_that_would_be_read_for_weeks_are_refused_before_anything_stops(
    host: datamove.Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    did: list[object] = []
    monkeypatch.setattr(host, "_rsync", lambda _further, *, partly: did.append(partly))
    monkeypatch.setattr(datamove.state, "set_moving", lambda: did.append("moving"))
    monkeypatch.setattr(datamove.state, "is_moving", lambda: False)
    monkeypatch.setattr(datamove.hostfiles, "run", lambda command, **_options: did.append(command))
    for name in ("a", "b"):
        (tmp_path / "data/vision" / name).touch()
        os.truncate(tmp_path / "data/vision" / name, (1 << 39) + 1)
    said = r"have 1T of holes, .* most are in vision/[ab] \(512G\), vision/[ab] \(512G\)\. Let their owners"
    for deed in (host.pause, lambda: host.copy(last=False), lambda: host.copy(last=True)):
        with pytest.raises(Refused, match=said):
            deed()
    assert did == []
    os.truncate(tmp_path / "data/vision/a", 1 << 39)
    os.truncate(tmp_path / "data/vision/b", 1 << 39)
    host.pause()
    host.copy(last=True)
    assert did[0] == "moving" and len(did) == 3


def test_the_rest_takes_no_longer_than_was_reckoned(
    host: datamove.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, given = [1000.0], []

    def run(command: list[str], *, timeout: float, **_options: object) -> object:
        if "rsync" in command:
            given.append(timeout)
            now[0] += timeout
            raise HostError("unshare could not be run: Command '...' timed out after 1 seconds.")
        return datamove.hostfiles.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(datamove.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(datamove.hostfiles, "run", run)
    monkeypatch.setattr(host, "_check_source", lambda *, frozen: None)
    monkeypatch.setattr(host, "_used", lambda: (100 << 30, 1_000_000))
    with pytest.raises(HostError, match="could not be run"):
        host.copy(last=False)
    assert given == [datamove._TIMEOUT]
    with pytest.raises(HostError, match=r"^The rest took much longer than all was reckoned to take"):
        host.copy(last=True)
    assert given[1] == 3600 + 4 * (1024 + 1000)
    now[0] += 1
    with pytest.raises(HostError, match=r"^The rest took much longer"):
        host.compare(last=True)


@pytest.mark.parametrize("status", [23, 24])
def test_what_vanishes_while_it_is_in_use_is_no_error_and_later_is(
    host: datamove.Host, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    said = f'rsync: [sender] read errors mapping "a\x1b": Input/output error (5)\nrsync error: code {status}'

    def run(command: list[str], **_options: object) -> object:
        failed = "rsync" in command
        return datamove.hostfiles.subprocess.CompletedProcess(command, status if failed else 0, "", said)

    monkeypatch.setattr(datamove.hostfiles, "run", run)
    monkeypatch.setattr(host, "_check_source", lambda *, frozen: None)
    host.copy(last=False)
    with pytest.raises(HostError, match=r"rsync failed: rsync: .*Input/output error") as error:
        host.copy(last=True)
    assert "\x1b" not in str(error.value)
