# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a role says about its variables is what it does: specification, defaults, page and names agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

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
