#!/usr/bin/python
# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tell everything that a server holds."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: server_info
short_description: Everything that a lab server holds
version_added: 0.1.0
author: lab.server contributors (@lab-server)
description:
  - Tells the users with their limits, quotas and usage, the projects, the images with size and age, the
    containers with their spec, how they differ from it and why, the base images, and the file systems.
  - Whether a container differs is what M(lab.server.project_containers) would do to it, by the same code.
  - Changes nothing. What cannot be told, as when Docker Engine is down, is empty, and the reason is returned.
  - All sizes are bytes and all times seconds since 1970.
extends_documentation_fragment:
  - lab.server.attributes.info
  - lab.server.attributes.docker
  - lab.server.attributes
  - lab.server.projects.policy
  - lab.server.projects.docker
options:
  sizes:
    description:
      - Whether to measure what each container holds beyond its image, and the images of each user.
      - Docker walks through all of it, which can take long.
    type: bool
    default: false
  packages:
    description: Whether to tell which Python packages each image of a project has.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: What the server holds is known
  lab.server.server_info:
  register: info

- name: Containers that differ from the policy are shown with the reason
  ansible.builtin.debug:
    msg: "{{ item.name }} differs: {{ item.reason }}"
  loop: "{{ info.server.containers | selectattr('drift') }}"

- name: The Python packages of the images are known
  lab.server.server_info:
    packages: true
  register: with_packages

- name: More must not be promised than there is
  ansible.builtin.assert:
    that: info.server.storage.capacity | selectattr('level', 'in', ['full', 'overcommitted']) | length == 0
    fail_msg: "{{ info.server.storage.capacity | map(attribute='sentence') | join(' ') }}"

- name: Users who have filled nine tenths of their quota are shown
  ansible.builtin.debug:
    msg: "{{ item.name }} uses {{ item.usage.used }} of {{ item.quota.hard }} bytes"
  loop: "{{ info.server.users | rejectattr('usage', 'none') }}"
  when: item.quota.hard > 0 and item.usage.used > 0.9 * item.quota.hard
