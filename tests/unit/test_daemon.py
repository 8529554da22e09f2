# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import daemon
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError, InvalidInput


@pytest.mark.parametrize(
    ("old", "new", "merged"),
    [
        ({}, {"icc": False}, {"icc": False}),
        ({"dns": ["1.1.1.1"], "debug": True}, {"dns": ["9.9.9.9"]}, {"dns": ["9.9.9.9"], "debug": True}),
        ({"features": {"a": True}}, {"features": {"cdi": True}}, {"features": {"a": True, "cdi": True}}),
        ({"features": None}, {"features": {"cdi": True}}, {"features": {"cdi": True}}),
        ({"debug": True}, {"debug": None}, {}),
        (
            {"log-opts": {"tag": "x", "max-size": "1m"}},
            {"log-opts": {"tag": None}},
            {"log-opts": {"max-size": "1m"}},
        ),
    ],
)
def test_settings_are_merged(
    old: dict[str, object], new: dict[str, object], merged: dict[str, object]
) -> None:
    assert daemon.merge(old, new) == merged


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_an_absent_or_empty_file_has_no_settings(text: str | None) -> None:
    assert daemon.parse(text) == {}


@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_a_broken_file_is_not_overwritten(text: str) -> None:
    with pytest.raises(HostError, match="Repair it, or move it away"):
        daemon.parse(text)


def test_names_that_dockerd_does_not_know_are_refused() -> None:
    daemon.check_settings({"live-restore": True, "data-root": "/x"})
    with pytest.raises(InvalidInput, match="does not know live_restore"):
        daemon.check_settings({"live_restore": True})
    with pytest.raises(InvalidInput, match="open Docker to others"):
        daemon.check_settings({"hosts": ["tcp://0.0.0.0:2375"]})


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(daemon, "PID_FILE", str(tmp_path / "docker.pid"))
    monkeypatch.setattr(daemon, "validate", lambda _text: None)
    return tmp_path / "docker" / "daemon.json"


def test_a_second_run_changes_nothing_and_a_check_writes_nothing(path: Path) -> None:
    settings = {"icc": False}
    assert daemon.reconcile(settings, check=True, path=str(path))[0].changed
    assert not path.exists()
    assert daemon.reconcile(settings, check=False, path=str(path))[0].changed
    assert json.loads(path.read_text()) == settings
    assert not daemon.reconcile(settings, check=False, path=str(path))[0].changed


def test_what_else_is_in_the_file_stays(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"debug": true}')
    daemon.reconcile({"icc": False}, check=False, path=str(path))
    assert json.loads(path.read_text()) == {"debug": True, "icc": False}


def test_settings_that_dockerd_refuses_are_not_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_text: str) -> None:
        raise InvalidInput("dockerd refuses the settings")

    monkeypatch.setattr(daemon, "validate", refuse)
    with pytest.raises(InvalidInput):
        daemon.reconcile({"icc": False}, check=False, path=str(path))
    assert not path.exists()


def test_an_engine_that_runs_with_an_older_file_needs_a_restart(tmp_path: Path) -> None:
    file, pid = tmp_path / "daemon.json", tmp_path / "docker.pid"
    file.write_text("{}")
    assert not daemon.stale(str(file), str(pid))
    pid.write_text("1")
    os.utime(pid, (1, 1))
    assert daemon.stale(str(file), str(pid))
    os.utime(file, (0, 0))
    assert not daemon.stale(str(file), str(pid))


@pytest.fixture
def bundle(path: Path) -> Path:
    """Return a file of certificates, beside a daemon.json with live-restore; dockerd started after both."""
    path.parent.mkdir()
    path.write_text('{"live-restore": true}')
    made, pid = path.with_name("ca-certificates.crt"), Path(daemon.PID_FILE)
    for file, when in ((path, 10), (made, 10), (pid, 20)):
        file.touch()
        os.utime(file, (when, when))
    return made


def test_an_engine_that_runs_with_older_certificates_needs_a_restart(path: Path, bundle: Path) -> None:
    assert not daemon.trust(str(bundle), path=str(path)).changed
    os.utime(bundle, (30, 30))
    item = daemon.trust(str(bundle), path=str(path))
    assert (item.changed, item.actions) == (True, ["needs a restart"])
    # It was restarted.
    os.utime(daemon.PID_FILE, (40, 40))
    assert not daemon.trust(str(bundle), path=str(path)).changed


def test_a_check_tells_of_certificates_that_would_be_renewed(path: Path, bundle: Path) -> None:
    assert daemon.trust(str(bundle), renewed=True, path=str(path)).changed
    os.unlink(daemon.PID_FILE)
    # Nor does one need it that does not run.
    assert not daemon.trust(str(bundle), renewed=True, path=str(path)).changed


@pytest.mark.parametrize("text", ["{}", '{"live-restore": false}', None])
def test_no_container_is_ended_for_certificates(path: Path, bundle: Path, text: str | None) -> None:
    path.unlink()
    if text is not None:
        path.write_text(text)
        os.utime(path, (10, 10))
    os.utime(bundle, (30, 30))
    item = daemon.trust(str(bundle), path=str(path))
    assert not item.changed and "would end the containers" in item.facts["notes"][0]


def test_an_engine_with_older_settings_is_restarted_for_those(path: Path, bundle: Path) -> None:
    """With what it was started nobody knows: perhaps without live-restore."""
    for file in (path, bundle):
        os.utime(file, (30, 30))
    assert not daemon.trust(str(bundle), path=str(path)).changed
    assert daemon.outdated(str(path))


def test_settings_that_were_written_anew_alike_are_none_that_are_older(
    path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"ActiveState": "active", "InvocationID": "a"}
    monkeypatch.setattr(daemon.units, "runs_systemd", lambda: True)
    monkeypatch.setattr(daemon.units, "states", lambda names: dict.fromkeys(names, state))
    monkeypatch.setattr(daemon.loaded, "RUN_DIRECTORY", str(path.parent))
    daemon.loaded.note(daemon.UNIT, state, daemon.loaded.digest([str(path)], {}))
    for file in (path, bundle):
        os.utime(file, (30, 30))
    assert not daemon.outdated(str(path))
    # So it is restarted for the certificates.
    assert daemon.trust(str(bundle), path=str(path)).changed
    path.write_text("{}")
    assert daemon.outdated(str(path))


@pytest.mark.parametrize(
    ("status", "words", "refused"),
    [
        (0, "configuration OK", False),
        (125, "unknown flag: --validate", False),
        (1, "unable to configure the Docker daemon: invalid value", True),
    ],
)
def test_an_engine_that_can_judge_does(
    monkeypatch: pytest.MonkeyPatch, status: int, words: str, refused: bool
) -> None:
    answer = subprocess.CompletedProcess([], status, "", words)
    monkeypatch.setattr(daemon.hostfiles, "run", lambda *_arguments, **_more: answer)
    monkeypatch.setattr(daemon.os.path, "exists", lambda _path: True)
    if refused:
        with pytest.raises(InvalidInput, match="invalid value"):
            daemon.validate("{}")
    else:
        daemon.validate("{}")
