# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import subprocess
from collections.abc import Sequence

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import packages
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError, InvalidInput

ANSWER = "acl ii  2.3.1-3\nquota rc  4.06-1\nxfsprogs hi  6.1.0-1\ndocker.io iU  20.10.24\n"


def test_only_what_is_installed_wholly_counts() -> None:
    assert packages.installed(ANSWER) == {"acl": "2.3.1-3", "xfsprogs": "6.1.0-1"}


def test_what_is_there_is_left_alone() -> None:
    items = packages.plan(["acl", "quota"], ["uidmap", "xfsprogs"], packages.installed(ANSWER))
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
    assert "--no-install-recommends" in commands[4] and "--allow-downgrades" not in commands[4]


@pytest.mark.parametrize(
    ("wanted", "word"),
    [
        ("2.3.1", ""),
        ("2.3.1-3", ""),
        ("", ""),
        ("2.3", "acl=2.3-*"),
        ("2.4.0", "acl=2.4.0-*"),
        ("2.3.1-2", "acl=2.3.1-2"),
    ],
)
def test_a_version_that_is_asked_for_is_installed_up_or_down(
    commands: list[list[str]], wanted: str, word: str
) -> None:
    items = packages.reconcile(["acl"], [], {"acl": wanted}, check=True)
    assert items[0].changed == bool(word) and len(commands) == 1
    done = packages.reconcile(["acl"], [], {"acl": wanted}, check=False)
    assert [item.as_dict() for item in done] == [item.as_dict() for item in items]
    assert (commands[-1][-3:] == ["install", "--allow-downgrades", word]) == bool(word)


def test_a_version_is_none_of_another_kind(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput, match="is no version of acl"):
        packages.reconcile(["acl"], [], {"acl": "1.0 -o=x"}, check=False)
    monkeypatch.setattr(packages, "tools", lambda: packages.DNF)
    with pytest.raises(InvalidInput, match="apt alone"):
        packages.reconcile(["acl"], [], {"acl": "1.0"}, check=False)
    assert commands == []


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
