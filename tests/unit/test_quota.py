# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import mounts, quota
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError, InvalidInput
from ansible_collections.lab.server.plugins.module_utils._core.policy import Quota

TEN_GIB = Quota(soft=9 << 30, hard=10 << 30, inodes_soft=900, inodes_hard=1000)
ALICE = quota.Wanted("alice", 2001, TEN_GIB)


def test_limits_are_set_where_there_are_none() -> None:
    item, changes = quota.plan(ALICE, quota.NO_LIMIT, quota.NO_LIMIT)
    assert changes == [
        quota.Change(quota.USER, TEN_GIB),
        quota.Change(quota.PROJECT, Quota(0, 10 << 30, 0, 1000)),
    ]
    assert item.diff["before"]["quota hard"] == "no limit"
    assert item.diff["after"]["quota hard"] == "10G"
    assert item.diff["after"]["project quota hard"] == "10G"


def test_limits_that_are_right_are_left_alone() -> None:
    item, changes = quota.plan(ALICE, TEN_GIB, quota.for_project(TEN_GIB))
    assert (changes, item.changed, item.diff) == ([], False, {})


def test_without_project_quota_only_the_user_counts() -> None:
    _item, changes = quota.plan(ALICE, TEN_GIB, None)
    assert changes == []


def test_only_what_differs_is_shown() -> None:
    old = Quota(9 << 30, 9 << 30, 900, 1000)
    item, changes = quota.plan(ALICE, old, quota.for_project(TEN_GIB))
    assert [change.kind for change in changes] == [quota.USER]
    assert item.diff == {"before": {"quota hard": "9G"}, "after": {"quota hard": "10G"}}


@pytest.mark.parametrize(("size", "kept"), [(0, 0), (1, 1024), (1024, 1024), (1025, 2048)])
def test_bytes_are_rounded_up_to_blocks_so_that_no_limit_vanishes(size: int, kept: int) -> None:
    assert quota.in_blocks(Quota(size, size, 0, 0)) == Quota(kept, kept, 0, 0)


def test_a_size_that_is_no_whole_block_does_not_differ_for_ever() -> None:
    wanted = quota.Wanted("alice", 2001, Quota(1000, 2000, 0, 0))
    _item, changes = quota.plan(wanted, Quota(1024, 2048, 0, 0), None)
    assert changes == []


@pytest.mark.parametrize(
    ("size", "words"), [(0, "no limit"), (1024, "1K"), (1536, "1.5K"), ((1 << 30) + 1024, "1073742848 bytes")]
)
def test_limits_are_told_exactly(size: int, words: str) -> None:
    assert quota.describe(Quota(size, 0, 0, 0))["soft"] == words


def test_options_of_a_module_are_read_and_checked() -> None:
    options = {"soft": "9g", "hard": "10g", "inodes_soft": 900, "inodes_hard": 1000}
    assert quota.quota_from_options(options, "alice") == TEN_GIB
    assert quota.quota_from_options({"soft": None}, "alice") == quota.NO_LIMIT
    with pytest.raises(InvalidInput, match=r"quota\.soft of alice"):
        quota.quota_from_options({"soft": "2g", "hard": "1g"}, "alice")
    with pytest.raises(InvalidInput, match=r"inodes_soft of alice"):
        quota.quota_from_options({"inodes_soft": 2, "inodes_hard": 1}, "alice")
    with pytest.raises(InvalidInput, match=r"quota\.hard of alice"):
        quota.quota_from_options({"hard": "much"}, "alice")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ESRCH, "Quotas are not on"),
        (errno.ENOSYS, "Quotas are not on"),
        (errno.EPERM, "not yours"),
        (errno.EIO, "cannot be used"),
    ],
)
def test_errors_of_the_kernel_become_sentences(
    monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(quota, "_quotactl", fail)
    with pytest.raises(HostError, match=words):
        quota.read("/dev/vdb", quota.USER, 2001)
    with pytest.raises(HostError, match=words):
        quota.write("/dev/vdb", quota.USER, 2001, TEN_GIB)
    assert quota.enforced("/dev/vdb") == frozenset()


class Kernel:
    """Keeps what was set, as quotactl(2) does; the limits in blocks, the usage fixed."""

    def __init__(self) -> None:
        self.limits: dict[tuple[int, int], tuple[int, ...]] = {}
        self.flags = 0x33

    def __call__(self, command: int, kind: int, device: str, number: int, buffer: object) -> None:
        assert device == "/dev/vdb"
        if command == quota._Q_SETQUOTA:
            self.limits[(kind, number)] = quota._DQBLK.unpack(buffer.raw)  # type: ignore[attr-defined]  # a ctypes array
        elif command == quota._Q_GETQUOTA:
            hard, soft, _u, inodes_hard, inodes_soft, *_rest = self.limits.get((kind, number), (0,) * 9)
            raw = quota._DQBLK.pack(hard, soft, 4096, inodes_hard, inodes_soft, 3, 0, 0, 0)
            buffer.raw = raw  # type: ignore[attr-defined]  # a ctypes array
        else:
            buffer.raw = b"\1\0" + self.flags.to_bytes(2, "little") + bytes(252)  # type: ignore[attr-defined]  # as above


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(quota, "_quotactl", kernel)
    mount = mounts.Mount("/home", "/dev/vdb", "ext4", frozenset(), "253:16", "/")
    monkeypatch.setattr(quota.mounts, "read", lambda: (mount,))
    return kernel


def test_what_is_written_is_read_back(kernel: Kernel) -> None:
    quota.write("/dev/vdb", quota.USER, 2001, TEN_GIB)
    assert quota.read("/dev/vdb", quota.USER, 2001) == quota.Usage(4096, 3, TEN_GIB)


def test_a_second_run_changes_nothing(kernel: Kernel) -> None:
    wanted = [ALICE, quota.Wanted("bob", 2002, quota.NO_LIMIT)]
    first = quota.reconcile("/home", wanted, check=False)
    assert [item.changed for item in first] == [True, False]
    assert not any(item.changed for item in quota.reconcile("/home", wanted, check=False))


def test_a_check_changes_nothing_and_tells_what_a_run_does(kernel: Kernel) -> None:
    told = quota.reconcile("/home", [ALICE], check=True)
    assert kernel.limits == {}
    done = quota.reconcile("/home", [ALICE], check=False)
    assert [item.as_dict() for item in told] == [item.as_dict() for item in done]


def test_without_enforcement_nothing_is_set_and_a_check_assumes_nothing(kernel: Kernel) -> None:
    kernel.flags = 0x11  # counted, but not enforced
    with pytest.raises(HostError, match="enforces no user and project quotas"):
        quota.reconcile("/home", [ALICE], check=False)
    assert kernel.limits == {}
    assert quota.reconcile("/home", [ALICE], check=True)[0].changed


def test_a_file_system_without_projects_says_so(tmp_path: Path) -> None:
    descriptor = os.open("/proc", os.O_RDONLY)
    try:
        with pytest.raises(HostError, match="no project quotas"):
            quota.set_project(descriptor, 2001)
    finally:
        os.close(descriptor)
