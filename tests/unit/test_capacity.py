# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What was promised against the disk that there is, and when nothing is begun on it any more."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import capacity, policy, watermarks
from ansible_collections.lab.server.plugins.module_utils._core.capacity import Disk, Promise
from ansible_collections.lab.server.plugins.module_utils._core.diskrules import DiskRules
from ansible_collections.lab.server.plugins.module_utils._core.errors import Refused
from hypothesis import given
from hypothesis import strategies as st

GIB = 1 << 30
DISK = Disk("home", "/home", 100 * GIB, 60 * GIB, (Promise("alice", 50 * GIB), Promise("bob", 60 * GIB)))


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
        (replace(DISK, available=14 * GIB), 1.0, "filling", "86 % full"),
        (replace(DISK, available=4 * GIB), 1.0, "full", "96 % full: from 95 %"),
        (replace(DISK, size=0, available=0), 1.0, "unknown", "not mounted"),
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
    disk = Disk("home", "/home", size, size, tuple(Promise(str(n), one) for n, one in enumerate(sizes)))
    judged = capacity.judge(disk, overcommit)
    assert (judged.level == capacity.OVERCOMMITTED) == (sum(sizes) / size > overcommit)
    assert len(judged.unbounded) == sizes.count(0)


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
        {"role": role, "mount": f"/{role}", "size": 0, "available": 0} for role in ("home", "data", "docker")
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


def space(percent: int) -> watermarks.Space:
    return watermarks.Space(1000, 1000 - 10 * percent)


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
    assert watermarks.look("/nowhere/at/all") == watermarks.Space()
    assert watermarks.refusal(DiskRules(), watermarks.Space()) == ""


def test_who_is_refused_learns_whom_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    made = replace(lab(), disks=DiskRules(contact="it@example.org"))
    monkeypatch.setattr(watermarks, "look", lambda _path: space(96))
    with pytest.raises(Refused, match=r"96 % full .* Ask it@example\.org to make room\.$"):
        watermarks.check(made)
    assert "it@example.org" in watermarks.watch(made)
    monkeypatch.setattr(watermarks, "look", lambda _path: space(90))
    (told,) = watermarks.check(made)
    assert "90 % full" in told and watermarks.watch(made) == ""


def test_the_space_of_a_real_disk(tmp_path: Path) -> None:
    seen, numbers = watermarks.look(str(tmp_path)), os.statvfs(tmp_path)
    assert seen.size == numbers.f_frsize * numbers.f_blocks and 0 <= seen.used <= 100
