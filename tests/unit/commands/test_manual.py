# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The manual: a page for every program, without a fault in troff's eyes, with all that the parsers take."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import cli, install, interface, manual

PAGES = manual.files(install._MARK_WORDS)


def run(tool: str, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a tool for pages; the test is skipped where there is none."""
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed here")
    return subprocess.run(
        [tool, *arguments],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )


def test_every_program_has_a_page() -> None:
    assert set(PAGES) == {f"{manual.DIRECTORY}/{name}.1" for name in cli.programs()}


@pytest.mark.parametrize("path", PAGES)
def test_groff_finds_no_fault(path: str) -> None:
    done = run("groff", "-man", "-ww", "-z", text=PAGES[path])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", PAGES)
def test_mandoc_finds_no_fault(path: str) -> None:
    done = run("mandoc", "-Tlint", "-W", "warning", text=PAGES[path])
    # A page of the collection has its version; it has no date.
    assert [line for line in done.stdout.splitlines() if "missing date" not in line] == []


def test_apropos_reads_what_each_program_is_for(tmp_path: Path) -> None:
    for one in interface.programs():
        page = tmp_path / f"{one.page}.1"
        page.write_text(PAGES[f"{manual.DIRECTORY}/{one.page}.1"])
        said = run("lexgrog", str(page)).stdout
        assert f'"{one.page} - {one.summary}"' in said


@pytest.mark.parametrize("one", interface.programs(), ids=lambda one: one.page)
@pytest.mark.parametrize("width", [40, 80])
def test_a_page_holds_all_that_the_parser_takes(one: interface.Interface, width: int) -> None:
    text = PAGES[f"{manual.DIRECTORY}/{one.page}.1"]
    shown = run("groff", "-man", "-Tascii", "-P-cbou", f"-rLL={width}n", text=text).stdout
    flat = re.sub(r"\s+", " ", shown)
    for option in one.options:
        assert all(spelling in flat for spelling in option.spellings)
        assert re.sub(r"-\s*", "-", option.help) in re.sub(r"-\s*", "-", flat)
    for argument in one.arguments:
        assert argument.name in flat
    for command in one.commands:
        assert f"{command.page}(1)" in flat and command.summary.split()[0] in flat
    # What is to be pasted is in characters of the keyboard.
    assert one.example in shown.replace("\n       ", "\n") or width == 40


@pytest.mark.parametrize(
    ("page", "called"),
    [
        ("container-exec", "container-exec [--help] NAME -- COMMAND..."),
        ("container-run", "container-run [--help] [--dry-run] NAME [-- COMMAND...]"),
    ],
)
def test_a_page_tells_of_the_command_behind_two_hyphens(page: str, called: str) -> None:
    text = PAGES[f"{manual.DIRECTORY}/{page}.1"]
    flat = " ".join(run("groff", "-man", "-Tascii", "-P-cbou", text=text).stdout.split())
    assert called in flat and "the command was run, and ended with N" in flat
    other = " ".join(PAGES[f"{manual.DIRECTORY}/container-stop.1"].split())
    assert "COMMAND" not in other and "ended with N" not in other


def test_no_text_can_be_taken_for_a_request() -> None:
    assert manual._plain(".so /etc/passwd") == r"\&.so /etc/passwd"
    assert manual._plain("'\\-~") == r"\(aq\e\-\(ti"
