# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The library, the programs and the policy on a server: installed whole, kept so, and told truthfully."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils import _core
from ansible_collections.lab.server.plugins.module_utils._core import install
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError
from ansible_collections.lab.server.plugins.module_utils._core.items import ItemResult
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, parse

CORE = Path(_core.__file__).parent
MODULE = CORE.parent.parent / "modules" / "commands.py"


def test_the_module_carries_every_file_of_the_library() -> None:
    carried = {
        alias.name
        for node in ast.walk(ast.parse(MODULE.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("._core")
        for alias in node.names
    }
    assert carried == {path.stem for path in CORE.glob("*.py")} - {"__init__"}


def test_a_fresh_server_gets_everything_and_a_second_run_changes_nothing(tmp_path: Path, lab: Policy) -> None:
    root = str(tmp_path)
    planned = install.reconcile(lab, check=True, root=root)
    assert [item.name for item in planned if not item.changed] == ["zsh"]  # it is not installed there
    assert not any(tmp_path.iterdir())
    done = install.reconcile(lab, check=False, root=root)
    assert [item.as_dict() for item in done] == [item.as_dict() for item in planned]
    assert not any(item.changed for item in install.reconcile(lab, check=False, root=root))
    installed = tmp_path / "usr/local/lib/lab-server/current/_core"
    assert install.tree_digest(str(installed)) == install.tree_digest(str(CORE))
    policy = tmp_path / "etc/lab-server/policy.json"
    assert policy.stat().st_mode & 0o7777 == 0o600
    assert parse(json.loads(policy.read_text())) == replace(
        lab, projects=tuple(replace(project, files=()) for project in lab.projects)
    )


def test_users_read_the_policy_without_what_is_nobody_elses_business(tmp_path: Path, lab: Policy) -> None:
    secret = replace(lab.projects[0], environment=(("TOKEN", "secret-of-alice"),))
    install.reconcile(
        replace(lab, projects=(secret,), environment=(("SITE", "secret-of-all"),)),
        check=False,
        root=str(tmp_path),
    )
    text = (tmp_path / "etc/lab-server/public.json").read_text()
    assert (tmp_path / "etc/lab-server/public.json").stat().st_mode & 0o7777 == 0o644
    assert "secret" not in text
    assert parse(json.loads(text)).users == lab.users
    assert "secret-of-alice" in (tmp_path / "etc/lab-server/policy.json").read_text()


def test_the_texts_of_declared_files_stay_out_of_the_policy(tmp_path: Path, lab: Policy) -> None:
    install.reconcile(lab, check=False, root=str(tmp_path))
    assert "secret-of-alice" not in (tmp_path / "etc/lab-server/policy.json").read_text()


def test_another_library_replaces_it_and_one_before_is_kept(tmp_path: Path) -> None:
    root = str(tmp_path)
    library = tmp_path / "usr/local/lib/lab-server"
    versions = [{"__init__.py": b"", "a.py": str(number).encode()} for number in range(4)]
    for files in versions:
        install._library(files, check=False, root=root)
    item = install._library({"__init__.py": b""}, check=False, root=root)
    assert "remove a.py" in item.actions
    assert sorted(os.listdir(library / "current" / "_core")) == ["__init__.py", "__pycache__"]
    assert len([name for name in os.listdir(library) if name != "current"]) == 2
    assert os.readlink(library / "current") in os.listdir(library)


@pytest.mark.parametrize("damage", ["content", "extra", "missing", "mode", "link"])
def test_a_damaged_library_is_repaired(tmp_path: Path, damage: str) -> None:
    root, files = str(tmp_path), {"__init__.py": b"", "a.py": b"x = 1\n"}
    install._library(files, check=False, root=root)
    core = tmp_path / "usr/local/lib/lab-server/current/_core"
    if damage == "content":
        (core / "a.py").write_text("x = 2\n")
    elif damage == "extra":
        (core / "b.py").write_text("")
    elif damage == "missing":
        (core / "a.py").unlink()
    elif damage == "mode":
        (core / "a.py").chmod(0o666)
    else:
        (core / "a.py").unlink()
        (core / "a.py").symlink_to("/etc/hostname")
    assert install._library(files, check=True, root=root).changed
    assert install._library(files, check=False, root=root).changed
    assert not install._library(files, check=False, root=root).changed
    assert install.tree_digest(str(core)) == install.digest_of(files)
    assert not [name for name in os.listdir(core.parent.parent) if name.startswith(".")]


def test_a_directory_in_the_place_of_the_link_is_an_error_with_a_fix(tmp_path: Path) -> None:
    (tmp_path / "usr/local/lib/lab-server/current").mkdir(parents=True)
    with pytest.raises(HostError, match="Remove it"):
        install._library({"__init__.py": b""}, check=False, root=str(tmp_path))


def test_programs_that_are_gone_are_removed_and_those_of_others_stay(tmp_path: Path, lab: Policy) -> None:
    root = str(tmp_path)
    install.reconcile(lab, check=False, root=root)
    programs = tmp_path / "usr/local/bin"
    (programs / "lab-old").write_text((programs / "project").read_text())
    (programs / "mine").write_text("#!/bin/sh\n")
    item = install.reconcile(lab, check=False, root=root)[1]
    assert item.actions == ["remove /usr/local/bin/lab-old"]
    assert (programs / "mine").exists()
    (programs / "project").chmod(0o700)
    item = install.reconcile(lab, check=False, root=root)[1]
    assert item.actions == ["write /usr/local/bin/project"]
    assert (programs / "project").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    "directory",
    [
        *("usr/local/share/man/man1", "usr/local/share/bash-completion/completions"),
        *("usr/local/share/zsh/site-functions", "etc/profile.d"),
    ],
)
def test_manual_completion_and_profile_are_kept_so_and_others_files_stay(
    tmp_path: Path, lab: Policy, directory: str
) -> None:
    root, folder = str(tmp_path), tmp_path / directory
    install.reconcile(lab, check=False, root=root)
    ours = sorted(folder.iterdir())[0]
    text = ours.read_text()
    assert ours.stat().st_mode & 0o7777 == 0o644
    (folder / "old").write_text(text)
    (folder / "mine").write_text("mine\n")
    ours.write_text(text + "more\n")
    planned = install.reconcile(lab, check=True, root=root)
    assert ours.read_text() == text + "more\n" and (folder / "old").exists()
    done = install.reconcile(lab, check=False, root=root)
    assert [item.as_dict() for item in done] == [item.as_dict() for item in planned]
    (item,) = [item for item in done if item.changed]
    assert item.actions == [f"write /{directory}/{ours.name}", f"remove /{directory}/old"]
    assert item.diff["before"][f"/{directory}/{ours.name}"].endswith("more\n")
    assert ours.read_text() == text and (folder / "mine").exists() and not (folder / "old").exists()


def test_zsh_gets_lines_of_ours_where_it_is_installed(tmp_path: Path, lab: Policy) -> None:
    root, zlogin = str(tmp_path), tmp_path / "etc/zsh/zlogin"

    def zsh(check: bool = False) -> ItemResult:
        (item,) = [one for one in install.reconcile(lab, check=check, root=root) if one.name == "zsh"]
        return item

    assert not zsh().changed and not zlogin.parent.exists()
    # The package was removed, and its configuration is still there.
    zlogin.parent.mkdir()
    zlogin.write_text("# mine")
    zlogin.chmod(0o640)
    assert not zsh().changed and zlogin.read_text() == "# mine"
    (tmp_path / "usr/bin").mkdir()
    (tmp_path / "usr/bin/zsh").touch()
    planned = zsh(check=True)
    assert planned.changed and zlogin.read_text() == "# mine"
    assert zsh().as_dict() == planned.as_dict() and not zsh().changed
    text = zlogin.read_text()
    assert text == planned.diff["after"] and text.startswith("# mine\n# BEGIN lab.server")
    assert zlogin.stat().st_mode & 0o7777 == 0o640
    # Around them the file is its owner's; between them it is ours.
    zlogin.write_text(f"before\n{text.replace('emulate sh', 'emulate ksh')}after\n")
    assert zsh().changed and zlogin.read_text() == f"before\n{text}after\n"
    zlogin.write_text(text.replace(install._END, ""))
    with pytest.raises(HostError, match=r"has no '# END lab\.server' after it"):
        zsh()


def test_another_base_image_changes_the_completion_alone(tmp_path: Path, lab: Policy) -> None:
    root = str(tmp_path)
    install.reconcile(lab, check=False, root=root)
    more = replace(lab, base_images=(replace(lab.base_images[0], name="lab/torch"),), projects=())
    changed = [item.name for item in install.reconcile(more, check=False, root=root) if item.changed]
    assert changed == ["completion", "policy.json", "public.json"]


def test_every_program_starts_from_the_installed_library(tmp_path: Path, lab: Policy) -> None:
    install.reconcile(lab, check=False, root=str(tmp_path))
    current = tmp_path / "usr/local/lib/lab-server/current"
    for name in ("project", "container-retire", "image-update", "workspace"):
        text = (tmp_path / "usr/local/bin" / name).read_text()
        moved = tmp_path / name
        moved.write_text(text.replace(install.CURRENT, str(current)))
        done = subprocess.run(
            [sys.executable, "-I", str(moved), "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: {name}")


def test_the_digest_of_a_tree_tells_names_and_contents_apart(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x").write_text("1")
    one = install.tree_digest(str(tmp_path))
    assert one == install.digest_of({"a": b"1"})
    assert one != install.digest_of({"a1": b""})
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "b").symlink_to("/etc/passwd")
    assert install.tree_digest(str(tmp_path)) != one


def test_everybody_reads_the_commands_whatever_the_umask_is(tmp_path: Path, lab: Policy) -> None:
    before = os.umask(0o077)
    try:
        install.reconcile(lab, check=False, root=str(tmp_path))
    finally:
        os.umask(before)
    for path in (tmp_path / "usr").rglob("*"):
        assert path.is_symlink() or path.stat().st_mode & 0o044 == 0o044, path
    assert (tmp_path / "etc/lab-server").stat().st_mode & 0o7777 == 0o755
