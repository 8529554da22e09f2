# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The log of a build: bounded, harmless, read while it grows, and told apart from one that was broken off."""

from __future__ import annotations

import os
import signal
import stat
import time
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import buildlog, state
from ansible_collections.lab.server.plugins.module_utils._core.errors import EngineError

UID = 2001


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the logs of the user are."""
    monkeypatch.setattr(state, "STATE_DIRECTORY", str(tmp_path / "state"))
    return tmp_path / "state/build-logs" / str(UID)


def all_lines(project: str = "thesis") -> list[str]:
    build = buildlog.last(UID, project)
    assert build is not None
    return buildlog.Reader(UID, project, build.id).more()


def test_nothing_is_made_where_nothing_is_built(tmp_path: Path) -> None:
    with buildlog.writing(UID, "thesis") as log:
        assert not log.begun
    assert buildlog.last(UID, "thesis") is None and not (tmp_path / "state").exists()


def test_a_build_is_read_while_it_runs_and_known_when_it_has_ended(folder: Path) -> None:
    with buildlog.writing(UID, "thesis") as log:
        log.line("one")
        build = buildlog.last(UID, "thesis")
        assert build is not None and build.outcome == buildlog.RUNNING
        assert buildlog.running(UID) == ["thesis"] and buildlog.running(2002) == []
        reader = buildlog.Reader(UID, "thesis", build.id)
        assert reader.more() == ["one"] and reader.more() == []
        log.line("two")
        assert reader.more() == ["two"]
    ended = buildlog.last(UID, "thesis")
    assert ended is not None and (ended.id, ended.outcome) == (build.id, buildlog.DONE)
    assert ended.seconds is not None and buildlog.running(UID) == []
    for path in (folder.parent, folder, folder / "thesis"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (folder / "thesis").iterdir())


def test_a_failure_is_kept_with_its_sentence_and_is_raised_all_the_same() -> None:
    def build() -> None:
        with buildlog.writing(UID, "thesis") as log:
            log.line("error: no such header")
            raise EngineError("The image was not built\x1b[2J.", "Look.")

    with pytest.raises(EngineError):
        build()
    build = buildlog.last(UID, "thesis")
    assert build is not None and build.outcome == buildlog.FAILED
    assert build.message == "The image was not built\\x1b[2J." and build.hint == "Look."


def test_a_killed_builder_leaves_a_build_that_was_broken_off_with_its_lines() -> None:
    child = os.fork()
    if child == 0:
        log = buildlog.Log(UID, "thesis")
        log.line("begun")
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    build = buildlog.last(UID, "thesis")
    assert build is not None and build.outcome == buildlog.BROKEN_OFF
    assert all_lines() == ["begun"]


def test_the_next_build_takes_the_place_of_the_one_before(folder: Path) -> None:
    for word in ("first", "second"):
        with buildlog.writing(UID, "thesis") as log:
            log.line(word)
    assert all_lines() == ["second"] and len(list((folder / "thesis").iterdir())) == 2


def test_of_a_log_of_many_megabytes_the_beginning_and_the_end_are_kept(folder: Path) -> None:
    with buildlog.writing(UID, "thesis") as log:
        log.line("the beginning")
        build = buildlog.last(UID, "thesis")
        assert build is not None
        reader = buildlog.Reader(UID, "thesis", build.id)
        reader.more()
        for number in range(100_000):
            log.line(f"{number:06} " + "x" * 90)
        log.line("the end")
    size = sum(path.stat().st_size for path in (folder / "thesis").iterdir())
    assert (1 << 20) < size < (2 << 20) + 4096
    found = all_lines()
    assert found[0] == "the beginning" and found[-1] == "the end"
    gaps = [number for number, line in enumerate(found) if line.startswith("[... ")]
    assert len(gaps) == 1 and found[gaps[0]].endswith(" bytes are left out here ...]")
    numbers = [int(line[:6]) for line in found[gaps[0] + 1 : -1]]
    assert numbers == list(range(numbers[0], 100_000))
    # Who followed too slowly is told of the same gap, and sees the same end.
    late = reader.more()
    assert late[-1] == "the end" and sum(line.startswith("[... ") for line in late) == 1


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("\x1b[91mred\x1b[0m\n", "red"),
        ("10%\r50%\r100%\r\n", "100%"),
        ("a\tb\n", "a       b"),
        ("\x1b]0;title\x07 \x1b[2J\u202egnp\n", "\\x1b]0;title\\x07 \\u202egnp"),
        ("x" * 20_000, "x" * 16_000),
        ("\n", ""),
        ("  indented\n", "  indented"),
    ],
)
def test_nothing_in_a_line_steers_a_terminal(said: str, kept: str) -> None:
    assert buildlog.harmless(said) == kept


def test_a_full_disk_is_no_trouble_of_the_build(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    with buildlog.writing(UID, "thesis") as log:
        log.line("one")

        def full(*_arguments: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        log.line("two")
        monkeypatch.undo()
        monkeypatch.setattr(state, "STATE_DIRECTORY", str(folder.parents[1]))
        log.line("three")
    assert all_lines() == ["one"]
    folder.parent.rename(folder.parents[1] / "away")
    folder.parent.touch()
    with buildlog.writing(UID, "thesis") as log:
        log.line("lost")
        assert not log.begun


def test_logs_are_bounded_for_each_user_and_go_with_their_project(folder: Path) -> None:
    for number in range(buildlog._PROJECTS + 3):
        with buildlog.writing(UID, f"p{number}") as log:
            log.line("built")
        os.utime(folder / f"p{number}" / "build.json", (number + 1, number + 1))
    assert len(list(folder.iterdir())) == buildlog._PROJECTS and not (folder / "p0").exists()
    buildlog.forget(UID, "p9")
    assert buildlog.last(UID, "p9") is None and buildlog.last(UID, "p8") is not None
    buildlog.forget_all(UID)
    assert not folder.exists()


def test_a_damaged_record_is_no_build(folder: Path) -> None:
    with buildlog.writing(UID, "thesis") as log:
        log.line("one")
    for text in ("", "{", "[]", '{"id": 1}', '{"id": "1", "started": 1, "more": 2}'):
        (folder / "thesis/build.json").write_text(text)
        assert buildlog.last(UID, "thesis") is None


def test_many_lines_are_written_quickly() -> None:
    began = time.monotonic()
    with buildlog.writing(UID, "thesis") as log:
        for _number in range(50_000):
            log.line("Collecting something from somewhere")
    assert time.monotonic() - began < 20
