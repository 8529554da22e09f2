"""What people do everywhere, done here: dotfiles, a git repository, packages in a folder of the workspace."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import containers
from conftest import _shared_libraries, root_file_system
from simulated import wheel

GIT = "lab-test/git"
#: Who commits, and nothing that goes on in the background.
SETTINGS = "-c user.name=Alice -c user.email=alice@example.org -c gc.auto=0 -c maintenance.auto=false"


def made_anew(engine, policy, user, project: str) -> None:
    """Retire the container, and launch another one."""
    before = containers.listing(engine, policy, user)[0].id
    assert containers.retire(engine, policy, user, project).changed
    assert containers.launch(engine, policy, user, project).facts["id"] != before


def test_dotfiles_by_a_link_into_the_workspace(engine, policy, alice, thesis, inside):
    """What is edited through the link is kept; the link is made again by one command."""
    containers.launch(engine, policy, alice, "thesis")
    linked = "ln -sf /workspace/thesis/.vimrc ~/.vimrc"
    inside(alice, "thesis", f"{linked}; echo 'set number' >> ~/.vimrc; echo mine > ~/.inputrc")
    assert (thesis.path / ".vimrc").read_text() == "set number\n"
    made_anew(engine, policy, alice, "thesis")
    assert inside(alice, "thesis", "cat ~/.vimrc ~/.inputrc 2>/dev/null || true") == ""
    inside(alice, "thesis", f"{linked}; echo 'set ruler' >> ~/.vimrc")
    assert inside(alice, "thesis", "cat ~/.vimrc").splitlines() == ["set number", "set ruler"]


def test_dotfiles_of_the_dockerfile(engine, policy, alice, thesis, tiny, inside):
    """A copy, and a link that leads into the workspace: both are there in every container of the image."""
    thesis.write("bashrc", "alias ll='ls -l'\n")
    thesis.write(".vimrc", "set number\n")
    thesis.write(
        "Dockerfile",
        f"FROM {tiny}\nCOPY bashrc /home/alice/.bashrc\n"
        "RUN ln -s /workspace/thesis/.vimrc /home/alice/.vimrc\n",
    )
    containers.launch(engine, policy, alice, "thesis")
    for _container in range(2):
        assert inside(alice, "thesis", "cat ~/.bashrc") == "alias ll='ls -l'\n"
        inside(alice, "thesis", "echo more >> ~/.vimrc; ls ~/workspace/thesis/Dockerfile; touch ~/mine")
        made_anew(engine, policy, alice, "thesis")
    assert (thesis.path / ".vimrc").read_text() == "set number\nmore\nmore\n"
    assert "mine" not in inside(alice, "thesis", "ls -A ~").split()
    # The user's programs are there all the same.
    assert inside(alice, "thesis", "command -v workspace").strip() == "/home/alice/.local/bin/workspace"


@pytest.fixture(scope="module")
def git(docker) -> str:
    """Make an image with the git that is here; return its name."""
    program = shutil.which("git")
    assert program, "The tests need git, with which the collection was fetched."
    buffer = io.BytesIO(root_file_system())
    with tarfile.open(fileobj=buffer, mode="a:") as archive:
        archive.add(os.path.realpath(program), "usr/bin/git")
        for needed in _shared_libraries([program]):
            archive.add(os.path.realpath(needed), needed.lstrip("/"))
    docker("import", "-", GIT, input=buffer.getvalue())
    return GIT


def on_host(folder: Path, words: Sequence[str], uid: int) -> subprocess.CompletedProcess[str]:
    """Run git on the host, as somebody without settings of the own."""
    return subprocess.run(
        ["git", *words],
        cwd=folder,
        user=uid,
        group=uid,
        extra_groups=[],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("begun", ["inside", "outside"])
def test_a_repository_works_from_both_sides(engine, policy, alice, thesis, git, inside, begun):
    thesis.write("Dockerfile", f"FROM {git}\n")
    containers.launch(engine, policy, alice, "thesis")

    def outside(command: str) -> str:
        done = on_host(thesis.path, command.split(), alice.uid)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def within(command: str) -> str:
        return inside(alice, "thesis", f"git {command} 2>&1")

    sides = {"inside": within, "outside": outside}
    sides[begun]("init -q -b main")
    for number, (name, side) in enumerate(sides.items(), start=1):
        thesis.write("word", f"{name}\n")
        side("add word")
        side(f"{SETTINGS} commit -q -m {name}")
        for other in sides.values():
            assert other("status --short --untracked-files=no") == ""
            assert len(other("log --format=%s").split()) == number
    objects = [path for path in (thesis.path / ".git").rglob("*") if path.is_file()]
    assert {path.stat().st_uid for path in objects} == {alice.uid}
    made_anew(engine, policy, alice, "thesis")
    assert within("log --format=%s").split() == ["outside", "inside"]
    # Whose repository it is not is told so, here as everywhere.
    assert "dubious ownership" in on_host(thesis.path, ["status"], 0).stderr


def test_packages_in_a_folder_of_the_workspace_are_kept(engine, policy, alice, thesis, python, inside):
    learner = replace(alice, limits=replace(alice.limits, memory=1 << 30))
    name, content = wheel("tinytool")
    thesis.write("Dockerfile", f"FROM {python}\n")
    (thesis.path / name).write_bytes(content)
    containers.launch(engine, policy, learner, "thesis")
    target = "/workspace/site-packages-shared"
    pip = "python3 -m pip install --no-index --disable-pip-version-check --no-input"
    inside(learner, "thesis", f"{pip} --target {target} ./{name}; {pip} --user ./{name}")
    ask = "python3 -c 'import tinytool; print(tinytool.__file__)'"
    assert inside(learner, "thesis", ask).startswith("/home/alice/.local/")
    lost = containers.lost(engine, policy, learner, "thesis")["lost"]
    assert lost["packages"] == ["tinytool 1.0"]
    assert not [path for path in lost["paths"] if path.startswith("/workspace")]
    made_anew(engine, policy, learner, "thesis")
    assert "No module named" in inside(learner, "thesis", f"{ask} 2>&1 || true")
    assert inside(learner, "thesis", f"PYTHONPATH={target} {ask}").strip() == f"{target}/tinytool.py"
    kept = Path(policy.workspace(alice)) / "site-packages-shared"
    assert {path.lstat().st_uid for path in [kept, *kept.rglob("*")]} == {alice.uid}
