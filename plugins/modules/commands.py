#!/usr/bin/python
# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring the library, the lab users' commands and the policy that they obey to a server."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: commands
short_description: Bring the lab users' commands and the policy that they obey to a server
version_added: 0.1.0
author: lab.server contributors (@lab-server)
description:
  - Writes the library of this collection to C(/usr/local/lib/lab-server), each version into a directory of
    its own, and switches the link C(current) last, so that a command that starts meanwhile sees one whole
    version. The version before it is kept, older ones are removed.
  - Writes the commands C(project), C(container), C(workspace) and C(image-update) with their hyphenated
    names to C(/usr/local/bin), the broker and the program of the boot unit to C(/usr/local/sbin), and removes
    programs of this collection that it no longer has.
  - Writes the policy to C(/etc/lab-server/policy.json), which root alone can read. The texts of declared
    files are left out of it.
  - Writes what users may read of it to C(/etc/lab-server/public.json), without environment variables.
options:
  policy:
    description:
      - The policy of the server, as the key C(policy) of what the filter P(lab.server.policy#filter) returns.
    type: dict
    required: true
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  platform:
    platforms: posix
    support: full
seealso:
  - plugin: lab.server.policy
    plugin_type: filter
"""

EXAMPLES = r"""
- name: The lab users' commands obey the inventory
  lab.server.commands:
    policy: "{{ lab_policy.policy }}"
"""

RETURN = r"""
results:
  description: One item each for the library, the programs and the policy.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: What the item is about, C(library), C(programs) or C(policy).
      type: str
    changed:
      description: Whether something was, or in check mode would be, changed.
      type: bool
    actions:
      description: What was done, in words.
      type: list
      elements: str
    diff:
      description: The state before and after.
      type: dict
    reason:
      description: Why it was done.
      type: str
"""

from ansible_collections.lab.server.plugins.module_utils import _ansible
from ansible_collections.lab.server.plugins.module_utils._core import install, policy


def _carried() -> None:
    """Name every file of the library, and never run: Ansible carries along what a module could import."""
    from ansible_collections.lab.server.plugins.module_utils._core import (  # noqa: F401  # see above
        accounts,
        asuser,
        boot,
        broker,
        cli,
        containers,
        context,
        daemon,
        engine,
        errors,
        fingerprint,
        hostfiles,
        images,
        install,
        items,
        journal,
        locks,
        mounts,
        names,
        packages,
        plan,
        policy,
        protocol,
        quota,
        safefs,
        scaffold,
        shares,
        sizes,
        slices,
        spec,
        state,
        storage,
        terminal,
        tree,
        units,
        workspaces,
    )


def main() -> None:
    module = _ansible.build_module({"policy": {"type": "dict", "required": True}})
    _ansible.run_items(
        module,
        lambda: install.reconcile(policy.parse(module.params["policy"]), check=module.check_mode),
    )


if __name__ == "__main__":
    main()
