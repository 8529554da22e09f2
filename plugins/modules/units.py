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
  - Restarts or reloads the units of O(current) that have not read their files as these are now. No handler is
    needed, which would be lost with a run that is cut off.
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
  current:
    description:
      - Units that run by their files as these are now, and are restarted or reloaded if they do not.
      - One that does not run is left alone, since it reads them when it starts. Let it run by O(running).
      - What a unit has read is noted below C(/run/lab-server). Of a start that is not noted, such as the one
        at boot, the times of the files tell.
    type: list
    elements: dict
    default: []
    suboptions:
      unit:
        description: The name of the unit.
        type: str
        required: true
      files:
        description: >-
          The files that it reads, by their whole paths. Those of O(units) are below C(/etc/systemd/system).
        type: list
        elements: path
        required: true
      reload:
        description: Whether a reload is enough for it to read them.
        type: bool
        default: false
      changing:
        description: >-
          Whether an earlier task has changed one of the files, or in a check would. A unit with
          O(current[].reload) is then reloaded whatever it has read; of others only a check needs to know.
        type: bool
        default: false
"""

EXAMPLES = r"""
- name: Docker waits for its disk
  lab.server.units:
    units:
      docker.service.d/disk.conf: |
        [Unit]
        RequiresMountsFor=/var/lib/docker

- name: The ssh server knows the settings that an earlier task wrote
  lab.server.units:
    current:
      - unit: ssh.service
        files: [/etc/ssh/sshd_config.d/lab.conf]
        reload: true
"""

RETURN = r"""
results:
  description: What was done to each item, or in check mode what would be done.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: >-
        The name of the unit file, or of a unit with what is to hold of it. C(systemd) where an earlier run
        was cut off before systemd had read what it wrote.
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
from ansible_collections.lab.server.plugins.module_utils._core.loaded import Reads
from ansible_collections.lab.server.plugins.module_utils._core.units import reconcile

_CURRENT = {
    "unit": {"type": "str", "required": True},
    "files": {"type": "list", "elements": "path", "required": True},
    "reload": {"type": "bool", "default": False},
    "changing": {"type": "bool", "default": False},
}


def main() -> None:
    """Run the module."""
    module = build_module(
        {
            "units": {"type": "dict", "default": {}},
            "running": {"type": "list", "elements": "str", "default": []},
            "current": {"type": "list", "elements": "dict", "default": [], "options": _CURRENT},
        }
    )
    units: dict[str, str] = module.params["units"]
    running: list[str] = module.params["running"]
    current = [Reads(**{**one, "files": tuple(one["files"])}) for one in module.params["current"]]
    run_items(module, lambda: reconcile(units, running, current, check=module.check_mode), alone=True)


if __name__ == "__main__":
    main()
