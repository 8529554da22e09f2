# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A user leaves: the steps, in check mode too, and after a run that was broken off anywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    accounts,
    departing,
    formeruids,
    offboarding,
    slices,
    state,
    units,
)
from ansible_collections.lab.server.plugins.module_utils._core import policy as policies
from ansible_collections.lab.server.plugins.module_utils._core.errors import (
    HostError,
    InvalidInput,
    NotFound,
    Refused,
)
from ansible_collections.lab.server.plugins.module_utils._core.offboarding import (
    HandOver,
    Packed,
    Record,
    Request,
    Tree,
    parse,
    reconcile,
)

DAY = 86400.0
BEGIN = 1_700_000_000.0
ASKED = Request("alice", "/archives", 30, hand_over=(HandOver("survey", "bob", "survey"),))
PURGE = replace(ASKED, purge=True)
KEPT = "survey@opt+packages"
STEPS = ["account", "containers", "processes", "archive home", "archive workspace", f"archive keep-of-{KEPT}"]
ALL_STEPS = [*STEPS, "hand over survey to bob", "keep"]


class BrokenOff(BaseException):
    """The power is lost."""


class Server:
    """A server in memory. Its power is lost at the deed (or half of it) with the number ``fails_at``."""

    def __init__(self) -> None:
        self.saved = ""
        self.open, self.running = True, ["thesis._.2001"]
        self.working = 2
        self.folders = {
            "/home/alice": "home",
            "/w/alice": "workspace",
            f"/h/alice/{KEPT}": f"keep-of-{KEPT}",
        }
        self.contents = {path: f"content of {path}" for path in self.folders}
        self.files: dict[str, str] = {}
        self.bob: dict[str, str] = {}
        self.account = True
        self.deeds = 0
        self.fails_at = -1
        self.changed_while_packed = False

    def _deed(self) -> None:
        self.deeds += 1
        if self.deeds == self.fails_at:
            raise BrokenOff

    def find(self, user: str) -> int:
        if user != "alice":
            raise NotFound("nobody")
        return 2001

    def load(self, uid: int) -> Record | None:
        assert uid == 2001
        return parse(self.saved) if self.saved else None

    def save(self, record: Record) -> None:
        self._deed()
        self.saved = record.render()
        self._deed()

    def to_shut(self) -> list[str]:
        return ["close the account alice"] if self.open else []

    def shut(self) -> None:
        self._deed()
        self.open = False
        self._deed()

    def containers(self) -> list[str]:
        return list(self.running)

    def retire(self) -> None:
        self._deed()
        self.running.clear()
        self._deed()

    def processes(self) -> int:
        return self.working

    def end_processes(self) -> None:
        assert not self.open, "somebody could log in again"
        self._deed()
        self.working = 0
        self._deed()

    def trees(self) -> list[Tree]:
        return [Tree(path, label) for path, label in self.folders.items()]

    def digest(self, tree: Tree) -> str:
        return f"digest of {self.contents[tree.path]}"

    def pack(self, tree: Tree, path: str) -> Packed:
        assert not (self.open or self.running or self.working), "it could change while it is packed"
        known = parse(self.saved)
        verified = [one.path for one in (*known.archives.values(), *known.earlier) if one.verified]
        assert path not in verified, "an archive that was believed is lost"
        self._deed()
        self.files[path] = self.contents[tree.path]
        digest = self.digest(tree)
        if self.changed_while_packed:
            self.contents[tree.path] += ", changed"
        self._deed()
        return Packed(path, f"sha of {self.files[path]}", digest, 7)

    def verify(self, tree: Tree, packed: Packed) -> None:
        self._deed()
        if self.files[packed.path] != self.contents[tree.path]:
            raise HostError("It changed.")

    def check_hand_over(self, over: HandOver, *, begun: bool) -> None:
        if not begun and over.name in self.bob:
            raise Refused("There is one.")

    def hand_over(self, over: HandOver, directory: str, *, begun: bool) -> None:
        assert directory == "/archives"
        if over.name in self.bob and not begun:
            raise Refused("There is one.")
        self._deed()
        self.bob[over.name] = over.project
        self._deed()

    def has_file(self, packed: Packed) -> bool:
        return packed.path in self.files

    def check_archive(self, packed: Packed) -> None:
        if f"sha of {self.files.get(packed.path)}" != packed.sha256:
            raise HostError("It is not as it was written.")

    def remains(self) -> list[str]:
        return [*(f"remove {path}" for path in self.folders), *(["account"] if self.account else [])]

    def remove(self) -> None:
        for path in list(self.folders):
            assert self.contents[path] in self.files.values(), "something is lost"
            self._deed()
            del self.folders[path]
        self._deed()
        self.account = False
        self._deed()


