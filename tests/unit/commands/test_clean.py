# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``workspace clean``: what is taken for a cache and what never is, that it asks, that it follows no link."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import calls, cleaning, cli
from ansible_collections.lab.server.plugins.module_utils._core.cleaning import Folder, Root
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, User

TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# more\n"
GOES = {
    "thesis/src/__pycache__/a.cpython-311.pyc": "x" * 9000,
    "thesis/src/__pycache__/b.cpython-311.pyc.140": "x",
    "thesis/notebooks/.ipynb_checkpoints/one-checkpoint.ipynb": "{}",
    "thesis/.mypy_cache/CACHEDIR.TAG": TAG,
    "thesis/.mypy_cache/3.11/x/deep.json": "{}",
    ".cache/pip/http-v2/a/b": "x" * 20000,
    ".cache/uv/archive": "x",
}
STAYS = {
    # Something else is in it.
    "thesis/lib/__pycache__/notes.txt": "mine",
    "thesis/lib/__pycache__/a.pyc": "x",
    # An environment, though uv marks it.
    "thesis/.venv/pyvenv.cfg": "home = /usr\n",
    "thesis/.venv/CACHEDIR.TAG": TAG,
    # A whole project, and what only looks like a mark.
    "tagged/CACHEDIR.TAG": TAG,
    "tagged/work.py": "mine",
    "thesis/data/CACHEDIR.TAG": "Signature: none",
    "thesis/data/big": "mine",
    # Names that mean something in other places alone.
    "thesis/pip/notes": "mine",
    "thesis/uv/notes": "mine",
    ".cache/other/notes": "mine",
    "thesis/.git/refs/heads/__pycache__/a.pyc": "x",
}


def make(root: Path, files: dict[str, str]) -> None:
    """Write files into a tree."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def tree(root: Path) -> dict[str, str]:
    """Return all files of a tree, and where links lead."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_text()
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """Return a workspace with caches, with what is none, and links that lead out of it."""
    space, outside = tmp_path / "space", tmp_path / "outside"
    make(space, {**GOES, **STAYS})
    make(outside, {"__pycache__/a.pyc": "x", "CACHEDIR.TAG": TAG, "precious": "mine"})
    (space / "thesis/out").symlink_to(outside)
    (space / "thesis/__pycache__").symlink_to(outside / "__pycache__")
    (space / "thesis/.mypy_cache/out").symlink_to(outside)
    (space / ".cache/pip/out").symlink_to(outside / "precious")
    return space


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lab: Policy,
    space: Path,
    tmp_path: Path,
) -> Any:
    """Return a function that runs ``workspace clean`` as alice, with an answer on her keyboard if need be."""
    monkeypatch.setattr(os, "getuid", lambda: 2001)
    monkeypatch.setattr(calls, "load", lambda path: lab)
    monkeypatch.setattr(Policy, "workspace", lambda policy, user: str(space))
    monkeypatch.setattr(User, "home", str(tmp_path / "home"))

    def command(*words: str, answer: str = "") -> tuple[int, str, str]:
        keyboard = {"isatty": lambda self: bool(answer), "readline": lambda self: answer}
        monkeypatch.setattr(sys, "stdin", type("Keyboard", (), keyboard)())
        code = cli.main(["workspace", "clean", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def test_what_can_be_made_again_goes_and_nothing_else(run: Any, space: Path, tmp_path: Path) -> None:
    outside = tree(tmp_path / "outside")
    make(tmp_path / "home/.cache", {"pip/http/x": "x", "app/CACHEDIR.TAG": TAG, "settings/mine": "mine"})
    code, out, _err = run("--yes")
    assert code == 0 and "It is removed." in out
    links = {
        "thesis/out": str(tmp_path / "outside"),
        "thesis/__pycache__": str(tmp_path / "outside/__pycache__"),
    }
    assert tree(space) == {**STAYS, **links}
    assert tree(tmp_path / "outside") == outside
    assert tree(tmp_path / "home") == {".cache/settings/mine": "mine"}
    assert not (space / "thesis/.mypy_cache").exists() and (space / "thesis/src").is_dir()
    assert "nothing that can be made again" in run("--yes")[1]


def test_it_says_how_much_and_a_preview_removes_nothing(run: Any, space: Path) -> None:
    before = tree(space)
    code, out, _err = run("--dry-run")
    assert code == 0 and tree(space) == before and "only looks" in out
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "cache of pip" in out and "~/workspace/.cache/pip" in out and "marked as a cache" in out
    code, out, _err = run("--dry-run", "--json")
    shown = json.loads(out)
    assert shown["changed"] is True and tree(space) == before
    assert {one["path"] for one in shown["folders"]} == {
        *("~/workspace/thesis/src/__pycache__", "~/workspace/thesis/notebooks/.ipynb_checkpoints"),
        *("~/workspace/thesis/.mypy_cache", "~/workspace/.cache/pip", "~/workspace/.cache/uv"),
    }
    assert shown["bytes"] == sum(one["bytes"] for one in shown["folders"]) >= 20000


@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("yes\n", True), ("n\n", False), ("\n", False)])
def test_it_asks_first(run: Any, space: Path, answer: str, gone: bool) -> None:
    before = tree(space)
    code, out, err = run(answer=answer)
    assert code == (0 if gone else 1) and "Remove it? [y/N]" in err and (tree(space) != before) is gone
    assert ("Nothing was removed." in out) is not gone


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_where_nobody_can_answer_nothing_goes(run: Any, space: Path, words: list[str]) -> None:
    before = tree(space)
    code, out, err = run(*words)
    assert code == 2 and "--yes" in out + err and tree(space) == before


