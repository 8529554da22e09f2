#!/usr/bin/python
# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring disk quotas to what is declared."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: quotas
short_description: Disk quotas of lab users
version_added: 0.1.0
author: lab.server contributors (@lab-server)
description:
  - Sets the user quota, which holds, and the project quota of the same number, which makes C(df)
    tell the truth in a container.
  - Both are compared exactly, for all users in one call, and hold at once; nobody needs to log in again.
  - Works on ext4 and XFS through quotactl(2).
  - Sets on Docker's and on the shared file system what O(users[].limits) says of them, too.
  - A limit below what is used already is set with a warning that names the user; nothing is ever deleted.
extends_documentation_fragment:
  - lab.server.attributes
options:
  path:
    description: A path on the file system of the homes.
    type: path
    default: /home
  project:
    description: Whether to set the project quota, too.
    type: bool
    default: true
  docker_path:
    description:
      - A path on Docker's file system, where containers keep what they hold beyond their images.
      - Without one no limits are set there.
    type: path
  data_path:
    description: A path on the file system of the shared data. Without one no limits are set there.
    type: path
  grace_days:
    description:
      - For how many days a soft limit may be exceeded. Who exceeds one already keeps the time that was given.
      - Without it the grace is left as it is.
    type: int
  default:
    description:
      - The limits of uids that have none of their own. XFS alone has such a default.
      - Empty, and without it, there are none.
    type: dict
    suboptions:
      soft:
        description: Bytes that may be exceeded for the grace time, or with C(k), C(m), C(g) or C(t).
        type: str
      hard:
        description: Bytes that cannot be exceeded, or with C(k), C(m), C(g) or C(t).
        type: str
      inodes_soft:
        description: Files and folders that may be exceeded for the grace time.
        type: int
      inodes_hard:
        description: Files and folders that cannot be exceeded.
        type: int
  overcommit:
    description:
      - How many times its size may be promised of the file system of the homes. More is told in a warning.
      - V(0) tells nothing.
    type: float
    default: 0
  users:
    description: The users. The quota of a user who is not in the list is left alone.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The name of the user, for the results.
        type: str
        required: true
      uid:
        description: The number of the user, and of the user's project.
        type: int
        required: true
      quota:
        description: The limits; what is not given or 0 is without limit.
        type: dict
        required: true
        suboptions:
          soft:
            description: Bytes that may be exceeded for the grace time, or with C(k), C(m), C(g) or C(t).
            type: str
          hard:
            description: Bytes that cannot be exceeded, or with C(k), C(m), C(g) or C(t).
            type: str
          inodes_soft:
            description: Files and folders that may be exceeded for the grace time.
            type: int
          inodes_hard:
            description: Files and folders that cannot be exceeded.
            type: int
      group:
        description: Taken by M(lab.server.users). Accepted, as are the next, so that one list serves both.
        type: str
      groups:
        description: See O(users[].group).
        type: list
        elements: str
      comment:
        description: See O(users[].group).
        type: str
      account:
        description: See O(users[].group).
        type: str
      main_group:
        description: See O(users[].group).
        type: int
      ssh_keys:
        description: See O(users[].group).
        type: list
        elements: str
      limits:
        description:
          - C(layers_size) (bytes) and C(layers_files) are the user quota at O(docker_path); C(data_size)
            (bytes) is that at O(data_path). What is not given or 0 is without limit.
        type: dict
"""

EXAMPLES = r"""
- name: Alice has 10 GiB
  lab.server.quotas:
    path: /home
    users:
      - name: alice
        uid: 2001
        quota:
          soft: 9g
          hard: 10g
          inodes_soft: 900000
          inodes_hard: 1000000
