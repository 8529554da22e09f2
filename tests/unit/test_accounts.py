# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import accounts, hostfiles, slices, units
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError, InvalidInput

OPTIONS: dict[str, Any] = {
    "name": "alice",
    "uid": 2001,
    "group": "students",
    "groups": ["vision"],
    "comment": "Alice",
    "ssh_keys": ["ssh-ed25519 AAAA alice@x"],
    "limits": {"cpus": 1.5, "memory": "1g", "pids": 512},
}
GROUPS = [{"name": "students", "gid": 3101}, {"name": "vision", "gid": 3102}]
DESIRED = accounts.from_options(3000, GROUPS, [OPTIONS], ["docker"])
UNITS = dict(
    (
        slices.root_unit(),
        slices.user_unit("alice", 2001, cpus=1.5, memory=1 << 30, pids=512),
        slices.session_unit(2001, cpus=1.5, memory=1 << 30, pids=512),
    )
)
READY = accounts.Actual(
    users={
        "root": accounts.Account("root", 0, 0),
        "alice": accounts.Account("alice", 2001, 2001, "Alice", "/home/alice"),
    },
    groups={
        "docker": accounts.UnixGroup("docker", 110),
        "lab": accounts.UnixGroup("lab", 3000, ("alice",)),
        "students": accounts.UnixGroup("students", 3101, ("alice",)),
        "vision": accounts.UnixGroup("vision", 3102, ("alice", "other")),
        "alice": accounts.UnixGroup("alice", 2001),
    },
    homes={"alice": accounts.Home(2001, 0o700)},
    keys={"alice": "ssh-ed25519 AAAA alice@x\n"},
    units=UNITS,
)


def steps(actual: accounts.Actual, desired: accounts.Desired = DESIRED) -> list[accounts.Step]:
    return [step for planned in accounts.plan(desired, actual) for step in planned.steps]


def with_account(**changes: Any) -> accounts.Actual:
    account = replace(READY.users["alice"], **changes)
    return replace(READY, users={**READY.users, "alice": account})


def with_group(name: str, **changes: Any) -> accounts.Actual:
    return replace(READY, groups={**READY.groups, name: replace(READY.groups[name], **changes)})


def test_what_is_as_declared_is_left_alone() -> None:
    planned = accounts.plan(DESIRED, READY)
    assert accounts.conflicts(DESIRED, READY) == []
    assert not any(one.item.changed for one in planned)
    assert steps(READY) == []


def test_on_a_bare_machine_everything_is_made_in_an_order_that_works() -> None:
    found = steps(accounts.Actual())
    commands = [step.arguments for step in found if step.verb == "run"]
    assert [command[-1] for command in commands] == ["lab", "students", "vision", "alice", "alice"]
    useradd = commands[-1]
    assert useradd[0] == "useradd"
    assert useradd[useradd.index("-G") + 1] == "lab,students,vision"
    assert "SUB_UID_COUNT=0" in useradd
    assert "SUB_GID_COUNT=0" in useradd
    assert useradd[useradd.index("-p") + 1] == "*"
    assert [step.verb for step in found if step.verb != "run"] == ["unit", "home", "keys", "unit", "unit"]


def test_a_user_leaves_the_lab_groups_that_are_no_longer_declared_and_keeps_other_groups() -> None:
    less = accounts.from_options(3000, GROUPS, [{**OPTIONS, "groups": []}])
    actual = with_group("docker", members=("alice",))
    (usermod,) = steps(actual, less)
    assert usermod.arguments == ("usermod", "-G", "docker,lab,students", "alice")


@pytest.mark.parametrize(
    ("actual", "arguments"),
    [
        (with_account(shell="/bin/zsh"), ("usermod", "-s", "/bin/bash", "alice")),
        (with_account(comment="A"), ("usermod", "-c", "Alice", "alice")),
        (with_account(locked=False), ("usermod", "-L", "alice")),
        (with_group("lab", members=()), ("usermod", "-G", "lab,students,vision", "alice")),
        (with_group("docker", members=("mallory",)), ("gpasswd", "-M", "", "docker")),
    ],
)
def test_only_what_differs_is_changed(actual: accounts.Actual, arguments: tuple[str, ...]) -> None:
    assert [step.arguments for step in steps(actual)] == [arguments]


