# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import grp
import os
import stat
import subprocess
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import shares
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError, InvalidInput
from ansible_collections.lab.server.plugins.module_utils._core.policy import Share

DATASETS = Share("datasets", "read-only", "")
VISION = Share("vision", "group", "games")
ADMIN = Share("admin", "admin", "")
ALL = [DATASETS, VISION, ADMIN]


@pytest.mark.parametrize(
    ("share", "mode", "group", "acl"),
    [
        (DATASETS, 0o755, "root", ""),
        (Share("d", "read-only", "games"), 0o2775, "games", "u::rwx,g::rwx,o::r-x"),
        (VISION, 0o2770, "games", "u::rwx,g::rwx,o::---"),
        (ADMIN, 0o700, "root", ""),
    ],
)
def test_each_kind_of_share_has_its_rights(share: Share, mode: int, group: str, acl: str) -> None:
    assert shares.wanted(share) == shares.Folder(0, group, mode, acl)


@pytest.mark.parametrize("words", ["u::rwx,g::rwx,o::---", "u::rw-,g::r-x,o::r--"])
def test_an_acl_is_read_back(words: str) -> None:
    assert shares.decode_acl(shares.encode_acl(words)) == words


def test_an_acl_with_named_entries_is_told_by_number() -> None:
    raw = (
        shares._ACL_HEADER.pack(2)
        + shares._ACL_ENTRY.pack(0x08, 7, 3101)
        + shares._ACL_ENTRY.pack(0x10, 5, 0xFFFFFFFF)
    )
    assert shares.decode_acl(raw) == "g:3101:rwx,m::r-x"


def test_a_folder_that_is_right_is_left_alone() -> None:
    target = shares.wanted(VISION)
    assert not shares.plan("vision", target, target).changed
    item = shares.plan("vision", shares.Folder(0, "games", 0o755, target.acl), target)
    assert item.diff == {"before": {"mode": "0755"}, "after": {"mode": "2770"}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    return tmp_path / "data"


def test_shares_are_made_once(root: Path) -> None:
    told = shares.reconcile(str(root), ALL, mounted=False, check=True)
    assert not root.exists()
    done = shares.reconcile(str(root), ALL, mounted=False, check=False)
    assert [item.as_dict() for item in told] == [item.as_dict() for item in done]
    status = (root / "vision").stat()
    assert stat.S_IMODE(status.st_mode) == 0o2770
    again = shares.reconcile(str(root), ALL, mounted=False, check=False)
    assert not any(item.changed or item.failed for item in again)


def test_what_one_member_creates_another_can_edit(root: Path) -> None:
    shares.reconcile(str(root), [VISION], mounted=False, check=False)
    old = os.umask(0o077)
    try:
        (root / "vision" / "file").write_text("x")
        (root / "vision" / "folder").mkdir()
    finally:
        os.umask(old)
    parent = (root / "vision").stat()
    for name in ("file", "folder"):
        status = (root / "vision" / name).stat()
        assert status.st_gid == parent.st_gid
        assert status.st_mode & 0o060 == 0o060


def _as_uid(uid: int, groups: list[int], folder: Path, line: str) -> bool:
    """Run a line in a folder as a user whose umask lets nobody else in; tell whether it succeeded."""
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=folder,
        user=uid,
        group=uid,
        extra_groups=groups,
        umask=0o077,
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


@pytest.mark.parametrize(
    "share", [VISION, Share("published", "read-only", "games")], ids=["group", "read-only with a group"]
)
def test_colleagues_edit_each_others_files_and_nobody_else_does(root: Path, share: Share) -> None:
    shares.reconcile(str(root), [share], mounted=False, check=False)
    folder, group = root / share.name, grp.getgrnam("games").gr_gid
    # The first member writes files and folders in folders; the second edits, adds, renames and removes them.
    assert _as_uid(64101, [group], folder, "mkdir -p runs/one && echo a > runs/one/log && echo a > notes")
    edit = "echo b >> runs/one/log && echo b > runs/one/new && mv notes renamed && echo b >> renamed"
    assert _as_uid(64102, [group], folder, edit)
    assert (folder / "runs/one/log").read_text() == "a\nb\n"
    assert _as_uid(64101, [group], folder, "echo a >> runs/one/new && rm runs/one/log")
    assert not _as_uid(64103, [], folder, "echo c >> renamed")
    assert not _as_uid(64103, [], folder, "echo c > theirs")
    assert _as_uid(64103, [], folder, "cat renamed") == (share.access == "read-only")


def test_a_file_made_for_its_owner_alone_opens_with_chmod(root: Path) -> None:
    shares.reconcile(str(root), [VISION], mounted=False, check=False)
    folder, group = root / "vision", grp.getgrnam("games").gr_gid
    assert _as_uid(64101, [group], folder, "mv $(mktemp ./made.XXXXXX) closed")
    assert not _as_uid(64102, [group], folder, "echo b >> closed")
    assert _as_uid(64101, [group], folder, "chmod g+rwX closed")
    assert _as_uid(64102, [group], folder, "echo b >> closed")


def test_a_link_in_the_place_of_a_share_is_refused_and_the_others_are_made(
    root: Path, tmp_path: Path
) -> None:
    root.mkdir(mode=0o755)
    (root / "datasets").symlink_to(tmp_path)
    items = shares.reconcile(str(root), ALL, mounted=False, check=False)
    assert [item.failed for item in items] == [True, False, False]
    assert "is a link or a file" in items[0].message


def test_a_data_root_that_others_may_change_is_refused(root: Path) -> None:
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(HostError, match="can be changed by others"):
        shares.reconcile(str(root), ALL, mounted=False, check=False)


def test_without_its_disk_nothing_is_made(root: Path) -> None:
    with pytest.raises(HostError, match="is not mounted"):
        shares.reconcile(str(root), ALL, mounted=True, check=False)
    assert not root.exists()


def test_a_group_that_does_not_exist_is_named_before_anything_is_made(root: Path) -> None:
    with pytest.raises(HostError, match="group nobodys"):
        shares.reconcile(str(root), [DATASETS, Share("x", "group", "nobodys")], mounted=False, check=False)
    assert not root.exists()


def test_options_of_a_module_are_checked() -> None:
    assert shares.from_options({"name": "a", "access": "read-only", "group": ""}) == Share(
        "a", "read-only", ""
    )
    with pytest.raises(InvalidInput, match="has no group"):
        shares.from_options({"name": "a", "access": "group", "group": ""})
    with pytest.raises(InvalidInput):
        shares.from_options({"name": "../x", "access": "admin"})