"""

RETURN = r"""
results:
  description: What was done to each item, or in check mode what would be done.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The user, and at the end C(everybody), for what all users of the homes have in common.
      type: str
      returned: always
    changed:
      description: Whether the item differed.
      type: bool
      returned: always
    actions:
      description: What was done, in words.
      type: list
      elements: str
      returned: always
    reason:
      description: Why it was done; empty if nothing was.
      type: str
      returned: always
    diff:
      description: The keys C(before) and C(after) with what differed.
      type: dict
      returned: always
    notes:
      description: Sentences that are told as warnings, as where more is used than a new limit lets.
      type: list
      elements: str
      returned: when there are any
    failed:
      description: Whether the item failed. The others are carried out all the same.
      type: bool
      returned: when the item failed
    msg:
      description: Why the item failed.
      type: str
      returned: when the item failed
  sample:
    - name: alice
      changed: false
      actions: []
      reason: ""
      diff: {}
"""

from typing import Any

from ansible_collections.lab.server.plugins.module_utils._ansible import build_module, run_items
from ansible_collections.lab.server.plugins.module_utils._core.policy import Quota
from ansible_collections.lab.server.plugins.module_utils._core.quota import (
    NO_LIMIT,
    Wanted,
    quota_from_options,
)
from ansible_collections.lab.server.plugins.module_utils._core.quotaset import Common, Place, reconcile
from ansible_collections.lab.server.plugins.module_utils._core.sizes import parse_size

_QUOTA = {
    "soft": {"type": "str"},
    "hard": {"type": "str"},
    "inodes_soft": {"type": "int"},
    "inodes_hard": {"type": "int"},
}
_USER = {
    "name": {"type": "str", "required": True},
    "uid": {"type": "int", "required": True},
    "quota": {"type": "dict", "required": True, "options": _QUOTA},
    "group": {"type": "str"},
    "groups": {"type": "list", "elements": "str"},
    "comment": {"type": "str"},
    "account": {"type": "str"},
    "main_group": {"type": "int"},
    "ssh_keys": {"type": "list", "elements": "str", "no_log": False},
    "limits": {"type": "dict"},
}


def _at(user: dict[str, Any], size: str, files: str = "") -> Wanted:
    """Return what a user may hold on a further file system: no soft limit, as nobody is warned there."""
    limits = user["limits"] or {}
    hard = parse_size(limits.get(size) or 0, f"limits.{size} of {user['name']}")
    return Wanted(user["name"], user["uid"], Quota(0, hard, 0, int(limits.get(files) or 0) if files else 0))


def _places(given: dict[str, Any]) -> list[Place]:
    places = []
    if given["docker_path"]:
        held = [_at(user, "layers_size", "layers_files") for user in given["users"]]
        what = "the layers of containers"
        places.append(Place(given["docker_path"], "Docker quota", what, "limits.layers_size", held))
    if given["data_path"]:
        held = [_at(user, "data_size") for user in given["users"]]
        places.append(Place(given["data_path"], "data quota", "shared data", "limits.data_size", held))
    return places


def main() -> None:
    """Run the module."""
    module = build_module(
        {
            "path": {"type": "path", "default": "/home"},
            "project": {"type": "bool", "default": True},
            "docker_path": {"type": "path"},
            "data_path": {"type": "path"},
            "grace_days": {"type": "int"},
            "default": {"type": "dict", "options": _QUOTA},
            "overcommit": {"type": "float", "default": 0},
            "users": {"type": "list", "elements": "dict", "required": True, "options": _USER},
        }
    )
    given: dict[str, Any] = module.params

    def work() -> Any:
        wanted = [
            Wanted(user["name"], user["uid"], quota_from_options(user["quota"], user["name"]))
            for user in given["users"]
        ]
        # Ansible fills an empty mapping with all its keys.
        default = quota_from_options(given["default"] or {}, "default")
        common = Common(given["grace_days"], default if default != NO_LIMIT else None, given["overcommit"])
        return reconcile(
            given["path"],
            wanted,
            project=given["project"],
            common=common,
            places=_places(given),
            check=module.check_mode,
        )

    run_items(module, work, alone=True)


if __name__ == "__main__":
    main()
