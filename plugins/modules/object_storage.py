#!/usr/bin/python
# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Write the users' keys of object storage, each for its user's eyes alone."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: object_storage
short_description: The users' keys of object storage, each for its user's eyes alone
version_added: 0.1.0
author: lab.server contributors (@lab-server)
description:
  - Writes for each user who has keys a file of settings of rclone,
    C(/etc/lab-server/object-storage/<user>.conf). It belongs to root; the user's private group, and so this
    user alone, may read it.
  - Removes the files of users who are given no keys, and of those who are no lab users any more.
  - Neither results nor differences show a key.
options:
  policy:
    description:
      - The policy of the server, as the key C(policy) of what the filter P(lab.server.policy#filter) returns.
        Its users and its C(object_storage) are looked at.
    type: dict
    required: true
  credentials:
    description:
      - By name of the user and of the endpoint, the C(access_key) and C(secret_key) of this user there.
        Keep them in a vault.
    type: dict
    default: {}
extends_documentation_fragment:
  - lab.server.attributes
seealso:
  - plugin: lab.server.policy
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Users have their keys of the object storage
  lab.server.object_storage:
    policy: "{{ lab_policy.policy }}"
    credentials:
      alice:
        campus:
          access_key: AKALICE1
          secret_key: "{{ vault_alice_secret_key }}"
"""

RETURN = r"""
results:
  description: What was done to each item, or in check mode what would be done.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The user, or the folder of the files.
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

from ansible_collections.lab.server.plugins.module_utils._ansible import build_module, run_items
from ansible_collections.lab.server.plugins.module_utils._core.objectkeys import reconcile
from ansible_collections.lab.server.plugins.module_utils._core.policy import parse


def main() -> None:
    """Run the module."""
    module = build_module(
        {
            "policy": {"type": "dict", "required": True},
            "credentials": {"type": "dict", "default": {}, "no_log": True},
        }
    )
    run_items(
        module,
        lambda: reconcile(
            parse(module.params["policy"]), module.params["credentials"], check=module.check_mode
        ),
        alone=True,
    )


if __name__ == "__main__":
    main()
