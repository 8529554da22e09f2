# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    hostfiles,
    mounts,
    quota,
    state,
    storage,
)
from ansible_collections.lab.server.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.lab.server.plugins.module_utils._core.policy import Filesystem, from_inventory

HOME = Filesystem("home", "/home", "/dev/disk/by-id/virtio-lab-home", "ext4", (), True)
BLANK = storage.Device("/dev/vdb", "253:16", "", "", frozenset(), ())
EXT4 = replace(BLANK, fstype="ext4", uuid="11-22", features=frozenset({"quota", "project", "extent"}))
MOUNT = mounts.Mount("/home", "/dev/vdb", "ext4", frozenset({"rw", "nosuid", "nodev"}), "253:16", "/")
BOTH = frozenset({quota.USER, quota.PROJECT})
NOTHING = storage.Actual(BLANK, None, "", (), frozenset(), ())
LINE = storage.fstab_line(HOME, "")
READY = storage.Actual(EXT4, MOUNT, "", (), BOTH, (LINE,))


def test_a_blank_disk_is_made_written_and_mounted() -> None:
    item, steps = storage.plan(HOME, NOTHING)
    assert [step.verb for step in steps] == ["make", "fstab", "mount"]
    assert item.changed
    assert item.diff["before"]["content"] == "blank"


def test_what_is_ready_is_left_alone() -> None:
    item, steps = storage.plan(HOME, READY)
    assert (item.changed, item.actions, item.diff, steps) == (False, [], {}, [])


@pytest.mark.parametrize(
    ("actual", "verbs"),
    [
        (replace(READY, mount=None), ["mount"]),
        (replace(READY, fstab=()), ["fstab"]),
        (replace(READY, fstab=(LINE, LINE)), ["fstab"]),
        (replace(READY, mount=replace(MOUNT, options=frozenset({"rw", "nodev"}))), ["remount"]),
        (replace(READY, enforced=frozenset({quota.USER})), ["enforce"]),
    ],
)
def test_only_what_differs_is_done(actual: storage.Actual, verbs: list[str]) -> None:
    _item, steps = storage.plan(HOME, actual)
    assert [step.verb for step in steps] == verbs


def test_a_file_system_of_somebody_else_is_not_touched() -> None:
    _item, steps = storage.plan(replace(HOME, device=""), replace(READY, device=None))
    assert steps == []


@pytest.mark.parametrize("actual", [NOTHING, READY, replace(READY, mount=None)])
def test_what_can_be_brought_up_has_no_problem(actual: storage.Actual) -> None:
    assert storage.problem(HOME, actual) == ""


@pytest.mark.parametrize(
    ("filesystem", "actual", "sentence"),
    [
        (HOME, replace(NOTHING, device=None), "no disk of this server"),
        (HOME, replace(READY, mount=replace(MOUNT, number="8:1")), "is mounted from"),
        (HOME, replace(READY, mount=None, elsewhere="/mnt"), "is mounted at /mnt"),
        (HOME, replace(NOTHING, hidden=("/home/old",)), "would hide"),
        (HOME, replace(NOTHING, device=replace(BLANK, parts=("the partition vdb1",))), "is not blank"),
        (replace(HOME, create=False), NOTHING, "is blank. Set"),
        (HOME, replace(NOTHING, device=replace(EXT4, fstype="btrfs")), "cannot hold the quotas"),
        (HOME, replace(NOTHING, device=replace(EXT4, fstype="xfs")), "Correct lab_filesystems.home.fstype"),
        (HOME, replace(NOTHING, device=replace(EXT4, features=frozenset({"quota"}))), "without project"),
        (replace(HOME, device=""), replace(NOTHING, device=None), "is not set"),
        (
            replace(HOME, device=""),
            replace(READY, device=None, mount=replace(MOUNT, options=frozenset({"rw"}))),
            "without nosuid,nodev",
        ),
        (
            replace(HOME, device=""),
            replace(READY, device=None, enforced=frozenset()),
            "No user quotas are enforced",
        ),
        (
            replace(HOME, device=""),
            replace(READY, device=None, enforced=frozenset(), features=frozenset({"quota"})),
            "ext4 without project, so it cannot hold quotas. Run: umount /home && e2fsck",
        ),
        (
            replace(HOME, device=""),
            replace(READY, device=None, enforced=frozenset(), mount=replace(MOUNT, fstype="nfs4")),
            "lies on another server",
        ),
    ],
)
def test_a_problem_is_one_sentence_with_the_fix(
    filesystem: Filesystem, actual: storage.Actual, sentence: str
) -> None:
    text = storage.problem(filesystem, actual)
    assert sentence in text
    assert "\n" not in text