def go(server: Server, asked: Request = ASKED, now: float = BEGIN, *, check: bool = False) -> list[Any]:
    return reconcile(server, asked, check=check, now=now)


def shown(results: list[Any]) -> list[tuple[str, bool, bool, list[str]]]:
    return [(one.name, one.changed, one.failed, one.actions) for one in results]


def is_archived(server: Server) -> bool:
    packed = parse(server.saved).archives
    return set(packed) == {"/home/alice", "/w/alice", f"/h/alice/{KEPT}"} and all(
        one.verified for one in packed.values()
    )


def test_a_user_leaves_and_nothing_is_removed() -> None:
    server = Server()
    results = go(server)
    assert [one.name for one in results if one.changed] == ALL_STEPS
    assert not any(one.failed for one in results)
    assert (server.open, server.running, server.working) == (False, [], 0)
    assert is_archived(server) and server.bob == {"survey": "survey"}
    assert server.folders and server.account


def test_check_mode_says_what_is_done_and_does_nothing() -> None:
    server = Server()
    promised = shown(go(server, check=True))
    assert server.deeds == 0
    assert shown(go(server)) == promised
    later = BEGIN + 31 * DAY
    promised = shown(go(server, PURGE, later, check=True))
    assert server.account
    assert shown(go(server, PURGE, later)) == promised


def test_a_second_run_changes_nothing() -> None:
    server = Server()
    go(server)
    before = server.deeds
    assert not any(one.changed or one.failed for one in go(server, now=BEGIN + DAY))
    assert server.deeds == before


@pytest.mark.parametrize("asked", [ASKED, PURGE])
def test_it_is_repeated_after_it_was_broken_off_anywhere(asked: Request) -> None:
    whole = Server()
    go(whole)
    begin = whole.deeds if asked.purge else 0
    if asked.purge:
        go(whole, PURGE, BEGIN + 31 * DAY)
    assert whole.deeds > begin
    for number in range(begin + 1, whole.deeds + 1):
        server = Server()
        server.fails_at = number
        if asked.purge:
            go(server)
        now = BEGIN + 31 * DAY if asked.purge else BEGIN
        with pytest.raises(BrokenOff):
            go(server, asked, now)
        results = go(server, asked, now)
        assert not any(one.failed for one in results), (number, shown(results))
        assert is_archived(server), number
        assert (server.folders == {}, server.account) == ((True, False) if asked.purge else (False, True))
        again = go(server, asked, now)
        assert not any(one.changed or one.failed for one in again), (number, shown(again))


def test_twice_broken_off_a_project_that_was_handed_over_is_known() -> None:
    server = Server()
    results = go(server, replace(ASKED, hand_over=()))
    assert not any(one.failed for one in results)
    # Saved: the step, and which project; then the copy is made, and the power lost.
    server.fails_at = server.deeds + 6
    with pytest.raises(BrokenOff):
        go(server)
    assert server.bob
    server.working, server.fails_at = 1, server.deeds + 3
    with pytest.raises(BrokenOff):
        go(server)
    assert not any(one.failed for one in go(server))


def test_a_purge_is_no_part_of_the_first_run() -> None:
    server = Server()
    now = replace(PURGE, keep_days=0)
    promised = shown(go(server, now, check=True))
    results = go(server, now)
    assert shown(results) == promised
    assert results[-1].failed and "before this run" in results[-1].message
    assert server.folders and server.account
    assert not any(one.failed for one in go(server, now))
    assert not server.folders


def test_nothing_is_purged_before_its_days_are_over() -> None:
    server = Server()
    go(server)
    last = go(server, PURGE, BEGIN + 29 * DAY)[-1]
    assert last.failed and "kept until 2023-12-14 22:13 UTC" in last.message
    assert server.folders


