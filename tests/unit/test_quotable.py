# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Why a file system cannot hold quotas is one sentence, with what makes it able."""

from __future__ import annotations

import pytest
from ansible_collections.lab.server.plugins.module_utils._core.quotable import Found, obstacle

BOTH = frozenset({"quota", "project", "extent"})
TUNE = "e2fsck -f /dev/vdb && tune2fs -O project,quota -Q usrquota,prjquota /dev/vdb"


@pytest.mark.parametrize(
    "found",
    [
        Found("ext4", "/dev/vdb", features=BOTH),
        Found("ext4", "/dev/vdb", "/home", BOTH),
        Found("xfs", "/dev/vdb"),
        Found("xfs", "/dev/vdb", "/home", counts=True),
    ],
)
def test_what_can_hold_them_is_left_alone(found: Found) -> None:
    assert obstacle(found) is None


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Found("ext4", "/dev/vdb"), f"ext4 without project and quota, so it cannot hold quotas. Run: {TUNE}"),
        (
            Found("ext4", "/dev/vdb", "/home", frozenset({"quota"})),
            f"ext4 without project, so it cannot hold quotas. Run: umount /home && {TUNE} && mount /home",
        ),
        (Found("ext4", "/dev/vdb", "/"), "start a rescue system and run there: e2fsck"),
        (Found("xfs", "/dev/vdb", "/home"), "Run: umount /home && mount -o uquota,pquota /home"),
        (Found("xfs", "/dev/vdb", "/"), "rootflags=uquota,pquota"),
        (Found("nfs4", "server:/home", "/home"), "lies on another server"),
        (Found("btrfs", "/dev/vdb", "/home"), "counts subvolumes and not users"),
        (Found("f2fs", "/dev/vdb", "/home"), "holds f2fs, which has no user and project quotas"),
    ],
)
def test_what_cannot_is_told_with_the_fix(found: Found, words: str) -> None:
    why = str(obstacle(found))
    assert words in why and "\n" not in why


def test_a_mounted_system_disk_gets_no_commands_that_would_unmount_it() -> None:
    for found in (Found("ext4", "/dev/vda1", "/"), Found("xfs", "/dev/vda1", "/")):
        why = obstacle(found)
        assert why is not None and why.commands == ()
