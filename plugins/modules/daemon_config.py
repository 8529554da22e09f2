#!/usr/bin/python
# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring the configuration of Docker Engine to what is declared."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: daemon_config
short_description: Settings of Docker Engine, merged and validated
version_added: 0.1.0
author: lab.server contributors (@lab-server)
description:
  - Merges settings into C(/etc/docker/daemon.json) and lets the installed engine judge the result
    before the file is replaced.
  - Where the engine is older than 23.0 or not installed, the names of the settings are checked.
  - Does not restart the engine, which reads the file when it starts. O(lab.server.units#module:current) does,
    after an interrupted play, too.
  - Of the certificates that the engine trusts, which it reads when it starts as well, it tells whether they
    are newer than the engine.
extends_documentation_fragment:
  - lab.server.attributes
options:
  settings:
    description:
      - The settings, as in C(daemon.json). Mappings are merged key by key, lists are taken whole.
      - A setting with the value V(null) is removed.
      - Without it the file is left as it is.
    type: dict
  certificates:
    description:
      - The file of all certificates that the server trusts.
      - Reports a change when the engine started before it was written and can be restarted while its
        containers run on (C(live-restore)). Without that there is a warning instead.
    type: path
  certificates_renewed:
    description: Whether that file has just been written, or would have been if this were no check.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Docker keeps its logs small
  lab.server.daemon_config:
    settings:
      log-driver: json-file
      log-opts:
        max-size: 10m
        max-file: "3"
"""

RETURN = r"""
results:
  description: What was done to each item, or in check mode what would be done.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The path of the file.
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
      description: What else a person should know.
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
    - name: /etc/docker/daemon.json
      changed: false
      actions: []
      reason: ""
      diff: {}
"""

from typing import Any

from ansible_collections.lab.server.plugins.module_utils._ansible import build_module, run_items
from ansible_collections.lab.server.plugins.module_utils._core.daemon import reconcile, trust
from ansible_collections.lab.server.plugins.module_utils._core.items import ItemResult


def main() -> None:
    """Run the module."""
    module = build_module(
        {
            "settings": {"type": "dict"},
            "certificates": {"type": "path"},
            "certificates_renewed": {"type": "bool", "default": False},
        }
    )
    given: dict[str, Any] = module.params

    def found() -> list[ItemResult]:
        items: list[ItemResult] = []
        if given["settings"] is not None:
            items += reconcile(given["settings"], check=module.check_mode)
        if given["certificates"]:
            items.append(trust(given["certificates"], renewed=given["certificates_renewed"]))
        return items

    run_items(module, found, alone=True)


if __name__ == "__main__":
    main()
