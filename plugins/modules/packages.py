#!/usr/bin/python
# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring packages of the distribution to what is declared."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: packages
short_description: Packages of the distribution, without bindings on the server
version_added: 0.1.0
author: lab.server contributors (@lab-server)
description:
  - Installs and removes packages by apt-get or dnf, without those that are merely recommended.
  - Needs no C(python3-apt), so that a check on a bare machine tells what would be installed.
  - An unchanged run costs one query of the package database.
extends_documentation_fragment:
  - lab.server.attributes
options:
  present:
    description: Packages that are installed.
    type: list
    elements: str
    default: []
  versions:
    description:
      - The versions of some of O(present), such as V(1.18.0), which is there in any revision of the
        distribution's. One that is installed is changed, up or down.
      - With apt alone.
    type: dict
    default: {}
  absent:
    description: Packages that are not installed.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: The tools of quotas are installed
  lab.server.packages:
    present:
      - quota
      - acl
    absent:
      - uidmap
"""

RETURN = r"""
results:
  description: What was done to each item, or in check mode what would be done.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The package.
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
    - name: quota
      changed: false
      actions: []
      reason: ""
      diff: {}
"""

from typing import Any

from ansible_collections.lab.server.plugins.module_utils._ansible import build_module, run_items
from ansible_collections.lab.server.plugins.module_utils._core.packages import reconcile


def main() -> None:
    """Run the module."""
    module = build_module(
        {
            "present": {"type": "list", "elements": "str", "default": []},
            "versions": {"type": "dict", "default": {}},
            "absent": {"type": "list", "elements": "str", "default": []},
        }
    )
    given: dict[str, Any] = module.params
    versions = {str(name): str(version) for name, version in given["versions"].items()}
    run_items(module, lambda: reconcile(given["present"], given["absent"], versions, check=module.check_mode))


if __name__ == "__main__":
    main()
