# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The page of the commands says what the commands are."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import cli
from ansible_collections.lab.server.plugins.module_utils._core.calls import Command

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
import commands_page


def test_the_page_is_that_of_the_parsers() -> None:
    assert commands_page.PAGE.read_text(encoding="utf-8") == commands_page.page(), (
        "A command changed. Write the page anew: python tools/commands_page.py"
    )


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: "-".join(command.words))
def test_every_example_is_a_command_line_that_is_understood(command: Command) -> None:
    words = shlex.split(command.example)
    # What comes after a pipe is on another computer.
    program, *rest = words[: words.index("|")] if "|" in words else words
    if program not in cli.GROUPS:
        assert program == "-".join(command.words)
    assert cli._parse(program, rest).run is command.run