def test_the_options_hold_what_a_server_rests_on() -> None:
    for role in ("home", "data", "docker"):
        chosen = storage.options(replace(HOME, role=role, options=("noatime",)))
        assert {"usrquota", "prjquota", "noatime", "nofail"} <= set(chosen)
        assert ({"nosuid", "nodev"} <= set(chosen)) == (role != "docker")
    assert {"uquota", "pquota"} <= set(storage.options(replace(HOME, fstype="xfs")))


@pytest.mark.parametrize("option", ["suid", "dev", "noauto", "defaults", "noquota", "a,b", "", "a b"])
def test_options_that_undo_it_are_refused(option: str) -> None:
    with pytest.raises(InvalidInput, match=r"lab_filesystems\.home\.options"):
        storage.check_options(replace(HOME, options=(option,)))


def test_programs_of_images_may_be_setuid_on_the_file_system_of_docker() -> None:
    storage.check_options(replace(HOME, role="docker", options=("suid", "noatime")))


def test_a_name_that_may_change_is_not_written_to_fstab() -> None:
    assert storage.fstab_line(replace(HOME, device="/dev/sdb1"), "11-22").startswith("UUID=11-22 /home ")
    assert storage.fstab_line(HOME, "11-22").startswith("/dev/disk/by-id/virtio-lab-home /home ")


FSTAB = """\
# /etc/fstab
UUID=a / ext4 defaults 0 1

UUID=b   /home   ext4\tdefaults 0 2
UUID=c /home/ ext4 ro 0 2
"""


def test_the_line_of_a_mount_takes_the_place_of_all_there_were() -> None:
    assert storage.fstab_lines(FSTAB, "/home") == (
        "UUID=b /home ext4 defaults 0 2",
        "UUID=c /home/ ext4 ro 0 2",
    )
    after = storage.fstab_with(FSTAB, "/home", "NEW /home ext4 x 0 2")
    assert after == "# /etc/fstab\nUUID=a / ext4 defaults 0 1\n\nNEW /home ext4 x 0 2\n"


def test_a_new_line_is_added_at_the_end_and_nothing_else_changes() -> None:
    assert (
        storage.fstab_with(FSTAB, "/srv/data", "NEW /srv/data xfs x 0 0")
        == FSTAB + "NEW /srv/data xfs x 0 0\n"
    )
    assert storage.fstab_with("UUID=a / ext4 defaults 0 1", "/x", "N /x xfs x 0 0") == (
        "UUID=a / ext4 defaults 0 1\nN /x xfs x 0 0\n"
    )


def test_the_lines_of_a_mount_are_taken_out_alone() -> None:
    assert storage.fstab_without(FSTAB, "/home") == "# /etc/fstab\nUUID=a / ext4 defaults 0 1\n\n"
    assert storage.fstab_without(FSTAB, "/srv/data") == FSTAB


def test_data_on_another_disk_than_declared_can_be_moved() -> None:
    mount = replace(MOUNT, point="/srv/data", number="8:1")
    data = replace(HOME, role="data", mount="/srv/data")
    assert storage.problem(data, replace(READY, mount=mount)).endswith("lab.server.move_data.")


def test_nobody_starts_a_container_while_the_data_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "STATE_DIRECTORY", str(tmp_path))
    policy, _keys = from_inventory({"lab_groups": [], "lab_users": []})
    assert storage.check_mounts(policy) == []
    state.set_moving()
    assert "being moved to another disk" in storage.check_mounts(policy)[0]
    state.clear_moving()
    state.clear_moving()
    assert storage.check_mounts(policy) == []


