#!/usr/bin/python
# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tell what GPUs a server has, who has them and how they are."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gpu_info
short_description: The GPUs of a server, and who computes on them
version_added: 0.1.0
author: lab.server contributors (@lab-server)
description:
  - Tells each NVIDIA GPU with its memory, load, temperature, power and health, its MIG instances, and the
    processes on it with their user and container, as NVML and the kernel know them.
  - Where there is no GPU, no driver or no library of it, where driver and library differ, or where a GPU is
    lost, it says so in a sentence and does not fail.
  - Needs nvidia-ml-py on the server, which the role P(lab.server.nvidia_container_toolkit#role) installs.
  - Changes nothing.
extends_documentation_fragment:
  - lab.server.attributes.info
  - lab.server.attributes
options: {}
"""

EXAMPLES = r"""
- name: The GPUs of the server are known
  lab.server.gpu_info:
  register: info

- name: A GPU that is not well is shown
  ansible.builtin.debug:
    msg: "{{ item.problem }}"
  loop: "{{ info.gpu.gpus | rejectattr('healthy') }}"
"""

RETURN = r"""
gpu:
  description: What was seen.
  returned: success
  type: dict
  contains:
    problem:
      description: Why nothing is known of GPUs, and what to do; empty if they are known.
      type: str
      returned: always
    on_bus:
      description: How many NVIDIA GPUs are on the PCI bus, whether they have a driver or not.
      type: int
      returned: always
    loaded:
      description: Whether the NVIDIA driver is in the kernel.
      type: bool
      returned: always
    driver:
      description: The version of the driver.
      type: str
      returned: always
    cuda:
      description: The newest CUDA that the driver supports, such as V(12.4).
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
"""

from ansible_collections.lab.server.plugins.module_utils._ansible import build_module, run_info
from ansible_collections.lab.server.plugins.module_utils._core import gpus


def main() -> None:
    """Run the module."""
    run_info(
        build_module({}),
        "gpu",
        lambda: {**gpus.told(gpus.look()), "on_bus": gpus.on_bus(), "loaded": gpus.loaded()},
    )


if __name__ == "__main__":
    main()
