# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The shared data move from one disk to another: real file systems, rsync and mounts, in a private root."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    containers,
    datamove,
    quota,
    sametree,
    state,
)
from ansible_collections.lab.server.plugins.module_utils._core import policy as policies
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError
from private_root import PrivateRoot, run_module

OLD, NEW, THIRD = (f"/dev/disk/by-id/{name}" for name in ("lab-old", "lab-new", "lab-third"))
DATA = {"role": "data", "mount": "/srv/data", "device": OLD, "create": True}
TO = {"device": NEW, "create": True}
ACL = struct.pack("<I" + "HHI" * 3, 2, 1, 7, 2**32 - 1, 4, 7, 2**32 - 1, 32, 0, 2**32 - 1)
LIMITS = {"containers": 2, "cpus": 1, "memory": "64m", "pids": 64, "shm": "1m", "gpus": 0}
QUOTA = {"soft": 0, "hard": 0, "inodes_soft": 0, "inodes_hard": 0}
STEPS = ["new file system", "copy", "compare", "pause", "copy the rest", "limits", "switch", "start", "keep"]
STATE = "var/lib/lab-server/data-move"


def declared(**filesystem: Any) -> dict[str, Any]:
    made, _keys = policies.from_inventory(
        {
            "lab_filesystems": {"data": {"device": OLD, "create": True, **filesystem}},
            "lab_groups": [{"name": "students", "gid": 3101, "limits": LIMITS, "quota": QUOTA}],
            "lab_users": [{"name": "alice", "uid": 2001, "group": "students"}],
            "lab_shares": [{"name": "vision", "access": "admin"}],
        }
    )
    return policies.dump(made)


def tree_of(root: PrivateRoot, top: str = "/srv/data") -> dict[str, Any]:
    """Return all that a copy must keep, by path."""

    def look() -> dict[str, Any]:
        found: dict[str, Any] = {}
        inodes: dict[int, str] = {}
        for folder, folders, files in os.walk(os.fsencode(top)):
            for name in sorted([*folders, *files]):
                path = os.path.join(folder, name)
                status = os.lstat(path)
                shown = os.path.relpath(path, os.fsencode(top)).hex()
                attributes = {
                    each: os.getxattr(path, each, follow_symlinks=False).hex()
                    for each in os.listxattr(path, follow_symlinks=False)
                }
                content = ""
                if os.path.islink(path):
                    content = os.readlink(path).hex()
                elif os.path.isfile(path):
                    with open(path, "rb") as file:
                        content = sametree.hashlib.sha256(file.read()).hexdigest()
                first = inodes.setdefault(status.st_ino, shown)
                owner = [status.st_mode, status.st_uid, status.st_gid, status.st_rdev]
                found[shown] = [*owner, status.st_mtime_ns, first, attributes, content]
        found.pop(b"lost+found".hex(), None)
        return found

    seen: dict[str, Any] = root.call(look)
    return seen


def mounted(root: PrivateRoot) -> dict[str, str]:
    """Return what is mounted of disks, by place: the device and rw or ro."""
    lines = root.run("findmnt", "-rn", "-o", "TARGET,SOURCE,OPTIONS", "-t", "ext4").splitlines()
    found = {}
    for target, source, options in (line.split(" ") for line in lines):
        if source.startswith("/dev/loop"):
            found[target] = f"{source} {options.split(',')[0]}"
    return found


