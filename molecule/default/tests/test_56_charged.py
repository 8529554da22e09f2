"""Whom the kernel charges for each kind of byte is what docs/storage.md says (A16, F7)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT, Server

HEAD = "| bytes | charged to | on | bounded by |"


def table(text: str) -> list[str]:
    """Return the lines of the table of who is charged in a text."""
    lines = text.splitlines()
    assert HEAD in lines, f"no table in:\n{text[-3000:]}"
    rest = lines[lines.index(HEAD) :]
    end = next((number for number, line in enumerate(rest) if not line.startswith("|")), len(rest))
    return rest[:end]


@pytest.mark.thorough
def test_each_kind_of_byte_is_charged_to_whom_the_page_names(server: Server) -> None:
    server.user("alice", "project launch my-thesis --detach")
    command = [sys.executable, str(ROOT / "tools" / "charged.py"), os.environ["LAB_VM_NAME"]]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert table(found.stdout) == table((ROOT / "docs" / "storage.md").read_text(encoding="utf-8"))
