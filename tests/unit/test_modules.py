# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is said of the modules is said of all of them alike, and is true."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.lab.server.plugins.module_utils._core.items import ItemResult
from ansible_collections.lab.server.plugins.module_utils._core.policy import Limits, Share, User

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "plugins/modules").glob("*.py"))
LISTS = [name for name in NAMES if not name.endswith("_info")]
# What the documentation of each module says in its own words.
OWN_WORDS = {"name", "actions"}


def _text(name: str, part: str) -> Any:
    module = import_module(f"ansible_collections.lab.server.plugins.modules.{name}")
    return yaml.safe_load(getattr(module, part))


def _groups() -> dict[str, set[str]]:
    """Return the modules of each action group, with those of the groups that it extends."""
    groups = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["action_groups"]
    found = {name: {item for item in items if isinstance(item, str)} for name, items in groups.items()}
    for name, items in groups.items():
        for item in items:
            if isinstance(item, dict):
                found[name] |= set().union(*(found[other] for other in item["metadata"]["extend_group"]))
    return found


def test_the_group_all_has_every_module() -> None:
    assert _groups()["all"] == set(NAMES)


def test_the_group_docker_has_the_modules_that_talk_to_docker() -> None:
    talking = {
        name
        for name in NAMES
        if "lab.server.projects.docker" in _text(name, "DOCUMENTATION")["extends_documentation_fragment"]
    }
    assert _groups()["docker"] == talking


@pytest.mark.parametrize("name", NAMES)
def test_every_module_says_what_it_promises(name: str) -> None:
    used = _text(name, "DOCUMENTATION")["extends_documentation_fragment"]
    attributes = [item for item in used if item.startswith("lab.server.attributes")]
    wanted = ["lab.server.attributes"]
    if name in _groups()["docker"]:
        wanted.insert(0, "lab.server.attributes.docker")
    if name not in LISTS:
        wanted.insert(0, "lab.server.attributes.info")
    assert attributes == wanted


@pytest.mark.parametrize("name", LISTS)
def test_the_results_are_told_in_the_same_words_everywhere(name: str) -> None:
    """Ansible has no fragments for RETURN, so the text stands in every module; here it is held together."""

    def shared(of: str) -> dict[str, Any]:
        results = _text(of, "RETURN")["results"]
        fields = {
            key: results["contains"][key]
            for key in ItemResult("", failed=True).as_dict()
            if key not in OWN_WORDS
        }
        return {**{key: results[key] for key in ("description", "returned", "type", "elements")}, **fields}

    assert shared(name) == shared("units")


@pytest.mark.parametrize("name", LISTS)
def test_every_field_of_a_result_is_documented(name: str) -> None:
    documented = _text(name, "RETURN")["results"]["contains"]
    item = ItemResult("", failed=True, message="why").as_dict()
    assert set(item) <= set(documented)
    kinds = {"str": str, "bool": bool, "list": list, "dict": dict}
    assert all(isinstance(value, kinds[documented[key]["type"]]) for key, value in item.items())


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_of_the_module_itself(name: str) -> None:
    tasks = _text(name, "EXAMPLES")
    assert any(f"lab.server.{name}" in task for task in tasks)
    assert all(task.get("name") for task in tasks)


@pytest.mark.parametrize(
    ("module", "path", "record", "kept"),
    [
        ("users", ("users", "limits"), Limits, set()),
        # The variables of containers may be secrets, which the filter keeps from the module.
        ("users", ("users",), User, {"environment"}),
        ("shares", ("shares",), Share, set()),
    ],
)
def test_a_module_takes_every_key_of_the_policy_that_it_is_given(
    module: str, path: tuple[str, ...], record: type, kept: set[str]
) -> None:
    options = _text(module, "DOCUMENTATION")["options"]
    for key in path:
        options = options[key]["suboptions"]
    assert {field.name for field in fields(record)} - set(options) == kept
