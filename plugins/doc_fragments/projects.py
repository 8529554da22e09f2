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
          - V(retired), it is not there; the workspace and the images stay. For C(lab_retire_keep) days and
            within C(lab_retire_size) it is kept, stopped and under another name, to be restored.
          - V(absent), it is not there, and is not kept.
          - V(restored), the one that was retired last is there again and runs. It fails when there is none,
            or when another one has taken its place.
        type: str
        choices: [started, stopped, retired, absent, restored]
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
      home:
        description:
          - What the user's home in the container is.
          - V(container), a part of the container, gone with it.
          - V(persistent), a folder that is kept for the project, C(/home/.homes/USER/PROJECT) on the host.
          - V(host), the user's home of the host; C(.ssh) in it is hidden.
        type: str
        choices: [container, persistent, host]
        default: container
      ports:
        description:
          - Ports (TCP) of the container that are reached from the server itself, at 127.0.0.1, and from
            nowhere else. Every user of the server reaches them; what listens there must ask for a password.
        type: list
        elements: dict
        default: []
        suboptions:
          container:
            description: The port in the container.
            type: int
            required: true
          host:
            description: The port of the server, 1024 to 65535; of one container alone.
            type: int
            required: true
      locked:
        description:
          - Whether Python packages keep their versions whenever the image is built. They are those of the
            image of the same files, where that was lost, or else of the current image, or else of the one
            whose list was kept last; without any, the first build has no lock.
          - It makes no build needed. What no list has yet comes in the version that the requirements say.
          - "During the build the lock is the file C(/run/lab-server/lock.txt), which the variables
            C(PIP_CONSTRAINT) and C(UV_CONSTRAINT) name. It stays in the image, and no container shows it.
            In the build context it takes the name C(.lab-server-lock.txt), which C(COPY .) takes along."
          - A build fails if the requirements ask for another version than the lock has.
        type: bool
        default: false
      on_new_image:
        description:
          - What becomes of a container that runs when the image is newer than it. What else is declared of it
            counts at once in either case.
          - V(replace), it is made anew; what runs in it ends, and what is only in it is kept for a while, as
            of one that is retired.
          - V(wait), it is left as it is. The newer image is taken once it does not run, or is retired.
        type: str
        choices: [replace, wait]
        default: replace
      gpus:
        description:
          - >-
            GPUs of the container - a number of whole ones, a MIG profile such as V(1g.10gb) or V(2x1g.10gb),
            a mapping such as C({memory: 40g}) or C({uuid: GPU-...}), or V(shared) for a part of one.
          - It has them, by uuid, for as long as it is there and not retired, and nobody else has them.
        type: raw
      run_hours:
        description:
          - For how many hours the container may run before it is stopped, whatever its user's limits say; 0
            is without end. The timer of the role P(lab.server.lifecycle#role) reads it in the policy.
        type: int
      idle_hours:
        description: For how many hours the container may do nothing before it is stopped, in the same way.
        type: int
      keep:
        description:
          - Folders of the container that are kept when it is retired, on the file system of the homes, where
            they count against the quota of their user. M(lab.server.workspaces) makes them.
          - A folder that is not declared any more is no longer mounted. It is not removed.
        type: list
        elements: dict
        default: []
        suboptions:
          path:
            description: The path in the container, such as C(/opt/packages).
            type: str
            required: true
          size:
            description:
              - What its files may hold together, such as V(10g), told by C(df) there. It is changed at once.
              - Without it, and with C(0), only the quota of the user counts.
            type: str
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
