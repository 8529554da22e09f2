#!/usr/bin/python
# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Make the workspaces of lab users, and lay out their projects."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: workspaces
short_description: Workspaces of lab users, and the layout of their projects
version_added: 0.1.0
author: lab.server contributors (@lab-server)
description:
  - Makes the canonical folder of each workspace, which all mounts use, and as the user the link
    C(workspace) in the home.
  - Lays out, as the user, each declared project that is not there yet. A project that is there is the
    user's, whatever is in it.
  - Gives the workspace its project on the file system of the homes, by which C(df) in a container tells
    the user's limit.
extends_documentation_fragment:
  - lab.server.attributes
  - lab.server.projects
  - lab.server.projects.policy
options:
  users:
    description: The names of the users; all users of the policy if not given.
    type: list
    elements: str
"""

EXAMPLES = r"""
- name: Every user has a workspace, and Alice a project
  lab.server.workspaces:
    policy: "{{ lab_policy.policy }}"
    projects:
      - user: alice
        name: my-thesis
        type: ml
        base: lab/python
        files:
          requirements.txt: |
            numpy
"""

RETURN = r"""
results:
  description: What was done to each item, or in check mode what would be done.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The user.
      type: str
      returned: always
    changed:
      description: Whether the item differed.
      type: bool
      returned: always
    actions:
      description: What was done, in order.
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
      changed: true
      actions: [create /home/.workspaces/alice]
      reason: there is none
      diff: {}
"""

from typing import Any

from ansible_collections.lab.server.plugins.module_utils._ansible import build_module, run_items
from ansible_collections.lab.server.plugins.module_utils._core.workspaces import (
    WantedWorkspace,
    reconcile,
)
from ansible_collections.lab.server.plugins.module_utils._projects import (
    POLICY,
    PROJECTS,
    by_user,
    policy_of,
    project_of,
)


def main() -> None:
    """Run the module."""
    module = build_module({**PROJECTS, **POLICY, "users": {"type": "list", "elements": "str"}})
    given: dict[str, Any] = module.params

    def work() -> Any:
        policy = policy_of(given)
        projects = by_user(project_of(project, policy) for project in given["projects"])
        users = given["users"] if given["users"] is not None else [user.name for user in policy.users]
        # A project of a user outside the list is told about, not forgotten.
        named = [*users, *(user for user in projects if user not in users)]
        wanted = [WantedWorkspace(user, projects.get(user, ())) for user in named]
        return reconcile(policy, wanted, check=module.check_mode)

    run_items(module, work)


if __name__ == "__main__":
    main()
