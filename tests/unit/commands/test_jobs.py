# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Jobs: where their output goes, how their end is known, and that nobody is deceived by a record."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import asuser, jobs, locks, state
from ansible_collections.lab.server.plugins.module_utils._core.errors import (
    EngineError,
    HostError,
    InvalidInput,
    Refused,
)
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, User
from ansible_collections.lab.server.plugins.module_utils._core.protocol import job_command
from hypothesis import given
from hypothesis import strategies as st


class Engine:
    """An engine that runs at most one command, and tells of it what it is told to tell."""

    def __init__(self) -> None:
        self.prepared: list[Any] = []
        self.state: dict[str, Any] | None = {"Running": True, "ExitCode": None, "Pid": os.getpid()}
        self.fails = False

    def prepare(self, container: str, command: list[str], **options: str) -> str:
        self.prepared.append((container, command, options))
        return f"exec-{len(self.prepared)}"

    def begin(self, _execution: str) -> None:
        if self.fails:
            raise EngineError("No.")

    def execution(self, _execution: str) -> dict[str, Any] | None:
        return self.state


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Return a workspace with the folder of a project; work in it is done by this process."""
    monkeypatch.setattr(state, "STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setattr(locks, "RUN_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setattr(Policy, "workspace", lambda policy, user: str(tmp_path / "workspace"))
    monkeypatch.setattr(asuser, "run_as_user", lambda _who, function: function())
    (tmp_path / "workspace/thesis").mkdir(parents=True)
    return tmp_path / "workspace"


@pytest.fixture
def alice(lab: Policy) -> User:
    return lab.user("alice")


def begin(engine: Any, lab: Policy, alice: User) -> jobs.Job:
    """Start a job."""
    return jobs.start(engine, lab, alice, "thesis", "container", "python train.py")


def look(engine: Any, lab: Policy, alice: User) -> jobs.Job | None:
    """Return the job as it stands."""
    return jobs.look(engine, lab, alice, "thesis")


@pytest.mark.parametrize("folder", ["results/logs", "logs", ""])
def test_output_goes_to_a_folder_for_logs(workspace: Path, lab: Policy, alice: User, folder: str) -> None:
    (workspace / "thesis" / folder).mkdir(parents=True, exist_ok=True)
    engine = Engine()
    job = begin(engine, lab, alice)
    assert (workspace / "thesis" / job.log).read_text() == ""
    assert job.log.rpartition("/")[0] == (folder or "logs") and job.shown()["running"]
    container, command, options = engine.prepared[0]
    assert container == "container" and command[-2:] == [job.log, "python train.py"]
    assert options == {"user": "2001:2001", "folder": "/workspace/thesis"}


def test_output_goes_through_no_link(workspace: Path, lab: Policy, alice: User, tmp_path: Path) -> None:
    (tmp_path / "elsewhere/logs").mkdir(parents=True)
    (workspace / "thesis/results").symlink_to(tmp_path / "elsewhere")
    assert begin(Engine(), lab, alice).log.startswith("logs/")
    assert not list((tmp_path / "elsewhere/logs").iterdir())


def test_a_link_in_place_of_the_folder_starts_nothing(
    workspace: Path, lab: Policy, alice: User, tmp_path: Path
) -> None:
    (workspace / "thesis/logs").symlink_to(tmp_path)
    engine = Engine()
    with pytest.raises(InvalidInput):
        begin(engine, lab, alice)
    assert engine.prepared == []


def test_one_at_a_time_and_two_in_one_second(workspace: Path, lab: Policy, alice: User) -> None:
    engine = Engine()
    first = begin(engine, lab, alice)
    with pytest.raises(Refused, match=r"runs already: python train\.py"):
        begin(engine, lab, alice)
    engine.state = {"Running": False, "ExitCode": 0}
    second = begin(engine, lab, alice)
    assert second.log != first.log and len(list((workspace / "thesis/logs").iterdir())) == 2


def test_what_docker_says_counts_first(workspace: Path, lab: Policy, alice: User) -> None:
    engine = Engine()
    job = begin(engine, lab, alice)
    (workspace / "thesis" / job.log).write_text("\n--- exit code 0 ---\n")
    seen = look(engine, lab, alice)
    assert seen is not None and not seen.ended
    engine.state = {"Running": False, "ExitCode": 3}
    seen = look(engine, lab, alice)
    assert seen is not None and (seen.exit_code, seen.ended > 0) == (3, True)
    # It is remembered, and not asked again.
    engine.state = {"Running": True}
    assert look(engine, lab, alice) == seen


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("out\n--- exit code 137 ---\n", 137),
        ("--- exit code 0 ---\nand on\n", None),
        ("--- exit code 1000 ---\n", None),
        ("", None),
        ("\xff" * 300, None),
    ],
)
def test_what_docker_forgot_the_file_says(
    workspace: Path, lab: Policy, alice: User, text: str, code: int | None
) -> None:
    engine = Engine()
    job = begin(engine, lab, alice)
    (workspace / "thesis" / job.log).write_text(text)
    # Docker was started anew: the process runs, and only the kernel knows it.
    engine.state = None
    seen = look(engine, lab, alice)
    assert seen is not None and not seen.ended
    # The server was started anew: the same number is another process.
    jobs._write(2001, "thesis", jobs.replace(job, boot="another"))
    seen = look(engine, lab, alice)
    assert seen is not None and seen.ended and seen.exit_code == code


@pytest.mark.parametrize("plant", ["gone", "link", "fifo"])
def test_a_file_that_is_none_says_nothing(workspace: Path, lab: Policy, alice: User, plant: str) -> None:
    engine = Engine()
    engine.state = None
    path = workspace / "thesis" / begin(engine, lab, alice).log
    path.unlink()
    if plant == "link":
        path.symlink_to("/etc/hostname")
    elif plant == "fifo":
        os.mkfifo(path)
    seen = look(engine, lab, alice)
    assert seen is not None and seen.ended and seen.exit_code is None


def test_what_did_not_start_does_not_run(workspace: Path, lab: Policy, alice: User) -> None:
    engine = Engine()
    engine.fails = True
    with pytest.raises(EngineError):
        begin(engine, lab, alice)
    seen = look(engine, lab, alice)
    assert seen is not None and seen.ended


def test_a_full_disk_starts_nothing(
    workspace: Path, lab: Policy, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, begun = Engine(), []
    monkeypatch.setattr(engine, "begin", begun.append)

    def full(_name: str, _text: str) -> None:
        raise HostError("The disk is full.")

    monkeypatch.setattr(state, "write_record", full)
    with pytest.raises(HostError):
        begin(engine, lab, alice)
    assert begun == []


def test_records_are_bounded_and_a_damaged_one_is_none(
    workspace: Path, lab: Policy, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_RECORDS", 3)
    engine = Engine()
    for number in range(5):
        (workspace / f"p{number}").mkdir()
        jobs.start(engine, lab, alice, f"p{number}", "c", "true")
    records = sorted(Path(state.STATE_DIRECTORY, "jobs/2001").iterdir())
    assert [record.name for record in records] == ["p2.json", "p3.json", "p4.json"]
    for text in ("", "[]", "{", '{"container": "x"}', "null"):
        records[0].write_text(text)
        assert jobs.look(engine, lab, alice, "p2") is None


@given(st.text())
def test_a_command_is_text(text: str) -> None:
    try:
        assert job_command(text) == text
    except InvalidInput:
        return
    assert text.strip() and "\0" not in text and "\x1b" not in text and text.encode()
