# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import subprocess
from collections.abc import Sequence

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import packages
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError

ANSWER = "acl ii \nquota rc \nxfsprogs hi \ndocker.io iU \n"


def test_only_what_is_installed_wholly_counts() -> None:
    assert packages.installed(ANSWER) == {"acl", "xfsprogs"}


def test_what_is_there_is_left_alone() -> None:
    items = packages.plan(["acl", "quota"], ["uidmap", "xfsprogs"], {"acl", "xfsprogs"})
    assert [(item.name, item.actions) for item in items] == [
        ("acl", []),
        ("quota", ["install"]),
        ("uidmap", []),
        ("xfsprogs", ["remove"]),
    ]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    calls: list[list[str]] = []

    def run(arguments: Sequence[str], **_more: object) -> subprocess.CompletedProcess[str]:
        calls.append(list(arguments))
        return subprocess.CompletedProcess(arguments, 1, ANSWER, "")

    monkeypatch.setattr(packages.hostfiles, "run", run)
    monkeypatch.setattr(packages, "tools", lambda: packages.APT)
    return calls


def test_an_unchanged_run_asks_once(commands: list[list[str]]) -> None:
    items = packages.reconcile(["acl"], ["uidmap"], check=False)
    assert not any(item.changed for item in items)
    assert [command[0] for command in commands] == ["dpkg-query"]


def test_a_check_installs_nothing(commands: list[list[str]]) -> None:
    items = packages.reconcile(["acl", "quota"], [], check=True)
    assert [item.changed for item in items] == [False, True]
    assert [command[0] for command in commands] == ["dpkg-query"]


def test_everything_is_installed_in_one_call_and_without_what_is_only_recommended(
    commands: list[list[str]],
) -> None:
    packages.reconcile(["acl", "quota", "docker.io"], ["xfsprogs"], check=False)
    assert [command[0] for command in commands] == ["dpkg-query", "dpkg", "apt-get", "apt-get", "apt-get"]
    assert commands[2][-1] == "update"
    assert commands[3][-2:] == ["remove", "xfsprogs"]
    assert commands[4][-3:] == ["install", "quota", "docker.io"]
    assert "--no-install-recommends" in commands[4]


def test_nothing_is_asked_for_nothing(commands: list[list[str]]) -> None:
    assert packages.reconcile([], [], check=False) == []
    assert commands == []


def test_another_package_manager_at_work_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        HostError("apt-get failed: E: Unable to lock directory /var/lib/apt/lists/"),
        HostError("dpkg failed: dpkg frontend lock was locked by another process with pid 7"),
        None,
    ]
    waits: list[float] = []

    def run(_arguments: object, **_options: object) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    monkeypatch.setattr(packages.hostfiles, "run", run)
    monkeypatch.setattr(packages.time, "sleep", waits.append)
    packages._run(["apt-get", "update"], {})
    assert answers == [] and len(waits) == 2
    answers += [HostError("apt-get failed: E: Unable to locate package x"), None]
    with pytest.raises(HostError, match="locate"):
        packages._run(["apt-get", "install", "x"], {})
    assert len(waits) == 2


def test_it_is_not_waited_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_arguments: object, **_options: object) -> None:
        raise HostError("apt-get failed: E: Could not get lock /var/lib/dpkg/lock")

    monkeypatch.setattr(packages.hostfiles, "run", run)
    monkeypatch.setattr(packages.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(packages, "_LOCK_SECONDS", -1.0)
    with pytest.raises(HostError, match="lock"):
        packages._run(["apt-get", "update"], {})
