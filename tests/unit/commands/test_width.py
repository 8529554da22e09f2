# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every command on a terminal of 80 columns, with long names: no line is longer that could be broken."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import calls, cli, cli_project
from ansible_collections.lab.server.plugins.module_utils._core.calls import Command
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy
from ansible_collections.lab.server.plugins.module_utils._core.terminal import Terminal, wrapped
from conftest import LONG_NAME as NAME
from conftest import WIDTH, Screen, result, too_wide

WHY = "the base image lab/python changed, and so did the files requirements.txt and src/train.py of it"
GPUS = [f"NVIDIA H100 80GB HBM3, MIG 1g.10gb, number {number}" for number in range(4)]
CONTAINER = {
    "project": NAME,
    "container": f"{NAME}._.2001",
    "status": "running",
    "created": 1_700_000_000,
    "image_newer": True,
    "memory": 1 << 30,
    "memory_limit": 1 << 33,
    "job": {"running": False, "exit_code": None, "log": "results/logs/job.log", "started": 1_700_000_000},
}
IMAGE = {
    "project": NAME,
    "image": f"lab/2001/{NAME}:0123456789ab",
    "fingerprint": "0123456789ab" * 4,
    "size": 1 << 33,
    "created": 1_700_000_000,
    "current": True,
    "in_use": True,
    "packages": ["numpy==1.26"] * 3,
}
#: An answer to any question: each command takes what it knows of it.
ANSWER: dict[str, Any] = {
    **IMAGE,
    "notes": [WHY * 2, "short"],
    "lock": {"packages": 117, "image": IMAGE["image"]},
    "reason": WHY,
    "build": WHY,
    "why": WHY,
    "hint": WHY,
    "status": "created",
    "base": "lab/python" * 9,
    "kept": ["/workspace", "/srv/data/shared/a-group-of-many-people", "/srv/data/shared/another-group"],
    "read_only": ["/srv/data"],
    "limits": {"memory": 1 << 33, "cpus": 8},
    "gpus": GPUS,
    "ports": [{"host": 40000, "container": 8888}],
    "job": {"running": True, "log": "results/logs/20260101-000000.log", "started": 1_700_000_000},
    "brought": {"files": 1234, "folder": f"~/workspace/{NAME}/an-environment-of-a-long-name"},
    "container": CONTAINER,
    "containers": [CONTAINER, {**CONTAINER, "status": "exited"}],
    "projects": [{"name": NAME, "dockerfile": False, "folder": False, "container": CONTAINER}],
    "images": [IMAGE, {**IMAGE, "current": False, "in_use": False}],
    "removed": [IMAGE] * 3,
    "events": [
        {"what": what, "by": "user", "reason": WHY, "time": 1_700_000_000, "clock_changed": 7200}
        for what in ("made", "stopped", "not-started", "retired")
    ],
    "stay_down": True,
    "undo_until": 1_800_000_000,
    "not_kept": WHY,
    "holds": {"packages": [f"package-of-a-long-name-{number} 1.{number}" for number in range(30)]},
    "lost": {
        "files": 12,
        "bytes": 1 << 30,
        "complete": False,
        "paths": ["/opt/x"],
        "volumes": [f"/{NAME * 2}"],
    },
    "versions": {"numpy": "1.26"},
    "hours": 12,
    "at": 1_800_000_000,
    "left": 2,
    "note": WHY,
    "problem": WHY,
}
ANSWERS = {
    "runs": {**ANSWER, "changed": True, "state": {"running": True, "out_of_memory": True}},
    "stopped": {**ANSWER, "changed": True, "state": {"exit_code": 137, "error": WHY}, "container": None},
    "as it was": {**ANSWER, "changed": False, "state": {"exit_code": 1}, "removed": [], "lost": []},
}
#: What is given for an argument of that name; a project's name for all others.
WORDS = {"WHAT": "1", "VERSION": "1.0", "N": "3", "NUMBER": "3", "PACKAGE": "numpy>=1.26", "DIGITS": "01"}


def lines_of(command: Command) -> Iterator[list[str]]:
    """Yield the ways to call a command: as it is, without a question, and only to look."""
    words = list(command.words)
    flags = [[]]
    for action in cli.build_parser("-".join(words))._actions:
        value = (action.choices and next(iter(action.choices))) or WORDS.get(str(action.metavar), NAME)
        if not action.option_strings:
            words.append(str(value))
        elif action.required:
            words += [action.option_strings[-1], str(value)]
        elif isinstance(action, argparse._StoreTrueAction) and action.dest not in ("json", "follow"):
            flags.append([action.option_strings[-1]])
    trailing = ["--", "python", "train.py"] if command.trailing else []
    return ([*words, *flag, *trailing] for flag in flags)


