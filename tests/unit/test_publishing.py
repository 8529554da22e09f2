# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Publishing on a real file system, as users of the kernel: whole or not at all, whatever happens."""

from __future__ import annotations

import errno
import fcntl
import grp
import mmap
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import publishing, shares
from ansible_collections.lab.server.plugins.module_utils._core.asuser import Identity, run_as_user
from ansible_collections.lab.server.plugins.module_utils._core.datasets import Dataset
from ansible_collections.lab.server.plugins.module_utils._core.errors import (
    HostError,
    InvalidInput,
    LabError,
    NotFound,
    Refused,
)
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, Share, from_inventory
from ansible_collections.lab.server.plugins.module_utils._core.publishing import Place

SHARE = Share("datasets", "read-only", "games")
CAROL, DAVE, READER = 64101, 64102, 64103


def wanted(version: str, name: str = "iris", **more: Any) -> Dataset:
    given = {"description": "", "source": "doi:10.24432/C56C76", "licence": "CC-BY-4.0", "publisher": "carol"}
    return Dataset(name=name, version=version, published=0, size=0, files=0, manifest="", **{**given, **more})


class Lab:
    """A share, folders to publish, and users: two data managers and one who only reads."""

    def __init__(self, root: Path) -> None:
        policy, _keys = from_inventory({})
        self.policy: Policy = replace(policy, data_root=str(root / "data"), shares=(SHARE,))
        items = shares.reconcile(self.policy.data_root, [SHARE], mounted=False, check=False)
        assert not any(item.failed for item in items)
        self.share = root / "data" / "datasets"
        self.source = root / "source"
        self.fill("one")

    def fill(self, text: str) -> None:
        """Make the folder that is published anew."""
        shutil.rmtree(self.source, ignore_errors=True)  # the first time there is none
        (self.source / "train" / "empty").mkdir(parents=True)
        (self.source / "labels.csv").write_text(text)
        (self.source / "train" / "0.png").write_text(text * 2)
        (self.source / "newest").symlink_to("train/0.png")
        for path in self.source.rglob("*"):
            os.chown(path, CAROL, CAROL, follow_symlinks=False)

    def as_user(self, uid: int, work: Callable[[], Any]) -> Any:
        groups = () if uid == READER else (grp.getgrnam("games").gr_gid,)
        return run_as_user(Identity(uid, uid, groups), work)

    def publish(self, version: str, uid: int = CAROL, name: str = "iris", **more: Any) -> bool:
        """Publish the folder and return whether anything changed."""

        def work() -> bool:
            with Place(self.policy, SHARE) as place:
                source = publishing.open_source(str(self.source), place.path)
                return publishing.publish(place, wanted(version, name, **more), source).changed

        return bool(work() if uid == 0 else self.as_user(uid, work))

    def retract(self, version: str, uid: int = CAROL) -> tuple[str, str]:
        """Retract a version and return what is current then, and what else is told."""

        def work() -> tuple[str, str]:
            with Place(self.policy, SHARE) as place:
                outcome = publishing.retract(place, "iris", version)
                return outcome.current, outcome.problem

        current, problem = work() if uid == 0 else self.as_user(uid, work)
        return current, problem

    def seen(self) -> dict[str, bool]:
        """Return the versions of iris that a reader sees, each whole, and whether it is current."""

        def work() -> list[tuple[str, bool, list[str]]]:
            with Place(self.policy, SHARE) as place:
                return [
                    (one.version, one.current, publishing.verify(place, one.name, one.version))
                    for one in place.versions()
                ]

        found = self.as_user(READER, work)
        assert [problems for _version, _current, problems in found] == [[]] * len(found)
        return {version: current for version, current, _problems in found}

    def left(self) -> list[str]:
        """Return what is hidden in the share and its datasets, without the lock."""
        hidden = [*self.share.glob(".*"), *self.share.glob("*/.*")]
        return [path.name for path in hidden if path.name != ".publish.lock"]


@pytest.fixture
def lab() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("only root can become other users")
    # Not the folder of the test: its parents are closed to other users.
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Lab(Path(path))
        shutil.rmtree(path)
        os.mkdir(path)


