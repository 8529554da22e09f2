# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What happened to a container: what is written down, and the words that it becomes."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import cli, cli_why, events, state
from ansible_collections.lab.server.plugins.module_utils._core.verbs_container import docker_state
from conftest import WIDTH, Run, Screen, result, too_wide


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return where events are kept."""
    monkeypatch.setattr(state, "STATE_DIRECTORY", str(tmp_path / "state"))
    return tmp_path / "state/events/2001"


def noted(project: str = "thesis") -> list[str]:
    """Return what is known of a project's container."""
    return [event.what for event in events.read(2001, project)]


def test_events_are_kept_in_their_order_for_root_alone(folder: Path) -> None:
    for what in (events.MADE, events.STOPPED, events.STARTED):
        events.record(2001, "thesis", what, events.USER, "why\nnot")
    assert noted() == [events.MADE, events.STOPPED, events.STARTED]
    assert noted("other") == [] and events.read(2002, "thesis") == []
    assert events.read(2001, "thesis")[0].reason == "why\\nnot"
    assert abs(events.read(2001, "thesis")[0].time - time.time()) < 5
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "thesis.jsonl").stat().st_mode & 0o777 == 0o600


def test_events_of_a_project_and_of_a_user_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_FILES", 3)
    for number in range(700):
        events.record(2001, "thesis", events.STARTED, events.USER, f"{number}".ljust(299, "x"))
    found = events.read(2001, "thesis")
    assert (folder / "thesis.jsonl").stat().st_size <= events._FILE_LIMIT
    assert [event.reason[:3] for event in found] == [str(n) for n in range(700 - len(found), 700)]
    assert len(found) >= 30
    for number in range(5):
        events.record(2001, f"p{number}", events.MADE, events.USER)
    assert sorted(os.listdir(folder)) == ["p2.jsonl", "p3.jsonl", "p4.jsonl"]


