#!/usr/bin/python
# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Let a lab user leave, step by step."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: offboarding
short_description: A lab user leaves
version_added: 0.1.0
author: lab.server contributors (@lab-server)
description:
  - Closes the account, retires the containers, archives home, workspace and the kept homes and folders of
    projects, reads the archives again, and copies projects to other users or to shares.
  - Removes files and account only with O(purge), in a later run, after O(keep_days), and only while each
    archive is whole.
  - What was done is noted on the server; a run that was broken off is repeated. The uid is never given again.
extends_documentation_fragment:
  - lab.server.attributes.docker
  - lab.server.attributes
  - lab.server.projects.policy
  - lab.server.projects.docker
options:
  user:
    description: The name of the lab user, who may be declared still or not any more.
    type: str
    required: true
  hand_over:
    description:
      - Projects of which another user gets a copy, as that user's own and within that user's quota.
      - A share with C(access=group) gets one, too, for all members of its group to work on. They stay
        files of who leaves, and count for the sizes of that user and of the share.
    type: list
    elements: dict
    default: []
    suboptions:
      project:
        description: The name of the project.
        type: str
        required: true
      to:
        description: The lab user who gets the copy, or C(share:NAME) for the share of that name.
        type: str
        required: true
      name:
        description: The name that it has there; the same if not given.
        type: str
  directory:
    description:
      - The folder of the archives, which is root's alone and made if it is missing.
      - They stay after the purge. One that was read again is not written over; where the files changed since,
        another one with C(~2) in its name comes beside it.
    type: path
    default: /home/.offboarded
  keep_days:
    description: For how many days after they were archived the files stay where they are.
    type: int
    default: 30
  purge:
    description: Whether to remove files and account, if these days are over.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Alice leaves, and Bob goes on with her survey
  lab.server.offboarding:
    user: alice
    hand_over:
      - project: survey
        to: bob

- name: Alice leaves, and her group goes on with her survey in its share
  lab.server.offboarding:
    user: alice
    hand_over:
      - project: survey
        to: share:vision
        name: survey-of-alice

- name: Alice's files and account are removed, a month later
  lab.server.offboarding:
    user: alice
    purge: true
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
    - name: account
      changed: true
      actions: [never give uid 2001 again, close the account alice]
      reason: alice leaves
      diff: {}
"""

from typing import Any

from ansible_collections.lab.server.plugins.module_utils._ansible import build_module, run_items
from ansible_collections.lab.server.plugins.module_utils._core import offboarding
from ansible_collections.lab.server.plugins.module_utils._core.departing import offboard
from ansible_collections.lab.server.plugins.module_utils._projects import DOCKER, POLICY, engine_of, policy_of

_HAND_OVER = {
    "project": {"type": "str", "required": True},
    "to": {"type": "str", "required": True},
    "name": {"type": "str"},
}


def main() -> None:
    """Run the module."""
    module = build_module(
        {
            "user": {"type": "str", "required": True},
            "hand_over": {"type": "list", "elements": "dict", "default": [], "options": _HAND_OVER},
            "directory": {"type": "path", "default": offboarding.ARCHIVES},
            "keep_days": {"type": "int", "default": 30},
            "purge": {"type": "bool", "default": False},
            **POLICY,
            **DOCKER,
        }
    )
    given: dict[str, Any] = module.params

    def work() -> Any:
        asked = offboarding.request(
            given["user"],
            given["hand_over"],
            directory=given["directory"],
            keep_days=given["keep_days"],
            purge=given["purge"],
        )
        engine = engine_of(given, check=module.check_mode)
        return offboard(engine, policy_of(given), asked, check=module.check_mode)

    run_items(module, work)


if __name__ == "__main__":
    main()