@pytest.fixture
def server(writable_root: PrivateRoot) -> PrivateRoot:
    """Return a server with shared data on a disk, and two that are blank."""
    root = writable_root
    for disk in (OLD, NEW, THIRD):
        root.add_disk(disk)
    for name, arguments in (("filesystems", {"filesystems": [DATA]}), ("commands", {"policy": declared()})):
        answer = run_module(name, arguments, check=False, call=root.call)
        assert not answer.get("failed"), answer["msg"]

    def fill() -> None:
        top = Path("/srv/data")
        top.chmod(0o755)
        (top / "vision/deep").mkdir(parents=True)
        os.chown(top / "vision", 0, 3102)
        (top / "vision").chmod(0o2770)
        os.setxattr(top / "vision", "system.posix_acl_default", ACL)
        (top / "vision/deep/model").write_bytes(os.urandom(3 << 20))
        (top / "vision/mine").write_text("of a user")
        os.chown(top / "vision/mine", 2001, 3102)
        os.setxattr(top / "vision/mine", "user.note", b"kept")
        os.link(top / "vision/mine", top / "vision/deep/again")
        (top / "vision/shadow").symlink_to("/etc/shadow")
        os.mkfifo(top / "vision/fifo")
        (top / os.fsdecode(b"a\nb\xff -rf")).write_text("odd")
        with (top / "vision/holes").open("wb") as file:
            file.truncate(100 << 20)
        os.utime(top / "vision/mine", ns=(1, 1_600_000_000_123_456_789))

        quota.write("", quota.USER, 2001, policies.Quota(0, 5 << 20, 0, 0))

    root.call(fill)
    return root


def move(server: PrivateRoot, *, check: bool = False, **changes: Any) -> dict[str, Any]:
    return run_module("data_move", {"to": TO, **changes}, check=check, call=server.call)


def text(server: PrivateRoot, path: str) -> str:
    return (server.path / path).read_text()


def test_the_data_move(server: PrivateRoot) -> None:
    before, places = tree_of(server), mounted(server)
    promise = move(server, check=True)
    assert (tree_of(server), mounted(server)) == (before, places) and "data-move" not in promise["results"]
    assert not (server.path / STATE / "record.json").exists()
    deed = move(server)
    assert deed == promise, deed
    assert [one["name"] for one in deed["results"] if one["changed"]] == STEPS
    assert tree_of(server) == before
    old, new = server.loops[:2]
    assert mounted(server) == {"/srv/data": f"{new} rw", f"/{STATE}/old": f"{old} ro"}
    assert tree_of(server, f"/{STATE}/old") == before
    # Who may not look at a share cannot reach it by another way.
    assert (server.path / STATE).stat().st_mode & 0o777 == 0o700
    holes = (server.path / "srv/data/vision/holes").stat()
    assert (holes.st_size, holes.st_blocks) == (100 << 20, 0)
    # The three that say where the data are agree, so the playbook finds nothing to do.
    again = run_module(
        "filesystems", {"filesystems": [{**DATA, "device": NEW}]}, check=True, call=server.call
    )
    assert not again["changed"], again
    told = json.loads(text(server, "etc/lab-server/policy.json"))
    assert told == declared(device=NEW)
    fstab = text(server, "etc/fstab")
    assert fstab.count("/srv/data ") == 1 and fstab.startswith("# the system's own lines\n")
    second = move(server)
    assert not second["changed"] and not second.get("failed"), second

    wrong = move(server, to={**TO, "device": THIRD})
    assert "Release it first" in wrong["msg"]
    released = move(server, release=True)
    assert released["changed"] and mounted(server) == {"/srv/data": f"{new} rw"}
    assert "data-move" not in text(server, "etc/fstab") and tree_of(server) == before


class Killed(BaseException):
    """The process is killed at once."""


