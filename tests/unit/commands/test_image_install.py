# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The program image-install of containers: what it takes, what it records, what it says."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Callable

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import homes, image_install
from hypothesis import given
from hypothesis import strategies as st

SIMULATED_PIP = """\
import os, pathlib, sys
words = sys.argv[1:]
pathlib.Path(os.environ["SEEN"]).write_text(repr(words) + os.environ.get("PIP_BREAK_SYSTEM_PACKAGES", ""))
if "nosuch" in words:
    print("ERROR: No matching distribution found for nosuch")
    sys.exit(1)
if "--dry-run" not in words:
    made = pathlib.Path(os.environ["SITE"], "lab_sim-2.5.dist-info")
    made.mkdir(parents=True)
    (made / "METADATA").write_text("Metadata-Version: 2.1\\nName: lab_sim\\nVersion: 2.5\\n")
"""


@pytest.mark.parametrize(
    "word", ["numpy", "scikit-learn>=1.4", "uvicorn[standard]==0.30.1", "a.b_c~=1.0,!=1.0.3", "x===1+local"]
)
def test_a_requirement_is_taken(word: str) -> None:
    assert image_install.check([word]) == [word]


@pytest.mark.parametrize(
    "word",
    [
        *("-r", "--user", "/etc/passwd", "./x.whl", "x @ file:///etc", "git+https://example.org/x", "x;a"),
        *("x y", "x\n", "", "x[", "x==", "x==1;", "\u0435x", "x[a]b", "x" * 101, "$(id)", "x>=1, <2"),
    ],
)
def test_anything_else_is_not(word: str) -> None:
    with pytest.raises(image_install.Problem):
        image_install.check([word])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "Lab-Sim==2.5\n"),
        ("# mine\n-r other.txt\nnumpy==1\n", "# mine\n-r other.txt\nnumpy==1\nLab-Sim==2.5\n"),
        ("lab_sim>=1  # why\nnumpy", "Lab-Sim==2.5\nnumpy\n"),
        ("lab.sim==1\nLAB-SIM==2\n", "Lab-Sim==2.5\n"),
        ("lab-sim @ https://example.org/lab_sim.whl\n", "Lab-Sim==2.5\n"),
        ("lab-sim-extra==1\nlab-sim/x.whl\n", "lab-sim-extra==1\nlab-sim/x.whl\nLab-Sim==2.5\n"),
    ],
)
def test_what_is_recorded(before: str, after: str) -> None:
    packages = {"Lab-Sim": "2.5"}
    assert image_install.recorded(before, packages) == after
    assert image_install.recorded(after, packages) == after


def test_extras_are_kept_and_hashes_refuse() -> None:
    assert image_install.recorded("a\n", {"a[b]>=1": "2"}) == "a[b]==2\n"
    with pytest.raises(image_install.Problem, match="hashes"):
        image_install.recorded("a==1 --hash=sha256:00\n", {"b": "1"})


@given(st.lists(st.from_regex(image_install.REQUIREMENT, fullmatch=True), min_size=1, max_size=5), st.text())
def test_recording_twice_changes_nothing_more(words: list[str], text: str) -> None:
    packages = dict.fromkeys(words, "1.0")
    try:
        once = image_install.recorded(text, packages)
    except image_install.Problem:
        return
    assert image_install.recorded(once, packages) == once


def test_a_library_in_a_zip_file_has_the_program_too(tmp_path: Path) -> None:
    core = Path(homes.__file__).parent
    archive = tmp_path / "library.zip"
    with zipfile.ZipFile(archive, "w") as written:
        for file in core.glob("*.py"):
            written.write(file, f"package/_core/{file.name}")
        written.writestr("package/__init__.py", "")
    read = "import sys; from package._core import homes; sys.stdout.write(homes.INSTALL_SOURCE)"
    done = subprocess.run(
        [sys.executable, "-c", read], env={"PYTHONPATH": str(archive)}, capture_output=True, check=True
    )
    assert done.stdout.decode() == (core / "image_install.py").read_text() == homes.INSTALL_SOURCE


# ---- the program, with a simulated pip -----------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs the program as a container has it, in the folder of a project."""
    site, project = tmp_path / "site", tmp_path / "workspace" / socket.gethostname()
    (site / "pip").mkdir(parents=True)
    (site / "pip" / "__init__.py").touch()
    (site / "pip" / "__main__.py").write_text(SIMULATED_PIP)
    project.mkdir(parents=True)
    (project / "Dockerfile").write_text("FROM x\nCOPY requirements.txt /\n")
    (project / "requirements.txt").write_text("numpy==1\n")
    (project / "requirements.txt").chmod(0o600)
    text = homes.programs()[".local/bin/image-install"]
    assert text.startswith("#!/usr/bin/env python3\n")
    file = tmp_path / "image-install"
    file.write_text(text.replace('"/workspace"', repr(str(tmp_path / "workspace"))))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        seen = {"SEEN": str(tmp_path / "seen"), "SITE": str(site), "PYTHONPATH": str(site)}
        return subprocess.run(
            [sys.executable, str(file), *words],
            env={**os.environ, **seen},
            capture_output=True,
            text=True,
            check=False,
        )

    run.project, run.seen = project, tmp_path / "seen"  # type: ignore[attr-defined]  # for the tests to look at
    return run


def test_it_installs_and_records(program: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = program("Lab_Sim>=2")
    assert done.returncode == 0, done.stderr
    assert program.project.joinpath("requirements.txt").read_text() == "numpy==1\nLab_Sim==2.5\n"
    assert program.project.joinpath("requirements.txt").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in program.project.iterdir()) == ["Dockerfile", "requirements.txt"]
    assert "Lab_Sim>=2: 2.5 is installed" in done.stdout and "Note" not in done.stdout
    assert program.seen.read_text().endswith("'Lab_Sim>=2']1")


def test_the_server_is_told_in_one_line(program: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    program.project.joinpath("Dockerfile").write_text("FROM x\n")
    done = program("--report", "lab-sim")
    last = done.stdout.splitlines()[-1]
    assert last.startswith(image_install.REPORT)
    told = json.loads(last[len(image_install.REPORT) :])
    assert told == {"packages": {"lab-sim": "2.5"}, "dockerfile": False}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nosuch"], 1, "image-install: pip could not install it; nothing was recorded."),
        (["--user"], 2, "image-install: it has no such option."),
        ([], 1, "image-install: Name at least one package."),
        (["/etc/passwd"], 1, "is not the requirement of a package."),
        (["--dry-run", "lab-sim"], 0, ""),
        (["--help"], 0, ""),
    ],
)
def test_what_does_not_install_records_nothing(
    program: Callable[..., subprocess.CompletedProcess[str]], words: list[str], code: int, said: str
) -> None:
    done = program(*words)
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr
    assert program.project.joinpath("requirements.txt").read_text() == "numpy==1\n"


def test_a_file_that_cannot_be_written_is_said(
    program: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    (program.project / "requirements.txt").unlink()
    (program.project / "requirements.txt").mkdir()
    done = program("lab-sim")
    assert done.returncode == 1 and "could not be written" in done.stderr and "Traceback" not in done.stderr
