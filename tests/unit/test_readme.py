# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The README's commands for IT, in a copy of the checkout in which nothing was done before."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
MADE = shutil.ignore_patterns(
    ".git", ".venv", ".vm", ".ansible", ".*_cache", ".hypothesis", "__pycache__", "*.tar.gz", "campus"
)


def blocks(heading: str) -> list[list[str]]:
    """Return the commands of each console block of a chapter, without their comments."""
    chapter = README.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"```console\n(.*?)```", chapter, re.DOTALL)
    return [[re.sub(r" +# .*", "", line) for line in block.splitlines()] for block in found]


def run(folder: Path, command: str) -> str:
    """Run a command of the README as its reader would; return what it said."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder.parent),
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(
        shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, command + done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the checkout in which the README's commands were run, up to the playbook."""
    folder = tmp_path_factory.mktemp("readme") / "lab.server"
    shutil.copytree(CHECKOUT, folder, ignore=MADE)
    for command in blocks("On your servers")[0][:3]:
        run(folder, command)
    return folder


def test_the_playbooks_that_it_names_are_there_after_its_commands(clone: Path) -> None:
    (installed,) = (file.parent for file in clone.rglob("ansible_collections/lab/server/MANIFEST.json"))
    named = [command for block in blocks("On your servers") for command in block[3 if block[3:] else 0 :]]
    assert len(named) == 3 and all(command.startswith("ansible-playbook lab.server.") for command in named)
    for command in named:
        # What is left of it, the servers, is what the virtual machine is for.
        assert f"playbook: {installed}/playbooks/" in run(clone, f"{command} --syntax-check")


def test_the_tags_that_it_names_are_those_of_the_playbook(clone: Path) -> None:
    told = README.split("`--tags users` (or ", 1)[1].split(") runs a part", 1)[0]
    named = {"users", *re.findall("`([a-z_]+)`", told)}
    listed = run(clone, "ansible-playbook lab.server.site -i inventories/campus/hosts.yml --list-tags")
    there = {tag.strip() for line in re.findall(r"TASK TAGS: \[(.*)\]", listed) for tag in line.split(",")}
    assert named == there - {"always"}


def test_what_is_installed_holds_what_servers_need_and_nothing_that_was_made(clone: Path) -> None:
    with tarfile.open(clone / "lab-server-0.1.0.tar.gz") as archive:
        names = archive.getnames()
    assert {"README.md", "LICENSE", "playbooks/site.yml", "inventories/template/hosts.yml"} <= set(names)
    parts = {part for name in names for part in name.split("/")}
    assert not parts & {".git", ".venv", ".vm", ".ansible", "__pycache__", "campus"}
