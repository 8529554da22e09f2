#!/usr/bin/python
# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring the containers of projects to what is declared."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: project_containers
short_description: Containers of projects
version_added: 0.1.0
author: lab.server contributors (@lab-server)
description:
  - Makes, starts, stops and removes the containers of projects, all in one call.
  - A container is made anew only when what the policy makes of it changed, or when its image did. Its
    workspace stays.
  - The limits of the policy are checked before anything is made.
  - The image is not built here; see M(lab.server.project_images).
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - lab.server.projects
  - lab.server.projects.policy
  - lab.server.projects.docker
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  platform:
    platforms: posix
    support: full
"""

EXAMPLES = r"""
- name: Alice's project runs with half of what she may use
  lab.server.project_containers:
    policy: "{{ lab_policy.policy }}"
    projects:
      - user: alice
        name: my-thesis
        cpus: 1
        memory: 512m
"""

RETURN = r"""
results:
  description: What was done to each item, or in check mode what would be done.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The container.
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
    - name: my-thesis._.2001
      changed: true
      actions: [create, start]
      reason: there is none
      diff: {}
"""

from typing import Any

from ansible_collections.lab.server.plugins.module_utils._ansible import build_module, run_items
from ansible_collections.lab.server.plugins.module_utils._core.containers import reconcile
from ansible_collections.lab.server.plugins.module_utils._projects import (
    DOCKER,
    POLICY,
    PROJECTS,
    engine_of,
    policy_of,
    wanted_of,
)


def main() -> None:
    """Run the module."""
    module = build_module({**PROJECTS, **POLICY, **DOCKER})
    given: dict[str, Any] = module.params

    def work() -> Any:
        policy = policy_of(given)
        wanted = [wanted_of(project) for project in given["projects"]]
        engine = engine_of(given, check=module.check_mode)
        return reconcile(engine, policy, wanted, check=module.check_mode)

    run_items(module, work)


if __name__ == "__main__":
    main()
