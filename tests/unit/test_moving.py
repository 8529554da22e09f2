# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The shared data move: the steps, in check mode too, and after a run that was broken off anywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError, Refused
from ansible_collections.lab.server.plugins.module_utils._core.moving import (
    Record,
    Situation,
    parse,
    reconcile,
)

NOW = 1_700_000_000.0
COPYING = ["new file system", "projects", "copy", "compare", "pause", "copy the rest", "limits"]
STEPS = [*COPYING, "switch", "start", "keep"]
BOTH = ["survey._.2002", "thesis._.2001"]


class BrokenOff(BaseException):
    """The power is lost, or the process was killed."""


class Disk:
    """A disk: its UUID ("" while it is blank), what is on it, its projects and limits."""

    def __init__(self, uuid: str = "", content: str = "") -> None:
        self.uuid = uuid
        self.content = content
        self.projects: dict[str, int] = {}
        self.limits: dict[str, int] = {}
        self.writable = True


class Server:
    """A server in memory. It is broken off at the deed (or half of it) with the number ``fails_at``."""

    def __init__(self) -> None:
        self.old, self.new = Disk("old", "data"), Disk()
        self.old.projects, self.old.limits = {"vision": 100_000}, {"vision": 5}
        self.declared = self.new
        self.mounted: Disk | None = self.old
        self.staged: Disk | None = None
        self.kept: Disk | None = None
        self.fstab = "old"
        self.paused = False
        self.up, self.down = set(BOTH), set[str]()
        self.saved = ""
        self.deeds, self.fails_at = 0, -1
        self.fails: dict[str, str] = {}
        self.after_compare: Callable[[], None] = lambda: None

    # What goes wrong

    def _deed(self, name: str = "") -> None:
        self.deeds += 1
        if self.deeds == self.fails_at:
            raise BrokenOff
        if name in self.fails:
            raise HostError(self.fails[name])

    def reboot(self) -> None:
        """Mount by fstab; nothing else is mounted, and no container runs until it may."""
        self.mounted = next(disk for disk in (self.old, self.new) if disk.uuid == self.fstab)
        self.staged = self.kept = None
        self.mounted.writable = True
        if not self.paused:
            self.up, self.down = self.up | self.down, set()
        else:
            self.up, self.down = set(), self.up | self.down

    def work(self, text: str) -> None:
        """Let users write, if anybody can."""
        if self.mounted is not None and self.mounted.writable:
            self.mounted.content += text

    # The deeds

    def look(self) -> Situation:
        here = self.mounted is self.declared
        uuid = self.declared.uuid
        return Situation(
            self.mounted.uuid if self.mounted else "",
            "ext4",
            uuid,
            here=here,
            written=bool(uuid) and self.fstab == uuid,
            bytes=5 << 30,
            files=7000,
        )

    def load(self) -> Record | None:
        return parse(self.saved) if self.saved else None

    def save(self, record: Record) -> None:
        self._deed()
        self.saved = record.render()
        self._deed()

    def to_prepare(self, known: str) -> list[str]:
        if self.declared.uuid and self.declared.content and self.declared.uuid != known:
            raise Refused("It is not empty.")
        if self.staged is self.declared:
            return []
        return [*([] if self.declared.uuid else ["make ext4"]), "mount it"]

    def prepare(self) -> str:
        self._deed("prepare")
        self.declared.uuid = self.declared.uuid or "new"
        self._deed()
        self.staged = self.declared
        return self.declared.uuid

    def to_number(self) -> list[str]:
        done = self.staged.projects if self.staged else {}
        return [f"give {name}" for name, number in self.old.projects.items() if done.get(name) != number]

    def number(self) -> None:
        assert self.staged is not None
        self._deed("number")
        self.staged.projects = dict(self.old.projects)

    def copy(self, *, last: bool) -> None:
        assert self.staged is not None and self.mounted is self.old
        assert self.staged.projects == self.old.projects, "what is copied would be in no project"
        assert not (last and self.old.writable), "it could still change"
        self._deed("copy the rest" if last else "copy")
        self.staged.content = self.old.content[: len(self.old.content) // 2]
        self._deed()
        self.staged.content = self.old.content
        self.staged.limits = {}

    def compare(self, *, last: bool) -> None:
        assert self.staged is not None
        self._deed("compare")
        if last and self.staged.content != self.old.content:
            raise HostError("It differs.")
        if not last:
            self.after_compare()

    def running(self) -> list[str]:
        return sorted(self.up)

    def is_paused(self) -> bool:
        return self.paused and self.mounted is not None and not self.mounted.writable

    def is_held(self) -> bool:
        return self.paused or (self.mounted is not None and not self.mounted.writable)

    def pause(self) -> None:
        self._deed()
        self.paused = True
        self._deed()
        self.down, self.up = self.down | self.up, set()
        self._deed("pause")
        self.old.writable = False

    def resume(self, names: tuple[str, ...]) -> list[str]:
        self._deed()
        if self.mounted is not None:
            self.mounted.writable = True
        self.paused = False
        self._deed()
        started = self.down & set(names)
        self.up, self.down = self.up | started, self.down - started
        return ["one does not start"] if "start" in self.fails else []

    def to_limit(self) -> list[str]:
        return [f"limit {name}" for name in self.old.limits]

    def limit(self) -> None:
        assert self.staged is not None
        self._deed("limit")
        self.staged.limits = dict(self.old.limits)

    def to_switch(self, record: Record) -> list[str]:
        assert record.source == self.old.uuid
        missing = ["write fstab"] if self.fstab != self.declared.uuid or not self.declared.uuid else []
        missing += ["mount the new"] if self.mounted is not self.declared else []
        return missing + ([] if self.kept else ["mount the old"])

    def switch(self, record: Record) -> None:
        if self.fstab == self.old.uuid:
            assert not self.old.writable and not self.up, "something could be lost"
            assert self.new.content == self.old.content and self.new.limits == self.old.limits
        self._deed("switch")
        self.fstab = record.target
        self._deed("mount")
        self.mounted = None if self.mounted is self.old else self.mounted
        self._deed()
        self.mounted = self.new
        self._deed()
        self.kept, self.staged = self.old, None
        self.old.writable = False

    def to_release(self) -> list[str]:
        return ["unmount the old"]

    def release(self) -> None:
        self._deed()
        self.kept = None


def go(server: Server, *, release: bool = False, check: bool = False) -> list[Any]:
    return reconcile(server, release=release, check=check, now=NOW)


def shown(results: list[Any]) -> list[tuple[str, bool, list[str], str]]:
    return [(one.name, one.changed, one.actions, one.message) for one in results]


def is_moved(server: Server) -> bool:
    return (
        server.mounted is server.new
        and server.fstab == server.new.uuid
        and server.new.content == server.old.content
        and server.new.limits == server.old.limits
        and server.kept is server.old
        and not server.old.writable
        and not server.down
        and not server.paused
    )


def test_the_data_move_and_the_old_ones_are_kept() -> None:
    server = Server()
    results = go(server)
    assert [one.name for one in results if one.changed] == STEPS
    assert is_moved(server) and server.up == set(BOTH)


def test_check_mode_says_what_is_done_and_does_nothing() -> None:
    server = Server()
    promised = shown(go(server, check=True))
    assert (server.deeds, server.saved) == (0, "")
    assert shown(go(server)) == promised
    copies = "copy 5G in 7000 files while they are in use, which takes about 58 seconds at 100M"
    assert promised[2][2][0].startswith(copies)
    assert promised[4][2] == [*(f"stop {name}" for name in BOTH), "make the old file system read-only"]


def test_a_second_run_changes_nothing() -> None:
    server = Server()
    go(server)
    before = server.deeds
    assert not any(one.changed or one.failed for one in go(server))
    assert server.deeds == before


def test_where_nothing_is_to_move_nothing_is_done() -> None:
    server = Server()
    server.declared = server.old
    assert shown(go(server)) == [("start", False, [], "")]
    assert shown(go(server, release=True)) == [("start", False, [], ""), ("release", False, [], "")]
    assert server.saved == ""


@pytest.mark.parametrize("names", [BOTH, []])
@pytest.mark.parametrize("reboots", [False, True])
def test_it_is_repeated_after_it_was_broken_off_anywhere(reboots: bool, names: list[str]) -> None:
    whole = Server()
    go(whole)
    assert whole.deeds > 30
    for number in range(1, whole.deeds + 1):
        server = Server()
        server.up = set(names)
        server.fails_at = number
        server.after_compare = lambda server=server: server.work(", written while it was copied")  # type: ignore[misc]  # a lambda for a method
        with pytest.raises(BrokenOff):
            go(server)
        if reboots:
            server.reboot()
        before = server.mounted.content if server.mounted else ""
        server.work(", written afterwards")
        if server.mounted is server.new:
            # The new one is in use already: what is written is on it alone.
            assert server.mounted.content.startswith(before)
            server.old.content = server.new.content
        results = go(server)
        assert not any(one.failed for one in results), (number, shown(results))
        assert is_moved(server) and server.up == set(names), number
        again = go(server)
        assert not any(one.changed or one.failed for one in again), (number, shown(again))


@pytest.mark.parametrize(
    "step", ["prepare", "number", "copy", "compare", "pause", "copy the rest", "limit", "switch"]
)
def test_what_fails_before_the_switch_leaves_everybody_at_work(step: str) -> None:
    server = Server()
    server.fails = {step: "It went wrong."}
    results = go(server)
    assert results[-1].failed and results[-1].message == "It went wrong."
    assert (server.mounted, server.fstab, server.up) == (server.old, "old", set(BOTH))
    assert server.old.writable and not server.paused
    server.fails = {}
    assert not any(one.failed for one in go(server)) and is_moved(server)


def test_what_fails_after_the_switch_keeps_containers_down_until_it_is_repeated() -> None:
    server = Server()
    server.fails = {"mount": "It went wrong."}
    assert go(server)[-1].failed
    assert server.paused and not server.up and server.fstab == "new"
    server.fails = {}
    assert not any(one.failed for one in go(server)) and is_moved(server)


def test_a_container_that_does_not_start_is_told() -> None:
    server = Server()
    server.fails = {"start": "x"}
    results = go(server)
    assert results[-1].facts["notes"] == ["one does not start"] and is_moved(server)


def test_the_old_one_is_released_by_a_later_run_alone() -> None:
    server = Server()
    promised = shown(go(server, release=True, check=True))
    results = go(server, release=True)
    assert shown(results) == promised
    assert results[-1].failed and "later run" in results[-1].message
    assert is_moved(server)
    promised = shown(go(server, release=True, check=True))
    results = go(server, release=True)
    assert shown(results) == promised
    assert [one.name for one in results if one.changed] == ["release"] and server.kept is None
    assert not any(one.changed or one.failed for one in go(server, release=True))
    assert not any(one.changed or one.failed for one in go(server))


def test_a_release_is_repeated_after_it_was_broken_off_anywhere() -> None:
    for number in range(1, 6):
        server = Server()
        go(server)
        server.fails_at = server.deeds + number
        with pytest.raises(BrokenOff):
            go(server, release=True)
        assert not any(one.failed for one in go(server, release=True))
        assert server.kept is None
        assert not any(one.changed or one.failed for one in go(server, release=True))


def test_another_move_waits_for_the_release_of_the_old_one() -> None:
    server = Server()
    go(server)
    server.declared = Disk()
    (result,) = go(server)
    assert result.failed and "Release it first" in result.message
    (result,) = go(server, release=True)
    assert result.changed and server.kept is None


def test_back_to_a_disk_that_was_released_only_what_changed_is_copied() -> None:
    server = Server()
    go(server)
    go(server, release=True)
    server.old, server.new = server.new, server.old
    server.declared = server.new
    server.work(", and more")
    assert not any(one.failed for one in go(server))
    assert is_moved(server) and server.new.content == "data, and more"


def test_what_is_not_empty_and_not_ours_is_refused() -> None:
    server = Server()
    server.new.uuid, server.new.content = "foreign", "somebody's"
    (result,) = go(server)
    assert result.failed and server.new.content == "somebody's"
    assert server.up == set(BOTH)


def test_it_is_called_off_by_naming_the_old_disk_again() -> None:
    whole = Server()
    go(whole)
    for number in range(1, whole.deeds + 1):
        server = Server()
        server.fails_at = number
        with pytest.raises(BrokenOff):
            go(server)
        if server.fstab == "new":
            break
        server.declared = server.old
        assert not any(one.failed for one in go(server))
        assert server.up == set(BOTH) and server.old.writable and not server.paused, number
        assert not any(one.changed for one in go(server)), number
    assert number > 20


@pytest.mark.parametrize("text", ["{}", "", '{"source": "a", "fstype": "b", "stopped": 1}', "[]"])
def test_a_damaged_record_is_an_error(text: str) -> None:
    with pytest.raises(HostError, match="damaged"):
        parse(text)
