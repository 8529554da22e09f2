# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import mounts
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError

TEXT = """\
22 28 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
28 1 253:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
40 28 253:16 / /home rw,nosuid,nodev,relatime shared:20 master:3 - ext4 /dev/vdb rw,usrquota,prjquota
41 28 253:32 / /srv/with\\040space rw,relatime shared:21 - xfs /dev/vdc rw
42 28 253:48 / /home rw,relatime - ext4 /dev/vdd rw
broken line
"""


@pytest.fixture
def table() -> tuple[mounts.Mount, ...]:
    return mounts.parse(TEXT)


def test_every_whole_line_is_a_mount(table: tuple[mounts.Mount, ...]) -> None:
    assert [mount.point for mount in table] == ["/proc", "/", "/home", "/srv/with space", "/home"]
    assert table[2].options == {"rw", "nosuid", "nodev", "relatime"}
    assert (table[2].source, table[2].fstype, table[2].number) == ("/dev/vdb", "ext4", "253:16")


def test_the_last_mount_at_a_path_is_the_one_that_shows(table: tuple[mounts.Mount, ...]) -> None:
    found = mounts.at("/home", table)
    assert found is not None
    assert found.source == "/dev/vdd"
    assert mounts.at("/hom", table) is None


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("/home", "/dev/vdd"),
        ("/home/alice/x", "/dev/vdd"),
        ("/homes", "/dev/vda1"),
        ("/", "/dev/vda1"),
        ("/proc/1", "proc"),
    ],
)
def test_the_longest_mount_holds_a_path(table: tuple[mounts.Mount, ...], path: str, source: str) -> None:
    assert mounts.holding(path, table).source == source


def test_without_a_mount_nothing_holds_a_path() -> None:
    with pytest.raises(HostError, match="No file system holds"):
        mounts.holding("/home", ())


def test_the_mounts_of_this_computer_can_be_read() -> None:
    assert mounts.at("/", mounts.read()) is not None


@pytest.mark.parametrize(
    ("device", "path"),
    [
        ("UUID=1-2", "/dev/disk/by-uuid/1-2"),
        ("LABEL=data", "/dev/disk/by-label/data"),
        ("/dev/disk/by-id/virtio-x", "/dev/disk/by-id/virtio-x"),
    ],
)
def test_a_device_has_a_path(device: str, path: str) -> None:
    assert mounts.device_path(device) == path


def test_what_is_no_device_has_no_number() -> None:
    assert mounts.device_number("/dev/no-such-device") == ""
    assert mounts.device_number("/") == ""
