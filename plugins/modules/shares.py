#!/usr/bin/python
# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring shared folders to what is declared."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: shares
short_description: Shared folders with owner, mode, setgid and default ACL
version_added: 0.1.0
author: lab.server contributors (@lab-server)
description:
  - Makes the folders of shares below a data root that only root can change.
  - Only the folders themselves are set; what is in them belongs to those who made it.
  - A share with a size has a project quota; all that is in it is given to that project when it gets one.
extends_documentation_fragment:
  - lab.server.attributes
options:
  path:
    description: The data root.
    type: path
    default: /srv/data
  mounted:
    description: Whether the data root has a file system of its own, without which nothing is made.
    type: bool
    default: false
  shares:
    description: The shares. A folder that is not in the list is left alone.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The name of the folder.
        type: str
        required: true
      access:
        description:
          - V(read-only) lets everybody read and O(shares[].group), if there is one, publish on the host.
          - V(group) lets the members of O(shares[].group) read and write, and nobody else.
          - V(admin) is root's alone.
        type: str
        choices: [read-only, group, admin]
        required: true
      group:
        description: The group that writes.
        type: str
        default: ""
      size:
        description:
          - How many bytes its files may hold together, or with C(k), C(m), C(g) or C(t); V(0) is no limit.
          - A size below what is there is set with a warning; nothing is deleted.
        type: str
        default: "0"
      description:
        description: A line for the users who may use it; nothing is made of it here.
        type: str
        default: ""
"""

EXAMPLES = r"""
- name: The shared folders are there
  lab.server.shares:
    path: /srv/data
    shares:
      - name: datasets
        access: read-only
      - name: vision
        access: group
        group: researchers
"""

RETURN = r"""
results:
  description: What was done to each item, or in check mode what would be done.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The share.
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
      description: Sentences that are told as warnings, as where more is there than a new size lets.
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
    - name: datasets
      changed: false
      actions: []
      reason: ""
      diff: {}
"""

from typing import Any

from ansible_collections.lab.server.plugins.module_utils._ansible import build_module, run_items
from ansible_collections.lab.server.plugins.module_utils._core.shares import from_options, reconcile

_SHARE = {
    "name": {"type": "str", "required": True},
    "access": {"type": "str", "choices": ["read-only", "group", "admin"], "required": True},
    "group": {"type": "str", "default": ""},
    "size": {"type": "str", "default": "0"},
    "description": {"type": "str", "default": ""},
}


def main() -> None:
    """Run the module."""
    module = build_module(
        {
            "path": {"type": "path", "default": "/srv/data"},
            "mounted": {"type": "bool", "default": False},
            "shares": {"type": "list", "elements": "dict", "required": True, "options": _SHARE},
        }
    )
    given: dict[str, Any] = module.params

    def work() -> Any:
        shares = [from_options(share) for share in given["shares"]]
        return reconcile(given["path"], shares, mounted=given["mounted"], check=module.check_mode)

    run_items(module, work, alone=True)


if __name__ == "__main__":
    main()
