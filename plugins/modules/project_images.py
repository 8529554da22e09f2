#!/usr/bin/python
# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring the images of projects up to date, go back to older ones, and remove those that are too old."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: project_images
short_description: Images of projects
version_added: 0.1.0
author: lab.server contributors (@lab-server)
description:
  - Builds the image of each project from the project's folder, when the fingerprint of what it is made of
    is new.
  - The fingerprint covers the Dockerfile, the build arguments, the ids of the images that it starts from,
    and of the build context as it is sent (F(.dockerignore) is honoured) what C(COPY) and C(ADD) take. Where
    that cannot be told for sure, as with variables, all of the context counts.
  - The context is packed by a process that has become the user. A context that did not change is not read.
    The names of the image move only when a build succeeded.
  - Of each project the newest images are kept, as many as the policy says (C(lab_images_keep)), and those
    that containers were made of. After a build the others are removed.
extends_documentation_fragment:
  - lab.server.attributes.docker
  - lab.server.attributes
  - lab.server.projects
  - lab.server.projects.policy
  - lab.server.projects.docker
options:
  state:
    description:
      - V(present), the image is up to date with the project's files. One that was gone back to stays until
        the files change.
      - V(rolled_back), an older image is the current one, and stays so until the project's files change. For
        the same files this is done once, not at every run.
      - V(pruned), no more images are there than are kept. Nothing is built.
    type: str
    choices: [present, rolled_back, pruned]
    default: present
  to:
    description: >-
      With O(state=rolled_back), the image to go back to, by the first digits of its fingerprint, where that
      is not the one before. For one project only.
    type: str
    default: ""
  build_args:
    description: >-
      Build arguments of all the builds. They can be seen in the image, so they must hold no secret.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: The image of Alice's project is up to date
  lab.server.project_images:
    policy: "{{ lab_policy.policy }}"
    projects:
      - user: alice
        name: my-thesis

- name: Whenever it is built again, Python packages keep the versions that they have now
  lab.server.project_images:
    policy: "{{ lab_policy.policy }}"
    projects:
      - user: alice
        name: my-thesis
        locked: true

- name: Alice's project is back at the image before
  lab.server.project_images:
    policy: "{{ lab_policy.policy }}"
    projects:
      - user: alice
        name: my-thesis
    state: rolled_back

- name: No more images of Alice's project are there than are kept
  lab.server.project_images:
    policy: "{{ lab_policy.policy }}"
    projects:
      - user: alice
        name: my-thesis
    state: pruned
"""

RETURN = r"""
results:
  description: What was done to each item, or in check mode what would be done.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The user and the project.
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
    image:
      description: The name of the image by its fingerprint.
      type: str
      returned: when it is known
    fingerprint:
      description: The fingerprint of what the image is made of.
      type: str
      returned: when it is known
    pinned:
      description: The image is one that was gone back to; it stays until the project's files change.
      type: bool
      returned: when it is so
    lock:
      description: The lock of a build, with O(projects[].locked).
      type: dict
      returned: when the image is built and a lock is known
      contains:
        image:
          description: The first digits of the fingerprint of the image whose versions are kept.
          type: str
          returned: always
        packages:
          description: The number of packages whose versions are kept.
          type: int
          returned: always
        left_out:
          description: Lines of the list that no version can be kept of, such as a package from a file.
          type: list
          elements: str
          returned: always
        broken:
          description: Packages that have another version all the same; not known in check mode.
          type: list
          elements: str
          returned: always
    notes:
      description: What should be known of the build, in sentences; each is a warning as well.
      type: list
      elements: str
      returned: when there are any
    kept:
      description: The names of the images that stay, newest first.
      type: list
      elements: str
      returned: with O(state=pruned)
    removed:
      description: The names of the images that are removed, newest first.
      type: list
      elements: str
      returned: with O(state=pruned)
  sample:
    - name: alice/my-thesis
      changed: true
      actions: [build, tag]
      reason: there is none
      diff: {}
"""

from typing import Any

from ansible_collections.lab.server.plugins.module_utils._ansible import build_module, run_items
from ansible_collections.lab.server.plugins.module_utils._core.images import (
    PRESENT,
    STATES,
    WantedImage,
    reconcile_images,
)
from ansible_collections.lab.server.plugins.module_utils._projects import (
    DOCKER,
    POLICY,
    PROJECTS,
    engine_of,
    environment_of,
    policy_of,
)

_OWN = {
    "state": {"type": "str", "choices": list(STATES), "default": PRESENT},
    "to": {"type": "str", "default": ""},
    "build_args": {"type": "dict", "default": {}},
}


def main() -> None:
    """Run the module."""
    module = build_module({**PROJECTS, **POLICY, **DOCKER, **_OWN})
    given: dict[str, Any] = module.params

    def work() -> Any:
        policy = policy_of(given)
        arguments = environment_of(given["build_args"], "build_args")
        wanted = [
            WantedImage(project["user"], project["name"], arguments, locked=project["locked"])
            for project in given["projects"]
        ]
        engine = engine_of(given, check=module.check_mode)
        state, to = given["state"], given["to"]
        return reconcile_images(engine, policy, wanted, check=module.check_mode, state=state, to=to)

    run_items(module, work)


if __name__ == "__main__":
    main()
