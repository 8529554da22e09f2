# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import loaded, units
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError, InvalidInput
from ansible_collections.lab.server.plugins.module_utils._core.loaded import Reads

TEXTS = {"a.service": "[Unit]\n", "docker.service.d/x.conf": "[Unit]\nAfter=a.service\n"}


@pytest.fixture
def reloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(units, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(units, "reload", lambda: calls.append("reload"))
    # Notes of what is owed are tested below.
    monkeypatch.setattr(units, "_SYSTEMD", str(tmp_path / "none"))
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


# Units that have read their files, and runs that are cut off


class Cut(BaseException):
    """A run ends here: nothing of it is tidied up."""


class Systemd:
    """Plays systemd: its units, each with its invocation and start, and what it was told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.up: dict[str, int] = {}
        self.started: dict[str, float] = {}
        self.told: list[str] = []
        self.refuses: set[str] = set()
        self.cut_before = ""
        self.cut_after = ""

    def start(self, unit: str) -> None:
        time.sleep(2 * loaded._COARSE)  # that a file which was written before is older can be told
        self.up[unit] = self.up.get(unit, 0) + 1
        self.started[unit] = time.clock_gettime(time.CLOCK_MONOTONIC)

    def stop(self, unit: str) -> None:
        self.started.pop(unit)

    def show(self, unit: str) -> str:
        if unit not in self.up:
            return "LoadState=not-found\nActiveState=inactive"
        up = unit in self.started
        shown = f"LoadState=loaded\nUnitFileState=enabled\nActiveState={'active' if up else 'inactive'}"
        return f"{shown}\nInvocationID={self.up[unit]:032x}\nInactiveExitTimestampMonotonic=" + str(
            int(self.started.get(unit, 0) * 1e6)
        )

    def run(self, arguments: list[str], **_: object) -> SimpleNamespace:
        if arguments[1] == "show":
            return SimpleNamespace(stdout="\n\n".join(map(self.show, arguments[3:])) + "\n")
        told = " ".join(arguments[1:])
        if told == self.cut_before:
            raise Cut
        if told in self.refuses:
            raise HostError("systemctl failed: no.")
        self.told.append(told)
        if arguments[1] in ("start", "restart"):
            self.start(arguments[2])
        if told == self.cut_after:
            raise Cut
        return SimpleNamespace(stdout="")

    def did(self) -> list[str]:
        told, self.told = self.told, []
        return told


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    """Return a server with systemd; ssh.service and cache.service run since before their files were."""
    for name in ("systemd", "units", "run"):
        (tmp_path / name).mkdir()
    made = Systemd(tmp_path / "units")
    monkeypatch.setattr(units, "DIRECTORY", str(tmp_path / "units"))
    monkeypatch.setattr(units, "_SYSTEMD", str(tmp_path / "systemd"))
    monkeypatch.setattr(units, "_UNREAD", str(tmp_path / "run" / "unread"))
    monkeypatch.setattr(units, "RUN_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setattr(loaded, "RUN_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setattr(units.hostfiles, "run", made.run)
    for name in ("ssh.service", "cache.service"):
        made.start(name)
    return made


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return tmp_path / "settings.conf"


def current(settings: Path, unit: str = "cache.service", **options: bool) -> list[Reads]:
    return [Reads(unit, (str(settings),), **options)]


def told(reads: list[Reads], *, check: bool) -> list[tuple[bool, list[str]]]:
    return [(item.changed, item.actions) for item in units.reconcile({}, (), reads, check=check)]


@pytest.mark.parametrize(("reload", "verb"), [(False, "restart"), (True, "reload")])
def test_a_unit_reads_new_files_once(server: Systemd, settings: Path, reload: bool, verb: str) -> None:
    reads = current(settings, reload=reload)
    for text in ("one", "two", "one"):
        settings.write_text(text)
        assert told(reads, check=True) == [(True, [verb])]
        assert server.did() == []
        assert told(reads, check=False) == [(True, [verb])]
        assert server.did() == [f"{verb} cache.service"]
        for check in (True, False):
            assert told(reads, check=check) == [(False, [])]
        # Written anew with what it held.
        settings.write_text(text)
        assert told(reads, check=False) == [(False, [])]
        assert server.did() == []
    settings.unlink()
    assert told(reads, check=False) == [(True, [verb])]


@pytest.mark.parametrize(("reload", "verb"), [(False, "restart"), (True, "reload")])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_that_is_cut_off_is_made_up_for(
    server: Systemd, settings: Path, reload: bool, verb: str, when: str
) -> None:
    """Cut off after the first look, which is noted, and again in the midst of what makes up for that."""
    reads = current(settings, reload=reload)
    assert told(reads, check=False) == [(False, [])]
    settings.write_text("new")
    setattr(server, f"cut_{when}", f"{verb} cache.service")
    with pytest.raises(Cut):
        told(reads, check=False)
    server.cut_before = server.cut_after = ""
    # It was started since, which is enough; that it was reloaded nobody knows, so it is once more.
    known = when == "after" and not reload
    assert told(reads, check=False) == [(not known, [] if known else [verb])]
    assert told(reads, check=False) == [(False, [])]


def test_a_start_of_somebody_elses_is_one(server: Systemd, settings: Path) -> None:
    reads = current(settings)
    settings.write_text("old")
    assert told(reads, check=False) == [(True, ["restart"])]
    settings.write_text("new")
    server.start("cache.service")
    assert told(reads, check=False) == [(False, [])]
    # And that is noted: whatever the times say from now on, what it has read is known.
    settings.write_text("newer")
    os.utime(settings, (1, 1))
    assert told(reads, check=False) == [(True, ["restart"])]


def test_what_no_note_tells_the_times_do(server: Systemd, settings: Path, tmp_path: Path) -> None:
    settings.write_text("old")
    server.start("cache.service")
    assert told(current(settings), check=False) == [(False, [])]
    for path in (tmp_path / "run" / "loaded").iterdir():
        path.write_text("{")
    assert told(current(settings), check=False) == [(False, [])]
    for path in (tmp_path / "run" / "loaded").iterdir():
        path.unlink()
    settings.write_text("new")
    assert told(current(settings), check=False) == [(True, ["restart"])]


def test_a_clock_that_was_set_does_not_hide_a_change(
    server: Systemd, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit started while the clock was a year ahead; then it was set back, and the file written."""
    settings.write_text("new")
    real = time.time
    monkeypatch.setattr(loaded.time, "time", lambda: real() + 365 * 86400)
    assert told(current(settings), check=True) == [(False, [])]
    monkeypatch.setattr(loaded.time, "time", real)
    assert told(current(settings), check=True) == [(True, ["restart"])]


def test_a_unit_that_does_not_run_is_left_alone(server: Systemd, settings: Path) -> None:
    settings.write_text("new")
    server.stop("ssh.service")
    for unit in ("ssh.service", "none.service"):
        assert told(current(settings, unit), check=False) == [(False, [])]
    # One that is started for it has read them.
    done = units.reconcile({}, ["ssh.service"], current(settings, "ssh.service"), check=False)
    assert [item.actions for item in done] == [["start"], []]
    assert server.did() == ["start ssh.service"]
    os.utime(settings)
    assert told(current(settings, "ssh.service"), check=False) == [(False, [])]


def test_a_check_believes_an_earlier_task_and_a_deed_the_file(server: Systemd, settings: Path) -> None:
    settings.write_text("old")
    server.start("cache.service")
    reads = current(settings, changing=True)
    assert told(reads, check=False) == [(False, [])]
    assert told(reads, check=True) == [(True, ["restart"])]


def test_what_somebody_else_reloaded_is_reloaded_again(server: Systemd, settings: Path) -> None:
    """The file was changed by hand, and reloaded, and a task of this run has it as it was."""
    settings.write_text("ours")
    assert told(current(settings, reload=True), check=False) == [(True, ["reload"])]
    for check in (True, False):
        assert told(current(settings, reload=True, changing=True), check=check) == [(True, ["reload"])]
    assert told(current(settings, reload=True), check=False) == [(False, [])]


def test_the_text_of_a_unit_that_runs_is_one_of_its_files(server: Systemd) -> None:
    reads = [Reads("cache.service", (str(server.directory / "cache.service"),))]
    for text in ("[Unit]\n", "[Unit]\nDescription=new\n"):
        promised = units.reconcile({"cache.service": text}, (), reads, check=True)
        done = units.reconcile({"cache.service": text}, (), reads, check=False)
        assert [item.as_dict() for item in promised] == [item.as_dict() for item in done]
        assert done[-1].actions == ["restart"]
        assert server.did() == ["daemon-reload", "restart cache.service"]
        again = units.reconcile({"cache.service": text}, (), reads, check=False)
        assert not any(item.changed for item in again)


def test_one_that_does_not_come_back_keeps_no_other_and_is_tried_again(
    server: Systemd, settings: Path
) -> None:
    settings.write_text("new")
    reads = [*current(settings), *current(settings, "ssh.service", reload=True)]
    server.refuses = {"restart cache.service"}
    done = units.reconcile({}, (), reads, check=False)
    assert [item.failed for item in done] == [True, False]
    assert done[0].message == "systemctl failed: no. Look at: journalctl -u cache.service"
    assert server.did() == ["reload ssh.service"]
    server.refuses = set()
    assert told(reads, check=False) == [(True, ["restart"]), (False, [])]


def test_a_file_is_named_by_its_whole_path(server: Systemd) -> None:
    with pytest.raises(InvalidInput, match="no whole path"):
        units.reconcile({}, (), [Reads("cache.service", ("cache.conf",))], check=True)


def test_without_systemd_nothing_runs(server: Systemd, settings: Path, tmp_path: Path) -> None:
    settings.write_text("new")
    (tmp_path / "systemd").rmdir()
    assert units.reconcile({}, (), current(settings), check=False) == []
    assert units.reconcile(TEXTS, check=False)
    assert server.did() == [] and list((tmp_path / "run").iterdir()) == []


def cuts(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], None]:
    """Cut what follows off before its write number ``number``; return what takes that back."""
    write, count = units.hostfiles.write_text, [0]

    def counted(path: str, text: str, *more: int) -> None:
        count[0] += 1
        if count[0] == number:
            raise Cut
        write(path, text, *more)

    monkeypatch.setattr(units.hostfiles, "write_text", counted)
    return lambda: monkeypatch.setattr(units.hostfiles, "write_text", write)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_systemd_reads_what_a_run_wrote_that_was_cut_off(
    server: Systemd, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Before the note, before each of two files, and before the reload."""
    back = cuts(monkeypatch, number)
    server.cut_before = "daemon-reload" if number == 4 else ""
    with pytest.raises(Cut):
        units.reconcile(TEXTS, check=False)
    back()
    server.cut_before = ""
    promised = units.reconcile(TEXTS, check=True)
    assert units.unread() == (number > 1) and server.did() == []
    done = units.reconcile(TEXTS, check=False)
    assert [item.as_dict() for item in promised] == [item.as_dict() for item in done]
    assert any(item.changed for item in done)
    assert server.did() == ["daemon-reload"] and not units.unread()
    assert not any(item.changed for item in units.reconcile(TEXTS, check=False))
    assert server.did() == []


def test_a_note_names_a_start_and_its_files(server: Systemd, settings: Path, tmp_path: Path) -> None:
    told(current(settings), check=False)
    made = tmp_path / "run" / "loaded" / "cache.service.json"
    assert json.loads(made.read_text())["invocation"] == f"{1:032x}"
    assert made.stat().st_mode & 0o777 == 0o600
