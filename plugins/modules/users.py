#!/usr/bin/python
# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring the accounts of lab users to what is declared."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: users
short_description: Accounts, groups, homes, ssh keys and slices of lab users
version_added: 0.1.0
author: lab.server contributors (@lab-server)
description:
  - Makes lab groups and lab users with a private group, a private home, ssh keys and a systemd slice.
  - Lab users get no subordinate ids and no password, and are kept out of groups that make root of
    their members.
  - All users are compared in one call, whose time follows what changes.
  - A name, a number or a home that belongs to somebody else is an error, and nothing is changed.
extends_documentation_fragment:
  - lab.server.attributes
options:
  gid:
    description: The number of the group C(lab), in which every lab user is.
    type: int
    default: 3000
  groups:
    description: The lab groups.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The name of the group.
        type: str
        required: true
      gid:
        description: The number of the group.
        type: int
        required: true
      limits:
        description: The limits that its users inherit, resolved already in O(users[].limits).
        type: dict
      quota:
        description: The quota that its users inherit, resolved already in O(users[].quota).
        type: dict
  users:
    description: The lab users. An account that is not in the list is left alone.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The name of the account.
        type: str
        required: true
      uid:
        description:
          - The number of the account and of its private group.
          - Choose one that was never used on this server.
        type: int
        required: true
      group:
        description: The user's lab group.
        type: str
        required: true
      groups:
        description: Further lab groups of the user.
        type: list
        elements: str
        default: []
      comment:
        description: The full name. Empty leaves what is there.
        type: str
        default: ""
      account:
        description:
          - V(local) accounts are made and kept as declared.
          - One that is V(existing), such as that of LDAP, is neither made nor changed nor closed. It is put
            into the lab groups, and has a home, keys if there are any, and a slice.
        type: str
        choices:
          - local
          - existing
        default: local
      main_group:
        description: The number of the main group of an account that is V(existing); 0 for the user's own.
        type: int
        default: 0
      ssh_keys:
        description:
          - Public keys that open the account, one an item.
          - They are kept in a file of root's below C(/etc/ssh/lab_authorized_keys).
        type: list
        elements: str
        default: []
      limits:
        description: What all containers of the user may use together, held by a systemd slice.
        type: dict
        required: true
        suboptions:
          containers:
            description: How many containers. Held by the modules of containers, not by the slice.
            type: int
          cpus:
            description: How many processor cores.
            type: float
            required: true
          memory:
            description: How much memory, in bytes or with C(k), C(m), C(g) or C(t).
            type: str
            required: true
          pids:
            description: How many processes and threads.
            type: int
            required: true
          shm:
            description: How much shared memory. Held by the modules of containers, not by the slice.
            type: str
          gpus:
            description: How many GPUs. Held by the modules of containers, not by the slice.
            type: int
          layers_size:
            description: What containers may hold beyond their images. Held by M(lab.server.quotas).
            type: str
          layers_files:
            description: How many files and folders that may be. Held by M(lab.server.quotas).
            type: int
          images_size:
            description: What the images of projects may hold together. Held by builds.
            type: str
          data_size:
            description: What may belong to the user in the shared data. Held by M(lab.server.quotas).
            type: str
          run_hours:
            description: For how long a container may run. Held by a timer of the role lifecycle.
            type: int
          idle_hours:
            description: For how long a container may do nothing. Held by the same timer.
            type: int
      quota:
        description:
          - The disk quota, which M(lab.server.quotas) sets.
          - Accepted so that one list serves both modules.
        type: dict
  closed_groups:
    description: Groups that must have no members, because whoever is in them is root on the server.
    type: list
    elements: str
    default: []
  mounted:
    description: Whether C(/home) has a file system of its own, without which no home is made.
    type: bool
    default: false
  private_tmp:
    description:
      - Whether lab users have C(/tmp) and C(/var/tmp) of their own, below C(/home/.tmp) and within their
        quota, from their next session on (pam_namespace(8), through pam-auth-update(8)).
      - Without it nothing of that kind is made or removed.
    type: bool
"""

EXAMPLES = r"""
- name: Alice has an account
  lab.server.users:
    gid: 3000
    groups:
      - name: students
        gid: 3101
    users:
      - name: alice
        uid: 2001
        group: students
        ssh_keys:
          - ssh-ed25519 AAAA... alice@example.org
        limits:
          cpus: 2
          memory: 4g
          pids: 512
    closed_groups:
      - docker
"""

RETURN = r"""
results:
  description: What was done to each item, or in check mode what would be done.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description:
        - The user, C(group NAME), the slice of all users, or C(private /tmp).
        - C(systemd) where an earlier run was cut off before systemd had read what it wrote.
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
from ansible_collections.lab.server.plugins.module_utils._core import privatetmp
from ansible_collections.lab.server.plugins.module_utils._core.accounts import from_options, reconcile

_LIMITS = {
    "containers": {"type": "int"},
    "cpus": {"type": "float", "required": True},
    "memory": {"type": "str", "required": True},
    "pids": {"type": "int", "required": True},
    "shm": {"type": "str"},
    "gpus": {"type": "int"},
    # Held by other modules, and taken so that one list serves all of them.
    "layers_size": {"type": "str"},
    "layers_files": {"type": "int"},
    "images_size": {"type": "str"},
    "data_size": {"type": "str"},
    "run_hours": {"type": "int"},
    "idle_hours": {"type": "int"},
}
_USER = {
    "name": {"type": "str", "required": True},
    "uid": {"type": "int", "required": True},
    "group": {"type": "str", "required": True},
    "groups": {"type": "list", "elements": "str", "default": []},
    "comment": {"type": "str", "default": ""},
    "account": {"type": "str", "choices": ["local", "existing"], "default": "local"},
    "main_group": {"type": "int", "default": 0},
    "ssh_keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
    "limits": {"type": "dict", "required": True, "options": _LIMITS},
    "quota": {"type": "dict"},
}
_GROUP = {
    "name": {"type": "str", "required": True},
    "gid": {"type": "int", "required": True},
    "limits": {"type": "dict"},
    "quota": {"type": "dict"},
}


def main() -> None:
    """Run the module."""
    module = build_module(
        {
            "gid": {"type": "int", "default": 3000},
            "groups": {"type": "list", "elements": "dict", "default": [], "options": _GROUP},
            "users": {"type": "list", "elements": "dict", "default": [], "options": _USER},
            "closed_groups": {"type": "list", "elements": "str", "default": []},
            "mounted": {"type": "bool", "default": False},
            "private_tmp": {"type": "bool"},
        }
    )
    given: dict[str, Any] = module.params

    def work() -> Any:
        desired = from_options(given["gid"], given["groups"], given["users"], given["closed_groups"])
        done = reconcile(desired, mounted=given["mounted"], check=module.check_mode)
        if given["private_tmp"] is not None:
            done.append(privatetmp.reconcile(wanted=given["private_tmp"], check=module.check_mode))
        return done

    run_items(module, work, alone=True)


if __name__ == "__main__":
    main()