def test_a_dataset_is_published_for_readers_who_cannot_change_it(lab: Lab) -> None:
    assert lab.publish("1.0", description="Flowers")
    assert lab.seen() == {"1.0": True}
    current = lab.share / "iris" / "current"
    assert os.readlink(current) == "1.0" and (current / "newest").read_text() == "oneone"
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in current.resolve().rglob("*")}
    assert {modes[name] for name in ("labels.csv", "0.png", "MANIFEST.sha256", "DATASET.json")} == {0o444}
    assert {modes[name] for name in ("train", "empty")} == {0o555}
    assert stat.S_IMODE(current.stat().st_mode) == 0o555
    for uid, line in (
        (READER, f"cd {current} && sha256sum --check --strict --quiet MANIFEST.sha256"),
        (READER, f"! touch {lab.share}/x && ! ln -sfn x {current} && ! touch {current}/x"),
        (READER, f"! flock -n {lab.share}/.publish.lock true"),
        # Not even a colleague changes what is in it.
        (DAVE, f"cd {current} && ! touch x && ! echo x >> labels.csv && ! rm -rf train && ! chmod u+w ."),
    ):
        groups = [] if uid == READER else [grp.getgrnam("games").gr_gid]
        done = subprocess.run(
            ["/bin/sh", "-c", line],
            user=uid,
            group=uid,
            extra_groups=groups,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, (line, done.stderr)
    assert lab.seen() == {"1.0": True} and lab.left() == []
    assert "Flowers" in (lab.share / "CATALOGUE.md").read_text()


def test_the_same_once_more_changes_nothing_and_another_is_refused(lab: Lab) -> None:
    assert lab.publish("1.0")

    def state() -> list[tuple[str, float]]:
        return sorted((str(path), path.lstat().st_mtime) for path in lab.share.rglob("*"))

    before = state()
    assert not lab.publish("1.0") and not lab.publish("1.0", DAVE) and not lab.publish("1.0", 0)
    for more in ({"licence": "MIT"}, {"source": "doi:10.1/2"}, {"description": "other"}):
        with pytest.raises(Refused, match=f"with another {next(iter(more))}"):
            lab.publish("1.0", **more)
    lab.fill("two")
    with pytest.raises(Refused, match="with another content"):
        lab.publish("1.0")
    (lab.source / "newest").unlink()
    lab.fill("one")
    (lab.source / "newest").unlink()
    (lab.source / "newest").symlink_to("labels.csv")
    with pytest.raises(Refused, match="with another content"):
        lab.publish("1.0")
    assert state() == before


def test_each_manager_publishes_versions_beside_the_others_and_takes_them_back(lab: Lab) -> None:
    lab.publish("1")
    lab.fill("two")
    assert lab.publish("2", DAVE) and lab.seen() == {"2": True, "1": False}
    assert lab.retract("2", DAVE) == ("1", "")
    assert lab.seen() == {"1": True}
    # Dave cannot remove what is carol's, but nobody sees it any more; carol's next act removes it.
    current, problem = lab.retract("1", DAVE)
    assert current == "" and "another user's" in problem and lab.seen() == {}
    assert not (lab.share / "iris" / "current").is_symlink() and lab.left()
    lab.publish("1", name="other")
    assert lab.left() == [] and os.listdir(lab.share / "other") and not (lab.share / "iris").exists()
    with pytest.raises(NotFound):
        lab.retract("1")


def test_root_takes_back_what_a_manager_published(lab: Lab) -> None:
    lab.publish("1")
    lab.publish("2", 0)
    assert lab.retract("1", 0) == ("2", "") and lab.retract("2", 0) == ("", "")
    assert lab.left() == [] and not (lab.share / "iris").exists()
    assert "none yet" in (lab.share / "CATALOGUE.md").read_text()


def test_who_only_reads_publishes_nothing(lab: Lab) -> None:
    with pytest.raises(Refused, match="may not write"):
        lab.publish("1", READER)
    lab.publish("1")
    with pytest.raises(Refused, match="may not write"):
        lab.retract("1", READER)
    assert lab.seen() == {"1": True}


# ---- broken off ------------------------------------------------------------------------------------------

STEPS = ("mkdir", "open", "write", "symlink", "rename", "unlink", "rmdir", "fchmod", "fsync", "utime")


def at_step(number: int, act: Callable[[], None], taken: mmap.mmap) -> None:
    """Do something in this process before the step ``number`` of those that change files; count them."""

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if name != "open" or arguments[1] & os.O_CREAT:
                taken[0] += 1
                if taken[0] == number:
                    act()
            return function(*arguments, **named)

        return call

    for name in STEPS:
        setattr(os, name, wrapped(name, getattr(os, name)))
    publishing.safefs.move = wrapped("move", publishing.safefs.move)  # type: ignore[assignment]  # in a child, and gone with it


def die() -> None:
    os._exit(9)


def full() -> None:
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def broken(lab: Lab, number: int, act: Callable[[], None], work: Callable[[], Any]) -> bool:
    """Do the work as carol with an accident at that step; return whether it came to it."""
    taken = mmap.mmap(-1, 1)  # shared with the child

    def fragile() -> None:
        at_step(number, act, taken)
        work()

    said = ""
    try:
        lab.as_user(CAROL, fragile)
    except LabError as error:
        said = str(error)
    assert not said or ("broken off" in said) == (act is die), said
    return taken[0] >= number


@pytest.mark.parametrize("act", [die, full])
@pytest.mark.parametrize("before", [[], ["1"]], ids=["first", "next"])
def test_publishing_broken_off_anywhere(lab: Lab, act: Callable[[], None], before: list[str]) -> None:
    for version in before:
        lab.publish(version)
    lab.fill("two")
    kept = lab.share.with_name("kept")
    subprocess.run(["cp", "-a", lab.share, kept], check=True)

    def work() -> None:
        with Place(lab.policy, SHARE) as place:
            source = publishing.open_source(str(lab.source), place.path)
            publishing.publish(place, wanted("2"), source)

    number, seen_without = 1, 0
    while broken(lab, number, act, work):
        seen = lab.seen()
        assert set(before) <= set(seen) <= {*before, "2"}, number
        assert not seen or sum(seen.values()) == 1 or ("2" in seen and not before), number
        if "2" not in seen:
            seen_without += 1
            assert seen == dict.fromkeys(before, True), number
        lab.publish("2")
        assert lab.seen() == {**dict.fromkeys(before, False), "2": True}, number
        assert lab.left() == [], number
        page = (lab.share / "CATALOGUE.md").read_text()
        assert page.count("| 2 (current) |") == 1 and page.count("| 1 |") == len(before), number
        shutil.rmtree(lab.share)
        subprocess.run(["cp", "-a", kept, lab.share], check=True)
        number += 1
    assert number > 40 and seen_without > 20


@pytest.mark.parametrize("act", [die, full])
def test_retracting_broken_off_anywhere(lab: Lab, act: Callable[[], None]) -> None:
    lab.publish("1")
    lab.fill("two")
    lab.publish("2")
    kept = lab.share.with_name("kept")
    subprocess.run(["cp", "-a", lab.share, kept], check=True)

    def work() -> None:
        with Place(lab.policy, SHARE) as place:
            outcome = publishing.retract(place, "iris", "2")
            if outcome.problem:
                raise HostError(outcome.problem)

    number = 1
    while broken(lab, number, act, work):
        assert lab.seen() in ({"1": False, "2": True}, {"1": True, "2": False}, {"1": True}, {"1": False}), (
            number
        )
        if "2" in lab.seen():
            lab.retract("2")
        else:
            with pytest.raises(NotFound):
                lab.retract("2")
        assert lab.seen() == {"1": True} and lab.left() == [], number
        shutil.rmtree(lab.share)
        subprocess.run(["cp", "-a", kept, lab.share], check=True)
        number += 1
    assert number > 20


def test_two_publish_the_same_version_at_once(lab: Lab) -> None:
    with ThreadPoolExecutor() as pool:
        # Both are held at the lock until both are there.
        lab.publish("0")
        with open(lab.share / ".publish.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            both = [pool.submit(lab.publish, "1", uid) for uid in (CAROL, DAVE)]
        assert sorted(one.result() for one in both) == [False, True]
    assert lab.seen() == {"0": False, "1": True} and lab.left() == []


def test_leftovers_of_who_is_still_at_work_are_left_alone(lab: Lab) -> None:
    lab.publish("1")
    work = lab.share / "iris" / ".incoming-0123456789abcdef"
    work.mkdir(mode=0o700)
    os.chown(work, CAROL, CAROL)
    descriptor = os.open(work, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    lab.publish("2")
    assert work.exists()
    os.close(descriptor)
    lab.publish("2")
    assert not work.exists()


# ---- what is put in the way ------------------------------------------------------------------------------


def _device(path: Path) -> None:
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


@pytest.mark.parametrize(
    "put",
    [
        os.mkfifo,
        _device,
        _socket,
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: path.symlink_to("../../secret"),
        lambda path: path.symlink_to("nowhere"),
    ],
    ids=["fifo", "device", "socket", "absolute", "out", "dangling"],
)
@pytest.mark.parametrize("uid", [CAROL, 0])
def test_what_is_no_file_of_the_folder_is_refused_by_name(
    lab: Lab, uid: int, put: Callable[[Path], None]
) -> None:
    (lab.source.parent / "secret").write_text("secret")
    put(lab.source / "train" / "bad")
    with pytest.raises(InvalidInput, match="train/bad"):
        lab.publish("1", uid)
    assert lab.seen() == {} and lab.left() == []


@pytest.mark.parametrize("name", ["MANIFEST.sha256", "DATASET.json"])
def test_the_names_of_the_records_are_taken(lab: Lab, name: str) -> None:
    (lab.source / name).write_text("forged")
    with pytest.raises(InvalidInput, match=name):
        lab.publish("1")


def test_an_empty_folder_and_one_that_holds_the_share_are_refused(lab: Lab) -> None:
    shutil.rmtree(lab.source)
    lab.source.mkdir()
    with pytest.raises(InvalidInput, match="no file"):
        lab.publish("1")
    lab.source = lab.share.parent
    with pytest.raises(InvalidInput, match="holds the share"):
        lab.publish("1")


def test_root_follows_no_link_to_the_folder(lab: Lab) -> None:
    link = lab.source.with_name("link")
    link.symlink_to(lab.source)
    lab.source = link
    with pytest.raises(InvalidInput, match="symbolic link"):
        lab.publish("1", 0)
    assert lab.publish("1")


def test_a_hard_link_is_a_copy_that_its_owner_cannot_change(lab: Lab) -> None:
    os.link(lab.source / "labels.csv", lab.source / "again.csv")
    lab.publish("1")
    (lab.source / "labels.csv").write_text("changed")
    found = lab.share / "iris" / "1"
    assert {(found / name).read_text() for name in ("labels.csv", "again.csv")} == {"one"}
    assert (found / "again.csv").stat().st_nlink == 1


def test_a_file_that_changes_meanwhile_is_told(lab: Lab) -> None:
    def work() -> None:
        with Place(lab.policy, SHARE) as place:
            source = publishing.open_source(str(lab.source), place.path)
            path = str(lab.source / "labels.csv")

            def grow(_size: int) -> None:
                with open(path, "a") as file:
                    file.write("more")

            publishing.publish(place, wanted("1"), source, grow)

    with pytest.raises(HostError, match=r"labels\.csv: it was changed while it was read"):
        lab.as_user(CAROL, work)
    assert lab.seen() == {} and lab.left() == [] and not (lab.share / "iris").exists()


@pytest.mark.parametrize("uid", [CAROL, 0])
@pytest.mark.parametrize("place", ["iris", ".publish.lock", ".CATALOGUE.md.new", "CATALOGUE.md"])
def test_no_link_that_a_manager_puts_into_the_share_is_followed(lab: Lab, uid: int, place: str) -> None:
    outside = lab.share.parent.parent / "outside"
    outside.mkdir(mode=0o777)
    (outside / "file").write_text("theirs")
    os.chmod(outside / "file", 0o666)
    (lab.share / place).symlink_to(outside if place == "iris" else outside / "file")
    if place in ("iris", ".publish.lock"):
        with pytest.raises(LabError):
            lab.publish("1", uid)
    else:
        assert lab.publish("1", uid) and not (lab.share / "CATALOGUE.md").is_symlink()
    assert os.listdir(outside) == ["file"] and (outside / "file").read_text() == "theirs"


def test_a_fifo_in_the_place_of_the_lock_makes_nobody_wait(lab: Lab) -> None:
    os.mkfifo(lab.share / ".publish.lock", 0o660)
    os.chown(lab.share / ".publish.lock", DAVE, -1)
    os.chmod(lab.share / ".publish.lock", 0o666)
    with pytest.raises(HostError, match="no plain file"):
        lab.publish("1")


def test_root_neither_reads_nor_removes_what_a_manager_moved_in(lab: Lab) -> None:
    lab.publish("1")
    outside = lab.share.parent.parent / "outside"
    (outside / "1").mkdir(parents=True)
    for name in ("DATASET.json", "MANIFEST.sha256"):
        shutil.copy(lab.share / "iris" / "1" / name, outside / "1" / name)
    (lab.share / "linked").symlink_to(outside)
    (lab.share / "iris" / "2").symlink_to(outside / "1")
    # As if it was left over: dave, who could not remove it, moves carol's version to such a name.
    moved = lab.share / "iris" / ".incoming-0123456789abcdef"
    (lab.share / "iris" / "1").rename(moved)
    lab.publish("3", 0)
    assert (moved / "labels.csv").read_text() == "one" and (outside / "1" / "DATASET.json").exists()
    with Place(lab.policy, SHARE) as place:
        assert [(one.name, one.version) for one in place.versions()] == [("iris", "3")]


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda at: (at / "labels.csv").write_text("x"), "labels.csv was changed"),
        (lambda at: (at / "labels.csv").unlink(), "labels.csv is missing"),
        (lambda at: (at / "more").write_text("x"), "more was added"),
        (lambda at: (at / "newest").unlink(), "newest is a link that was changed"),
        (lambda at: (at / "labels.csv").chmod(0o644), "labels.csv can be written"),
        (lambda at: at.chmod(0o755), ". can be written"),
        (
            lambda at: (at / "MANIFEST.sha256").write_text(""),
            "MANIFEST.sha256 is not the one that was published.",
        ),
        (lambda at: os.mkfifo(at / "pipe"), "pipe is no file, folder or link."),
        (lambda at: (at / "DATASET.json").write_text("{}"), "DATASET.json is damaged"),
    ],
)
def test_what_was_changed_afterwards_is_found(
    lab: Lab, spoil: Callable[[Path], object], problem: str
) -> None:
    lab.publish("1")
    spoil(lab.share / "iris" / "1")
    with Place(lab.policy, SHARE) as place:
        assert any(found.startswith(problem) for found in publishing.verify(place, "iris", "1"))


