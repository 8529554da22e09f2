# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A copy of a tree is the same, or it is told what differs; nothing outside of it is ever read."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import archive, sametree
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError, LabError
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


def _filled(path: Path, size: int, parts: dict[int, bytes]) -> None:
    """Make a file of holes, but for these parts."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in parts.items():
            os.pwrite(file.fileno(), data, offset)


def _alike(tmp_path: Path, *parts: dict[int, bytes], size: int) -> bool:
    """Say whether files of these parts are the same."""
    one, two = tmp_path / "left", tmp_path / "right"
    for folder, part in zip((one, two), parts, strict=True):
        folder.mkdir(exist_ok=True)
        _filled(folder / "file", size, part)
    same_times(one, two)
    different = compared(one, two)[0].different
    assert different in ({}, {"file": "content"})
    return not different


BLOCK = sametree._BLOCK


@pytest.mark.parametrize("size", [5 * BLOCK, 5 * BLOCK + 1, 5 * BLOCK - 1])
def test_a_hole_is_the_same_as_zeros_in_its_place(tmp_path: Path, size: int) -> None:
    data = {BLOCK + 4096: b"x", size - 1: b"y"}
    assert _alike(tmp_path, data, {0: bytes(size), **data}, size=size)
    assert _alike(tmp_path, {}, {0: bytes(size)}, size=size)
    assert _alike(tmp_path, {3: b"x"}, {3: b"x", BLOCK: bytes(2 * BLOCK)}, size=size)


def test_what_is_in_another_place_between_holes_differs(tmp_path: Path) -> None:
    size = 9 * BLOCK
    block = b"z" * BLOCK
    for one, two in (
        ({2 * BLOCK: block}, {3 * BLOCK: block}),
        ({2 * BLOCK: b"z"}, {2 * BLOCK + 1: b"z"}),
        ({size - 1: b"z"}, {}),
        ({0: b"z"}, {}),
        ({BLOCK: block, 5 * BLOCK: block}, {BLOCK: block}),
    ):
        assert not _alike(tmp_path, one, two, size=size)


PARTS = st.dictionaries(st.integers(0, 2 * BLOCK), st.binary(min_size=1, max_size=3), max_size=3)


@given(PARTS, PARTS, st.integers(2 * BLOCK + 3, 3 * BLOCK))
def test_files_have_one_digest_if_they_have_the_same_bytes(
    one: dict[int, bytes], two: dict[int, bytes], size: int
) -> None:
    found = []
    for parts in (one, two):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            _filled(path, size, parts)
            with path.open("rb") as file:
                found.append((path.read_bytes(), sametree._digest(file.fileno())))
    (left, first), (right, second) = found
    assert (left == right) == (first == second)


def test_holes_cost_nothing(tmp_path: Path) -> None:
    size = 1 << 42
    assert _alike(tmp_path, {size // 2: b"x"}, {size // 2: b"x"}, size=size)
    assert not _alike(tmp_path, {size // 2: b"x"}, {size // 2: b"y"}, size=size)


def test_holes_are_counted_once_whatever_names_they_have(tmp_path: Path) -> None:
    _filled(tmp_path / "small", 1 << 20, {0: b"x" * (1 << 20)})
    _filled(tmp_path / "large", 1 << 40, {})
    os.link(tmp_path / "large", tmp_path / "again")
    (tmp_path / "link").symlink_to("large")
    (tmp_path / "lost+found").mkdir()
    _filled(tmp_path / "lost+found/large", 1 << 40, {})
    for number in range(5):
        _filled(tmp_path / f"some-{number}", (number + 1) << 30, {})
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        together, worst = sametree.holes(folder, in_use=False)
    finally:
        os.close(folder)
    assert together == (1 << 40) + (15 << 30)
    assert worst == [(1 << 40, "again"), (5 << 30, "some-4"), (4 << 30, "some-3")]


def test_what_goes_while_holes_are_counted_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _filled(tmp_path / "c", 1 << 40, {})
    folder = os.open(tmp_path, os.O_RDONLY)
    real = archive._listed

    def listed(
        folder: int, here: archive.Found, leave_out: archive.LeaveOut, *, in_use: bool
    ) -> Iterator[archive.Found]:
        found = list(real(folder, here, leave_out, in_use=in_use))
        if not here.path:
            (tmp_path / "a").rmdir()
            (tmp_path / "b").rmdir()
            (tmp_path / "b").symlink_to("/etc")
        return iter(found)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(archive, "_listed", listed)
            assert sametree.holes(folder, in_use=True) == (1 << 40, [(1 << 40, "c")])
        (tmp_path / "b").unlink()
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(archive, "_listed", listed)
            with pytest.raises(LabError):
                sametree.holes(folder, in_use=False)
    finally:
        os.close(folder)


def test_a_comparison_ends_when_its_time_is_over(trees: tuple[Path, Path]) -> None:
    one, two = (os.open(tree, os.O_RDONLY) for tree in trees)
    try:
        with pytest.raises(HostError, match="took too long"):
            sametree.compare(one, two, until=sametree.time.monotonic() - 1)
    finally:
        os.close(one)
        os.close(two)


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