@pytest.mark.parametrize(
    ("actual", "step"),
    [
        (replace(READY, subordinate=frozenset({"alice", "x"})), accounts.Step("subordinate", ("alice",))),
        (replace(READY, subordinate=frozenset({"2001"})), accounts.Step("subordinate", ("2001",))),
        (replace(READY, homes={}), accounts.Step("home", ("alice", "2001", "2001"))),
        (
            replace(READY, homes={"alice": accounts.Home(2001, 0o755)}),
            accounts.Step("close", ("alice", "2001")),
        ),
        (replace(READY, keys={}), accounts.Step("keys", ("alice", "ssh-ed25519 AAAA alice@x\n"))),
    ],
)
def test_files_that_differ_are_brought_back(actual: accounts.Actual, step: accounts.Step) -> None:
    assert steps(actual) == [step]


def test_a_changed_limit_is_a_changed_slice() -> None:
    more = accounts.from_options(
        3000, GROUPS, [{**OPTIONS, "limits": {"cpus": 2, "memory": "2g", "pids": 9}}]
    )
    containers, session = steps(READY, more)
    assert containers.arguments[0] == "lab-2001.slice"
    assert session.arguments[0] == "user-2001.slice.d/50-lab-server.conf"
    for step in (containers, session):
        assert "MemoryMax=2147483648\nMemorySwapMax=0\nCPUQuota=200%\nTasksMax=9\n" in step.arguments[1]


def test_a_limit_that_a_run_wrote_and_did_not_set_is_set_by_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limits = DESIRED.users[0].user.limits
    held = {
        "memory.max": str(limits.memory),
        "memory.swap.max": "0",
        "pids.max": str(limits.pids),
        "cpu.max": f"{int(limits.cpus * 100000)} 100000",
    }
    monkeypatch.setattr(slices, "CGROUPS", str(tmp_path))
    assert slices.stale(limits, 2001) == {}  # it does not run
    folder = tmp_path / "lab.slice/lab-2001.slice"
    folder.mkdir(parents=True)
    for name, text in held.items():
        (folder / name).write_text(f"{text}\n")
    assert slices.stale(limits, 2001) == {}
    (folder / "pids.max").write_text("7\n")
    (folder / "cpu.max").write_text("max 100000\n")
    stale = slices.stale(limits, 2001)
    assert stale == {"lab-2001.slice": ("processes", "cores")}
    (item,) = [one for one in accounts.plan(DESIRED, replace(READY, stale=stale)) if one.item.changed]
    assert item.item.actions == ["let what runs hold the limit of processes, cores in lab-2001.slice"]
    assert item.steps == [accounts.Step("unit", ("lab-2001.slice", UNITS["lab-2001.slice"]))]
    (folder / "pids.max").unlink()  # the kernel cannot limit it
    assert slices.stale(limits, 2001) == {}


def test_who_is_not_declared_any_more_is_shut_out_and_keeps_the_files() -> None:
    nobody = accounts.from_options(3000, GROUPS, [], [])
    there = replace(READY, known=frozenset({2001}))
    assert [(step.verb, step.arguments) for step in steps(there, nobody)] == [
        ("unlock", ("alice",)),
        ("run", ("usermod", "-e", "1", "alice")),
        ("run", ("gpasswd", "-d", "alice", "lab")),
        ("run", ("gpasswd", "-d", "alice", "students")),
        ("run", ("gpasswd", "-d", "alice", "vision")),
    ]
    (departed,) = [one.item for one in accounts.plan(nobody, there) if one.item.name == "alice"]
    assert "its files stay" in departed.reason


def test_a_closed_account_stays_closed_and_opens_when_it_is_declared_again() -> None:
    nobody = accounts.from_options(3000, GROUPS, [], [])
    gone = replace(
        with_account(closed=True),
        known=frozenset({2001}),
        keys={},
        groups={"lab": accounts.UnixGroup("lab", 3000), **READY.groups},
    )
    gone = replace(gone, groups={name: replace(one, members=()) for name, one in gone.groups.items()})
    assert steps(gone, nobody) == []
    commands = [step.arguments for step in steps(gone) if step.verb == "run"]
    assert any(command[0] == "usermod" and _after(command, "-e") == ("-e", "") for command in commands)


def _after(command: tuple[str, ...], option: str) -> tuple[str, ...]:
    place = command.index(option)
    return command[place : place + 2]


def test_an_account_that_was_never_declared_is_left_alone() -> None:
    nobody = accounts.from_options(3000, GROUPS, [], [])
    assert steps(replace(READY, known=frozenset()), nobody) == []


def test_an_empty_comment_leaves_what_is_there() -> None:
    assert steps(READY, accounts.from_options(3000, GROUPS, [{**OPTIONS, "comment": ""}])) == []


