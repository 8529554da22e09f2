# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What lab users type and see when they archive, restore, carry, rename and remove projects."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import archive, cli_keeping_work
from ansible_collections.lab.server.plugins.module_utils._core.errors import EngineError
from trees import build, seen

Run = Callable[..., tuple[int, str, str]]

TREE = {
    b"a": {b"file": ("file", b"content" * 9, 0o644), b"link": ("link", b"/etc", 0)},
    b"__pycache__": {b"x": ("file", b"made", 0o644)},
}


class Broker:
    """Stands for the broker: the containers that there are, and what it was asked."""

    def __init__(self) -> None:
        self.containers: list[dict[str, Any]] = []
        self.asked: list[tuple[str, ...]] = []
        self.failing = ""
        self.images = ["lab/2001/thesis:0123456789ab"]

    def ask(self, verb: str, *words: str, **_options: object) -> dict[str, Any]:
        self.asked.append((verb, *words))
        if verb == self.failing:
            raise EngineError("The container engine does not answer.", "Tell your admins.")
        if verb == "container-retire":
            self.containers = []
            return {"changed": True}
        if verb == "container-retire-check":
            lost = {"files": 7, "bytes": 7, "complete": True}
            return {"changed": True, "lost": lost, "undo_until": None, "not_kept": "it is too large"}
        return {"containers": self.containers, "removed": self.images}


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    """Return the stand-in of the broker."""
    made = Broker()
    monkeypatch.setattr(cli_keeping_work, "ask", made.ask)
    return made


