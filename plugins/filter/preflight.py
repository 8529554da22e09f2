# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filters that check, on the controller alone, what else a run would find wrong when a role begins."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.yaml import yaml_load
from ansible.module_utils.errors import ArgumentTypeError, NoLogError
from ansible_collections.lab.server.plugins.module_utils._core import objectkeys
from ansible_collections.lab.server.plugins.module_utils._core.errors import InvalidInput, together
from ansible_collections.lab.server.plugins.module_utils._core.names import printable
from ansible_collections.lab.server.plugins.module_utils._core.policy import parse
from ansible_collections.lab.server.plugins.module_utils._core.userfiles import on_controller

_ROLES = Path(__file__).resolve().parents[2] / "roles"
_KINDS = {
    "bool": "true or false",
    "dict": "a mapping",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
}
# What the documentation of an option is marked with, such as C(auto).
_MARKUP = re.compile(r"\b[A-Z]+\(([^()]*)\)")
_BEGINS = "A relative path begins at the inventory's folder."


@lru_cache(maxsize=1)
def _options() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the role and the specification of each variable of the collection's roles."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for file in sorted(_ROLES.glob("*/meta/argument_specs.yml")):
        for entry in yaml_load(file.read_text(encoding="utf-8"))["argument_specs"].values():
            role = file.parent.parent.name
            found.update({name: (role, option) for name, option in entry["options"].items()})
    return found


def role_variables(names: Iterable[str]) -> list[str]:
    """Return those of the ``names`` of variables that are a role's of the collection."""
    known = _options()
    return [name for name in names if name in known]


def preflight(variables: Mapping[str, Any], policy: Mapping[str, Any], folder: str = "") -> str:
    """Return what is wrong with the ``variables`` of the roles, or with the files that they name, or ''.

    ``policy`` is what the filter ``policy`` made, and ``folder`` is where relative paths begin. A variable
    that is not there is not asked for: the playbook may hand it over.
    """
    mistakes = [*_wrong(variables)] or [*_missing(variables, policy["base_images"], folder)]
    if not mistakes and "lab_object_storage" in variables:
        try:
            objectkeys.read(variables.get("object_storage_credentials", {}), parse(policy["policy"]))
        except InvalidInput as mistake:
            mistakes = [mistake]
    return str(together(mistakes)) if mistakes else ""


def _wrong(variables: Mapping[str, Any]) -> Iterator[InvalidInput]:
    for name, (role, option) in _options().items():
        if name not in variables:
            continue
        # The validator takes the text of a list for one, but the role gets the text as it is.
        if isinstance(variables[name], str) and option["type"] in ("dict", "list"):
            yield InvalidInput(_expected(name, option), _hint(role, option))
            continue
        checked = ArgumentSpecValidator({name: option}).validate({name: _copied(variables[name])})
        for error in checked.errors.errors:
            # Of an element that is no mapping it says the same a second time, without the variable's name.
            if not isinstance(error, NoLogError):
                yield InvalidInput(_sentence(name, option, error), _hint(role, option))


def _copied(value: Any) -> Any:
    # The validator copies it, and Ansible's own containers with all facts of the server, which takes seconds.
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _sentence(name: str, option: Mapping[str, Any], error: Exception) -> str:
    """Return what is wrong; of a secret nothing is shown."""
    said = printable(str(error)).rstrip(".")
    if option.get("no_log") or (isinstance(error, ArgumentTypeError) and f"argument '{name}'" in said):
        return _expected(name, option)
    return f"{name}: {said}."


def _expected(name: str, option: Mapping[str, Any]) -> str:
    return f"{name}: expected {_KINDS.get(option['type'], 'text')}."


def _hint(role: str, option: Mapping[str, Any]) -> str:
    """Return what an option is for, in plain text, and where to read on."""
    text = option["description"]
    first = text if isinstance(text, str) else text[0]
    plain = _MARKUP.sub(r"\1", first)
    return f"{plain} See the role {role}."


def _missing(
    variables: Mapping[str, Any], images: Iterable[Mapping[str, Any]], folder: str
) -> Iterator[InvalidInput]:
    """Yield a mistake for each file of the controller that cannot be read."""
    named = [
        (f"{name}[{number}]", path)
        for name in ("lab_ca_certificates", "docker_ca_certificates")
        for number, path in enumerate(variables.get(name) or ())
    ]
    named += [(f"lab_base_images ({one['name']}): archive", one["archive"]) for one in images]
    named.append(("nvidia_container_toolkit_wheel", variables.get("nvidia_container_toolkit_wheel")))
    for where, path in named:
        place = on_controller(path, folder) if path else ""
        if place and not (os.path.isfile(place) and os.access(place, os.R_OK)):
            yield InvalidInput(
                f"{where}: there is no file {printable(place)} on this computer that can be read.", _BEGINS
            )


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"preflight": preflight, "role_variables": role_variables}