@pytest.mark.parametrize("damage", ["", "other"])
def test_nothing_is_purged_whose_archive_is_not_whole(damage: str) -> None:
    server = Server()
    go(server)
    server.files["/archives/alice-2001-home.tar.gz"] = damage
    assert go(server, PURGE, BEGIN + 31 * DAY)[-1].failed
    assert server.folders and server.account


def test_what_changed_after_it_was_archived_is_archived_anew_and_its_days_begin_again() -> None:
    server = Server()
    go(server)
    server.contents["/w/alice"] = "more"
    results = go(server, PURGE, BEGIN + 31 * DAY)
    assert results[-1].failed and server.folders
    assert server.files["/archives/alice-2001-workspace~2.tar.gz"] == "more"
    assert go(server, PURGE, BEGIN + 32 * DAY)[-1].failed
    assert not go(server, PURGE, BEGIN + 62 * DAY)[-1].failed


OLD, NEW = (f"/archives/alice-2001-workspace{number}.tar.gz" for number in ("", "~2"))


def test_an_archive_that_was_believed_stays_beside_a_newer_one() -> None:
    server = Server()
    go(server)
    before = server.contents["/w/alice"]
    for number, now in ((2, BEGIN + 31 * DAY), (3, BEGIN + 62 * DAY)):
        server.contents["/w/alice"] = f"less {number}"
        promised = [one.as_dict() for one in go(server, PURGE, now, check=True)]
        done = [one.as_dict() for one in go(server, PURGE, now)]
        assert done == promised and done[-1]["failed"]
        assert done[0]["notes"] == [
            "Older archives hold what was there before the files changed, and stay: "
            f"{', '.join([OLD, NEW][: number - 1])}."
        ]
    deeds, later = server.deeds, BEGIN + 93 * DAY
    results = go(server, now=later)
    assert not any(one.changed for one in results) and server.deeds == deeds
    assert results[0].facts["notes"] == done[0]["notes"]
    assert (server.files[OLD], server.files[NEW]) == (before, "less 2")
    # One that is not needed may be removed.
    del server.files[OLD]
    assert OLD not in go(server, now=later)[0].facts["notes"][0]
    assert not any(one.failed for one in go(server, PURGE, later)) and not server.folders


def test_an_archive_is_lost_at_no_point_where_a_run_is_broken_off() -> None:
    number = 0
    while True:
        server = Server()
        go(server)
        before = server.contents["/w/alice"]
        server.contents["/w/alice"] = "less"
        number += 1
        server.fails_at = server.deeds + number
        try:
            go(server)
        except BrokenOff:
            assert not any(one.failed for one in go(server))
            assert (server.files[OLD], server.files[NEW]) == (before, "less")
            assert len(server.files) == 4 and is_archived(server)
        else:
            break
    assert number > 8


def test_a_record_of_an_older_version_is_understood() -> None:
    server = Server()
    go(server)
    data = json.loads(server.saved)
    del data["earlier"]
    assert parse(json.dumps(data)) == parse(server.saved)


def test_an_archive_that_is_not_like_its_tree_is_not_believed() -> None:
    server = Server()
    server.changed_while_packed = True
    results = go(server)
    assert [one.name for one in results] == STEPS[:4]
    assert results[-1].failed and parse(server.saved).archives == {}
    server.changed_while_packed = False
    assert not any(one.failed for one in go(server))


def test_a_project_is_not_written_over_another() -> None:
    server = Server()
    server.bob["survey"] = "bob's own"
    promised = shown(go(server, check=True))
    results = go(server)
    assert shown(results) == promised
    assert results[-1].failed and server.bob == {"survey": "bob's own"}


def test_a_purge_that_was_begun_is_told() -> None:
    server = Server()
    go(server)
    server.fails_at = server.deeds + 6
    with pytest.raises(BrokenOff):
        go(server, PURGE, BEGIN + 31 * DAY)
    results = go(server, now=BEGIN + 32 * DAY)
    assert [one.name for one in results] == STEPS[:3]
    assert "Run it with purge" in results[0].facts["notes"][0]
    assert not go(server, PURGE, BEGIN + 32 * DAY)[-1].failed