def test_an_account_that_was_removed_comes_back_with_its_own_uid() -> None:
    kept = dict([slices.user_unit("alice", 2001, cpus=1, memory=1 << 30, pids=9)])
    assert accounts.conflicts(DESIRED, accounts.Actual(units=kept)) == []


MALLORY = {"mallory": accounts.Account("mallory", 2001, 100)}


@pytest.mark.parametrize(
    ("actual", "words"),
    [
        (with_account(uid=2009), "exists with uid 2009, not 2001"),
        (with_account(gid=100), "Run: groupmod -g 2001 alice; chown -hR --from=:100 :2001 /home/alice"),
        (with_account(home="/srv/alice"), "usermod -m -d /home/alice alice"),
        (with_account(local=False), "directory service"),
        (accounts.Actual(users=MALLORY), "uid 2001 for alice is taken by mallory"),
        (
            accounts.Actual(units=dict([slices.user_unit("bob", 2001, cpus=1, memory=1 << 30, pids=9)])),
            "uid 2001 for alice was bob's",
        ),
        (with_group("students", gid=9), "exists with gid 9, not 3101"),
        (accounts.Actual(groups={"x": accounts.UnixGroup("x", 3101)}), "gid 3101 for the group students"),
        (accounts.Actual(groups={"x": accounts.UnixGroup("x", 2001)}), "gid 2001 for the group alice"),
        (replace(READY, homes={"alice": accounts.Home(0, 0o755)}), "belongs to uid 0"),
        (replace(READY, homes={"alice": accounts.Home(2001, 0o777, directory=False)}), "is a link or a file"),
        (
            replace(READY, users={**READY.users, "eve": accounts.Account("eve", 1500, 110)}),
            "docker is the main group of eve",
        ),
    ],
)
def test_what_belongs_to_somebody_else_is_a_conflict(actual: accounts.Actual, words: str) -> None:
    sentences = accounts.conflicts(DESIRED, actual)
    assert any(words in sentence for sentence in sentences), sentences
    assert all("\n" not in sentence for sentence in sentences)


def test_a_conflict_stops_everything_before_anything_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "read_actual", lambda _desired: with_account(uid=2009))
    monkeypatch.setattr(accounts, "carry_out", lambda _planned: pytest.fail("something was changed"))
    with pytest.raises(HostError, match="uid 2009"):
        accounts.reconcile(DESIRED, mounted=False, check=False)


def test_a_check_carries_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "read_actual", lambda _desired: accounts.Actual())
    monkeypatch.setattr(accounts, "carry_out", lambda _planned: pytest.fail("something was changed"))
    items = accounts.reconcile(DESIRED, mounted=True, check=True)
    assert [item.name for item in items if item.changed] == [
        "group lab",
        "group students",
        "group vision",
        "lab.slice",
        "alice",
    ]


def test_one_user_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    bob = {**OPTIONS, "name": "bob", "uid": 2002}
    done: list[tuple[str, ...]] = []

    def act(arguments: tuple[str, ...]) -> None:
        if arguments[0] == "useradd" and arguments[-1] == "alice":
            raise HostError("useradd failed: no space")
        done.append(arguments)

    monkeypatch.setattr(accounts, "_DO", dict.fromkeys(accounts._DO, act))
    monkeypatch.setattr(accounts.units, "reload", lambda: None)
    planned = accounts.plan(accounts.from_options(3000, GROUPS, [OPTIONS, bob]), accounts.Actual())
    accounts.carry_out(planned)
    failed = {one.item.name: one.item.message for one in planned if one.item.failed}
    assert failed == {"alice": "useradd failed: no space"}
    assert any(arguments[0] == "useradd" and arguments[-1] == "bob" for arguments in done)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Alice"},
        {"group": "docker"},
        {"groups": ["a b"]},
        {"ssh_keys": ["one\ntwo"]},
        {"ssh_keys": [""]},
        {"limits": {"cpus": 1, "memory": "much", "pids": 1}},
    ],
)
def test_options_that_are_not_allowed_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        accounts.from_options(3000, GROUPS, [{**OPTIONS, **change}])


