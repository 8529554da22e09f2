# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import configparser
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import slices
from ansible_collections.lab.server.plugins.module_utils._core.policy import Limits


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
    (note / "50-MemoryMax.conf").write_text("# By systemd\n[Slice]\nMemoryMax=5\n")
    slices.apply(*slices.root_unit())
    slices.apply(*slices.session_unit(2001, cpus=1, memory=1 << 30, pids=512))
    slices.apply(name, text)
    limits = ["MemoryMax=1073741824", "MemorySwapMax=0", "CPUQuota=100%", "TasksMax=512"]
    assert calls == [["systemctl", "set-property", "--runtime", name, *limits]]
    assert list(note.iterdir()) == []
    (tmp_path / "user.slice" / "user-2001.slice").mkdir(parents=True)
    slices.apply(*slices.session_unit(2001, cpus=1, memory=1 << 30, pids=512))
    assert calls[1] == ["systemctl", "set-property", "--runtime", "user-2001.slice", *limits]


def test_what_systemd_noted_wins_over_no_later_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run was cut off after it had told systemd of the limits, and the slice has ended since."""
    limits = Limits(containers=1, cpus=1, memory=1 << 30, pids=512, shm=0, gpus=0)
    monkeypatch.setattr(slices.hostfiles, "run", lambda _arguments: pytest.fail("it does not run"))
    monkeypatch.setattr(slices, "CGROUPS", str(tmp_path))
    monkeypatch.setattr(slices, "CONTROL", str(tmp_path / "control"))
    assert slices.stale(limits, 2001) == {}
    for name, text in (
        slices.user_unit("alice", 2001, cpus=1, memory=1 << 30, pids=512),
        slices.session_unit(2001, cpus=1, memory=1 << 30, pids=512),
    ):
        note = tmp_path / "control" / f"{name.split('.d/')[0]}.d"
        note.mkdir(parents=True)
        (note / "50-TasksMax.conf").write_text("[Slice]\nTasksMax=7\n")
        (note / "50-CPUQuota.conf").write_text("[Slice]\nCPUQuota=7%\n")
        (note / "50-IOWeight.conf").write_text("[Slice]\nIOWeight=7\n")
        assert slices.stale(limits, 2001) == {name: ("cores", "processes")}
        slices.apply(name, text)
        assert slices.stale(limits, 2001) == {}
        # What is not ours to say is left to whoever said it.
        assert [path.name for path in note.iterdir()] == ["50-IOWeight.conf"]


def test_a_session_has_the_limits_of_its_user() -> None:
    name, text = slices.session_unit(2001, cpus=1.5, memory=1 << 30, pids=512)
    assert name == "user-2001.slice.d/50-lab-server.conf"
    assert slices.properties(text) == [
        f"MemoryMax={1 << 30}",
        "MemorySwapMax=0",
        "CPUQuota=150%",
        "TasksMax=512",
    ]
