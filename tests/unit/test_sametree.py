# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A copy of a tree is the same, or it is told what differs; nothing outside of it is ever read."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import sametree
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError
from ansible_collections.lab.server.plugins.module_utils._core.sametree import Line, Verdict
from hypothesis import given
from hypothesis import strategies as st

SECOND = 1_000_000_000
# One entry for the owner, one for the group, one for uid 1, the mask, one for others (acl(5)).
ACL = struct.pack(
    "<I" + "HHI" * 5, 2, 1, 6, 2**32 - 1, 2, 4, 1, 4, 4, 2**32 - 1, 16, 6, 2**32 - 1, 32, 4, 2**32 - 1
)


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    """Return a tree with one of everything, and a true copy of it."""
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "a/deep").mkdir(parents=True)
    (one / "a/file").write_text("content")
    (one / "a.txt").write_text("between a and what is in a")
    os.link(one / "a/file", one / "a/deep/name")
    (one / "link").symlink_to("/etc/shadow")
    os.mkfifo(one / "fifo")
    (one / os.fsdecode(b"line\nbreak \xff")).write_text("odd")
    (one / "empty").touch()
    (one / "lost+found").mkdir()
    shutil.copytree(one / "a", two / "a")
    for name in ("a.txt", "empty", os.fsdecode(b"line\nbreak \xff")):
        shutil.copy2(one / name, two / name)
    (two / "a/deep/name").unlink()
    os.link(two / "a/file", two / "a/deep/name")
    (two / "link").symlink_to("/etc/shadow")
    os.mkfifo(two / "fifo")
    same_times(one, two)
    return one, two


def same_times(one: Path, two: Path) -> None:
    """Give all that is in ``two`` the times of what is in ``one``."""
    for path in [*sorted(two.rglob("*"), reverse=True), two]:
        source = one / path.relative_to(two)
        if source.is_symlink() or source.exists():
            status = source.lstat()
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def compared(one: Path, two: Path, earlier: list[Line] | None = None) -> tuple[Verdict, list[Line]]:
    kept: list[Line] = []
    left, right = os.open(one, os.O_RDONLY), os.open(two, os.O_RDONLY)
    try:
        return sametree.compare(left, right, earlier or [], kept.append), kept
    finally:
        os.close(left)
        os.close(right)


def test_a_true_copy_is_the_same(trees: tuple[Path, Path]) -> None:
    verdict, kept = compared(*trees)
    assert verdict.different == {}
    assert [line.path for line in kept] == [
        "a/deep/name",
        "a/file",
        "a.txt",
        "empty",
        os.fsdecode(b"line\nbreak \xff"),
    ]
    assert verdict.files == 5 and verdict.read == verdict.bytes
    assert all(sametree.parse(line.render()) == line and "\n" not in line.render() for line in kept)


def _flip(path: Path) -> None:
    status = path.stat()
    path.write_text(path.read_text().swapcase())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _relink(tree: Path) -> None:
    (tree / "link").unlink()
    (tree / "link").symlink_to("/etc/passwd")


def _split(tree: Path) -> None:
    (tree / "a/deep/name").unlink()
    shutil.copy2(tree / "a/file", tree / "a/deep/name")


def _replace_by_link(tree: Path) -> None:
    (tree / "a.txt").unlink()
    (tree / "a.txt").symlink_to("/etc/hostname")


CHANGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "content": (lambda tree: _flip(tree / "a.txt"), "a.txt", "content"),
    "size": (lambda tree: (tree / "empty").write_text("x"), "empty", "size"),
    "mode": (lambda tree: (tree / "a").chmod(0o2770), "a", "kind or mode"),
    "owner": (lambda tree: os.chown(tree / "a.txt", 2001, -1), "a.txt", "owner"),
    "group": (lambda tree: os.lchown(tree / "link", -1, 2001), "link", "owner"),
    "time": (lambda tree: os.utime(tree / "a/deep", ns=(0, 1)), "a/deep", "time"),
    "target": (_relink, "link", "link"),
    "one of two names": (_split, "a/file", "links between names"),
    "missing": (lambda tree: (tree / "fifo").unlink(), "fifo", "it is not in the copy"),
    "more": (lambda tree: (tree / "a-more").touch(), "a-more", "it is only in the copy"),
    "link for a file": (_replace_by_link, "a.txt", "kind or mode"),
    "acl": (
        lambda tree: os.setxattr(tree / "a", "system.posix_acl_default", ACL),
        "a",
        "attributes or access control list",
    ),
    "attribute": (
        lambda tree: os.setxattr(tree / "a/file", "user.note", b"x"),
        "a/deep/name",
        "attributes or access control list",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_differs_is_told(trees: tuple[Path, Path], change: str) -> None:
    one, two = trees
    do, path, why = CHANGES[change]
    do(two)
    if change != "time":
        same_times(one, two)
    found = compared(one, two)[0].different
    assert found[path] == why
    assert "(" + why + ")" in sametree.told({path: found[path]})


def test_only_what_changed_is_read_again(trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = trees
    now = sametree.time.time_ns()
    # As if the looks were three seconds after all changes.
    monkeypatch.setattr(sametree.time, "time_ns", lambda: now + 3 * SECOND)
    first, kept = compared(one, two)
    assert first.read > 0 and all(line.settled for line in kept)
    again, kept = compared(one, two, kept)
    assert (again.read, again.files, again.different) == (0, first.files, {})
    _flip(one / "a.txt")
    changed, rest = compared(one, two, kept)
    assert changed.different == {"a.txt": "content"}
    assert changed.read == (one / "a.txt").stat().st_size
    assert [line.path for line in rest] == [line.path for line in kept if line.path != "a.txt"]
    # A copy that was changed, too, though the file was not.
    _flip(two / "a/file")
    assert set(compared(one, two, kept)[0].different) >= {"a/file", "a.txt"}


def test_what_was_changed_just_now_is_read_again(trees: tuple[Path, Path]) -> None:
    verdict, kept = compared(*trees)
    assert not any(line.settled for line in kept)
    assert compared(*trees, kept)[0].read == verdict.read


def test_a_link_in_the_place_of_a_folder_is_not_followed(
    trees: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = trees
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret!")
    whole = sametree._sha256
    read: list[str] = []

    def turned(folder: int, path: str, *, sync: bool) -> str:
        if path.startswith("a/") and (one / "a").is_dir() and not (one / "a").is_symlink():
            (one / "a").rename(tmp_path / "away")
            (one / "a").symlink_to(secret)
        digest = whole(folder, path, sync=sync)
        read.append(path)
        return digest

    monkeypatch.setattr(sametree, "_sha256", turned)
    different = compared(one, two)[0].different
    assert "passes, a symbolic link" in different["a/deep/name"] and "a/file" in different
    assert not any(path.startswith("a/") for path in read)


def test_something_else_than_a_file_is_not_waited_for(trees: tuple[Path, Path]) -> None:
    one, two = trees
    for tree in trees:
        (tree / "a.txt").unlink()
        os.mkfifo(tree / "a.txt")
    same_times(one, two)
    assert compared(one, two)[0].different == {}


@pytest.mark.parametrize("text", ["", "[]", '["a", [1], [2, 3], "x", true]', "{", "7", '["a", 1, 2, "x", 1]'])
def test_a_damaged_line_is_an_error(text: str) -> None:
    with pytest.raises(HostError, match="damaged"):
        sametree.parse(text)


def test_many_differences_are_told_by_a_few() -> None:
    told = sametree.told({f"file-{number}\x1b": "content" for number in range(9)})
    assert told.endswith("and 6 more") and "\x1b" not in told


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=3)


@given(st.sets(st.lists(NAMES, min_size=1, max_size=4).map("/".join)))
def test_the_order_of_a_walk_is_the_order_of_lines(paths: set[str]) -> None:
    ordered = sorted(paths, key=sametree._order)
    earlier = sametree._Earlier(Line(path, (1, 1), (2, 2), "", settled=True) for path in ordered[::2])
    for number, path in enumerate(ordered):
        line = earlier.of(path)
        assert (line is not None and line.path == path) == (number % 2 == 0)
