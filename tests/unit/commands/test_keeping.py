# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Projects that are put away and brought back: nothing is lost, whatever breaks off where."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import archive, asuser, keeping, safefs, tree
from ansible_collections.lab.server.plugins.module_utils._core.asuser import Identity
from ansible_collections.lab.server.plugins.module_utils._core.errors import (
    HostError,
    InvalidInput,
    LabError,
    NotFound,
    Refused,
)
from trees import build, seen

FILE = ("file", b"content" * 9, 0o644)
TREE = {
    b"a": {b"file": FILE, b"link": ("link", b"/etc", 0), b"deep": {b"er": FILE}},
    b"b": ("file", bytes(1 << 16) + b"end", 0o600),
    b"c": ("again", 0, 0),
    b"empty": {},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for no clock: nothing else writes to the trees of these tests."""
    monkeypatch.setattr(keeping, "_TICK", 0.0)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Return a workspace with the project thesis."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("of somebody else")
    (tmp_path / "work").mkdir()
    build(tmp_path / "work/thesis", TREE)
    return tmp_path / "work"


def put_away(workspace: Path, name: str = "thesis") -> keeping.Archived:
    """Archive a project and remove its folder."""
    with keeping.project(str(workspace), name) as work:
        archived = keeping.put_away(work)
        keeping.let_go(work, archived)
        return archived


def bring_back(workspace: Path, name: str = "thesis") -> None:
    """Restore a project from what is kept of it."""
    one = keeping.find(str(workspace), name)
    if one.trash:
        keeping.from_trash(str(workspace), one)
        return
    with keeping.open_kept(str(workspace), one) as file:
        keeping.bring_in(str(workspace), file, one.project, own=True)


def halves(workspace: Path) -> list[str]:
    """Return what is half done."""
    return keeping.halves(str(workspace))


def test_what_is_put_away_comes_back_as_it_was(workspace: Path) -> None:
    before = seen(workspace / "thesis")
    archived = put_away(workspace)
    assert not (workspace / "thesis").exists() and (workspace / archived.path).stat().st_size == archived.size
    assert oct((workspace / ".archive").stat().st_mode)[-3:] == "700"
    bring_back(workspace)
    assert seen(workspace / "thesis") == before and not halves(workspace)
    assert (workspace / archived.path).exists()


def test_nothing_is_overwritten(workspace: Path) -> None:
    put_away(workspace)
    (workspace / "thesis").mkdir()
    with pytest.raises(Refused, match="there already"):
        bring_back(workspace)
    assert os.listdir(workspace / "thesis") == [] and not halves(workspace)


def test_what_changes_after_it_was_packed_keeps_the_folder(workspace: Path) -> None:
    with keeping.project(str(workspace), "thesis") as work:
        archived = keeping.put_away(work)
        (workspace / "thesis/new").write_text("new")
        before = seen(workspace / "thesis")
        with pytest.raises(HostError, match="so it stays"):
            keeping.let_go(work, archived)
    assert seen(workspace / "thesis") == before and not halves(workspace)


def test_another_folder_in_its_place_stays(workspace: Path) -> None:
    with keeping.project(str(workspace), "thesis") as work:
        archived = keeping.put_away(work)
        (workspace / "thesis").rename(workspace / "mine")
        build(workspace / "thesis", {b"other": FILE})
        with pytest.raises(HostError, match="another folder"):
            keeping.let_go(work, archived)
    assert os.listdir(workspace / "thesis") == ["other"] and (workspace / "mine/b").exists()


def test_a_link_is_no_project_and_no_store(workspace: Path) -> None:
    (workspace / "linked").symlink_to(workspace.parent / "outside")
    with pytest.raises(Refused, match="link"):
        put_away(workspace, "linked")
    (workspace / ".archive").symlink_to(workspace.parent / "outside")
    with pytest.raises(Refused, match=r"\.archive is not a folder"):
        put_away(workspace)
    assert os.listdir(workspace.parent / "outside") == ["file"]
    with pytest.raises(NotFound):
        put_away(workspace, "none")


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC])
def test_a_full_quota_loses_nothing_and_leaves_nothing(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = seen(workspace / "thesis")

    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(archive._Squeezer, "_emit", full)
        with pytest.raises(HostError, match=r"no room.*Nothing was lost.*project export"):
            put_away(workspace)
    assert seen(workspace / "thesis") == before and os.listdir(workspace / ".archive") == []
    put_away(workspace)
    with monkeypatch.context() as patched:
        patched.setattr(archive, "_write", full)
        with pytest.raises(HostError, match="no room"):
            bring_back(workspace)
    assert not halves(workspace) and not (workspace / "thesis").exists()
    bring_back(workspace)
    assert seen(workspace / "thesis") == before


def test_a_full_quota_can_be_made_room_in(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(safefs, "make_directory", full)
    with pytest.raises(HostError, match="no room"):
        put_away(workspace)
    with keeping.project(str(workspace), "thesis") as work, pytest.raises(HostError, match="for-good"):
        keeping.to_trash(work)
    keeping.rename(str(workspace), "thesis", "paper")
    with keeping.project(str(workspace), "paper") as work:
        keeping.remove_folder(work)
    assert os.listdir(workspace) == []


def test_one_call_at_a_time(workspace: Path) -> None:
    with keeping.project(str(workspace), "thesis"):
        with pytest.raises(Refused, match="at work on thesis"):
            put_away(workspace)
        with pytest.raises(Refused, match="at work on thesis"):
            keeping.rename(str(workspace), "thesis", "new")


def test_what_a_living_call_is_at_is_left_to_it(workspace: Path) -> None:
    seen_halves: list[list[str]] = []

    def look(_bytes: int, _path: str) -> None:
        assert keeping.heal(str(workspace)) == []
        seen_halves.append(halves(workspace))

    with keeping.project(str(workspace), "thesis") as work:
        archived = keeping.put_away(work, progress=look)
        keeping.let_go(work, archived)
    one = keeping.find(str(workspace), "thesis")
    with keeping.open_kept(str(workspace), one) as file:
        keeping.bring_in(str(workspace), file, own=True, progress=look)
    assert {len(found) for found in seen_halves} == {1}


def test_a_folder_that_was_taken_out_goes_where_there_is_room(workspace: Path) -> None:
    (workspace / ".archive").mkdir()
    (workspace / "thesis").rename(workspace / ".archive/.thesis-20260101-000000.leaving")
    build(workspace / "thesis", {})
    assert ".trash/thesis-20260101-000000" in " ".join(keeping.heal(str(workspace)))
    assert (workspace / ".trash/thesis-20260101-000000/b").exists()
    (workspace / "thesis").rmdir()
    bring_back(workspace)
    assert (workspace / "thesis/b").exists()


# ---- rename and remove -----------------------------------------------------------------------------------


def test_the_trash_gives_back(workspace: Path) -> None:
    before = seen(workspace / "thesis")
    with keeping.project(str(workspace), "thesis") as work:
        path = keeping.to_trash(work)
    assert not (workspace / "thesis").exists() and (workspace / path / "b").exists()
    bring_back(workspace)
    assert seen(workspace / "thesis") == before


def test_for_good_is_for_good(workspace: Path) -> None:
    with keeping.project(str(workspace), "thesis") as work:
        keeping.to_trash(work)
    build(workspace / "thesis", TREE)
    (workspace / "thesis/empty").chmod(0)
    (workspace / "thesis/out").symlink_to(workspace.parent / "outside")
    keeping.empty_trash(str(workspace), keeping.trashed(str(workspace), "thesis"))
    with keeping.project(str(workspace), "thesis") as work:
        keeping.remove_folder(work)
    assert (
        keeping.kept(str(workspace)) == [] and not halves(workspace) and not (workspace / "thesis").exists()
    )
    assert os.listdir(workspace.parent / "outside") == ["file"]


def test_a_new_name_replaces_nothing(workspace: Path) -> None:
    before = seen(workspace / "thesis")
    (workspace / "there").mkdir()
    with pytest.raises(Refused):
        keeping.rename(str(workspace), "thesis", "there")
    for name in ("../x", ".archive", "A"):
        with pytest.raises(InvalidInput):
            keeping.rename(str(workspace), "thesis", name)
    keeping.rename(str(workspace), "thesis", "paper")
    assert seen(workspace / "paper") == before and not (workspace / "thesis").exists()


def test_what_is_kept_is_found_by_its_names(workspace: Path) -> None:
    store, trash = workspace / ".archive", workspace / ".trash"
    store.mkdir()
    trash.mkdir()
    for name in ("thesis-20260101-000000.tar.gz", "thesis-2-20270101-000000.tar.gz", "other.tar.gz", ".x"):
        (store / name).write_bytes(b"")
    (trash / "thesis-20260102-000000").mkdir()
    found = keeping.kept(str(workspace))
    assert [one.path for one in found] == [
        ".archive/thesis-2-20270101-000000.tar.gz",
        ".trash/thesis-20260102-000000",
        ".archive/thesis-20260101-000000.tar.gz",
    ]
    assert keeping.find(str(workspace), "thesis").trash
    for wanted in (
        "thesis-20260101-000000",
        "thesis-20260101-000000.tar.gz",
        "x/thesis-20260101-000000.tar.gz",
    ):
        assert keeping.find(str(workspace), wanted).path == ".archive/thesis-20260101-000000.tar.gz"
    with pytest.raises(NotFound):
        keeping.find(str(workspace), "other")


@pytest.mark.parametrize("fallback", [False, True])
def test_a_move_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fallback: bool) -> None:
    if fallback:
        monkeypatch.setattr(safefs.ctypes, "CDLL", lambda *_, **__: object())
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    folder = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(FileExistsError):
        safefs.move(folder, "one", folder, "two")
    safefs.move(folder, "one", folder, "three")
    with pytest.raises(FileNotFoundError):
        safefs.move(folder, "none", folder, "four")
    os.close(folder)
    assert sorted(os.listdir(tmp_path)) == ["three", "two"]


# ---- kill -9 ---------------------------------------------------------------------------------------------

#: What changes something on the disk: a kill comes before each of them, so also after each.
_DEEDS = (
    (safefs, "move"),
    (safefs, "make_directory"),
    (safefs, "open_beneath"),
    (tree, "remove"),
    *(
        (os, name)
        for name in ("fsync", "fchmod", "link", "mkdir", "rename", "rmdir", "symlink", "unlink", "utime")
    ),
)


def child(work: Callable[[], object], prepare: Callable[[], None]) -> int:
    """Do the work in a process of its own; return its number."""
    number = os.fork()
    if number == 0:
        try:
            prepare()
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001  # a forked child must not run the test of its parent on
            os._exit(1)
    return number


def killing_at(step: int) -> None:
    """Kill this process at the given one of its deeds."""
    done = 0

    def counted(deed: Callable[..., Any]) -> Callable[..., Any]:
        def do(*words: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return deed(*words, **options)

        return do

    for module, name in _DEEDS:
        setattr(module, name, counted(getattr(module, name)))


def killed_everywhere(work: Callable[[], object], fresh: Callable[[], None]) -> Iterator[int]:
    """Yield after each death of the work, at one deed after the other, until it lives to its end."""
    for step in range(1, 1000):
        fresh()
        number = child(work, lambda at=step: killing_at(at))
        status = os.waitpid(number, 0)[1]
        yield step
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return
    raise AssertionError("it never ended")


def check_nothing_is_lost(workspace: Path, before: dict[bytes, Any]) -> None:
    """Let the next call heal what is there, and find the project whole: in its place, or where it is kept."""
    keeping.heal(str(workspace))
    assert not halves(workspace)
    if not (workspace / "thesis").exists():
        bring_back(workspace)
    assert seen(workspace / "thesis") == before
    assert not halves(workspace)


def test_an_archive_killed_at_any_deed_loses_nothing(workspace: Path) -> None:
    before, spare = seen(workspace / "thesis"), workspace.parent / "spare"

    def fresh() -> None:
        nonlocal workspace
        workspace = spare.with_name(f"{spare.name}-{random.getrandbits(64):x}")
        workspace.mkdir()
        build(workspace / "thesis", TREE)

    steps = []
    for step in killed_everywhere(lambda: put_away(workspace), fresh):
        steps.append(step)
        check_nothing_is_lost(workspace, before)
        put_away(workspace)
        check_nothing_is_lost(workspace, before)
    assert len(steps) > 30


def test_a_restore_killed_at_any_deed_goes_on(workspace: Path) -> None:
    before = seen(workspace / "thesis")
    put_away(workspace)

    def fresh() -> None:
        if (workspace / "thesis").exists():
            folder = os.open(workspace, os.O_RDONLY)
            tree.remove(folder, "thesis")
            os.close(folder)

    steps = []
    for step in killed_everywhere(lambda: bring_back(workspace), fresh):
        steps.append(step)
        check_nothing_is_lost(workspace, before)
    assert len(steps) > 20


def test_a_removal_killed_at_any_deed_is_whole_or_gone(workspace: Path) -> None:
    before = seen(workspace / "thesis")

    def fresh() -> None:
        if not (workspace / "thesis").exists():
            build(workspace / "thesis", TREE)

    def remove() -> None:
        with keeping.project(str(workspace), "thesis") as work:
            keeping.remove_folder(work)

    for _step in killed_everywhere(remove, fresh):
        keeping.heal(str(workspace))
        assert not halves(workspace)
        assert not (workspace / "thesis").exists() or seen(workspace / "thesis") == before


def test_killed_at_any_time_nothing_is_lost(workspace: Path) -> None:
    (workspace / "thesis/large").write_bytes(os.urandom(3 << 20))
    before = seen(workspace / "thesis")
    for seed in range(12):
        number = child(lambda: (put_away(workspace), bring_back(workspace)), lambda: None)
        time.sleep(random.Random(seed).uniform(0, 0.25))
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)
        check_nothing_is_lost(workspace, before)


def test_ctrl_c_anywhere_leaves_the_folder_or_the_archive(workspace: Path) -> None:
    before = seen(workspace / "thesis")

    def interrupted_after(calls: int) -> bool:
        def interrupt(_bytes: int, _path: str) -> None:
            nonlocal calls
            calls -= 1
            if calls < 0:
                raise KeyboardInterrupt

        with keeping.project(str(workspace), "thesis") as work:
            try:
                keeping.put_away(work, progress=interrupt)
            except KeyboardInterrupt:
                return True
        return False

    calls = 0
    while interrupted_after(calls):
        assert not os.listdir(workspace / ".archive") and seen(workspace / "thesis") == before
        calls += 1
    assert calls > 8


def test_a_half_that_cannot_be_put_right_is_told(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / ".archive/.thesis-20260101-000000.removing").mkdir(parents=True)

    def refuse(*_: object) -> None:
        raise LabError("It is so.")

    monkeypatch.setattr(tree, "remove", refuse)
    assert "could not be put right: It is so." in " ".join(keeping.heal(str(workspace)))


# ---- as an ordinary user ---------------------------------------------------------------------------------


@pytest.fixture
def ordinary() -> Iterator[tuple[Path, Identity]]:
    """Return a workspace that belongs to somebody who is not root, with folders that may not be written."""
    who = Identity(61001, 61001) if os.geteuid() == 0 else Identity(os.getuid(), os.getgid())
    place = Path(tempfile.mkdtemp(prefix="lab-server-test-"))
    place.chmod(0o755)
    (place / "work").mkdir()
    build(place / "work/thesis", TREE)
    for folder, _folders, files in os.walk(place / "work"):
        for path in (folder, *(os.path.join(folder, name) for name in files)):
            if os.geteuid() == 0:
                os.chown(path, who.uid, who.gid, follow_symlinks=False)
    for path in ("thesis/a/deep", "thesis/a", "thesis"):
        (place / "work" / path).chmod(0o555)
    yield place / "work", who
    subprocess.run(["chmod", "-R", "u+rwx", str(place)], check=True)
    shutil.rmtree(place)


def test_folders_that_may_not_be_written_are_put_away_and_brought_back(
    ordinary: tuple[Path, Identity],
) -> None:
    workspace, who = ordinary
    before = seen(workspace / "thesis")
    asuser.run_as_user(who, lambda: put_away(workspace) and None)
    assert not (workspace / "thesis").exists()
    asuser.run_as_user(who, lambda: bring_back(workspace))
    assert seen(workspace / "thesis") == before

    def remove() -> None:
        with keeping.project(str(workspace), "thesis") as work:
            keeping.to_trash(work)
        keeping.empty_trash(str(workspace), keeping.trashed(str(workspace), "thesis"))

    asuser.run_as_user(who, remove)
    assert os.listdir(workspace / ".trash") == [] and not keeping.halves(str(workspace))


def test_what_cannot_be_read_keeps_the_folder(ordinary: tuple[Path, Identity]) -> None:
    workspace, who = ordinary
    (workspace / "thesis/b").chmod(0)

    def work() -> list[object]:
        with keeping.project(str(workspace), "thesis") as opened:
            archived = keeping.put_away(opened)
            return [archived.complete, list(archived.blocked)]

    assert asuser.run_as_user(who, work) == [False, ["b: it cannot be read"]]
    assert (workspace / "thesis/b").exists() and not keeping.halves(str(workspace))


@pytest.mark.skipif(os.geteuid() != 0, reason="files of somebody else can be made by root alone")
def test_what_belongs_to_somebody_else_keeps_the_folder(ordinary: tuple[Path, Identity]) -> None:
    workspace, who = ordinary
    os.chown(workspace / "thesis/a/deep", 61002, 61002)

    def work() -> list[object]:
        with keeping.project(str(workspace), "thesis") as opened:
            archived = keeping.put_away(opened)
            return [archived.complete, list(archived.look.foreign)]

    assert asuser.run_as_user(who, work) == [False, ["a/deep"]]