@pytest.fixture
def thesis(tmp_path: Path, broker: Broker) -> Path:
    """Return the folder of the project thesis."""
    build(tmp_path / "thesis", TREE)
    return tmp_path / "thesis"


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that types on a terminal."""

    def type_(text: str) -> None:
        keyboard = io.StringIO(text)
        keyboard.isatty = lambda: True  # type: ignore[method-assign]  # as a terminal says
        monkeypatch.setattr(sys, "stdin", keyboard)

    return type_


RUNNING = {"project": "thesis", "container": "thesis._.2001", "status": "running"}


def test_no_other_command_waits_for_what_these_need() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import _core.cli; "
        "print(sorted(m for m in sys.modules if m in ('gzip', 'tarfile') or m.startswith('_core.')))"
    )
    core = os.path.dirname(os.path.dirname(cli_keeping_work.__file__))
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, core], capture_output=True, text=True, check=True
    )
    for name in ("archive", "keeping", "doctor", "symptoms", "context"):
        assert f"_core.{name}" not in done.stdout
    assert "tarfile" not in done.stdout


# ---- archive and restore ---------------------------------------------------------------------------------


def test_an_archive_is_made_compared_and_the_folder_removed(run: Run, thesis: Path) -> None:
    before = seen(thesis)
    code, out, err = run("project", "archive", "thesis", "--yes")
    assert (code, err) == (0, "")
    assert "~/workspace/.archive/thesis-" in out and "compared" in out and "project restore thesis" in out
    assert not thesis.exists()
    code, out, _err = run("project", "restore", "thesis")
    assert code == 0 and "every checksum is right" in out and "project launch thesis" in out
    assert seen(thesis) == before
    assert max(len(line) for line in out.splitlines()) <= 80


def test_who_is_asked_decides(run: Run, thesis: Path, typing: Callable[[str], None]) -> None:
    typing("n\n")
    code, out, err = run("project", "archive", "thesis")
    assert code == 0 and "Remove the folder" in err and "is as it was" in out and thesis.exists()
    typing("y\n")
    code, out, err = run("project-archive", "thesis")
    assert code == 0 and "is removed" in out and not thesis.exists()


def test_who_cannot_be_asked_must_say(run: Run, thesis: Path) -> None:
    for words in ([], ["--json"]):
        code, out, err = run("project", "archive", "thesis", *words)
        assert code == 2 and "--yes" in out + err and "--keep" in out + err
    assert sorted(os.listdir(thesis.parent)) == ["thesis"]
    assert run("project", "archive", "thesis", "--keep")[0] == 0 and thesis.exists()


def test_an_archive_as_json(run: Run, thesis: Path) -> None:
    os.mkfifo(thesis / "fifo")
    code, out, _err = run("project", "archive", "thesis", "--yes", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["removed"] is True and facts["files"] == 2 and facts["left_out"] == ["fifo"]
    assert facts["archive"].startswith("~/workspace/.archive/thesis-")
    facts = json.loads(run("project", "restore", "thesis", "--json", "--dry-run")[1])
    assert facts["dry_run"] is True and facts["there"] is False and not thesis.exists()
    assert json.loads(run("project", "restore", "thesis", "--json")[1])["files"] == 2


def test_a_container_must_be_retired_first(run: Run, thesis: Path, broker: Broker) -> None:
    broker.containers = [RUNNING]
    for words in (
        ["archive", "thesis", "--yes"],
        ["rename", "thesis", "paper"],
        ["remove", "thesis", "--yes"],
    ):
        code, _out, err = run("project", *words)
        assert code == 3 and "has a container (running)" in err and "container retire thesis" in err
    assert thesis.exists() and set(broker.asked) == {("container-list",)}
    assert run("project", "archive", "thesis", "--keep")[0] == 0
    code, out, _err = run("project", "archive", "thesis", "--dry-run")
    assert code == 0 and "container retire thesis" in out


def test_without_an_engine_nothing_is_removed(run: Run, thesis: Path, broker: Broker) -> None:
    broker.failing = "container-list"
    assert run("project", "archive", "thesis", "--yes")[0] == 1 and thesis.exists()


def test_what_is_no_data_and_what_cannot_be_read_is_told(
    run: Run, thesis: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(thesis / "fifo\x1b[2J")
    opened = archive.safefs.open_regular

    def closed(folder: int, path: str) -> int:
        if path == "a/file":
            raise PermissionError(13, "Permission denied")
        return opened(folder, path)

    monkeypatch.setattr(archive.safefs, "open_regular", closed)
    code, out, err = run("project", "archive", "thesis", "--yes")
    assert code == 1 and thesis.exists()
    assert "no file, left out: fifo\\x1b[2J" in out and "not in the archive: a/file: it cannot be read" in err
    assert "stays" in err and "chmod" in err and "\x1b" not in out + err


def test_ctrl_c_says_that_nothing_is_lost(run: Run, thesis: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_words: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(archive, "pack", interrupt)
    code, _out, err = run("project", "archive", "thesis", "--yes")
    assert code == 130 and "Nothing is lost" in err and thesis.exists()
    assert os.listdir(thesis.parent / ".archive") == []


def test_restore_finds_archives_by_their_path(run: Run, thesis: Path, tmp_path: Path) -> None:
    run("project", "archive", "thesis", "--yes")
    path = next((tmp_path / ".archive").iterdir())
    code, out, _err = run("project", "restore", str(path), "--dry-run")
    assert code == 0 and "is whole" in out and not thesis.exists()
    assert run("project", "restore", "/elsewhere/" + path.name)[0] == 2
    assert run("project", "restore", path.name)[0] == 0
    code, _out, err = run("project", "restore", "thesis")
    assert code == 3 and "project rename thesis NEW" in err
    assert "nothing is overwritten" in run("project", "restore", "thesis", "--dry-run")[1]
    assert run("project", "restore", "none")[0] == 4


def test_a_damaged_archive_restores_nothing(run: Run, thesis: Path, tmp_path: Path) -> None:
    run("project", "archive", "thesis", "--yes")
    path = next((tmp_path / ".archive").iterdir())
    path.write_bytes(path.read_bytes()[:-50])
    code, _out, err = run("project", "restore", "thesis")
    assert code == 2 and "damaged" in err and sorted(os.listdir(tmp_path)) == [".archive"]
    assert os.listdir(tmp_path / ".archive") == [path.name]


# ---- export and import -----------------------------------------------------------------------------------


def test_a_project_is_carried_to_another_server(run: Run, thesis: Path, tmp_path: Path) -> None:
    file = tmp_path / "carried.tar.gz"
    code, out, _err = run("project", "export", "thesis", str(file))
    assert code == 0 and "project import carried.tar.gz" in out
    assert oct(file.stat().st_mode)[-3:] == "600"
    code, out, _err = run("project", "import", str(file), "paper", "--dry-run")
    assert code == 0 and "would be in ~/workspace/paper" in out and not (tmp_path / "paper").exists()
    code, out, _err = run("project", "import", str(file), "paper")
    assert code == 0 and "every checksum is right" in out and "project launch paper" in out
    assert "link to outside of the project, kept as it is: a/link" in out
    assert os.listdir(tmp_path / "paper") == ["a"]
    assert max(len(line) for line in out.splitlines()) <= 80
    code, _out, err = run("project", "import", str(file))
    assert code == 3 and "there already" in err
    code, _out, err = run("project", "export", "thesis", str(file))
    assert code == 3 and "there already" in err
    everything = tmp_path / "all.tar.gz"
    assert json.loads(run("project", "export", "thesis", str(everything), "--all", "--json")[1])["files"] == 2
    assert json.loads(run("project", "import", str(everything), "whole", "--json")[1])["links_out"] == [
        "a/link"
    ]
    assert sorted(os.listdir(tmp_path / "whole")) == ["__pycache__", "a"]


def test_a_project_goes_through_a_pipe(
    run: Run, thesis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))
        code, _out, err = run("project", "export", "thesis", "-")
        assert code == 0 and "is written: 1 file" in err
        data = raw.getvalue()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert run("project", "import", "-", "paper")[0] == 0
    assert seen(tmp_path / "paper")[b"/a/file"] == seen(thesis)[b"/a/file"]
    assert run("project", "export", "thesis", "-", "--json")[0] == 2


def test_an_export_that_fails_leaves_no_file(run: Run, thesis: Path, tmp_path: Path) -> None:
    code, _out, err = run("project", "export", "thesis", str(thesis / "x.tar.gz"))
    assert code == 2 and "of the project itself" in err
    assert sorted(os.listdir(thesis)) == ["__pycache__", "a"]
    assert run("project", "export", "thesis", str(tmp_path / "none/x"))[0] == 1
    assert run("project", "export", "none", str(tmp_path / "x"))[0] == 4
    code, out, _err = run("project", "export", "thesis", str(tmp_path / "x"), "--dry-run")
    assert code == 0 and "would be written: 1 file, 63" in out and not (tmp_path / "x").exists()


@pytest.mark.parametrize(("make", "code"), [(lambda path: None, 4), (os.mkfifo, 2), (os.mkdir, 2)])
def test_what_is_no_archive_is_not_imported(
    run: Run, thesis: Path, tmp_path: Path, make: Any, code: int
) -> None:
    make(tmp_path / "x")
    got, _out, err = run("project", "import", str(tmp_path / "x"))
    assert got == code and len(err.splitlines()) == 2
    assert run("project", "import", str(tmp_path / "x"), "Bad_Name")[0] == 2


# ---- rename and remove -----------------------------------------------------------------------------------


def test_a_new_name_says_what_follows(run: Run, thesis: Path, tmp_path: Path) -> None:
    (thesis / "README.md").write_text("# thesis\n")
    (thesis / "Dockerfile").write_text("# my-thesis-2 is another\nFROM lab/python\n")
    before = seen(thesis)
    code, out, _err = run("project", "rename", "thesis", "paper", "--dry-run")
    assert code == 0 and "would be paper" in out and thesis.exists()
    code, out, err = run("project", "rename", "thesis", "paper")
    assert (code, err) == (0, "") and seen(tmp_path / "paper") == before and not thesis.exists()
    assert "README.md still says 'thesis'" in out and "Dockerfile" not in out
    assert "admins declared thesis" in out and "the next launch builds" in out
    assert max(len(line) for line in out.splitlines()) <= 80
    build(thesis, TREE)
    code, _out, err = run("project", "rename", "thesis", "paper")
    assert code == 3 and "there already" in err
    assert "could not be renamed" in run("project", "rename", "thesis", "paper", "--dry-run")[1]
    assert run("project", "rename", "thesis", "A")[0] == 2
    assert run("project", "rename", "none", "x")[0] == 4
    assert json.loads(run("project", "rename", "thesis", "x", "--json")[1])["declared"] is True


def test_a_removal_asks_for_the_name_and_can_be_undone(
    run: Run, thesis: Path, typing: Callable[[str], None]
) -> None:
    before = seen(thesis)
    assert run("project", "remove", "thesis")[0] == 2
    typing("y\n")
    code, out, err = run("project", "remove", "thesis")
    assert code == 1 and "not its name" in err and thesis.exists()
    assert "2 files, 67. Changed last:" in out and "2001-09-09 01:46  a/file" in out
    typing("thesis\n")
    code, out, err = run("project", "remove", "thesis")
    assert code == 0 and "project restore thesis" in out and not thesis.exists()
    code, out, _err = run("project", "restore", "thesis")
    assert code == 0 and seen(thesis) == before


def test_for_good_takes_the_images_and_the_trash(run: Run, thesis: Path, broker: Broker) -> None:
    assert run("project", "remove", "thesis", "--yes")[0] == 0
    build(thesis, TREE)
    code, out, _err = run("project", "remove", "thesis", "--for-good", "--dry-run")
    assert code == 0 and "In the trash: 1" in out and "for good" in out and thesis.exists()
    code, out, _err = run("project", "remove", "thesis", "--for-good", "--yes")
    assert code == 0 and "gone for good: folder, trash and images (1)" in out
    assert os.listdir(thesis.parent) == [".trash"] and os.listdir(thesis.parent / ".trash") == []
    code, out, _err = run("project", "remove", "thesis", "--for-good", "--yes", "--json")
    assert code == 0 and json.loads(out)["images"] == broker.images
    broker.images = []
    assert run("project", "remove", "thesis", "--for-good", "--yes")[0] == 4
    assert run("project", "remove", "thesis", "--yes")[0] == 4


def test_a_removal_retires_only_when_told_to(run: Run, thesis: Path, broker: Broker) -> None:
    broker.containers = [RUNNING]
    code, out, _err = run("project", "remove", "thesis", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["container"] is True
    out = run("project", "remove", "thesis", "--dry-run")[1]
    assert "lost: 7 files" in out and "could not be brought back: it is too large." in out
    assert run("project", "remove", "thesis", "--yes")[0] == 3
    assert run("project", "remove", "thesis", "--yes", "--container")[0] == 0
    assert broker.asked[-1] == ("container-retire", "thesis") and not thesis.exists()


def test_images_that_stay_are_told(run: Run, thesis: Path, broker: Broker) -> None:
    broker.failing = "project-forget"
    code, _out, err = run("project", "remove", "thesis", "--for-good", "--yes")
    assert code == 1 and "images are still there" in err and not thesis.exists()
    code, _out, err = run("project", "remove", "thesis", "--for-good", "--yes")
    assert code == 1 and "does not answer" in err
