# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation that the modules for projects share."""

from __future__ import annotations


class ModuleDocFragment:
    """Options of the modules that work on projects, images and containers."""

    # The list of projects, one for the modules workspaces, project_images and project_containers.
    DOCUMENTATION = r"""
options:
  projects:
    description:
      - The projects. What is not in the list is left alone.
      - One list serves M(lab.server.workspaces), M(lab.server.project_images) and
        M(lab.server.project_containers); each takes of it what it needs.
    type: list
    elements: dict
    default: []
    suboptions:
      user:
        description: The user whose project it is.
        type: str
        required: true
      name:
        description: The name of the project, 1 to 32 of a-z, 0-9 and C(-).
        type: str
        required: true
      type:
        description: What a new project's requirements.txt begins with.
        type: str
        choices: [ml, cv, nlp, stats, custom]
        default: custom
      base:
        description: >-
          The image that a new project's Dockerfile starts from; the first of the policy if not given.
        type: str
      files:
        description: >-
          Files of a new project, by their path in the project, that replace or add to the layout.
        type: dict
        default: {}
      state:
        description:
          - V(started), the container is there and runs.
          - V(stopped), it does not run, not after a reboot either. One that is not there is not made.
          - V(retired), it is not there; the workspace and the images stay. V(absent) means the same.
        type: str
        choices: [started, stopped, retired, absent]
        default: started
      cpus:
        description: Processor cores; the user's limit if not given.
        type: float
      memory:
        description: Bytes, or with C(k), C(m), C(g) or C(t); the user's limit if not given.
        type: str
      pids:
        description: Processes and threads; the user's limit if not given.
        type: int
      shm:
        description: >-
          Size of /dev/shm in bytes, or with C(k), C(m), C(g) or C(t); the user's limit if not given.
        type: str
      environment:
        description: Environment variables of the container.
        type: dict
        default: {}
"""

    POLICY = r"""
options:
  policy:
    description:
      - The policy of the server, as the key C(policy) of the filter P(lab.server.policy#filter) has it.
      - Without it the file /etc/lab-server/policy.json of the server is read.
    type: dict
"""

    DOCKER = r"""
options:
  docker_host:
    description: The address of Docker Engine.
    type: str
    default: unix:///var/run/docker.sock
requirements:
  - Docker Engine 20.10 or later
  - Docker SDK for Python 5.0 or later (the package python3-docker)
"""
