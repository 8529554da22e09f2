# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A layer on a layer: what is equal is left out, what differs or is new is in it, what is gone is marked."""

from __future__ import annotations

import importlib
import io
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def make(path: Path, files: dict[str, str | tuple[str, str]]) -> Path:
    """Write a tar of contents by name, of (kind, target) for links, of folders where a name ends in /."""
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}".rstrip("/"))
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
                tar.addfile(member)
            elif isinstance(content, tuple):
                member.type = {"hard": tarfile.LNKTYPE, "soft": tarfile.SYMTYPE}[content[0]]
                member.linkname = content[1]
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content.encode()))
    return path


def test_a_layer_holds_what_differs(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools"), *sys.path])
    base_image = importlib.import_module("base_image")
    parent = make(
        tmp_path / "parent.tar",
        {
            "a/": "",
            "a/same": "1",
            "a/other": "2",
            "a/gone": "3",
            "old/": "",
            "old/x": "4",
            "l": ("soft", "a/same"),
            "top": "",
        },
    )
    whole = make(
        tmp_path / "whole.tar",
        {
            "a/": "",
            "a/same": "1",
            "a/other": "two",
            "a/new": "5",
            "l": ("soft", "a/new"),
            "h": ("hard", "./a/same"),
        },
    )
    base_image.subtract(parent, whole, tmp_path / "layer.tar")
    with tarfile.open(tmp_path / "layer.tar") as layer:
        found = {
            member.name.removeprefix("./"): layer.extractfile(member).read().decode()
            if member.isreg()
            else member.linkname
            for member in layer
        }
    # The other end of a hard link is in the layer below, so it comes as a file.
    assert found == {
        "a/other": "two",
        "a/new": "5",
        "l": "a/new",
        "h": "1",
        "a/.wh.gone": "",
        ".wh.old": "",
        ".wh.top": "",
    }
