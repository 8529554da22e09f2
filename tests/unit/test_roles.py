# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a role says about its variables is what it does: specification, defaults, page and names agree."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLES = Path(__file__).resolve().parents[2] / "roles"
NAMES = sorted(path.name for path in ROLES.iterdir() if path.is_dir())


def _load(path: Path) -> Any:
    return yaml.safe_load(path.read_text()) if path.exists() else None


def _specifications(role: str) -> dict[str, dict[str, Any]]:
    loaded = _load(ROLES / role / "meta" / "argument_specs.yml")
    assert loaded, f"{role} has no meta/argument_specs.yml"
    specifications: dict[str, dict[str, Any]] = loaded["argument_specs"]
    return specifications


def _entry_points(role: str) -> set[str]:
    """Return main and every task file that no other task file of the role includes."""
    tasks = ROLES / role / "tasks"
    text = "".join(path.read_text() for path in tasks.glob("*.yml"))
    files = {path.stem for path in tasks.glob("*.yml")}
    # A file whose name is put together at run time is included by its beginning.
    beginnings = [
        line.split("_{{")[0].rsplit('"', 1)[-1] + "_" for line in text.splitlines() if "_{{" in line
    ]
    inner = {name for name in files if f": {name}.yml" in text or name.startswith(tuple(beginnings))}
    return {"main"} | (files - inner)


@pytest.mark.parametrize("role", NAMES)
def test_every_entry_point_has_a_specification(role: str) -> None:
    specified = set(_specifications(role))
    files = {path.stem for path in (ROLES / role / "tasks").glob("*.yml")}
    # A part of main may be called alone, too.
    assert _entry_points(role) <= specified <= files


@pytest.mark.parametrize("role", NAMES)
def test_defaults_and_specification_agree_by_value(role: str) -> None:
    defaults = _load(ROLES / role / "defaults" / "main.yml") or {}
    specified: dict[str, Any] = {}
    required: set[str] = set()
    for entry_point, specification in _specifications(role).items():
        for name, option in (specification.get("options") or {}).items():
            if option.get("required"):
                required.add(name)
                assert "default" not in option, f"{role}.{entry_point}: {name} is required and has a default"
                continue
            assert "default" in option, f"{role}.{entry_point}: {name} is neither required nor has a default"
            assert specified.setdefault(name, option["default"]) == option["default"], name
    assert specified == defaults
    assert not required & set(defaults)


@pytest.mark.parametrize("role", NAMES)
def test_public_variables_carry_the_name_of_the_role(role: str) -> None:
    public = set(_load(ROLES / role / "defaults" / "main.yml") or {})
    for specification in _specifications(role).values():
        public |= set(specification.get("options") or {})
    assert {name for name in public if not name.startswith(f"{role}_")} == set()


@pytest.mark.parametrize("role", NAMES)
def test_private_variables_are_private(role: str) -> None:
    for path in (ROLES / role / "vars").glob("*.yml"):
        wrong = {name for name in _load(path) or {} if not name.startswith(f"__{role}_")}
        assert wrong == set(), path


@pytest.mark.parametrize("role", NAMES)
def test_the_page_of_a_role_names_every_variable(role: str) -> None:
    page = (ROLES / role / "README.md").read_text()
    missing = [
        name
        for specification in _specifications(role).values()
        for name in specification.get("options") or {}
        if f"`{name}`" not in page
    ]
    assert missing == []


@pytest.mark.parametrize("role", NAMES)
def test_platform_files_of_a_role_set_the_same_variables(role: str) -> None:
    files = [path for path in (ROLES / role / "vars").glob("*.yml") if path.name != "main.yml"]
    keys = {path.name: frozenset(_load(path)) for path in files}
    assert len(set(keys.values())) <= 1, keys


# A container that is in the file "going" when it is listed has ended when it is inspected.
DOCKER = """#!/bin/sh
cd "$(dirname "$0")"
[ "$1" = inspect ] || { cat running; exit; }
shift 3
for name in "$@"; do
  grep -qx "$name" going && { sed -i "/^$name$/d" running; touch failed; continue; }
  echo "/$name"
done
[ ! -e failed ] || { rm failed; exit 1; }
"""


@pytest.fixture
def users_of_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """Return the folder of a docker that plays, and the script that asks it which containers have a GPU."""
    (task,) = [
        one["ansible.builtin.shell"]
        for one in _load(ROLES / "nvidia_container_toolkit/tasks/gpu.yml")
        if "ansible.builtin.shell" in one
    ]
    # A path of a socket is short, and the folders of pytest are not.
    with tempfile.TemporaryDirectory() as name, contextlib.closing(socket.socket(socket.AF_UNIX)) as listens:
        folder = Path(name)
        (folder / "docker").write_text(DOCKER)
        (folder / "docker").chmod(0o755)
        listens.bind(str(folder / "sock"))
        (folder / "sleep").symlink_to("/bin/true")
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        yield folder, task["cmd"].replace("/run/docker.sock", str(folder / "sock"))


@pytest.mark.parametrize(
    ("running", "going", "answer"),
    [
        ("", "", (0, [])),
        ("a\nb\n", "", (0, ["/a", "/b"])),
        ("a\nb\nc\n", "b\n", (0, ["/a", "/c"])),
        ("a\n", "a\n", (0, [])),
    ],
)
def test_a_container_that_ends_meanwhile_is_left_out(
    users_of_gpus: tuple[Path, str], running: str, going: str, answer: tuple[int, list[str]]
) -> None:
    folder, script = users_of_gpus
    (folder / "running").write_text(running)
    (folder / "going").write_text(going)
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == answer


def test_an_engine_that_cannot_say_who_has_a_gpu_is_not_taken_for_one_without(
    users_of_gpus: tuple[Path, str],
) -> None:
    folder, script = users_of_gpus
    (folder / "docker").write_text('#!/bin/sh\n[ "$1" = ps ] && echo a\n')
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    (folder / "docker").write_text("#!/bin/sh\nexit 1\n")
    assert subprocess.run(["/bin/sh", "-c", script], check=False).returncode == 3


@pytest.mark.parametrize(
    ("given", "files"),
    [
        ({}, {"password": "secret\n", "environment": "", "ssh_key": "", "known_hosts": ""}),
        (
            {
                "backup_environment": {"B": "two", "A": 1},
                "backup_ssh_key": "begin\nend",
                "backup_known_hosts": "one\ntwo\n\n",
            },
            {
                "password": "secret\n",
                "environment": "A=1\nB=two\n",
                "ssh_key": "begin\nend\n",
                "known_hosts": "one\ntwo\n",
            },
        ),
    ],
)
def test_a_secret_of_the_backups_that_is_not_given_has_no_text(
    given: dict[str, Any], files: dict[str, str]
) -> None:
    defaults = _load(ROLES / "backup/defaults/main.yml")
    variables = {**defaults, "backup_password": "secret", **given}
    written = _load(ROLES / "backup/vars/main.yml")["__backup_files"]
    templar = Templar(loader=DataLoader(), variables=variables)
    found = {one["name"]: templar.template(trust_as_template(one["text"])) for one in written}
    assert found == files