def test_a_purge_that_was_begun_removes_nothing_that_is_in_no_archive() -> None:
    server = Server()
    go(server)
    server.fails_at = server.deeds + 6
    with pytest.raises(BrokenOff):
        go(server, PURGE, BEGIN + 31 * DAY)
    server.folders["/h/alice/new"], server.contents["/h/alice/new"] = "home-of-new", "new"
    last = go(server, PURGE, BEGIN + 32 * DAY)[-1]
    assert last.failed and "/h/alice/new is in no archive" in last.message
    assert "/h/alice/new" in server.folders


def test_who_is_no_lab_user_does_not_leave() -> None:
    with pytest.raises(NotFound):
        go(Server(), Request("root2"))


@pytest.mark.parametrize("text", ["", "{}", '{"user": 1}', '{"archives": {"/x": {}}, "handed": []}'])
def test_a_damaged_record_is_an_error(text: str) -> None:
    with pytest.raises(HostError, match="damaged"):
        parse(text)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"user": "Alice"}, "user"),
        ({"user": "root"}, "account of the system"),
        ({"keep_days": -1}, "keep_days"),
        ({"directory": "srv"}, "directory"),
        ({"directory": "/srv/../etc"}, "directory"),
        ({"hand_over": [{"project": "../x", "to": "bob"}]}, "hand_over: project"),
        ({"hand_over": [{"project": "x", "to": "alice"}]}, "who leaves"),
        ({"hand_over": [{"project": "x", "to": "share:../home"}]}, "hand_over: to"),
        ({"hand_over": [{"project": "x", "to": "share:"}]}, "hand_over: to"),
        ({"hand_over": [{"project": "x", "to": "bob", "name": "A"}]}, "hand_over: name"),
        ({"hand_over": [{"project": x, "to": "bob", "name": "z"} for x in "xy"]}, "one name"),
    ],
)
def test_bad_input_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    given = {"user": "alice", "hand_over": [], "directory": "/a", "keep_days": 1, "purge": False, **changes}
    with pytest.raises(InvalidInput, match=said):
        offboarding.request(
            given["user"],
            given["hand_over"],
            directory=given["directory"],
            keep_days=given["keep_days"],
            purge=given["purge"],
        )


# The ledger of uids


@pytest.fixture
def ledger(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(state, "STATE_DIRECTORY", str(tmp_path))
    return tmp_path / "former-uids.json"


def test_the_ledger_keeps_every_uid(ledger: Any) -> None:
    assert formeruids.read() == {}
    formeruids.add(2001, "alice")
    formeruids.add(2002, "bob")
    formeruids.add(2001, "alice")
    assert formeruids.read() == {2001: "alice", 2002: "bob"}
    assert ledger.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "[]", '{"x": "y"}'])
def test_a_damaged_ledger_gives_no_uid_away(ledger: Any, text: str) -> None:
    ledger.write_text(text)
    with pytest.raises(HostError, match="damaged"):
        formeruids.read()


@pytest.mark.parametrize(
    ("name", "said"), [("alice", "Take alice out of lab_users"), ("carol", "was alice's")]
)
def test_a_uid_of_who_was_offboarded_is_refused_also_with_its_account(name: str, said: str) -> None:
    limits = {"cpus": 1, "memory": "1g", "pids": 9}
    user = {"name": name, "uid": 2001, "group": "students", "limits": limits}
    desired = accounts.from_options(3000, [{"name": "students", "gid": 3101}], [user])
    account = accounts.Account("alice", 2001, 2001, "", "/home/alice")
    for users in ({}, {"alice": account}):
        actual = accounts.Actual(users=users, left={2001: "alice"})
        assert any(said in sentence for sentence in accounts.conflicts(desired, actual))
    assert accounts.conflicts(desired, accounts.Actual()) == []


def test_a_group_does_not_get_the_number_of_who_was_offboarded() -> None:
    desired = accounts.from_options(3000, [{"name": "students", "gid": 2001}], [])
    (sentence,) = accounts.conflicts(desired, accounts.Actual(left={2001: "alice"}))
    assert "gid 2001" in sentence and "alice's" in sentence


def no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody's folders be those of the test computer."""
    for place in ("HOME_ROOT", "WORKSPACES_ROOT", "HOMES_ROOT"):
        monkeypatch.setattr(policies, place, str(tmp_path / place))