def test_what_is_on_a_host_is_read_from_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/etc/passwd": "root:x:0:0:root:/root:/bin/bash\nalice:x:2001:2001:Alice:/home/alice:/bin/bash\n\n"
        "bob:x:2002:2002::/home/bob:/bin/bash\n",
        "/etc/shadow": "root:*:1::::::\nalice:$6$x:1::::::\nbob:*:1:::::1:\n",
        "/etc/group": "lab:x:3000:alice,bob\nalice:x:2001:\n",
        "/etc/subuid": "alice:100000:65536\n",
        f"{accounts.KEY_DIRECTORY}/alice": "key\n",
        f"{units.DIRECTORY}/lab.slice": "text",
    }
    listed = {units.DIRECTORY: ["lab-2002.slice", "lab.slice", "lab-x.slice"]}
    monkeypatch.setattr(accounts, "_listed", lambda directory: listed.get(directory, []))
    monkeypatch.setattr(accounts.hostfiles, "read_text", files.get)
    actual = accounts.read_actual(DESIRED)
    assert actual.known == {2002}
    assert [actual.users[name].closed for name in ("alice", "bob")] == [False, True]
    assert actual.users["alice"] == accounts.Account(
        "alice", 2001, 2001, "Alice", "/home/alice", "/bin/bash", locked=False
    )
    assert actual.groups["lab"].members == ("alice", "bob")
    assert actual.groups["alice"].members == ()
    assert actual.subordinate == {"alice"}
    assert actual.keys == {"alice": "key\n"}
    assert actual.units == {"lab.slice": "text"}


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    root = tmp_path / "home"
    root.mkdir(mode=0o755)
    # The user whom the copy runs as must be able to reach it.
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.is_relative_to(tmp_path.parent.parent) and not folder.name.startswith("pytest-of-"):
            break
        folder.chmod(0o755)
    skeleton = tmp_path / "skel"
    skeleton.mkdir()
    (skeleton / ".bashrc").write_text("# hello\n")
    monkeypatch.setattr(accounts, "HOME_ROOT", str(root))
    monkeypatch.setattr(accounts, "SKELETON", str(skeleton))
    return root


def test_a_new_home_belongs_to_the_user_with_everything_in_it(homes: Path) -> None:
    accounts._make_home(("alice", "2001", "2001"))
    status = (homes / "alice").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (2001, 2001, 0o700)
    assert (homes / "alice" / ".bashrc").stat().st_uid == 2001
    assert os.listdir(homes) == ["alice"]


def test_a_home_that_was_cut_off_is_finished(homes: Path) -> None:
    (homes / ".new-alice").mkdir()
    accounts._make_home(("alice", "2001", "2001"))
    assert (homes / "alice" / ".bashrc").read_text() == "# hello\n"
    assert os.listdir(homes) == ["alice"]


def test_a_home_is_not_made_through_a_link(homes: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (homes / ".new-alice").symlink_to(victim)
    with pytest.raises(OSError, match=r"symbolic link|Not a directory"):
        accounts._make_home(("alice", "2001", "2001"))
    assert victim.stat().st_uid == 0


def test_a_home_is_closed_only_if_it_is_the_users(homes: Path) -> None:
    (homes / "alice").mkdir(mode=0o755)
    with pytest.raises(HostError, match="does not belong"):
        accounts._close_home(("alice", "2001"))
    os.chown(homes / "alice", 2001, 2001)
    accounts._close_home(("alice", "2001"))
    assert stat.S_IMODE((homes / "alice").stat().st_mode) == 0o700


def test_homes_that_others_may_change_are_refused(homes: Path) -> None:
    homes.chmod(0o777)
    with pytest.raises(HostError, match="can be changed by others"):
        accounts._make_home(("alice", "2001", "2001"))


def test_subordinate_ids_are_taken_from_those_owners_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "subuid"
    path.write_text("alice:100000:65536\nbob:165536:65536\n2001:300000:1\n")
    monkeypatch.setattr(accounts, "_SUBORDINATE", (str(path), str(tmp_path / "none")))
    real_open = os.open
    monkeypatch.setattr(
        accounts.os,
        "open",
        lambda name, *rest, **more: real_open(str(name).replace("/etc", str(tmp_path)), *rest, **more),
    )
    accounts._remove_subordinate(("alice", "2001"))
    assert path.read_text() == "bob:165536:65536\n"


def test_a_file_is_replaced_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    hostfiles.write_text(str(path), "one", 0o640)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o600)
    hostfiles.write_text(str(path), "two", 0o640)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("two", 0o600)
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot be written"):
        hostfiles.write_text(str(tmp_path / "none" / "file"), "one")


