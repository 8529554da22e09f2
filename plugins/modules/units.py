#!/usr/bin/python
# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring unit files of systemd to what is declared."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: units
short_description: Unit files, drop-ins and running units of systemd
version_added: 0.1.0
author: lab.server contributors (@lab-server)
description:
  - Writes unit files and drop-ins below C(/etc/systemd/system), all in one call.
  - Lets systemd read them anew once, and only if one has changed.
  - Enables and starts the units of O(running), and no others.
extends_documentation_fragment:
  - lab.server.attributes
options:
  units:
    description: The text of each unit file, by its name such as C(x.service) or C(x.service.d/y.conf).
    type: dict
    default: {}
  running:
    description: >-
      Names of units that run, now and after the next boot. One without C([Install]) is started, not enabled:
      another unit wants it.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Docker waits for its disk
  lab.server.units:
    units:
      docker.service.d/disk.conf: |
        [Unit]
        RequiresMountsFor=/var/lib/docker
"""

RETURN = r"""
results:
  description: What was done to each item, or in check mode what would be done.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The name of the unit file.
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
    - name: docker.service.d/disk.conf
      changed: false
      actions: []
      reason: ""
      diff: {}
"""

from ansible_collections.lab.server.plugins.module_utils._ansible import build_module, run_items
from ansible_collections.lab.server.plugins.module_utils._core.units import reconcile


def main() -> None:
    """Run the module."""
    module = build_module(
        {
            "units": {"type": "dict", "default": {}},
            "running": {"type": "list", "elements": "str", "default": []},
        }
    )
    units: dict[str, str] = module.params["units"]
    running: list[str] = module.params["running"]
    run_items(module, lambda: reconcile(units, running, check=module.check_mode))


if __name__ == "__main__":
    main()
