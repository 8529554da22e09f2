# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What was promised against the disk that there is, and when nothing is begun on it any more."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    capacity,
    checks_host,
    mounts,
    policy,
    storage,
    watermarks,
)
from ansible_collections.lab.server.plugins.module_utils._core.capacity import Disk, Promise, Space
from ansible_collections.lab.server.plugins.module_utils._core.diskrules import DiskRules
from ansible_collections.lab.server.plugins.module_utils._core.errors import Refused
from hypothesis import given
from hypothesis import strategies as st

GIB = 1 << 30
MOUNTS = """\
20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/vda rw
21 20 8:2 / /var/lib/docker rw,relatime shared:1 - ext4 /dev/vdb rw
"""
SPACE = Space(100 * GIB, 40 * GIB, 60 * GIB)
DISK = Disk("docker", "/var/lib/docker", SPACE, (Promise("alice", 50 * GIB), Promise("bob", 60 * GIB)))


def filled(percent: int) -> Disk:
    return replace(DISK, space=Space(100 * GIB, percent * GIB, (100 - percent) * GIB))


@pytest.mark.parametrize(
    ("disk", "overcommit", "level", "words"),
    [
        (DISK, 1.5, "ok", "110G promised of 100G (1.1 times)."),
        (DISK, 1.0, "overcommitted", "lab_overcommit allows 1 times"),
        (
            replace(DISK, promises=(*DISK.promises, Promise("carol", 0))),
            1.5,
            "unbounded",
            "no limit to carol",
        ),
        (filled(86), 1.0, "filling", "86 % full. From 95 % on nothing is begun on it."),
        (filled(96), 1.0, "full", "96 % full. From 95 % on nothing is begun on it."),
        (
            replace(filled(96), role="home"),
            1.0,
            "full",
            "is 96 % full. Make room, or enlarge it.",
        ),
        (replace(DISK, space=Space()), 1.0, "unknown", "not mounted"),
    ],
)
def test_the_most_urgent_is_told(disk: Disk, overcommit: float, level: str, words: str) -> None:
    judged = capacity.judge(disk, overcommit, warn=85, refuse=95)
    assert (judged.level, judged.promised) == (level, sum(one.size for one in disk.promises))
    assert words in judged.sentence and judged.sentence.endswith(".")


@given(st.lists(st.integers(0, 1 << 50)), st.integers(1, 1 << 50), st.floats(0.1, 100))
def test_more_is_overcommitted_exactly_above_the_bound(
    sizes: list[int], size: int, overcommit: float
) -> None:
    promises = tuple(Promise(str(n), one) for n, one in enumerate(sizes))
    disk = Disk("home", "/home", Space(size, 0, size), promises)
    judged = capacity.judge(disk, overcommit)
    assert (judged.level == capacity.OVERCOMMITTED) == (sum(sizes) / size > overcommit)
    assert judged.overcommitted == (judged.level == capacity.OVERCOMMITTED)
    assert len(judged.unbounded) == sizes.count(0)
    assert len(judged.too_large) == sum(1 for one in sizes if one > size)
    # How full it is takes nothing away from what was promised.
    full = replace(disk, space=Space(size, size, 0))
    assert capacity.judge(full, overcommit, refuse=95).overcommitted == judged.overcommitted


def lab(**more: Any) -> policy.Policy:
    limits = {"containers": 1, "cpus": 1, "memory": "1g", "pids": 64, "shm": "64m", "gpus": 0}
    limits.update(layers_size="10g", images_size="20g", data_size="30g")
    quota = {"soft": 0, "hard": "40g", "inodes_soft": 0, "inodes_hard": 0}
    variables: dict[str, Any] = {
        "lab_groups": [{"name": "students", "gid": 3101, "limits": limits, "quota": quota}],
        "lab_users": [
            {"name": name, "uid": uid, "group": "students"} for name, uid in (("a1", 2001), ("b2", 2002))
        ],
        **more,
    }
    return policy.from_inventory(variables)[0]