def test_a_damaged_line_spoils_no_other(folder: Path) -> None:
    events.record(2001, "thesis", events.MADE, events.USER)
    with (folder / "thesis.jsonl").open("ab") as file:
        file.write(b'\n{"what": "st\n\0\0\0\n[]\n7\nnull\n{"what": "stopped", "time": []}\n{"half": ')
    events.record(2001, "thesis", events.STARTED, events.USER)
    assert noted() == [events.MADE, events.STARTED]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_what_cannot_be_written_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_words: Any, **_options: Any) -> None:
        raise OSError(number, os.strerror(number))

    for name in ("makedirs", "open"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            events.record(2001, "thesis", events.MADE, events.USER)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.rmdir() if folder.exists() else None
    folder.symlink_to("/nowhere")
    events.record(2001, "thesis", events.MADE, events.USER)
    assert noted() == []


def test_a_failure_that_comes_again_is_written_once(folder: Path) -> None:
    for _try in range(3):
        events.record(2001, "thesis", events.NOT_STARTED, events.BOOT, "no disk")
    events.record(2001, "thesis", events.NOT_STARTED, events.BOOT, "another")
    assert noted() == [events.NOT_STARTED] * 2


def test_a_clock_that_was_changed_is_told() -> None:
    first = events.Event(events.MADE, events.USER, 1000.0, "boot", 10.0)
    year = 365 * 86400.0
    known = [
        first,
        replace(first, time=1100.0, up=110.0),
        replace(first, time=1200.0 + year, up=210.0),
        replace(first, time=1300.0, up=310.0),
        # After a restart a leap forward is time that passed.
        replace(first, time=1300.0 + year, boot="next", up=1.0),
        replace(first, time=1300.0, boot="third", up=1.0),
    ]
    assert events.jumps(known) == [0.0, 0.0, year, -year, 0.0, -year]
    assert events.jumps([]) == [] and events.jumps(known[:1]) == [0.0]


def test_what_docker_says_of_a_life() -> None:
    told = {
        "State": {
            "Running": False,
            "ExitCode": 137,
            "OOMKilled": True,
            "Error": "x\x1b",
            "StartedAt": "2026-11-26T01:31:22.123456789Z",
            "FinishedAt": "0001-01-01T00:00:00Z",
        },
        "HostConfig": {"Memory": 1 << 30},
    }
    assert docker_state(told) == {
        "running": False,
        "exit_code": 137,
        "out_of_memory": True,
        "error": "x\\x1b",
        "started": 1795656682,
        "finished": None,
        "memory_limit": 1 << 30,
    }
    assert docker_state({}) is None


# Words

DOWN = {
    "running": False,
    "exit_code": 137,
    "out_of_memory": False,
    "error": "",
    "started": 1_800_000_000,
    "finished": 1_800_000_100,
    "memory_limit": 1 << 30,
}


def event(what: str, by: str = "user", **more: Any) -> dict[str, Any]:
    """Return an event as the broker tells it."""
    return {"what": what, "by": by, "time": 1_800_000_000, "reason": "", "clock_changed": 0, **more}


def told(*happened: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return what the broker tells of a container that does not run."""
    return {
        "project": "thesis",
        "container": {"status": "exited"},
        "state": DOWN,
        "stay_down": False,
        "rebooted": False,
        "job": None,
        "undo_until": None,
        "events": list(happened),
        **changes,
    }


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (told(event("made"), event("stopped")), "it was stopped by you."),
        (told(event("stopped", "it", reason="alice may no longer use /srv/data/v")), "no longer use"),
        (
            told(event("not-started", "boot", reason="The disk is gone.")),
            "it could not be started",
        ),
        (told(event("made")), "ended by itself, "),
        (told(event("made")), "exit code 137 (it was killed)."),
        (told(event("made"), state={**DOWN, "out_of_memory": True}), "more memory than its limit of 1G"),
        (told(event("made"), rebooted=True), "went down with the server"),
        (told(event("made"), event("job-begun"), event("job-ended", "itself")), "ended by itself"),
        (
            told(event("replaced", "it", reason="the image is newer; the old one is kept"), event("started")),
            "it was made anew by IT's run: the image is newer; the old one is kept.",
        ),
        (
            told(event("replaced", "it"), undo_until=1_800_000_000, state={**DOWN, "running": True}),
            "you can have an older one back: container retire thesis, then container undo thesis",
        ),
        (told(event("stopped"), stay_down=True), "stays down when the server is started"),
        (told(event("made"), state={**DOWN, "running": True}), "runs since"),
        (told(event("made"), state={**DOWN, "running": True, "out_of_memory": True}), "A process in it"),
        (
            told(event("retired"), container=None, state=None, undo_until=1_800_000_000),
            "container undo thesis",
        ),
        (
            told(
                event("retired"),
                container=None,
                state=None,
                undo_until=1_800_000_000,
                holds={"packages": ["numpy 1.26.0", "polars 1.0"]},
            ),
            "The old one has packages that its image lacks: numpy 1.26.0, polars 1.0.",
        ),
        (
            told(event("replaced", "it"), undo_until=1_800_000_000, holds={"packages": ["numpy 1.26.0"]}),
            "--back 2.\nThe old one has packages that its image lacks: numpy 1.26.0.",
        ),
        (told(event("retired", reason="nothing in it differs"), container=None, state=None), "differs"),
        (told(container=None, state=None), "There is no container of thesis."),
        (told(state={**DOWN, "error": "no such file"}), "Docker says: no such file."),
        (told(job={"running": False, "exit_code": None}), "Its job was cut off: container logs thesis"),
    ],
)
def test_the_verdict_is_in_plain_words(data: dict[str, Any], words: str) -> None:
    said = cli_why.verdict(data)
    assert words in "\n".join(said)
    running = bool((data["state"] or {}).get("running"))
    assert running or said[-1].startswith(("Start it again: ", "Start a new one: "))


def test_why_names_all_packages_of_a_retired_one_within_the_screen(
    run: Run, broker: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = [f"package-of-some-name{number} {number}.0" for number in range(30)]
    holds = {"packages": packages, "files": 3, "bytes": 1, "paths": [], "volumes": [], "complete": True}
    broker(
        result(**told(event("retired"), container=None, state=None, undo_until=1_800_000_000, holds=holds))
    )
    some = run("container", "why", "thesis")[1]
    assert packages[19] in some and packages[20] not in some and "and 10 more (--all)." in some
    assert packages[29] in run("container", "why", "thesis", "--all")[1]
    assert json.loads(run("container", "why", "thesis", "--json")[1])["holds"] == holds
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    assert cli.main(["container", "why", "thesis", "--all"]) == 0
    assert too_wide(screen.getvalue()) == []
    assert packages[29] in " ".join(screen.getvalue().split())


def test_why_tells_what_happened_line_by_line(run: Run, broker: Callable[..., Path]) -> None:
    happened = [event("started", time=1_800_000_000 + number) for number in range(25)]
    happened.append(event("replaced", "it", reason="the policy changed (memory)", clock_changed=-200000))
    asked = broker(result(**told(*happened)))
    code, out, _err = run("container", "why", "thesis")
    assert code == 0 and "container-why thesis" in asked.read_text()
    lines = out.splitlines()
    assert "6 earlier ones: --all" in lines
    assert "(the server's clock was put back by 2 d)" in lines[-2]
    assert lines[-1].endswith("made anew by IT's run: the policy changed (memory)")
    assert len(run("container", "why", "thesis", "--all")[1].splitlines()) == len(lines) + 5
    assert len(json.loads(run("container", "why", "thesis", "--json")[1])["events"]) == 26
