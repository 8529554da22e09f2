# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import units
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError, InvalidInput

TEXTS = {"a.service": "[Unit]\n", "docker.service.d/x.conf": "[Unit]\nAfter=a.service\n"}


@pytest.fixture
def reloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(units, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(units, "reload", lambda: calls.append("reload"))
    return calls


def test_units_are_written_once_with_one_reload(reloads: list[str], tmp_path: Path) -> None:
    told = units.reconcile(TEXTS, check=True)
    assert list(tmp_path.iterdir()) == []
    done = units.reconcile(TEXTS, check=False)
    assert [item.as_dict() for item in told] == [item.as_dict() for item in done]
    assert (tmp_path / "docker.service.d" / "x.conf").read_text() == TEXTS["docker.service.d/x.conf"]
    assert reloads == ["reload"]
    assert not any(item.changed for item in units.reconcile(TEXTS, check=False))
    assert reloads == ["reload"]


@pytest.mark.parametrize(
    "name", ["", "x", "../x.service", "/etc/x.service", "x.service.d/../y.conf", "x y.service"]
)
def test_a_name_that_leaves_the_directory_is_refused(reloads: list[str], name: str) -> None:
    with pytest.raises(InvalidInput, match="no name of a unit file"):
        units.reconcile({name: ""}, check=False)


SYSTEMD = {
    "up.service": "UnitFileState=enabled\nActiveState=active\nLoadState=loaded\nNeedDaemonReload=no",
    "down.service": "UnitFileState=disabled\nActiveState=failed\nLoadState=loaded\nNeedDaemonReload=yes",
    "failing.service": "UnitFileState=enabled\nActiveState=activating\nSubState=auto-restart",
    "static.service": "UnitFileState=static\nActiveState=inactive\nLoadState=loaded\nNeedDaemonReload=no",
    "new.service": "UnitFileState=\nActiveState=inactive\nLoadState=not-found\nNeedDaemonReload=no",
    "masked.service": "UnitFileState=masked\nActiveState=inactive\nLoadState=masked\nNeedDaemonReload=no",
}


@pytest.fixture
def systemd(reloads: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answer as systemctl does; return what it is asked to do, with the reloads."""

    def run(arguments: list[str], **_: object) -> SimpleNamespace:
        if arguments[1] == "show":
            return SimpleNamespace(stdout="\n\n".join(SYSTEMD[name] for name in arguments[3:]) + "\n")
        reloads.append(" ".join(arguments[1:]))
        return SimpleNamespace(stdout="")

    monkeypatch.setattr(units.hostfiles, "run", run)
    return reloads


def test_units_that_run_are_left_alone(systemd: list[str]) -> None:
    assert not any(item.changed for item in units.reconcile({}, ["up.service"], check=False))
    assert systemd == []


def test_units_are_enabled_and_started_as_said_before(systemd: list[str]) -> None:
    wanted = ["down.service", "up.service", "static.service"]
    told = units.reconcile({}, wanted, check=True)
    assert systemd == []
    assert [item.actions for item in told] == [["enable", "start"], [], ["start"]]
    done = units.reconcile({}, wanted, check=False)
    assert [item.as_dict() for item in told] == [item.as_dict() for item in done]
    assert systemd == ["reload", "enable down.service", "start down.service", "start static.service"]


def test_a_unit_that_waits_for_its_next_try_does_not_run(systemd: list[str]) -> None:
    assert [item.actions for item in units.reconcile({}, ["failing.service"], check=True)] == [["start"]]


def test_a_unit_that_is_still_to_be_written_is_known_in_check_mode(systemd: list[str]) -> None:
    text = "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"
    told = units.reconcile({"new.service": text}, ["new.service"], check=True)
    assert [item.actions for item in told] == [["make"], ["enable", "start"]]
    assert systemd == []


@pytest.mark.parametrize(
    ("name", "said"), [("new.service", "There is no unit"), ("masked.service", "systemctl unmask")]
)
def test_a_unit_that_cannot_run_is_an_error_with_its_fix(systemd: list[str], name: str, said: str) -> None:
    with pytest.raises(HostError, match=said):
        units.reconcile({}, [name], check=False)
    assert systemd == []