def test_each_disk_has_its_own_promises() -> None:
    made = lab(
        lab_shares=[{"name": "one", "access": "admin", "size": "5g"}, {"name": "two", "access": "admin"}]
    )
    there = [
        {"role": role, "mount": f"/{role}", "size": 0, "free": 0, "available": 0}
        for role in ("home", "data", "docker")
    ]
    promised = {
        one.role: sum(part.size for part in one.promises) // GIB for one in capacity.disks(made, there)
    }
    # The share without a size is bounded by what users may have on that disk.
    assert promised == {"home": 80, "data": 65, "docker": 60}
    all_sized = lab(lab_shares=[{"name": "one", "access": "admin", "size": "5g"}])
    (data,) = capacity.disks(all_sized, there[1:2])
    assert data.promises == (Promise("share one", 5 * GIB),)


def test_as_plain_data() -> None:
    shown = capacity.shown(capacity.judge(DISK, 1.5))
    assert shown["used_percent"] == 40 and shown["ratio"] == 1.1 and shown["unbounded"] == []


# Watermarks


def space(percent: int) -> Space:
    return Space(1000, 10 * percent, 1000 - 10 * percent)


@pytest.mark.parametrize(
    ("percent", "warns", "refuses"),
    [
        (0, False, False),
        (84, False, False),
        (85, True, False),
        (94, True, False),
        (95, False, True),
        (100, False, True),
    ],
)
def test_first_it_is_told_then_nothing_is_begun(percent: int, warns: bool, refuses: bool) -> None:
    rules = DiskRules()
    assert bool(watermarks.warning(rules, space(percent))) == warns
    assert bool(watermarks.refusal(rules, space(percent))) == refuses


def test_a_disk_that_is_not_there_is_not_judged() -> None:
    assert watermarks.look("/nowhere/at/all") == Space()
    assert watermarks.refusal(DiskRules(), Space()) == ""


def test_who_is_refused_learns_whom_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    made = replace(lab(), disks=DiskRules(contact="it@example.org"))
    monkeypatch.setattr(watermarks, "look", lambda _path: space(96))
    with pytest.raises(
        Refused, match=r"96 % full .* Ask it@example\.org to make room: lab status tells them"
    ):
        watermarks.check(made)
    assert "it@example.org" in watermarks.watch(made)
    monkeypatch.setattr(watermarks, "look", lambda _path: space(90))
    (told,) = watermarks.check(made)
    assert "90 % full" in told and watermarks.watch(made) == ""


def test_the_space_of_a_real_disk(tmp_path: Path) -> None:
    seen, numbers = watermarks.look(str(tmp_path)), os.statvfs(tmp_path)
    assert seen.size == numbers.f_frsize * numbers.f_blocks and 0 <= seen.percent <= 100


def test_what_is_kept_for_root_is_neither_used_nor_free() -> None:
    # An ext4 of 100 blocks of which 5 are root's: empty is 0, and 100 is where users can write nothing.
    assert [Space(100, used, 95 - used).percent for used in (0, 19, 94, 95)] == [0, 20, 98, 100]
    # Root may go on, and has then used more.
    assert Space(100, 100, 0).percent == 100 and Space(100, 94, 1).share == 94 / 95


def test_every_view_of_a_disk_says_the_same_as_df(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = os.statvfs_result((4096, 4096, 1000, 200, 150, 100, 50, 40, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: numbers)
    made = lab(lab_filesystems={"docker": {"device": "/dev/disk/by-id/x"}})
    (docker, _home) = storage.spaces(made, mounts.parse(MOUNTS))
    (surveyed, _home) = capacity.survey(made, [docker, _home])
    # df: 800 used, 150 available.
    assert surveyed.space.percent == watermarks.look("/var/lib/docker").percent == 84
    assert checks_host.fullness("/var/lib/docker")[0] == surveyed.space.share == 800 / 950
