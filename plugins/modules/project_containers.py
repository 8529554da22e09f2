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
  - Makes, starts, stops, retires, restores and removes the containers of projects, all in one call.
  - A container is made anew only when what the policy makes of it changed, or when its image did. Its
    workspace stays, and the old one is retired, so that it can be restored for a while.
  - The limits of the policy are checked before anything of an item is made, and so is whether the GPUs that
    it asks for can be given. Items come in their order, but first those that only make room.
  - One item that fails does not stop the others. The task then fails, and C(results) holds what was done.
    Of the item that failed that is what was done until then, such as C(stop) and C(start) of a container that
    was to be replaced and was brought back; C(changed) says whether it was anything.
  - Check mode refuses what the deed would refuse as the server is. What an earlier task of the play may make,
    which in check mode it does not, is only noted in C(notes), such as a disk that is not mounted yet, or a
    folder that no container has had.
  - The image is not built here; see M(lab.server.project_images).
options:
  withdraw:
    description: >-
      Whether to stop every running container, declared or not, that holds what was taken from its user:
      a share that its owner may no longer use, or all of it where the owner is not in the policy any more.
    type: bool
    default: false
extends_documentation_fragment:
  - lab.server.attributes.docker
  - lab.server.attributes
  - lab.server.projects
  - lab.server.projects.policy
  - lab.server.projects.docker
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

- name: Bob's old container is given up; for some days it could be restored
  lab.server.project_containers:
    policy: "{{ lab_policy.policy }}"
    projects:
      - user: bob
        name: survey
        state: retired

- name: A notebook server that is reached from the server itself, in a home that is kept
  lab.server.project_containers:
    policy: "{{ lab_policy.policy }}"
    projects:
      - user: bob
        name: notebooks
        home: persistent
        ports:
          - container: 8888
            host: 18888
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
    lost:
      description:
        - What was in a retired or replaced container and nowhere else, as Docker tells it - C(packages)
          (Python packages that the image lacks), C(files) (their number), C(bytes), C(paths) (some of them),
          C(volumes) (of the image, whose files go too), and whether all could be looked at (C(complete)).
      type: dict
      returned: when the container was, or in check mode would be, retired or made anew
    undo_until:
      description: Until when a retired container can be restored, in seconds since 1970, if it is kept.
      type: int
      returned: when the container was, or in check mode would be, retired or made anew
    not_kept:
      description: Why a retired container is not kept; empty if it is.
      type: str
      returned: when the container was, or in check mode would be, retired or made anew
    brought:
      description:
        - The files that the environment brought - C(folder) (in the container), C(files) that were copied,
          and those that were C(skipped). In check mode C(folder) alone.
      type: dict
      returned: when files were copied, or in check mode would be
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
    - name: my-thesis._.2001
      changed: true
      actions: [create, start]
      reason: there is none
      diff: {}
"""

from typing import Any

from ansible_collections.lab.server.plugins.module_utils._ansible import build_module, run_items
from ansible_collections.lab.server.plugins.module_utils._core.containers import reconcile, withdraw
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
    module = build_module({**PROJECTS, **POLICY, **DOCKER, "withdraw": {"type": "bool", "default": False}})
    given: dict[str, Any] = module.params

    def work() -> Any:
        policy = policy_of(given)
        wanted = [wanted_of(project) for project in given["projects"]]
        engine = engine_of(given, check=module.check_mode)
        results = reconcile(engine, policy, wanted, check=module.check_mode)
        if given["withdraw"]:
            done = {result.name for result in results}
            withdrawn = withdraw(engine, policy, check=module.check_mode)
            results += [result for result in withdrawn if result.name not in done]
        return results

    run_items(module, work)


if __name__ == "__main__":
    main()
