# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Screens: tables that fit, colours only where they show, and one line that updates itself."""

from __future__ import annotations

import io
import os
import re

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import calls, terminal
from hypothesis import given
from hypothesis import strategies as st


class Screen(io.StringIO):
    """A stream that says whether it is a terminal."""

    def __init__(self, tty: bool) -> None:
        super().__init__()
        self._tty = tty

    def isatty(self) -> bool:
        """Return what the test wants."""
        return self._tty


@given(st.lists(st.lists(st.text(max_size=60), min_size=3, max_size=3), max_size=5), st.integers(40, 120))
def test_a_table_fits_and_holds_no_control_characters(rows: list[list[str]], width: int) -> None:
    lines = terminal.table(["NAME", "STATE", "REMARK"], rows, width)
    assert len(lines) == len(rows) + 1
    assert all(len(line) <= width and line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("fraction", "shown"), [(-1, "[....]"), (0, "[....]"), (0.5, "[##..]"), (1, "[####]"), (9, "[####]")]
)
def test_a_bar(fraction: float, shown: str) -> None:
    assert terminal.gauge(fraction, 4) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "0 s"),
        (59, "59 s"),
        (119, "119 s"),
        (120, "2 min"),
        (3600, "1 h"),
        (86400, "1 d"),
        (10**6, "11 d"),
    ],
)
def test_a_time_span(seconds: float, shown: str) -> None:
    assert terminal.duration(seconds) == shown


@pytest.mark.parametrize(
    ("tty", "environment", "colour", "updating"),
    [
        (True, {"TERM": "xterm"}, True, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False, True),
        (True, {"TERM": "xterm", "NO_COLOR": ""}, True, True),
        (True, {"TERM": "dumb"}, False, False),
        (True, {}, False, False),
        (False, {"TERM": "xterm"}, False, False),
    ],
)
def test_colour_and_updates_only_where_they_show(
    tty: bool, environment: dict[str, str], colour: bool, updating: bool
) -> None:
    screen = Screen(tty)
    shown = terminal.Terminal(screen, environment)
    assert (shown.style("x", "good") != "x") is colour
    shown.status("one\x1b[2J")
    shown.status("two")
    shown.line("end")
    text = screen.getvalue()
    assert ("\r" in text) is updating
    assert "\x1b[2J" not in text
    assert text.endswith("end\n")
    if not updating:
        assert text == "one\\x1b[2J\ntwo\nend\n"


def test_a_line_that_updates_never_wraps() -> None:
    screen = Screen(True)
    shown = terminal.Terminal(screen, {"TERM": "xterm"})
    shown.width = 20
    shown.status("x" * 100)
    assert len(screen.getvalue().rpartition("K")[2]) == 19


def test_a_moment_is_for_people() -> None:
    assert re.fullmatch(r"2027-01-1[45] [0-9]{2}:[0-9]{2}", terminal.moment(1_800_000_000))
    assert terminal.moment(None) == "at an unknown time"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-1, "0:00"), (7.9, "0:07"), (750, "12:30"), (3723, "1:02:03")]
)
def test_a_clock_that_runs(seconds: float, shown: str) -> None:
    assert terminal.clock(seconds) == shown


def test_the_time_of_a_silent_step_moves_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(calls.time, "monotonic", lambda: now[0])
    screen, pipe = Screen(True), Screen(False)
    for stream in (screen, pipe):
        progress = calls.Progress(terminal.Terminal(stream, {"TERM": "xterm", "COLUMNS": "80"}))
        now[0] = 0
        progress.tick()
        assert stream.getvalue() == ""
        progress("Step 2/3 : RUN make")
        now[0] = 61
        progress.tick()
    assert screen.getvalue().endswith("[1:01] step 2 of 3: RUN make")
    assert pipe.getvalue() == "step 2 of 3: RUN make\n"


def test_lines_are_read_whole_and_a_silence_is_noticed() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"one\ntw")
    ticks: list[None] = []

    def tick() -> None:
        ticks.append(None)
        os.write(writer, b"o\nend")
        os.close(writer)

    assert list(calls._read(reader, tick)) == ["one", "two", "end"] and len(ticks) == 1
    os.close(reader)