def test_a_tool_that_fails_or_is_missing_says_so() -> None:
    with pytest.raises(HostError, match="no-such-tool is missing"):
        hostfiles.run(["no-such-tool"])
    with pytest.raises(HostError, match="sh failed: reason"):
        hostfiles.run(["sh", "-c", "echo first >&2; echo reason >&2; exit 3"])
    assert hostfiles.run(["cat"], text="x").stdout == "x"


# Accounts that exist already


FAR = accounts.Account("alice", 2001, 10000, home="/home/alice", local=False)
EXISTING = accounts.from_options(
    3000, GROUPS, [{**OPTIONS, "account": "existing", "main_group": 10000}], ["docker"]
)
JOINED = {
    name: accounts.UnixGroup(name, gid, ("alice",))
    for name, gid in (("lab", 3000), ("students", 3101), ("vision", 3102))
}
FOREIGN_UNITS = {
    **UNITS,
    **dict([slices.user_unit("alice", 2001, cpus=1.5, memory=1 << 30, pids=512, existing=True)]),
}
AWAY = accounts.Actual(
    users={"alice": FAR}, groups=JOINED, homes=READY.homes, keys=READY.keys, units=FOREIGN_UNITS
)


def test_an_account_of_a_directory_is_put_into_groups_and_not_changed() -> None:
    assert accounts.conflicts(EXISTING, AWAY) == []
    assert steps(AWAY, EXISTING) == []
    bare = accounts.Actual(users={"alice": FAR})
    assert accounts.conflicts(EXISTING, bare) == []
    found = steps(bare, EXISTING)
    assert [step.arguments[0] for step in found if step.verb == "run"] == ["groupadd"] * 3 + ["gpasswd"] * 3
    # The home is made with the main group of the directory.
    assert accounts.Step("home", ("alice", "2001", "10000")) in found
    # One of the host itself, whose password and shell are its own, is left alone as well.
    here = replace(AWAY, users={"alice": replace(FAR, local=True, shell="/bin/zsh", locked=False)})
    assert steps(here, EXISTING) == []


def test_groups_of_the_directory_count_and_are_not_changed() -> None:
    far = replace(JOINED["students"], local=False)
    assert steps(replace(AWAY, groups={**JOINED, "students": far}), EXISTING) == []
    apart = replace(AWAY, groups={**JOINED, "students": replace(far, members=())})
    assert accounts.conflicts(EXISTING, apart) == [
        "students is a group of the directory, and alice is not in it. Add alice to it there."
    ]
    less = accounts.from_options(
        3000, GROUPS, [{**OPTIONS, "groups": [], "account": "existing", "main_group": 10000}]
    )
    assert [step.arguments for step in steps(AWAY, less)] == [("gpasswd", "-d", "alice", "vision")]
    assert (
        steps(replace(AWAY, groups={**JOINED, "vision": replace(JOINED["vision"], local=False)}), less) == []
    )


@pytest.mark.parametrize(
    ("actual", "words"),
    [
        (replace(AWAY, users={}), "alice is to exist already, and does not."),
        (replace(AWAY, users={"alice": replace(FAR, uid=2002)}), "alice has uid 2002, gid 10000"),
        (replace(AWAY, users={"alice": replace(FAR, gid=2001)}), "alice has uid 2001, gid 2001"),
        (replace(AWAY, homes={"alice": accounts.Home(7, 0o700)}), "belongs to uid 7"),
        (replace(AWAY, left={2001: "alice"}), "out of lab_users, or out of the directory's group"),
    ],
)
def test_an_account_that_is_not_as_the_directory_said(actual: accounts.Actual, words: str) -> None:
    (sentence,) = accounts.conflicts(EXISTING, actual)
    assert words in sentence


@pytest.mark.parametrize("local", [True, False])
def test_who_leaves_loses_what_is_ours_and_keeps_the_account(local: bool) -> None:
    nobody = accounts.from_options(3000, GROUPS, [], [])
    actual = replace(AWAY, users={"alice": replace(FAR, local=local)}, known=frozenset({2001}))
    assert [step.arguments for step in steps(actual, nobody)] == [
        ("alice",),
        *(("gpasswd", "-d", "alice", name) for name in ("lab", "students", "vision")),
    ]
    # An account of ours is closed.
    ours = replace(actual, users={"alice": replace(FAR, local=True)}, units=UNITS)
    assert ("usermod", "-e", "1", "alice") in [step.arguments for step in steps(ours, nobody)]


def test_an_account_of_a_directory_that_is_not_declared_so_is_refused() -> None:
    (sentence,) = accounts.conflicts(DESIRED, AWAY)
    assert "Declare it with account: existing" in sentence