"""

RETURN = r"""
server:
  description: What the server holds.
  returned: always
  type: dict
  contains:
    version:
      description: The version of lab.server that looked.
      type: str
      returned: always
      sample: 0.1.0
    docker:
      description: Whether Docker Engine answers. Without it nothing is known of images and containers.
      type: dict
      returned: always
      contains:
        answers:
          description: Whether it does.
          type: bool
          returned: always
        problem:
          description: Why it does not; empty if it does.
          type: str
          returned: always
    users:
      description: The lab users of the policy.
      type: list
      elements: dict
      returned: always
      contains:
        name:
          description: The account.
          type: str
          returned: always
        uid:
          description: Its number.
          type: int
          returned: always
        group:
          description: The user's lab group.
          type: str
          returned: always
        groups:
          description: Further lab groups of the user.
          type: list
          elements: str
          returned: always
        comment:
          description: The full name.
          type: str
          returned: always
        home:
          description: The home.
          type: str
          returned: always
        workspace:
          description: The canonical folder of the workspace.
          type: str
          returned: always
        limits:
          description: What the user may hold at once, with the keys of C(lab_groups[].limits).
          type: dict
          returned: always
        quota:
          description: The quota of the policy, with the keys of C(lab_groups[].quota).
          type: dict
          returned: always
        usage:
          description: >-
            C(used) bytes and C(inodes) on the file system of the homes, and under C(quota) the limits that
            the kernel holds; none if they are not known.
          type: dict
          returned: always
        usage_problem:
          description: Why the usage is not known; empty if it is.
          type: str
          returned: always
        layers:
          description: >-
            What belongs to the user on Docker's file system, as under C(usage); none if it has no quotas.
          type: dict
          returned: always
        images_size:
          description: What the user's images hold, each layer once, without base images, if O(sizes).
          type: int
          returned: always
        containers:
          description: The names of the user's containers.
          type: list
          elements: str
          returned: always
    projects:
      description: Every project that is declared, or of which there is a folder, an image or a container.
      type: list
      elements: dict
      returned: always
      contains:
        user:
          description: Whose it is.
          type: str
          returned: always
        name:
          description: Its name.
          type: str
          returned: always
        declared:
          description: Whether it is in the policy.
          type: bool
          returned: always
        state:
          description: The declared state of its container; empty if it is not declared.
          type: str
          returned: always
        folder:
          description: Whether there is a folder in the workspace.
          type: bool
          returned: always
        folder_problem:
          description: Why the folders of the user are not known; empty if they are.
          type: str
          returned: always
        dockerfile:
          description: Whether there is a Dockerfile in the folder.
          type: bool
          returned: always
        image:
          description: The current image, by its fingerprint; empty if there is none.
          type: str
          returned: always
        container:
          description: The container; empty if there is none.
          type: str
          returned: always
        drift:
          description: >-
            Whether it differs from what M(lab.server.project_containers) would make of it, or is more than
            the policy allows, if it is declared. What would be in the way then, such as GPUs that are taken,
            is told by that module in check mode.
          type: bool
          returned: always
        reason:
          description: How it differs, or what is not allowed; empty if nothing.
          type: str
          returned: always
    images:
      description: The images of projects, the newest of each project first.
      type: list
      elements: dict
      returned: always
      contains:
        name:
          description: The name by its fingerprint, which stays with it.
          type: str
          returned: always
        user:
          description: Whose project it belongs to; empty if the owner is not in the policy.
          type: str
          returned: always
        uid:
          description: The owner's number.
          type: int
          returned: always
        project:
          description: The project.
          type: str
          returned: always
        fingerprint:
          description: The fingerprint of what it was made of.
          type: str
          returned: always
        base:
          description: The image that it stands on, as far as that is known.
          type: str
          returned: always
        current:
          description: Whether a new container of the project is made of it.
          type: bool
          returned: always
        in_use:
          description: Whether a container is made of it, a retired one included.
          type: bool
          returned: always
        containers:
          description: The containers that are made of it.
          type: list
          elements: str
          returned: always
        packages:
          description: >-
            Its Python packages, as C(pip freeze) said them when it was built, which are the lock of a locked
            build. None if they are not known, or were not asked for.
          type: list
          elements: str
          returned: always
        id:
          description: Its id.
          type: str
          returned: always
        size:
          description: Its size with the layers that it shares with others.
          type: int
          returned: always
        created:
          description: When it was built.
          type: int
          returned: always
        age_days:
          description: Whole days since then.
          type: int
          returned: always
    base_images:
      description: The base images of the policy, and others that were made for projects to start from.
      type: list
      elements: dict
      returned: always
      contains:
        name:
          description: The name by which Dockerfiles start from it.
          type: str
          returned: always
        declared:
          description: Whether it is in the policy.
          type: bool
          returned: always
        source:
          description: The reference in a registry or the archive that it is made of, if it is declared.
          type: str
          returned: always
        here:
          description: Whether it is on the server.
          type: bool
          returned: always
        id:
          description: Its id; empty if it is not here.
          type: str
          returned: always
        size:
          description: Its size.
          type: int
          returned: always
        created:
          description: When it was made.
          type: int
          returned: always
        age_days:
          description: Whole days since then.
          type: int
          returned: always
    containers:
      description: The containers of projects.
      type: list
      elements: dict
      returned: always
      contains:
        name:
          description: Its name.
          type: str
          returned: always
        user:
          description: Whose it is; empty if the owner is not in the policy.
          type: str
          returned: always
        uid:
          description: The owner's number.
          type: int
          returned: always
        project:
          description: The project.
          type: str
          returned: always
        id:
          description: Its id.
          type: str
          returned: always
        status:
          description: Docker's word for its state.
          type: str
          returned: always
        running:
          description: Whether its processes live.
          type: bool
          returned: always
        stopped_on_purpose:
          description: Whether it stays down after a reboot.
          type: bool
          returned: always
        created:
          description: When it was made.
          type: int
          returned: always
        size:
          description: The bytes that it holds beyond its image; none without O(sizes).
          type: int
          returned: always
        image:
          description: The image that it is made of, by its fingerprint.
          type: str
          returned: always
        image_newer:
          description: Whether the project has a newer image.
          type: bool
          returned: always
        gpu_idle:
          description: For how many seconds its GPUs have done nothing; none if it has none, or nobody knows.
          type: int
          returned: always
        declared:
          description: Whether its project is in the policy.
          type: bool
          returned: always
        spec:
          description: What it was made to be; none if another version of lab.server made it.
          type: dict
          returned: always
        drift:
          description: Whether it differs from what the policy makes of it today.
          type: bool
          returned: always
        reason:
          description: How it differs, in words; empty if it does not.
          type: str
          returned: always
        actions:
          description: What would be done to it.
          type: list
          elements: str
          returned: always
        diff:
          description: The keys C(before) and C(after) with what differs.
          type: dict
          returned: always
    retired:
      description: The containers that were retired and can still be brought back, the newest first.
      type: list
      elements: dict
      returned: always
      contains:
        name:
          description: Its name as long as it is retired.
          type: str
          returned: always
        container:
          description: The name that it had and would have again.
          type: str
          returned: always
        user:
          description: Whose it is; empty if the owner is not in the policy.
          type: str
          returned: always
        uid:
          description: The owner's number.
          type: int
          returned: always
        project:
          description: The project.
          type: str
          returned: always
        id:
          description: Its id.
          type: str
          returned: always
        retired:
          description: When it was retired.
          type: int
          returned: always
        undo_until:
          description: Until when it is kept.
          type: int
          returned: always
        size:
          description: The bytes that it holds beyond its image; none without O(sizes).
          type: int
          returned: always
        holds:
          description:
            - What is in it and nowhere else, as C(lost) of M(lab.server.project_containers) - C(packages),
              C(files), C(bytes), C(paths), C(volumes) and C(complete). None without O(sizes), and for others
              than the 50 newest.
          type: dict
          returned: always
    other_containers:
      description:
        - Containers on the same Docker Engine that are no project's, each with C(name), C(id) and C(status).
        - They are somebody else's, or left by a replacement that was broken off.
      type: list
      elements: dict
      returned: always
      contains:
        name:
          description: Its name.
          type: str
          returned: always
        id:
          description: Its id.
          type: str
          returned: always
        status:
          description: Docker's word for its state.
          type: str
          returned: always
    storage:
      description: The file systems of the policy.
      type: dict
      returned: always
      contains:
        problems:
          description: What is wrong with them, a sentence each; with one, no container is started.
          type: list
          elements: str
          returned: always
        filesystems:
          description: >-
            Each of them, with zeros where it is not mounted; where the policy leaves the homes to somebody
            else, also the one that holds them.
          type: list
          elements: dict
          returned: always
          contains:
            role:
              description: What it is for.
              type: str
              returned: always
            mount:
              description: Where it is to be mounted.
              type: str
              returned: always
            mounted:
              description: Whether it is.
              type: bool
              returned: always
            device:
              description: What is mounted there.
              type: str
              returned: always
            fstype:
              description: Its kind.
              type: str
              returned: always
            size:
              description: Its size.
              type: int
              returned: always
            free:
              description: Bytes that are free.
              type: int
              returned: always
            available:
              description: Bytes that are free for others than root.
              type: int
              returned: always
            inodes:
              description: How many files and folders it can hold.
              type: int
              returned: always
            inodes_free:
              description: How many more.
              type: int
              returned: always
        capacity:
          description: What was promised of each of them by quotas and sizes, against its size.
          type: list
          elements: dict
          returned: always
          contains:
            role:
              description: What it is for.
              type: str
              returned: always
            mount:
              description: Where it is to be mounted.
              type: str
              returned: always
            size:
              description: Its size; 0 where it is not mounted.
              type: int
              returned: always
            available:
              description: Bytes that are free for others than root.
              type: int
              returned: always
            used:
              description: Bytes in use.
              type: int
              returned: always
            used_percent:
              description: Per cent in use of what others than root may fill, as df(1) counts, rounded down.
              type: int
              returned: always
            promised:
              description: Bytes that quotas and sizes let be used, together.
              type: int
              returned: always
            ratio:
              description: These through the size.
              type: float
              returned: always
            unbounded:
              description: What has no limit, and so is not in C(promised).
              type: list
              elements: str
              returned: always
            too_large:
              description: What alone was promised more than the disk is.
              type: list
              elements: str
              returned: always
            overcommitted:
              description: Whether more was promised than C(lab_overcommit) allows, however full it is.
              type: bool
              returned: always
            level:
              description: >-
                V(full) or V(filling) by C(lab_watermarks), V(overcommitted) by C(lab_overcommit),
                V(unbounded), V(ok), or V(unknown) where it is not mounted.
              type: str
              returned: always
            sentence:
              description: The same in words.
              type: str
              returned: always
    gpus:
      description: The GPUs.
      type: list
      elements: dict
      returned: always
      contains:
        index:
          description: Its number, which can change with a boot.
          type: int
          returned: always
        uuid:
          description: Its name for good; empty if it does not answer.
          type: str
          returned: always
        name:
          description: What it is.
          type: str
          returned: always
        pci:
          description: Its place on the PCI bus.
          type: str
          returned: always
        memory:
          description: Its memory, in bytes.
          type: int
          returned: always
        used:
          description: How much of it is used.
          type: int
          returned: always
        mig:
          description: Whether it is divided into MIG instances; none if it cannot be.
          type: bool
          returned: always
        load:
          description: Per cent of the time in which it computed; none if it is divided or does not tell.
          type: int
          returned: always
        temperature:
          description: Degrees Celsius; none if it does not tell.
          type: int
          returned: always
        power:
          description: Watts that it takes; none if it does not tell.
          type: float
          returned: always
        power_limit:
          description: Watts that it may take; none if it does not tell.
          type: float
          returned: always
        ecc_errors:
          description: Uncorrectable errors of its memory since the driver's start; none if it does not tell.
          type: int
          returned: always
        xids:
          description: The numbers of the errors (Xid) that the kernel's log has of it, each once.
          type: list
          elements: int
          returned: always
        healthy:
          description: Whether work can be given to it.
          type: bool
          returned: always
        problem:
          description: What is wrong with it and what to do; empty if nothing is.
          type: str
          returned: always
        processes:
          description: The processes that compute on it, if it is not divided.
          type: list
          elements: dict
          returned: always
          contains:
            pid:
              description: Its number.
              type: int
              returned: always
            memory:
              description: Bytes of the GPU's memory that it holds; none if that is not known.
              type: int
              returned: always
            uid:
              description: Whose it is; none if it has just ended.
              type: int
              returned: always
            user:
              description: The name of that account; empty if there is none.
              type: str
              returned: always
            command:
              description: The name of its program.
              type: str
              returned: always
            container:
              description: The id of its Docker container; empty for a process of the host.
              type: str
              returned: always
        instances:
          description: Its MIG instances.
          type: list
          elements: dict
          returned: always
          contains:
            uuid:
              description: Its name for good.
              type: str
              returned: always
            name:
              description: What it is.
              type: str
              returned: always
            profile:
              description: Its profile, such as V(1g.10gb).
              type: str
              returned: always
            index:
              description: The numbers of its GPU and of itself, such as V(0:3).
              type: str
              returned: always
            memory:
              description: Its memory, in bytes.
              type: int
              returned: always
            used:
              description: How much of it is used.
              type: int
              returned: always
            problem:
              description: What is wrong with it alone, not with its GPU; empty if nothing is.
              type: str
              returned: always
            processes:
              description: As of a GPU.
              type: list
              elements: dict
              returned: always
    gpus_problem:
      description: Why nothing is known of GPUs, and what to do; empty if they are known.
      type: str
      returned: always
    gpu_driver:
      description: The version of the NVIDIA driver; empty if it is not known.
      type: str
      returned: always
    gpu_cuda:
      description: The newest CUDA that the driver supports, such as V(12.4); empty if it is not known.
      type: str
      returned: always
"""

from typing import Any

from ansible_collections.lab.server.plugins.module_utils._ansible import build_module, run_info
from ansible_collections.lab.server.plugins.module_utils._core import report
from ansible_collections.lab.server.plugins.module_utils._projects import DOCKER, POLICY, policy_of


def main() -> None:
    """Run the module."""
    asked = {"sizes": {"type": "bool", "default": False}, "packages": {"type": "bool", "default": False}}
    module = build_module({**POLICY, **DOCKER, **asked})
    given: dict[str, Any] = module.params
    run_info(
        module,
        "server",
        lambda: report.server(
            policy_of(given), given["docker_host"], sizes=given["sizes"], packages=given["packages"]
        ),
    )


if __name__ == "__main__":
    main()
