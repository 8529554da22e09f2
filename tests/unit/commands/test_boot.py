# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""After a reboot: disks first, then Docker, then the containers; and a notice while something is missing."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    boot,
    containers,
    hostfiles,
    journal,
    locks,
    mounts,
    state,
    storage,
)
from ansible_collections.lab.server.plugins.module_utils._core.errors import EngineError, HostError, NotFound
from ansible_collections.lab.server.plugins.module_utils._core.items import ItemResult
from ansible_collections.lab.server.plugins.module_utils._core.policy import Filesystem, Policy


class Host:
    """A host after a reboot: its disks, its Docker, its containers."""

    def __init__(self) -> None:
        self.ran: list[list[str]] = []
        self.unmounted: set[str] = set()
        self.absent: set[str] = set()
        self.docker = True
        self.infos: list[Any] = []
        self.failing: dict[str, Exception] = {}
        self.held: dict[str, float] = {}
        self.waited: list[tuple[str, float]] = []
        self.started: list[str] = []

    def run(self, arguments: Sequence[str], accept: Sequence[int] = (0,), **_more: object) -> Any:
        """Stand in for the tools of the host."""
        self.ran.append(list(arguments))
        code, out = 0, ""
        if arguments[0] == "systemd-escape":
            out = arguments[-1].strip("/").replace("/", "-") + ".mount\n"
        elif arguments[:2] == ["systemctl", "is-active"]:
            code = 0 if self.docker else 3
        elif arguments[:2] == ["systemctl", "start"] and arguments[2].endswith(".mount"):
            self.unmounted.discard("/" + arguments[2][: -len(".mount")].replace("-", "/"))
        elif arguments[:2] == ["systemctl", "start"]:
            self.docker = True
        if code not in accept:
            raise HostError("failed")
        return subprocess.CompletedProcess(arguments, code, out, "")

    def start(self, _engine: object, _policy: object, info: Any, *, wait: float) -> ItemResult:
        """Stand in for the start of a container; a lock that is held is so for some seconds."""
        self.waited.append((info.name, wait))
        if wait < self.held.get(info.name, 0.0):
            raise locks.InUse(f"Somebody else is at work on {info.name}.")
        if info.name in self.failing:
            raise self.failing[info.name]
        self.started.append(info.name)
        return ItemResult(info.name, changed=True)

    def close(self) -> None:
        """Stand in for the end of a connection."""


def info(name: str, status: str = "exited") -> Any:
    """Return a container as the listing gives it."""
    return SimpleNamespace(name=f"{name}._.2001", status=status, running=status == "running")


@pytest.fixture
def notice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return where the notice is written."""
    path = tmp_path / "run" / "notice"
    monkeypatch.setattr(boot.write_notice, "__defaults__", ((str(path),),))
    return path


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, notice: Path, lab: Policy) -> Host:
    """Return a host whose file systems are /home and /srv/data."""
    made = Host()
    disks = tuple(
        Filesystem(role, mount, f"/dev/{role}", "ext4", (), False)
        for role, mount in (("home", "/home"), ("data", "/srv/data"))
    )
    policy = dataclasses.replace(lab, filesystems=disks)
    monkeypatch.setattr(boot, "load", lambda: policy)
    monkeypatch.setattr(hostfiles, "run", made.run)
    monkeypatch.setattr(mounts, "read", lambda: ())
    monkeypatch.setattr(mounts, "at", lambda point, table: None if point in made.unmounted else object())
    monkeypatch.setattr(mounts, "device_number", lambda device: "" if device in made.absent else "8:0")
    monkeypatch.setattr(
        storage,
        "check_mounts",
        lambda policy: [f"{point} is not mounted." for point in sorted(made.unmounted)],
    )
    monkeypatch.setattr(boot.bring_up, "__defaults__", (lambda: made,))
    monkeypatch.setattr(containers, "listing_all", lambda engine, policy: made.infos)
    monkeypatch.setattr(containers, "start_existing", made.start)
    monkeypatch.setattr(state, "stopped_names", lambda: frozenset({"paused._.2001"}))
    monkeypatch.setattr(journal, "record", lambda *words, **values: None)
    return made


def test_what_should_run_is_started(host: Host, notice: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host.infos = [info("b"), info("a"), info("up", "running"), info("paused")]
    notice.parent.mkdir()
    notice.write_text("old")
    assert boot.main() == 0
    assert host.started == ["a._.2001", "b._.2001"]
    assert not notice.exists()
    assert "2 container(s) started, 0 failed" in capsys.readouterr().out


def test_a_missing_disk_keeps_everything_down_and_is_told(
    host: Host, notice: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host.infos, host.unmounted, host.absent, host.docker = [info("a")], {"/srv/data"}, {"/dev/data"}, False
    assert boot.main() == 1
    assert host.started == [] and not host.docker
    assert "/srv/data is not mounted." in capsys.readouterr().out
    assert "/srv/data is not mounted." in notice.read_text()
    assert notice.stat().st_mode & 0o7777 == 0o644
    assert ["systemctl", "start", "srv-data.mount"] not in host.ran
    host.absent.clear()
    assert boot.main() == 0
    assert host.started == ["a._.2001"] and host.docker and not notice.exists()


def test_docker_that_does_not_start_is_told(
    host: Host, notice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise HostError("Docker does not start.", "See the journal.")

    monkeypatch.setattr(boot, "start_docker", refuse)
    assert boot.main() == 1 and "Docker does not start." in notice.read_text()


def test_one_that_fails_does_not_keep_the_others_down(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.infos = [info("a"), info("b"), info("c")]
    host.failing = {"a._.2001": NotFound("No such user."), "b._.2001": EngineError("Broken.")}
    assert boot.main() == 0
    assert host.started == ["c._.2001"]
    shown = capsys.readouterr().out
    assert "Not started: a._.2001: No such user." in shown and "Not started: b._.2001: Broken." in shown


def test_one_at_which_somebody_is_at_work_comes_last_and_keeps_none_waiting(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.infos = [info("a"), info("b"), info("c")]
    host.held = {"a._.2001": 5.0, "b._.2001": 1e6}
    assert boot.main() == 0
    assert host.started == ["c._.2001", "a._.2001"]
    assert [wait for _name, wait in host.waited[:3]] == [0.0] * 3
    assert all(wait <= 60 for _name, wait in host.waited) and len(host.waited) == 5
    assert "Not started: b._.2001: Somebody else is at work" in capsys.readouterr().out


def test_a_server_without_a_policy_is_told(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> Policy:
        raise HostError("policy.json is missing.")

    monkeypatch.setattr(boot, "load", refuse)
    assert boot.main() == 1 and "policy.json is missing." in capsys.readouterr().out