def test_a_damaged_record_hides_no_other_version(lab: Lab) -> None:
    lab.publish("1")
    lab.publish("2")
    (lab.share / "iris" / "2" / "DATASET.json").write_text("[" * 10_000)
    with Place(lab.policy, SHARE) as place:
        found = place.versions("iris")
    assert {one.version: bool(one.problem) for one in found} == {"1": False, "2": True}
    assert lab.retract("2") == ("1", "")
    assert lab.seen() == {"1": True}


def test_folders_that_were_made_by_hand_are_left_alone(lab: Lab) -> None:
    for name in ("empty", "old/v1"):
        (lab.share / name).mkdir(parents=True)
    (lab.share / "old" / "current").symlink_to("../elsewhere")
    (lab.share / "notes").write_text("x")
    lab.publish("1")
    assert sorted(path.name for path in lab.share.iterdir()) == [
        ".publish.lock",
        "CATALOGUE.md",
        "empty",
        "iris",
        "notes",
        "old",
    ]
    assert os.readlink(lab.share / "old" / "current") == "../elsewhere"
    for name, said in (("notes", "is no folder"), ("../datasets", "is not allowed")):
        with pytest.raises(InvalidInput, match=said):
            lab.publish("1", name=name)
    # A folder that has the name of a version and was never published is not taken for one.
    (lab.share / "iris" / "2").mkdir()
    with pytest.raises(HostError, match=r"DATASET\.json of iris 2 cannot be read"):
        lab.publish("2")
