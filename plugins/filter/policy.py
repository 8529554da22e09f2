# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filter that turns the inventory's variables into the policy of a server, or says what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from ansible.errors import AnsibleFilterError
from ansible_collections.lab.server.plugins.module_utils._core import directory as directories
from ansible_collections.lab.server.plugins.module_utils._core import formeruids, userfiles
from ansible_collections.lab.server.plugins.module_utils._core.errors import LabError
from ansible_collections.lab.server.plugins.module_utils._core.policy import (
    PackageCache,
    dump,
    from_inventory,
)


def directory(variables: Mapping[str, Any], folder: str = "", groups: str = "") -> dict[str, list[str]]:
    """Return the names of ``groups`` and ``users`` that a server is to be asked for, by getent(1).

    ``groups`` is what it answered for the groups. A mistake is left to the filter ``policy``.
    """
    lab = {key: variables[key] for key in variables if isinstance(key, str) and key.startswith("lab_")}
    try:
        return {
            "groups": [one.name for one in directories.groups(lab)],
            "users": directories.asked(lab, userfiles.read(lab.get("lab_users_from"), folder), groups),
        }
    except LabError:
        return {"groups": [], "users": []}


def policy(
    variables: Mapping[str, Any],
    strict: bool = True,
    folder: str = "",
    groups: str = "",
    accounts: str = "",
    former: str = "",
) -> dict[str, Any]:
    """Return what the roles are handed, checked as a whole before anything is touched.

    ``folder`` is where relative paths of ``lab_users_from`` begin; ``groups`` and ``accounts`` are what the
    server answered to ``getent group`` and ``getent passwd`` for the names of the filter ``directory``, and
    ``former`` is its record of the uids of who was offboarded.
    What is wrong raises; with ``strict`` false it is the text under the key ``problem``, and nothing else is
    there, so that a playbook can say the one sentence without all that Ansible puts around an exception.
    """
    lab = {key: variables[key] for key in variables if isinstance(key, str) and key.startswith("lab_")}
    try:
        rows = userfiles.read(lab.get("lab_users_from"), folder)
        merged = directories.merge(lab, rows, groups, accounts, formeruids.parse(former or None))
        checked, keys = from_inventory(merged.variables, merged.rows)
    except LabError as error:
        if strict:
            raise AnsibleFilterError(str(error)) from None
        return {"problem": str(error)}
    plain = dump(checked)
    return {
        "problem": "",
        "notes": list(merged.notes),
        "policy": plain,
        "gid": checked.lab_gid,
        "data_root": checked.data_root,
        "docker_root": checked.docker_root,
        "filesystems": [{"role": role, **values} for role, values in plain["filesystems"].items()],
        "groups": [_for_roles(group) for group in plain["groups"]],
        "users": [{**_for_roles(user), "ssh_keys": list(keys[user["name"]])} for user in plain["users"]],
        "shares": plain["shares"],
        "base_images": plain["base_images"],
        "projects": plain["projects"],
        "package_cache": _package_cache(checked.package_cache),
    }


def _for_roles(one: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group or user without the environment of containers: accounts have none of it."""
    return {key: value for key, value in one.items() if key != "environment"}


def _package_cache(cache: PackageCache | None) -> dict[str, Any] | None:
    """Return what the roles need of it: the address alone, the bridge's with its prefix, and its network."""
    if cache is None:
        return None
    return {
        "index": cache.index,
        "files": list(cache.files),
        "apt": list(cache.apt),
        "size": str(cache.size),
        "port": cache.port,
        "address": cache.host,
        "bridge": cache.address,
        "network": cache.network,
    }


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"policy": policy, "directory": directory}
