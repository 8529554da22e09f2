"""Files that an environment brings: copied beside what is there, through no link, within bounds."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import brought
from ansible_collections.lab.server.plugins.module_utils._core.errors import InvalidInput, LabError, Refused
from ansible_collections.lab.server.plugins.module_utils._core.policy import BaseImage


def archive(*members: tuple[str, bytes | None, bytes, str]) -> io.BytesIO:
    """Return a tar of (name, content, type, target of a link)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode = kind, link, 0o6755
            member.size = len(content or b"")
            tar.addfile(member, io.BytesIO(content) if content is not None else None)
    buffer.seek(0)
    return buffer


def test_regular_files_alone_beside_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "book").mkdir()
    (tmp_path / "book/mine").write_text("mine")
    (tmp_path / "book/elsewhere").symlink_to(tmp_path / "outside")
    tar = archive(
        ("jovyan", None, tarfile.DIRTYPE, ""),
        ("jovyan/mine", b"theirs", tarfile.REGTYPE, ""),
        ("jovyan/new", b"new", tarfile.REGTYPE, ""),
        ("jovyan/a/b/c", b"deep", tarfile.REGTYPE, ""),
        ("jovyan/elsewhere/x", b"x", tarfile.REGTYPE, ""),
        ("jovyan/../../x", b"x", tarfile.REGTYPE, ""),
        ("/x", b"x", tarfile.REGTYPE, ""),
        ("jovyan/link", None, tarfile.SYMTYPE, "/etc/passwd"),
        ("jovyan/hard", None, tarfile.LNKTYPE, "jovyan/new"),
        ("jovyan/device", None, tarfile.BLKTYPE, ""),
        ("jovyan/pipe", None, tarfile.FIFOTYPE, ""),
    )
    copied, skipped = brought.unpack(tar, str(tmp_path), "book")
    assert sorted(os.listdir(tmp_path / "book")) == ["a", "elsewhere", "mine", "new"]
    assert (copied, skipped) == (2, 8)
    assert (tmp_path / "book/mine").read_text() == "mine"
    assert (tmp_path / "book/a/b/c").read_text() == "deep"
    assert (tmp_path / "book/new").stat().st_mode & 0o7777 == 0o755
    assert os.listdir(tmp_path / "outside") == []
    assert sorted(os.listdir(tmp_path)) == ["book", "outside"]


def test_what_was_copied_is_on_the_disk_before_that_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[list[str]] = []
    monkeypatch.setattr(brought.safefs, "sync_all", lambda folder: there.append(os.listdir(folder)))
    brought.unpack(archive(("j/x", b"x", tarfile.REGTYPE, "")), str(tmp_path), "book")
    assert there == [["x"]]


@pytest.mark.parametrize("planted", ["link", "file"])
def test_a_folder_that_is_none_is_left_alone(tmp_path: Path, planted: str) -> None:
    if planted == "link":
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "book").symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / "book").write_text("mine")
    with pytest.raises(InvalidInput):
        brought.unpack(archive(("j/x", b"x", tarfile.REGTYPE, "")), str(tmp_path), "book")
    assert planted == "file" or os.listdir(tmp_path / "elsewhere") == []


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brought, "FILES_LIMIT", 2)
    files = [(f"j/{number}", b"12345", tarfile.REGTYPE, "") for number in range(3)]
    with pytest.raises(Refused, match="more than 2 files"):
        brought.unpack(archive(*files), str(tmp_path), "book")
    assert len(os.listdir(tmp_path / "book")) == 2
    monkeypatch.setattr(brought, "BYTES_LIMIT", 4)
    with pytest.raises(Refused):
        brought.unpack(archive(*files), str(tmp_path), "other")
    assert os.listdir(tmp_path / "other") == []
    monkeypatch.setattr(brought, "_FILE_LIMIT", 4)
    assert brought.unpack(archive(*files), str(tmp_path), "third") == [0, 3]


def test_what_is_no_archive_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="cannot be read"):
        brought.unpack(io.BytesIO(b"x" * 2000), str(tmp_path), "book")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("lab/python", "python"),
        ("registry.example.org:5000/a/scipy-notebook:2024", "scipy-notebook"),
        ("python", "python"),
        (f"x/y@sha256:{'0' * 64}", "y"),
    ],
)
def test_the_folder_is_named_for_the_environment(name: str, folder: str) -> None:
    assert BaseImage(name, "x", "", "/f").folder == folder