def test_carrying_out_twice_leaves_nothing_to_do() -> None:
    line = storage.fstab_line(HOME, "11-22")
    once = storage.fstab_with(FSTAB, "/home", line)
    assert storage.fstab_lines(once, "/home") == (line,)
    assert storage.fstab_with(once, "/home", line) == once


@pytest.mark.parametrize("block", ["1024", "2048", "4096"])
def test_an_ext4_whose_first_block_is_gone_is_damaged_and_not_blank(tmp_path: Path, block: str) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(300 << 20)
    assert storage._remains(str(disk)) == ""
    subprocess.run(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-b", block, str(disk)], check=True)
    with disk.open("r+b") as file:
        file.write(bytes(64 << 10))
    assert "it is damaged, not blank" in storage._remains(str(disk))


def test_a_file_system_of_which_the_making_was_cut_off_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, run = tmp_path / "disk", hostfiles.run
    with disk.open("wb") as file:
        file.truncate(300 << 20)
    monkeypatch.setattr(state, "STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setattr(storage.stat, "S_ISBLK", lambda _mode: True)
    monkeypatch.setattr(storage, "_MAKE", {"ext4": ("/sbin/mke2fs", "-q", "-F", "-t", "ext4")})
    filesystem = replace(HOME, device=str(disk))

    def cut(arguments: list[str], **_more: float) -> None:
        """Make all but the first block, which mke2fs writes last."""
        run(arguments)
        with disk.open("r+b") as file:
            file.write(bytes(64 << 10))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hostfiles, "run", cut)
        with pytest.raises(KeyboardInterrupt):
            storage.make(filesystem)

    def probed() -> storage.Device:
        found = storage.probe(str(disk))
        assert found is not None
        return found

    assert (probed().fstype, probed().uuid, probed().remains) == ("", "", "")
    # One that somebody else made is damaged, as ever.
    storage._note_making(frozenset({"/dev/other"}))
    assert "it is damaged" in probed().remains
    # Made to its end it is one, whether that was noted or not.
    storage._note_making(frozenset({str(disk), "/dev/other"}))
    storage.make(filesystem)
    assert storage._making() == {"/dev/other"} and probed().fstype == "ext4"
    storage._note_making(frozenset({str(disk)}))
    assert probed().fstype == "ext4"
    storage._note_making(frozenset())
    assert list((tmp_path / "state").iterdir()) == []


def test_an_xfs_that_is_being_made_says_so_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "STATE_DIRECTORY", str(tmp_path / "state"))
    disk = tmp_path / "disk"
    storage._note_making(frozenset({str(disk)}))
    for flag, half_made in ((b"\1", True), (b"\0", False)):
        disk.write_bytes(b"XFSB" + bytes(122) + flag + bytes(64))
        assert storage._is_half_made(str(disk), str(disk), "xfs") == half_made
        assert not storage._is_half_made("/dev/other", str(disk), "xfs")
        # That name may be another disk's after a boot.
        storage._note_making(frozenset({str(disk), "/dev/sdb"}))
        assert not storage._is_half_made("/dev/sdb", str(disk), "xfs")


def test_an_xfs_whose_first_block_is_gone_is_damaged_and_not_blank(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(1 << 30)
        file.seek(256 << 20)  # the second of its four allocation groups
        file.write(b"XFSB")
    assert "it is damaged, not blank" in storage._remains(str(disk))


def test_a_device_that_cannot_be_read_is_not_blank(tmp_path: Path) -> None:
    assert "cannot be read" in storage._remains(str(tmp_path))


@pytest.mark.parametrize("line", [LINE, "UUID=00-gone /home ext4 defaults 0 2"])
def test_a_disk_that_fstab_knows_is_not_made_anew(line: str) -> None:
    said = storage.problem(HOME, replace(NOTHING, fstab=(line,)))
    assert "no file system is found on it now" in said
    assert storage.problem(HOME, replace(NOTHING, fstab=("/dev/mapper/old /home ext4 defaults 0 2",))) == ""


def test_what_remains_on_a_disk_is_said(tmp_path: Path) -> None:
    said = storage.problem(HOME, replace(NOTHING, device=replace(BLANK, remains="It is damaged.")))
    assert said == "It is damaged."
