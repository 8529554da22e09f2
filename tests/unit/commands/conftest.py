# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A small server to serve: its policy, with this process' own account as one of its users; its commands."""

from __future__ import annotations

import functools
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import PUBLIC_POLICY_PATH, calls, cli
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, from_inventory
from ansible_collections.lab.server.plugins.module_utils._core.terminal import Terminal

WIDTH, LONG_NAME = 80, "n" * 32
#: What a line that is to be copied begins with, beside our own programs.
_TYPED = ("rm ", "ssh ", "http://127.0.0.1:")
Run = Callable[..., tuple[int, str, str]]
LIMITS = {"containers": 2, "cpus": 2, "memory": "1g", "pids": 512, "shm": "64m", "gpus": 0}
QUOTA = {"soft": "200m", "hard": "250m", "inodes_soft": 20000, "inodes_hard": 25000}


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        """It is one."""
        return True


class _Narrow(Terminal):
    """A terminal of a test's own, on which everything is printed once more."""


def too_wide(text: str, width: int = WIDTH) -> list[str]:
    """Return the lines that are wider than a terminal and are no single word and no command to type."""
    found = []
    # A line that updates itself is taken away before the next one.
    for line in re.sub(r"\x1b\[[0-9;]*m|[^\n]*\r\x1b\[K", "", text).splitlines():
        words = re.sub(r"^ *(\w[\w -]*: *)?", "", line)
        if len(line) > width and " " in words and not is_typed(line):
            found.append(line)
    return found


def is_typed(line: str) -> bool:
    """Say whether a line is one to copy: a command of ours or a known one, behind two spaces."""
    word = line[2:].split(" ")[0]
    return line.startswith("  ") and (word in cli.programs() or line[2:].startswith(_TYPED))


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Print all that a test prints on terminals of 80 columns, too: with a long name, in colour and not.

    Where a line is longer and could be broken, the test fails. So whoever prints a line is looked at here.
    """
    seen: list[str] = []

    def watched(name: str) -> Callable[..., None]:
        plain = getattr(Terminal, name)

        @functools.wraps(plain)
        def printed(out: Terminal, text: str = "", *more: Any, **named: Any) -> None:
            plain(out, text, *more, **named)
            for term in () if isinstance(out, _Narrow) else ("dumb", "xterm"):
                screen = Screen()
                again = _Narrow(screen, {"TERM": term, "COLUMNS": str(WIDTH)})
                plain(again, re.sub(r"\bthesis\b", LONG_NAME, text), *more, **named)
                seen.append(screen.getvalue())
                if name == "command":
                    assert is_typed(screen.getvalue()), f"no command to type: {text}"

        return printed

    for name in ("line", "sentence", "command"):
        monkeypatch.setattr(Terminal, name, watched(name))
    yield
    assert too_wide("".join(seen)) == []


@pytest.fixture
def lab() -> Policy:
    """Return the policy of a server with two users, a base image and a declared project."""
    checked, _keys = from_inventory(
        {
            "lab_gid": 3000,
            "lab_groups": [{"name": "students", "gid": 3101, "limits": LIMITS, "quota": QUOTA}],
            "lab_users": [
                {"name": "alice", "uid": 2001, "group": "students"},
                {"name": "bob", "uid": 2002, "group": "students"},
            ],
            "lab_base_images": [{"name": "lab/python", "archive": "python.tar"}],
            "lab_projects": [{"user": "alice", "name": "thesis", "files": {"a.txt": "secret-of-alice\n"}}],
        }
    )
    return checked


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lab: Policy, tmp_path: Path
) -> Run:
    """Return a function that runs a command as alice and returns (exit code, output, errors)."""
    monkeypatch.setattr(os, "getuid", lambda: 2001)
    monkeypatch.setattr(calls, "load", lambda path: lab if path == PUBLIC_POLICY_PATH else None)
    monkeypatch.setattr(Policy, "workspace", lambda policy, user: str(tmp_path))

    def command(*words: str) -> tuple[int, str, str]:
        try:
            code = cli.main(list(words))
        except SystemExit as error:
            code = int(str(error.code))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that puts a program in the place of sudo, which answers with these lines."""

    def answering(*lines: object, code: int = 0) -> Path:
        said = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        (tmp_path / "said").write_text(said)
        program = tmp_path / "sudo"
        program.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/asked\ncat {tmp_path}/said\nexit {code}\n'
        )
        program.chmod(0o755)
        monkeypatch.setattr(calls, "SUDO", str(program))
        return tmp_path / "asked"

    return answering


def result(**data: Any) -> dict[str, Any]:
    """Return the event of an answer."""
    return {"event": "result", "data": data}