@pytest.fixture
def show(
    monkeypatch: pytest.MonkeyPatch, lab: Policy, tmp_path: Path, broker: Callable[..., Path]
) -> Callable[..., str]:
    """Return a function that shows all that a command prints on a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)  # an export is written where its caller is
    monkeypatch.setattr(os, "getuid", lambda: 2001)
    monkeypatch.setattr(os, "execv", lambda *words: None)
    monkeypatch.setattr(calls, "load", lambda path: lab)
    monkeypatch.setattr(cli_project, "_JUPYTER_SECONDS", 0.0)
    monkeypatch.setattr(Policy, "workspace", lambda policy, user: str(tmp_path / "workspace"))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setenv("COLUMNS", str(WIDTH))

    def shown(words: list[str], answer: dict[str, Any], colour: bool) -> str:
        folder = tmp_path / f"workspace/{NAME}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "Dockerfile").write_text("FROM lab/python\n")
        broker(result(**answer))
        screen = Screen()
        monkeypatch.setenv("TERM", "xterm" if colour else "dumb")
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setattr(sys, "stderr", screen)
        with contextlib.suppress(SystemExit):
            cli.main(words)
        return screen.getvalue()

    return shown


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda one: "-".join(one.words))
def test_no_line_of_a_command_is_wider_than_the_terminal(show: Callable[..., str], command: Command) -> None:
    printed = ""
    for words in lines_of(command):
        for answer in ANSWERS.values():
            for colour in (True, False):
                text = show(words, answer, colour)
                assert too_wide(text) == [], words
                printed += text
    assert printed or command.words == ("container", "exec")
    assert too_wide(show([*command.words, "--help"], ANSWER, False)) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["container", "why", NAME], "stopped by you"),
        (["image", "update", NAME, "--dry-run"], "would be built"),
        (["image", "update", NAME, "--locked"], "note: "),
        (["container", "undo", NAME], "is back and runs"),
        (["container", "stop", NAME, "--dry-run"], "would be stopped"),
        (["container", "start", NAME], "runs again"),
        (["container", "retire", NAME, "--dry-run"], "would be retired"),
        (["image", "rollback", NAME], "is the current image"),
        (["project", "launch", NAME, "--detach"], "gpus: "),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_what_was_wider_is_said_in_whole_on_several_lines(
    show: Callable[..., str], words: list[str], said: str
) -> None:
    text = show(words, ANSWERS["runs"], False)
    assert said in " ".join(text.split()) and too_wide(text) == []


def test_a_line_that_is_too_wide_is_found() -> None:
    words = "word " * 20
    assert too_wide(words) == [words]
    assert too_wide(f"  label:  {'x' * 99}\n  project launch {'y' * 99}\n") == []
    assert too_wide(f"say {'x' * 99}") != []
    assert too_wide(f"{'word ' * 20}\r\x1b[Kshort\n") == []


@pytest.mark.parametrize("colour", [True, False])
def test_a_line_is_broken_between_words_behind_its_own_indent(colour: bool) -> None:
    screen = Screen()
    out = Terminal(screen, {"TERM": "xterm" if colour else "dumb", "COLUMNS": "30"})
    out.line(f"  {out.style('one two', 'good')}  three four five six seven")
    plain = screen.getvalue().replace("\x1b[32m", "").replace("\x1b[0m", "")
    assert plain == "  one two  three four five six\n  seven\n"
    assert ("\x1b[32m" in screen.getvalue()) is colour
    assert wrapped("x" * 40, 30) == ["x" * 40] and wrapped("", 30) == [""]
    assert wrapped(f"a {'x' * 40} b", 30, "    ") == ["a", "    " + "x" * 40, "    b"]


def test_what_is_copied_and_what_others_wrote_stays_on_one_line() -> None:
    screen = Screen()
    out = Terminal(screen, {"COLUMNS": "30"})
    out.verbatim("word " * 20)
    out.command(f"project launch {NAME}")
    assert screen.getvalue() == f"{'word ' * 20}\n  project launch {NAME}\n"


def test_only_json_and_what_others_wrote_is_printed_as_it_is() -> None:
    core = Path(calls.__file__).parent
    texts = {file.name: file.read_text() for file in core.glob("*.py")}
    assert {name for name, text in texts.items() if ".verbatim(" in text} == {
        "calls.py",
        "cli_inside.py",
        "terminal.py",
    }
    shown = [name for name in texts if name.startswith(("cli", "consent"))]
    assert shown and not [name for name in shown if re.search(r"\bprint\(|sys\.std(out|err)\.w", texts[name])]
