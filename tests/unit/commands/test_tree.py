# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The largest directories of a tree, and lines of the audit log."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import journal, tree


def fill(path: Path, size: int) -> None:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))


def test_directories_count_what_is_below_them(tmp_path: Path) -> None:
    fill(tmp_path / "a/b/c/deep", 40_000)
    fill(tmp_path / "a/one", 8_192)
    fill(tmp_path / "z/other", 4_096)
    found = tree.survey(str(tmp_path), count=3)
    assert [one.path for one in found.largest] == ["a", "a/b", "z"]
    assert [one.files for one in found.largest] == [2, 1, 1]
    assert found.largest[0].size > 48_000 and found.complete


def test_links_are_not_followed_and_names_of_one_file_count_once(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    fill(outside / "big", 1_000_000)
    root = tmp_path / "root"
    fill(root / "a/file", 100_000)
    os.link(root / "a/file", root / "a/again")
    (root / "a/link").symlink_to(outside)
    (root / "loop").symlink_to(root)
    found = tree.survey(str(root))
    assert [one.path for one in found.largest] == ["a"]
    assert found.largest[0].size < 200_000


def test_time_is_bounded(tmp_path: Path) -> None:
    fill(tmp_path / "a/b", 1)
    found = tree.survey(str(tmp_path), seconds=-1)
    assert found.largest == () and not found.complete


def test_a_whole_tree_is_counted_once_and_no_link_is_followed(tmp_path: Path) -> None:
    for path in ("a", "x/b", "x/y/z/c"):
        fill(tmp_path / "tree" / path, 5000)
    fill(tmp_path / "outside", 50_000)
    (tmp_path / "tree/link").symlink_to(tmp_path)
    os.link(tmp_path / "tree/a", tmp_path / "tree/x/again")
    found, complete = tree.total(str(tmp_path / "tree"))
    assert complete and found.files == 4 and 15_000 <= found.size < 50_000
    assert not tree.total(str(tmp_path / "tree"), seconds=-1)[1]


def test_a_tree_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        tree.survey(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("two words", '"two words"'),
        ("", '""'),
        ("a\nuid=0 outcome=done", '"a\\\\nuid=0 outcome=done"'),
        ('x" outcome="done', '"x\\" outcome=\\"done"'),
        ("\x1b[2J", '"\\\\x1b[2J"'),
    ],
)
def test_a_value_cannot_forge_a_line(value: str, shown: str) -> None:
    assert journal.line(uid=2001, detail=value) == f"uid=2001 detail={shown}"


def test_a_long_value_is_cut() -> None:
    assert len(journal.line(detail="x" * 10_000)) < 1000
