# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Screens: every table at 40, 80 and 200 columns, with colours, without, and on a dumb terminal."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    calls,
    cli,
    cli_container,
    cli_project,
    greeting,
    quota,
)
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, Quota
from ansible_collections.lab.server.plugins.module_utils._core.terminal import Terminal

LONG = "a" * 32
CONTAINER = {
    "project": LONG,
    "container": f"{LONG}._.2001",
    "status": "running",
    "created": 1_700_000_000,
    "image": "i",
    "image_newer": True,
}
ANSWER = {
    "containers": [CONTAINER, {**CONTAINER, "project": "b", "container": "b._.2001", "status": "exited"}],
    "projects": [{"name": LONG, "dockerfile": False, "folder": False, "container": CONTAINER}],
    "note": "",
}
SCREENS = [["container", "list"], ["project", "list"], ["workspace", "usage"]]


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        """It is one."""
        return True


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch, lab: Policy, tmp_path: Path) -> Any:
    """Return a function that shows a screen of alice's on a terminal with this environment."""
    (tmp_path / f"{LONG}/{LONG}").mkdir(parents=True)
    (tmp_path / f"{LONG}/{LONG}/blob").write_bytes(b"x" * 100_000)
    limits = Quota(soft=0, hard=1 << 50, inodes_soft=0, inodes_hard=10**9)
    monkeypatch.setattr(os, "getuid", lambda: 2001)
    monkeypatch.setattr(calls, "load", lambda path: lab)
    monkeypatch.setattr(Policy, "workspace", lambda policy, user: str(tmp_path))
    monkeypatch.setattr(quota, "usage", lambda policy, user: quota.Usage((1 << 50) - 1, 10**9 - 1, limits))
    for module in (cli_container, cli_project):
        monkeypatch.setattr(module, "ask", lambda *words, **options: ANSWER)

    def shown(words: list[str], **environment: str) -> str:
        screen = Screen()
        for name in ("NO_COLOR", "TERM", "COLUMNS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdout", screen)
        assert cli.main(words) == 0
        return screen.getvalue()

    return shown


@pytest.mark.parametrize("words", SCREENS, ids=" ".join)
@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_table_fits_the_terminal(show: Any, words: list[str], width: int) -> None:
    coloured = show(words, TERM="xterm", COLUMNS=str(width))
    plain = show(words, TERM="xterm", COLUMNS=str(width), NO_COLOR="1")
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    assert show(words, TERM="dumb", COLUMNS=str(width)) == plain and "\x1b" not in plain
    # Sentences are broken by the terminal itself.
    table = [line for line in plain.splitlines() if not re.match(r"(Your?|There) ", line)]
    assert len(table) >= 2 and max(len(line) for line in table) <= width
    if width == 200:
        assert LONG in plain and ".." not in plain


@pytest.mark.parametrize("environment", [{}, {"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}])
def test_the_greeting_is_plain_where_colours_do_not_show(
    monkeypatch: pytest.MonkeyPatch, lab: Policy, environment: dict[str, str]
) -> None:
    limits = Quota(soft=0, hard=100, inodes_soft=0, inodes_hard=0)
    monkeypatch.setattr(quota, "usage", lambda policy, user: quota.Usage(99, 1, limits))
    out = Terminal(Screen(), environment)
    lines = greeting.lines(out, lab, lab.user("alice"), [])
    assert "\x1b" not in "".join(lines) and any("99 % of your space" in line for line in lines)
    bright = greeting.lines(Terminal(Screen(), {"TERM": "xterm"}), lab, lab.user("alice"), [])
    assert any("\x1b[31m" in line for line in bright)


def test_a_sentence_is_wrapped_on_a_terminal_and_whole_elsewhere() -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    text = " ".join(["word"] * 40)
    for stream, lines in ((Screen(), 3), (io.StringIO(), 1)):
        Terminal(stream, {"TERM": "dumb"}).sentence(text, "  note: ")
        said = stream.getvalue().splitlines()
        assert len(said) == lines and said[0].startswith("  note: word")
        assert " ".join(said).split() == ["note:", *text.split()]
        assert lines == 1 or max(len(line) for line in said) <= 80