@pytest.mark.parametrize("existing", [False, True])
def test_an_account_of_somebody_elses_is_not_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, existing: bool
) -> None:
    name, text = slices.user_unit("alice", 2001, cpus=1, memory=1 << 30, pids=9, existing=existing)
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(units, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(departing.pwd, "getpwnam", lambda _name: SimpleNamespace(pw_uid=2001))
    monkeypatch.setattr(departing.formeruids, "read", dict)
    no_folders(tmp_path, monkeypatch)
    ran: list[tuple[str, ...]] = []

    def run(command: tuple[str, ...], **_more: Any) -> SimpleNamespace:
        ran.append(command)
        return SimpleNamespace(stdout="alice:x:2001:")

    monkeypatch.setattr(departing.hostfiles, "run", run)
    host = departing.Host(None, policies.from_inventory({"lab_groups": []})[0], "alice")
    assert host.find("alice") == 2001
    host.remove()
    commands = [command[0] for command in ran]
    assert commands == ([] if existing else ["userdel", "getent", "groupdel"])
    assert ("remove the account alice" in host.remains()) is not existing


# Who has no account any more


@pytest.fixture
def lost(ledger: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the slices of a server that knows no account."""
    monkeypatch.setattr(units, "DIRECTORY", str(tmp_path / "units"))
    for call in ("getpwnam", "getpwuid"):
        monkeypatch.setattr(departing.pwd, call, unknown)
    (tmp_path / "units").mkdir()
    return tmp_path / "units"


def unknown(_which: Any) -> Any:
    raise KeyError


def add_slice(folder: Path, name: str, uid: int) -> None:
    unit, text = slices.user_unit(name, uid, cpus=1, memory=1 << 30, pids=9, existing=True)
    (folder / unit).write_text(text)


def found(name: str) -> int:
    return departing.Host(None, policies.from_inventory({"lab_groups": []})[0], name).find(name)


def note_left(uid: int, name: str, *, purged: bool) -> None:
    formeruids.add(uid, name)
    state.write_record(f"offboarding/{uid}.json", Record(name, uid, purged=purged).render())


def test_who_is_gone_from_the_directory_is_found_by_the_slice(lost: Path) -> None:
    add_slice(lost, "carol", 5003)
    add_slice(lost, "dave", 5004)
    add_slice(lost, "caro", 999)
    assert found("carol") == 5003
    for name in ("caro", "eve", "root"):
        with pytest.raises(NotFound, match="not a lab user"):
            found(name)


def test_a_uid_that_is_another_accounts_now_is_left_alone(
    lost: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_slice(lost, "carol", 5003)
    monkeypatch.setattr(departing.pwd, "getpwuid", lambda _uid: SimpleNamespace(pw_name="dave"))
    with pytest.raises(HostError, match="5003 was carol's and is dave's now"):
        found("carol")
    note_left(5003, "carol", purged=False)
    with pytest.raises(HostError, match="is dave's now"):
        found("carol")
    # Who is gone wholly has nothing there that could be dave's.
    note_left(5003, "carol", purged=True)
    assert found("carol") == 5003


def test_of_several_who_had_a_name_it_is_the_one_who_is_not_gone(lost: Path) -> None:
    add_slice(lost, "carol", 5003)
    note_left(5003, "carol", purged=True)
    assert found("carol") == 5003
    add_slice(lost, "carol", 5007)
    assert found("carol") == 5007
    add_slice(lost, "carol", 5005)
    with pytest.raises(Refused, match="5005, 5007"):
        found("carol")
    note_left(5007, "carol", purged=False)
    assert found("carol") == 5007


def test_a_group_with_another_number_is_not_removed(
    lost: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formeruids.add(2001, "alice")
    no_folders(tmp_path, monkeypatch)
    ran: list[str] = []

    def run(command: tuple[str, ...], **_more: Any) -> SimpleNamespace:
        ran.append(command[0])
        return SimpleNamespace(stdout="alice:x:2009:")

    monkeypatch.setattr(departing.hostfiles, "run", run)
    host = departing.Host(None, policies.from_inventory({"lab_groups": []})[0], "alice")
    assert host.find("alice") == 2001
    host.remove()
    assert ran == ["getent"] and list(lost.iterdir()) == []
