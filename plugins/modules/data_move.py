#!/usr/bin/python
# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Move the shared data to another file system, step by step."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: data_move
short_description: The shared data move to another file system
version_added: 0.1.0
author: lab.server contributors (@lab-server)
description:
  - Copies the shared data to another file system and compares them, by SHA-256 and with owners, modes, times,
    links, access control lists and extended attributes; switches to it; and keeps the old one, read-only.
  - Most is copied while everybody works. For the rest all containers of the lab are stopped, and started
    again.
  - Says no before anything is touched if the new device is missing, in use, not empty, too small, or cannot
    hold quotas. The limits of shares and users are set on it before it is used.
  - What was done is noted on the server; a run that was broken off is repeated. Does nothing where the data
    are on the device already.
  - Needs rsync on the server.
extends_documentation_fragment:
  - lab.server.attributes.docker
  - lab.server.attributes
  - lab.server.projects.policy
  - lab.server.projects.docker
options:
  to:
    description: The file system that the data are declared to be on.
    type: dict
    required: true
    suboptions:
      mount:
        description: Where it is mounted, which is where the data are now.
        type: path
        default: /srv/data
      device:
        description: A path below C(/dev), C(UUID=) or C(LABEL=).
        type: str
        required: true
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
  release:
    description:
      - Whether to take the old file system from the server, which an earlier run kept.
      - Its disk is not written; what is on it stays.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: The shared data are on the new disk
  lab.server.data_move:
    to:
      device: /dev/disk/by-id/virtio-lab-archive
      create: true

- name: The old disk is not needed any more
  lab.server.data_move:
    to:
      device: /dev/disk/by-id/virtio-lab-archive
    release: true
"""

RETURN = r"""
results:
  description: What was done to each item, or in check mode what would be done.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The step. Those after one that failed are left out.
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
      description: What else a person should know, such as which container did not start.
      type: list
      elements: str
      returned: when there is something
    failed:
      description: Whether the item failed. The others are carried out all the same.
      type: bool
      returned: when the item failed
    msg:
      description: Why the item failed.
      type: str
      returned: when the item failed
  sample:
    - name: keep
      changed: true
      actions: [keep the old file system, read-only and for root alone]
      reason: the shared data move
      diff: {}
"""

from typing import Any

from ansible_collections.lab.server.plugins.module_utils._ansible import build_module, run_items
from ansible_collections.lab.server.plugins.module_utils._core.datamove import move
from ansible_collections.lab.server.plugins.module_utils._core.policy import Filesystem
from ansible_collections.lab.server.plugins.module_utils._projects import DOCKER, POLICY, engine_of, policy_of

_TO = {
    "mount": {"type": "path", "default": "/srv/data"},
    "device": {"type": "str", "required": True},
    "fstype": {"type": "str", "choices": ["ext4", "xfs"], "default": "ext4"},
    "options": {"type": "list", "elements": "str", "default": []},
    "create": {"type": "bool", "default": False},
}


def main() -> None:
    """Run the module."""
    module = build_module(
        {
            "to": {"type": "dict", "required": True, "options": _TO},
            "release": {"type": "bool", "default": False},
            **POLICY,
            **DOCKER,
        }
    )
    given: dict[str, Any] = module.params

    def work() -> Any:
        to = Filesystem(**{**given["to"], "role": "data", "options": tuple(given["to"]["options"])})
        engine = engine_of(given, check=module.check_mode)
        return move(engine, policy_of(given), to, release=given["release"], check=module.check_mode)

    run_items(module, work)


if __name__ == "__main__":
    main()
