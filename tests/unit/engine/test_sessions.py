# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who types in which container, from a folder that is made like /proc."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import sessions

NAMES = {"a._.1", "b._.1"}


@pytest.fixture
def host(tmp_path: Path):
    """Return a function that adds a process, and the folders that are looked at."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "self").mkdir()
    (tmp_path / "pts").mkdir()

    def add(pid: int, command: str, terminal: int | None, last: int = 0) -> None:
        process = tmp_path / "proc" / str(pid)
        process.mkdir()
        process.joinpath("cmdline").write_bytes(b"\0".join(command.encode().split()) + b"\0")
        device = 0
        if terminal is not None:
            device = 136 << 8 | terminal & 0xFF | (terminal & 0xFFF00) << 12
            place = tmp_path / "pts" / str(terminal)
            place.touch()
            os.utime(place, ns=(last, 0))
        process.joinpath("stat").write_text(f"{pid} (a) b) S 1 {pid} {pid} {device} 0 0\n")

    def typed(owner: int | None = None) -> dict[str, int]:
        mine = os.getuid() if owner is None else owner
        return sessions.typed(NAMES, str(tmp_path / "proc"), str(tmp_path / "pts"), mine)

    return add, typed


def test_the_last_one_who_typed_counts(host) -> None:
    add, typed = host
    assert typed() == {}
    add(10, "/usr/bin/docker exec --interactive --tty --user=1:1 a._.1 sh", 3, 50)
    add(11, "/usr/bin/docker exec --interactive --tty --user=1:1 a._.1 sh", 300, 70)
    add(12, "/usr/bin/docker exec --interactive --tty --user=1:1 b._.1 sh -c a._.1", 4, 90)
    assert typed() == {"a._.1": 70, "b._.1": 90}


@pytest.mark.parametrize(
    ("command", "terminal"),
    [
        ("/usr/bin/docker exec --interactive a._.1 sh", 3),
        ("/usr/bin/docker exec --interactive --tty c._.1 sh", 3),
        ("/usr/bin/docker exec --interactive --tty a._.1 sh", None),
        ("/usr/bin/python3 exec --tty a._.1", 3),
        ("", 3),
    ],
)
def test_what_is_no_terminal_of_a_container_does_not_count(host, command: str, terminal: int | None) -> None:
    add, typed = host
    add(10, command, terminal, 50)
    assert typed() == {}


def test_a_process_of_somebody_else_does_not_count_and_one_that_ended_is_passed_over(host, tmp_path) -> None:
    add, typed = host
    add(10, "/usr/bin/docker exec --interactive --tty a._.1 sh", 3, 50)
    assert typed(os.getuid() + 1) == {}
    (tmp_path / "proc" / "10" / "stat").unlink()
    assert typed() == {}