def test_what_cannot_be_removed_is_said(run: Any, space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = os.unlink

    def refuse(name: str, *, dir_fd: int) -> None:
        if name == "archive":
            raise PermissionError(13, "Permission denied", name)
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refuse)
    code, out, err = run("--yes")
    assert code == 1 and "~/workspace/.cache/uv is not removed" in err and "It is removed" not in out
    assert (space / ".cache/uv/archive").exists() and not (space / ".cache/pip").exists()


def test_ctrl_c_ends_it(run: Any, space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(one: Folder) -> str:
        raise KeyboardInterrupt

    before = tree(space)
    monkeypatch.setattr(cleaning, "remove", interrupt)
    code, _out, err = run("--yes")
    assert code == 130 and "What is not removed by now stays" in err and tree(space) == before


def test_a_folder_that_becomes_a_link_leads_nowhere(space: Path, tmp_path: Path) -> None:
    root = Root(str(space), "~/workspace", projects=True)
    found = cleaning.find([root], lambda text: None)
    outside = tree(tmp_path / "outside")
    for one in found:
        path = space / one.path
        path.rename(f"{path}.was")
        path.symlink_to(tmp_path / "outside")
    problems = [cleaning.remove(one) for one in found]
    assert all("is not removed" in problem for problem in problems)
    assert tree(tmp_path / "outside") == outside


def test_only_the_last_name_of_a_file_frees_it(tmp_path: Path) -> None:
    make(tmp_path, {"a/.cache/uv/one": "x" * 50000, "a/.cache/uv/two": "x" * 50000})
    os.link(tmp_path / "a/.cache/uv/one", tmp_path / "a/.cache/uv/one-again")
    os.link(tmp_path / "a/.cache/uv/two", tmp_path / "used")
    (found,) = cleaning.find([Root(str(tmp_path), "~")], lambda text: None)
    assert found.files == 3 and 49152 <= found.size < 80000


def test_odd_names_and_folders_that_cannot_be_read_are_no_trouble(tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff\n\x1b[2J")
    make(tmp_path, {f"{odd}/__pycache__/a.pyc": "x", "deep/" + "d" * 200 + "/__pycache__/a.pyc": "x"})
    (tmp_path / "pipe/__pycache__").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe/CACHEDIR.TAG")
    (tmp_path / "closed").mkdir(mode=0)
    found = cleaning.find([Root(str(tmp_path), "~"), Root(str(tmp_path / "none"), "none")], lambda text: None)
    assert len(found) == 3 and [cleaning.remove(one) for one in found] == [""] * 3
    assert stat.S_ISFIFO(os.lstat(tmp_path / "pipe/CACHEDIR.TAG").st_mode)