@pytest.mark.thorough
@pytest.mark.parametrize(
    "where", ["prepare", "copy", "pause", "copy the rest", "limit", "fstab", "switch", "resume"]
)
def test_a_run_that_was_killed_is_repeated(
    server: PrivateRoot, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    before = tree_of(server)

    def killed(*_arguments: Any, **options: Any) -> Any:
        if where == "copy the rest" and not options["last"]:
            return whole(*_arguments, **options)
        if where in ("prepare", "switch", "pause"):
            whole(*_arguments, **options)
        os._exit(9)

    holder, name = (datamove.units, "reload") if where == "fstab" else (datamove.Host, where.split()[0])
    whole = getattr(holder, name)
    with monkeypatch.context() as patch:
        patch.setattr(holder, name, killed)
        with pytest.raises(AssertionError):
            move(server)
    promise = move(server, check=True)
    deed = move(server)
    assert deed == promise and not deed.get("failed"), (deed, promise)
    assert tree_of(server) == before
    assert set(mounted(server)) == {"/srv/data", f"/{STATE}/old"}
    assert not (server.path / STATE / "paused").exists()
    assert not move(server)["changed"]


def test_what_changes_meanwhile_is_there_and_what_hides_from_rsync_too(
    server: PrivateRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = datamove.Host.compare

    def written(self: datamove.Host, *, last: bool) -> None:
        whole(self, last=last)
        if not last:
            top = Path("/srv/data/vision")
            (top / "new").write_text("written meanwhile")
            (top / "fifo").unlink()
            # The same size and time as before, by which rsync would take it for the same.
            status = (top / "mine").stat()
            (top / "mine").write_text("OF A USER")
            os.utime(top / "mine", ns=(status.st_atime_ns, status.st_mtime_ns))

    monkeypatch.setattr(datamove.Host, "compare", written)
    answer = move(server)
    assert not answer.get("failed"), answer["msg"]
    assert text(server, "srv/data/vision/mine") == text(server, "srv/data/vision/deep/again") == "OF A USER"
    assert tree_of(server) == tree_of(server, f"/{STATE}/old")
    assert (server.path / "srv/data/vision/new").exists()


@pytest.mark.thorough
def test_what_copies_can_pass_no_link_and_write_nothing(
    server: PrivateRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link in the place of a folder is refused by the kernel, whenever it was put there."""
    server.call(lambda: os.symlink("/etc", "/srv/data/vision/aside"))
    told = "/var/lib/lab-server/told"
    look = "for file in deep/model aside/passwd; do cat $file > /dev/null; done"
    script = f"cd /srv/data/vision; ({look}; touch new) 2> {told}; exit 11"
    monkeypatch.setattr(datamove, "RSYNC", ("sh", "-c", script, "sh"))
    assert "rsync failed" in move(server)["msg"]
    first, second = text(server, told[1:]).splitlines()
    assert "aside/passwd: Too many levels of symbolic links" in first and "Read-only file system" in second


def test_a_copy_that_is_not_the_same_is_not_switched_to(
    server: PrivateRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, places = tree_of(server), mounted(server)
    whole = datamove.Host._rsync

    def damaged(self: datamove.Host, further: list[str], *, partly: bool) -> None:
        whole(self, further, partly=partly)
        path = Path("/var/lib/lab-server/data-move/new/vision/deep/model")
        status = path.stat()
        with path.open("r+b") as file:
            file.write(b"a bad disk")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    monkeypatch.setattr(datamove.Host, "_rsync", damaged)
    answer = move(server)
    assert answer["failed"]
    assert "not like /srv/data: vision/deep/model (content). Nothing is switched" in answer["msg"]
    assert tree_of(server) == before and places.items() <= mounted(server).items()
    assert not (server.path / STATE / "paused").exists()


@pytest.mark.thorough
def test_files_that_are_open_for_writing_keep_it_from_being_paused(server: PrivateRoot) -> None:
    with (server.path / "srv/data/vision/open").open("w"):
        answer = move(server)
    assert "/srv/data cannot be made read-only" in answer["msg"] and "fuser -vm /srv/data" in answer["msg"]
    assert mounted(server)["/srv/data"].endswith(" rw")
    assert not move(server).get("failed")


def _file_system(server: PrivateRoot, number: int, *options: str) -> None:
    subprocess.run(["mke2fs", "-q", "-F", *options, server.loops[number]], check=True)


@pytest.mark.thorough
def test_a_disk_that_cannot_be_used_is_refused_before_anything_is_touched(server: PrivateRoot) -> None:
    before, places = server.content(), mounted(server)

    def refused(to: dict[str, Any], *sentences: str) -> None:
        for check in (True, False):
            answer = move(server, check=check, to={**TO, **to})
            assert answer.get("failed") and not answer.get("changed"), answer
            for sentence in sentences:
                assert sentence in answer["msg"]
            assert mounted(server) == places
            assert "\n" not in answer["msg"]

    refused({"create": False}, "is blank. Set lab_filesystems.data.create: true")
    refused({"device": "/dev/none"}, "no disk of this server")
    refused({"options": ["suid"]}, "'suid' undoes what lab.server needs")
    assert server.loops[1] and server.content()[server.loops[1]] == before[server.loops[1]]
    _file_system(server, 1, "-t", "ext2")
    refused({}, "holds ext2")
    _file_system(server, 1, "-t", "ext4", "-d", str(Path(__file__).parent))
    refused({}, "is not empty: it holds conftest.py", "wipefs -a")
    refused({"fstype": "xfs"}, "holds ext4, not xfs")

    def use() -> None:
        os.makedirs("/srv/used")
        subprocess.run(["mount", os.path.realpath(NEW), "/srv/used"], check=True)

    server.call(use)
    places = mounted(server)
    refused({}, "is mounted at /srv/used")


@pytest.mark.thorough
def test_a_disk_that_is_too_small_is_refused(server: PrivateRoot) -> None:
    def fill() -> None:
        with open("/srv/data/large", "wb") as file:
            file.write(os.urandom(18 << 20))
            file.flush()
            os.fsync(file.fileno())

    server.call(fill)
    os.truncate(server.base / "disk1", 20 << 20)
    subprocess.run(["losetup", "-c", server.loops[1]], check=True)
    answer = move(server, check=True)
    assert "which does not fit on the 20M of" in answer["msg"] and "Use a larger disk" in answer["msg"]


@pytest.mark.thorough
def test_what_is_mounted_below_is_told(server: PrivateRoot) -> None:
    server.run("mount", "-t", "tmpfs", "tmpfs", "/srv/data/vision/deep")
    answer = move(server)
    assert "/srv/data/vision/deep is mounted by itself" in answer["msg"]


@pytest.mark.thorough
def test_containers_are_stopped_for_a_move_and_run_again(
    engine: Any, policy: Any, alice: Any, thesis: Any, inside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = policies.Filesystem("data", policy.data_root, "", "ext4", (), create=False)
    ran: list[Any] = []
    monkeypatch.setattr(datamove.hostfiles, "run", lambda command, **_options: ran.append(command))
    containers.launch(engine, policy, alice, "thesis")
    host = datamove.Host(engine, policy, to)
    assert host.running() == ["thesis._.2001"] and not host.is_held()
    host.pause()
    assert ran == [["mount", "-o", "remount,ro", policy.data_root]]
    assert host.running() == [] and host.is_held()
    with pytest.raises(HostError, match="being moved to another disk"):
        containers.launch(engine, policy, alice, "thesis")
    assert host.running() == []
    # It is not one that was stopped on purpose, so it also runs after a reboot.
    assert not state.is_stopped("thesis._.2001")
    assert host.resume(("thesis._.2001", "gone._.2002")) == []
    assert host.running() == ["thesis._.2001"] and not host.is_held()
    assert inside(alice, "thesis", f"cat {policy.data_root}/datasets/iris.csv") == "data\n"


@pytest.mark.thorough
def test_no_container_is_started_while_the_data_move(server: PrivateRoot) -> None:
    (server.path / STATE).mkdir(mode=0o700, parents=True)
    (server.path / STATE / "paused").touch()

    def sentences() -> list[str]:
        return datamove.storage.check_mounts(policies.parse(declared()))

    assert server.call(sentences) == [
        "The shared data are being moved to another disk. Try again when that is done."
    ]
    # Called off: the old disk is named in the inventory.
    assert move(server, to={**TO, "device": OLD})["changed"]
    assert server.call(sentences) == []
