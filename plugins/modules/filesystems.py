#!/usr/bin/python
# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring file systems to what is declared."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: filesystems
short_description: File systems made, in fstab, mounted and enforcing quotas
version_added: 0.1.0
author: lab.server contributors (@lab-server)
description:
  - Makes file systems on blank devices, keeps their lines in C(/etc/fstab), mounts them, and sees
    that they enforce user and project quotas.
  - Says no before anything is touched if a device is missing, holds something else, or cannot hold
    quotas, or if a mount would hide files.
  - C(/etc/fstab) is replaced in one step, so that it is whole at every instant.
extends_documentation_fragment:
  - lab.server.attributes
options:
  filesystems:
    description: The file systems.
    type: list
    elements: dict
    required: true
    suboptions:
      role:
        description:
          - What the file system is for.
          - Those for V(home) and V(data) are mounted nosuid and nodev.
        type: str
        choices: [home, data, docker]
        required: true
      mount:
        description: Where it is mounted.
        type: path
        required: true
      device:
        description:
          - A path below C(/dev), C(UUID=) or C(LABEL=).
          - Without one, somebody else mounts it; it is only checked.
        type: str
        default: ""
      fstype:
        description: The kind of file system. Others cannot hold the quotas.
        type: str
        choices: [ext4, xfs]
        default: ext4
      options:
        description: Further mount options.
        type: list
        elements: str
        default: []
      create:
        description:
          - Whether to make the file system if the device is blank.
          - A device with content is never touched.
        type: bool
        default: false
"""

EXAMPLES = r"""
- name: The homes have a file system of their own
  lab.server.filesystems:
    filesystems:
      - role: home
        mount: /home
        device: /dev/disk/by-id/virtio-lab-home
        fstype: ext4
        create: true
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
        - The mount point.
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
    - name: /home
      changed: false
      actions: []
      reason: ""
      diff: {}
"""

from typing import Any

from ansible_collections.lab.server.plugins.module_utils._ansible import build_module, run_items
from ansible_collections.lab.server.plugins.module_utils._core.policy import Filesystem
from ansible_collections.lab.server.plugins.module_utils._core.storage import reconcile

_FILESYSTEM = {
    "role": {"type": "str", "choices": ["home", "data", "docker"], "required": True},
    "mount": {"type": "path", "required": True},
    "device": {"type": "str", "default": ""},
    "fstype": {"type": "str", "choices": ["ext4", "xfs"], "default": "ext4"},
    "options": {"type": "list", "elements": "str", "default": []},
    "create": {"type": "bool", "default": False},
}


def main() -> None:
    """Run the module."""
    module = build_module(
        {"filesystems": {"type": "list", "elements": "dict", "required": True, "options": _FILESYSTEM}}
    )
    wanted: list[dict[str, Any]] = module.params["filesystems"]

    def work() -> Any:
        declared = [Filesystem(**{**one, "options": tuple(one["options"])}) for one in wanted]
        return reconcile(declared, check=module.check_mode)

    run_items(module, work, alone=True)


if __name__ == "__main__":
    main()
