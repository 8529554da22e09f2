# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import configparser
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import slices


@pytest.mark.parametrize(("cpus", "share"), [(1.5, "150%"), (0.01, "1%"), (0.001, "1%"), (64, "6400%")])
def test_a_slice_holds_the_limits_of_its_user(cpus: float, share: str) -> None:
    name, text = slices.user_unit("alice", 2001, cpus=cpus, memory=1 << 30, pids=512)
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # the documented way to keep the case of keys
    unit.read_string(text)
    assert name == "lab-2001.slice"
    assert dict(unit["Slice"]) == {
        "MemoryMax": str(1 << 30),
        "MemorySwapMax": "0",
        "CPUQuota": share,
        "TasksMax": "512",
    }


def test_the_slices_of_users_are_below_one_slice() -> None:
    name, _text = slices.root_unit()
    child, _text = slices.user_unit("alice", 2001, cpus=1, memory=1, pids=1)
    # systemd.slice(5): the name says the parent, by its dashes.
    assert child.startswith(name.removesuffix(".slice") + "-")


def test_a_slice_that_runs_is_told_of_its_new_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(slices.hostfiles, "run", calls.append)
    monkeypatch.setattr(slices, "CGROUPS", str(tmp_path))
    monkeypatch.setattr(slices, "CONTROL", str(tmp_path / "control"))
    name, text = slices.user_unit("alice", 2001, cpus=1, memory=1 << 30, pids=512)
    slices.apply(name, text)
    assert calls == []
    (tmp_path / "lab.slice" / name).mkdir(parents=True)
    note = tmp_path / "control" / f"{name}.d"
    note.mkdir(parents=True)
    slices.apply(*slices.root_unit())
    slices.apply(*slices.session_unit(2001, cpus=1, memory=1 << 30, pids=512))
    slices.apply(name, text)
    limits = ["MemoryMax=1073741824", "MemorySwapMax=0", "CPUQuota=100%", "TasksMax=512"]
    assert calls == [["systemctl", "set-property", "--runtime", name, *limits]]
    assert not note.exists()
    (tmp_path / "user.slice" / "user-2001.slice").mkdir(parents=True)
    slices.apply(*slices.session_unit(2001, cpus=1, memory=1 << 30, pids=512))
    assert calls[1] == ["systemctl", "set-property", "--runtime", "user-2001.slice", *limits]


def test_a_session_has_the_limits_of_its_user() -> None:
    name, text = slices.session_unit(2001, cpus=1.5, memory=1 << 30, pids=512)
    assert name == "user-2001.slice.d/50-lab-server.conf"
    assert slices.properties(text) == [
        f"MemoryMax={1 << 30}",
        "MemorySwapMax=0",
        "CPUQuota=150%",
        "TasksMax=512",
    ]
